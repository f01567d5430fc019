"""Who may do what, and how much of it: API keys with scopes and a tenant, and token buckets that replicas share."""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

from service.database import ConflictError, Database, DatabaseUnavailableError, NotFoundError

__all__ = [
    "Allowance",
    "ApiKeyRepository",
    "Authenticator",
    "Caller",
    "ForbiddenError",
    "KeyRecord",
    "RateLimitedError",
    "RateLimiter",
    "Scope",
    "UnauthorizedError",
    "client_address",
]

Address: TypeAlias = IPv4Address | IPv6Address
_DEFAULT_TENANT: Final = "default"
_FRESH_SECONDS: Final = 10.0
"""How long an answer about a key is used without asking again: the time that a revoked key lives on."""
_STALE_SECONDS: Final = 300.0
"""How long it is used while the database does not answer."""
_REMEMBERED: Final = 10_000
_LEASE_FRACTION: Final = 1 / 60
"""A replica takes this part of a minute's tokens at a time, so that most requests cost no round trip."""
_BYTES_PER_TOKEN: Final = 4
"""What a body is charged by before it is read: English text has about four bytes to the token."""


class Scope(StrEnum):
    """What a key may do. Each scope includes the ones before it."""

    PUBLIC = "public"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


_INCLUDED: Final = {
    Scope.READ: frozenset({Scope.PUBLIC, Scope.READ}),
    Scope.WRITE: frozenset({Scope.PUBLIC, Scope.READ, Scope.WRITE}),
    Scope.ADMIN: frozenset(Scope),
}


class UnauthorizedError(Exception):
    """No key, where one is needed, or an unknown or revoked one."""


class ForbiddenError(Exception):
    """A good key that does not allow this."""


class RateLimitedError(Exception):
    """The caller has used up its tokens; there are enough again in `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the key's tokens are used up, retry after {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. `subject` is the key's id, empty without a key; `tokens_per_minute` None is no limit."""

    subject: str
    tenant: str
    scopes: frozenset[Scope]
    tokens_per_minute: int | None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as operators see it: never the key itself."""

    name: str
    scopes: tuple[str, ...]
    tenant_id: str
    tokens_per_minute: int
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a caller's bucket: `remaining` of `limit` tokens, full again after `reset_seconds`."""

    limit: int
    remaining: int
    reset_seconds: int


class ApiKeyRepository:
    """The keys in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, name: str, scopes: Sequence[str], tenant: str, tokens_per_minute: int) -> str:
        """Make a key and return it: the only time that it can be seen. `ConflictError` if the name is taken."""
        key = "tg_" + secrets.token_urlsafe(32)
        async with self._database.connection() as connection:
            status = await connection.execute(
                """
                INSERT INTO api_keys (name, key_sha256, scopes, tenant_id, tokens_per_minute)
                VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING
                """,
                name,
                _digest(key),
                list(scopes),
                tenant,
                tokens_per_minute,
            )
        if status != "INSERT 0 1":
            raise ConflictError(f"there is a key named {name}")
        return key

    async def revoke(self, name: str) -> None:
        """Make a key useless, on every replica within ten seconds."""
        async with self._database.connection() as connection:
            status = await connection.execute("UPDATE api_keys SET revoked_at = now() WHERE name = $1", name)
        if status == "UPDATE 0":
            raise NotFoundError("key", name)

    async def purge(self, name: str) -> None:
        """Delete a temporary key with all claims and evidence of its tenant, which nobody else may be using.

        `NotFoundError` if there is no such key; `ConflictError` if its tenant is the default one or has other keys.
        """
        async with self._database.transaction() as connection:
            tenant = await connection.fetchval("SELECT tenant_id FROM api_keys WHERE name = $1", name)
            if tenant is None:
                raise NotFoundError("key", name)
            others = await connection.fetchval(
                "SELECT count(*) FROM api_keys WHERE tenant_id = $1 AND name <> $2", tenant, name
            )
            if others or tenant == _DEFAULT_TENANT:
                raise ConflictError(
                    f"key {name} has no tenant of its own, {tenant!r} is shared: revoke the key instead"
                )
            await connection.execute("DELETE FROM claims WHERE tenant_id = $1", tenant)
            await connection.execute("DELETE FROM evidence WHERE tenant_id = $1", tenant)
            await connection.execute("DELETE FROM api_keys WHERE name = $1", name)

    async def all(self) -> list[KeyRecord]:
        """Every key, oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT name, scopes, tenant_id, tokens_per_minute, created_at, revoked_at
                FROM api_keys ORDER BY created_at
                """
            )
        return [KeyRecord(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]

    async def exist(self) -> bool:
        """Whether any key was ever made."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM api_keys)"))

    async def caller(self, key: str) -> Caller | None:
        """Who `key` stands for; None if it is unknown or revoked."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                """
                SELECT id, scopes, tenant_id, tokens_per_minute FROM api_keys
                WHERE key_sha256 = $1 AND revoked_at IS NULL
                """,
                _digest(key),
            )
        if row is None:
            return None
        scopes = frozenset[Scope]().union(*(_INCLUDED[Scope(scope)] for scope in row["scopes"]))
        return Caller(str(row["id"]), row["tenant_id"], scopes, row["tokens_per_minute"])


class Authenticator:
    """Tells who a caller is. Without a key only this machine is let in, and only as long as no key exists."""

    def __init__(self, keys: ApiKeyRepository, *, has_database: bool, allow_anonymous: bool) -> None:
        self._keys = keys
        self._has_database = has_database
        self._allow_anonymous = allow_anonymous
        self._known: OrderedDict[bytes, tuple[float, Caller | None]] = OrderedDict()
        self._keys_exist: tuple[float, bool] | None = None

    async def caller(self, key: str | None, address: Address | None) -> Caller:
        """The caller with `key` at `address` (None: not known, or not to be trusted); raises `UnauthorizedError`.

        Where callers without a key are let in, so are those with one that says nothing here: clients of compatible
        servers insist on sending some key.
        """
        if key is not None and self._has_database and (caller := await self._lookup(key)) is not None:
            return caller
        if self._allow_anonymous:
            return Caller("", _DEFAULT_TENANT, _INCLUDED[Scope.WRITE], None)
        if await self._any_key():
            raise UnauthorizedError(
                "send a key as `Authorization: Bearer KEY`" if key is None else "the key is unknown or revoked"
            )
        if address is None or not address.is_loopback:
            raise UnauthorizedError(
                "without keys only this machine itself is let in: make one by `python -m service keys add` and send it "
                "as `Authorization: Bearer KEY`, or let anyone in with TRUTHGRAPH_ALLOW_ANONYMOUS=true"
            )
        return Caller("", _DEFAULT_TENANT, _INCLUDED[Scope.ADMIN], None)

    async def _lookup(self, key: str) -> Caller | None:
        digest = _digest(key)
        now = time.monotonic()
        known = self._known.get(digest)
        if known is not None and now - known[0] < _FRESH_SECONDS:
            return known[1]
        try:
            caller = await self._keys.caller(key)
        except DatabaseUnavailableError:
            if known is not None and now - known[0] < _STALE_SECONDS:
                return known[1]
            raise
        self._known[digest] = (now, caller)
        self._known.move_to_end(digest)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return caller

    async def _any_key(self) -> bool:
        if not self._has_database:
            return False
        now = time.monotonic()
        if self._keys_exist is not None and now - self._keys_exist[0] < _FRESH_SECONDS:
            return self._keys_exist[1]
        try:
            self._keys_exist = (now, await self._keys.exist())
        except DatabaseUnavailableError:
            if self._keys_exist is None or now - self._keys_exist[0] > _STALE_SECONDS:
                raise
        return self._keys_exist[1]


class RateLimiter:
    """Token buckets of one minute's tokens, filled evenly, one per key, in the database that the replicas share."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leased: OrderedDict[str, float] = OrderedDict()
        self.refused = 0

    async def take(self, caller: Caller, body_bytes: int) -> Allowance | None:
        """Charge a request by its size; None for a caller without a limit; raises `RateLimitedError`.

        A request that would cost more than a whole bucket costs a whole bucket. While the database does not answer
        nobody is limited: nearly all that a limit protects is refused then anyhow.
        """
        limit = caller.tokens_per_minute
        if limit is None:
            return None
        cost = min(float(limit), 1.0 + body_bytes / _BYTES_PER_TOKEN)
        left = self._leased.pop(caller.subject, 0.0)
        in_bucket = 0.0
        if left < cost:
            want = max(cost - left, limit * _LEASE_FRACTION)
            try:
                granted, in_bucket = await self._lease(caller.subject, limit, want)
            except DatabaseUnavailableError:
                granted = want
            left += granted
        if left < cost:
            self._keep(caller.subject, left)
            self.refused += 1
            raise RateLimitedError(max(1.0, (cost - left) / limit * 60))
        self._keep(caller.subject, left - cost)
        remaining = left - cost + in_bucket
        return Allowance(limit, int(remaining), int((limit - remaining) / limit * 60))

    def _keep(self, subject: str, tokens: float) -> None:
        # Another request of the same caller may have put some back while this one waited for the database.
        self._leased[subject] = self._leased.get(subject, 0.0) + tokens
        while len(self._leased) > _REMEMBERED:
            self._leased.popitem(last=False)

    async def _lease(self, subject: str, limit: int, want: float) -> tuple[float, float]:
        """Take up to `want` tokens out of the shared bucket: how many were taken, how many are left in it."""
        async with self._database.transaction() as connection:
            filled = await connection.fetchval(
                """
                INSERT INTO rate_buckets AS bucket (subject, tokens, updated_at) VALUES ($1, $2, clock_timestamp())
                ON CONFLICT (subject) DO UPDATE SET updated_at = clock_timestamp(), tokens = least($2,
                    bucket.tokens + extract(epoch FROM clock_timestamp() - bucket.updated_at) * $2 / 60.0)
                RETURNING tokens
                """,
                subject,
                float(limit),
            )
            taken = min(filled, want)
            await connection.execute("UPDATE rate_buckets SET tokens = tokens - $2 WHERE subject = $1", subject, taken)
        return taken, filled - taken


def client_address(
    peer: str | None, headers: Mapping[str, str], trusted: Sequence[IPv4Network | IPv6Network]
) -> Address | None:
    """Where a request comes from: the peer, or what a trusted proxy says of it.

    X-Forwarded-For is read from its end, as far as the addresses in it are trusted proxies' own. Of a peer that is
    not trusted, a forwarded request's origin is not known: None.
    """
    address = _address(peer)
    forwarded = [part.strip() for part in headers.get("x-forwarded-for", "").split(",") if part.strip()]
    is_forwarded = bool(forwarded) or "forwarded" in headers
    while forwarded and address is not None and any(address in network for network in trusted):
        address = _address(forwarded.pop())
        is_forwarded = False
    return None if is_forwarded else address


def _address(text: str | None) -> Address | None:
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
