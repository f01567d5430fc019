"""Authenticates callers by API key, with scopes and a tenant, and limits their rate by token buckets.

Holds the SQL on the tables api_keys and rate_buckets. The buckets are shared by all replicas.
"""

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
"""How long a key's record is cached, and so how long a revoked key still works."""
_STALE_SECONDS: Final = 300.0
"""How long a cached record is used while the database does not answer."""
_CACHED: Final = 10_000
_LEASE_FRACTION: Final = 1 / 60
"""Share of a minute's tokens that a replica takes at a time, so that most requests need no round trip."""
_BYTES_PER_TOKEN: Final = 4
"""Estimate for charging a body before it is read: English text has about four bytes a token."""


class Scope(StrEnum):
    """What a key allows. Each scope includes those before it."""

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
    """An API key is required, or the given one is unknown or revoked."""


class ForbiddenError(Exception):
    """The API key is valid and does not allow this request."""


class RateLimitedError(Exception):
    """The caller has too few tokens left; there will be enough after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the rate limit of the API key is reached; retry after {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. `subject` is the key's id, empty without a key; `tokens_per_minute` None is no limit."""

    subject: str
    tenant: str
    scopes: frozenset[Scope]
    tokens_per_minute: int | None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key's record for operators, without the key itself."""

    name: str
    scopes: tuple[str, ...]
    tenant_id: str
    tokens_per_minute: int
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Allowance:
    """The state of a caller's bucket: `remaining` of `limit` tokens, full again after `reset_seconds`."""

    limit: int
    remaining: int
    reset_seconds: int


class ApiKeyRepository:
    """Reads and writes API keys. The database stores only their hashes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, name: str, scopes: Sequence[str], tenant: str, tokens_per_minute: int) -> str:
        """Adds a key and returns it; it cannot be read again. Raises `ConflictError` if the name is taken."""
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
            raise ConflictError(f"there is already an API key named {name}")
        return key

    async def revoke(self, name: str) -> None:
        """Revokes a key; every replica refuses it within ten seconds. Raises `NotFoundError`."""
        async with self._database.connection() as connection:
            status = await connection.execute("UPDATE api_keys SET revoked_at = now() WHERE name = $1", name)
        if status == "UPDATE 0":
            raise NotFoundError("API key named", name)

    async def purge(self, name: str) -> None:
        """Deletes a temporary key with all claims and evidence of its tenant.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: its tenant is the default one or has other keys.
        """
        async with self._database.transaction() as connection:
            tenant = await connection.fetchval("SELECT tenant_id FROM api_keys WHERE name = $1", name)
            if tenant is None:
                raise NotFoundError("API key named", name)
            others = await connection.fetchval(
                "SELECT count(*) FROM api_keys WHERE tenant_id = $1 AND name <> $2", tenant, name
            )
            if others or tenant == _DEFAULT_TENANT:
                raise ConflictError(f"the tenant {tenant!r} of API key {name} is shared: revoke the key instead")
            await connection.execute("DELETE FROM claims WHERE tenant_id = $1", tenant)
            await connection.execute("DELETE FROM evidence WHERE tenant_id = $1", tenant)
            await connection.execute("DELETE FROM api_keys WHERE name = $1", name)

    async def all(self) -> list[KeyRecord]:
        """Returns every key's record, oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                """
                SELECT name, scopes, tenant_id, tokens_per_minute, created_at, revoked_at
                FROM api_keys ORDER BY created_at
                """
            )
        return [KeyRecord(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]

    async def exist(self) -> bool:
        """Whether there is any key, revoked ones included."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM api_keys)"))

    async def caller(self, key: str) -> Caller | None:
        """Returns the caller that `key` identifies; None if it is unknown or revoked."""
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
    """Identifies callers. Without a key it accepts this machine only, and only while no key exists."""

    def __init__(self, keys: ApiKeyRepository, *, has_database: bool, allow_anonymous: bool) -> None:
        self._keys = keys
        self._has_database = has_database
        self._allow_anonymous = allow_anonymous
        self._known: OrderedDict[bytes, tuple[float, Caller | None]] = OrderedDict()
        self._keys_exist: tuple[float, bool] | None = None

    async def caller(self, key: str | None, address: Address | None) -> Caller:
        """Returns the caller with `key` at `address` (None: unknown or not trusted), or raises `UnauthorizedError`.

        If anonymous access is on, unknown keys are accepted too: OpenAI clients insist on sending one.
        """
        if key is not None and self._has_database and (caller := await self._lookup(key)) is not None:
            return caller
        if self._allow_anonymous:
            return Caller("", _DEFAULT_TENANT, _INCLUDED[Scope.WRITE], None)
        if await self._any_key():
            raise UnauthorizedError(
                "an API key is required: send it as `Authorization: Bearer KEY`"
                if key is None
                else "the API key is unknown or revoked"
            )
        if address is None or not address.is_loopback:
            raise UnauthorizedError(
                "without API keys only this machine has access: add a key with `python -m service keys add` and send "
                "it as `Authorization: Bearer KEY`, or allow everyone with TRUTHGRAPH_ALLOW_ANONYMOUS=true"
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
        while len(self._known) > _CACHED:
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
    """One token bucket per key in the database. A bucket holds one minute's tokens and fills evenly."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._leased: OrderedDict[str, float] = OrderedDict()
        self.refused = 0

    async def take(self, caller: Caller, body_bytes: int) -> Allowance | None:
        """Charges a request by its size. Returns None for a caller without a limit; raises `RateLimitedError`.

        A request costs at most a full bucket. While the database does not answer there is no limit: nearly everything
        that the limit protects fails then anyway.
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
            self._put_back(caller.subject, left)
            self.refused += 1
            raise RateLimitedError(max(1.0, (cost - left) / limit * 60))
        self._put_back(caller.subject, left - cost)
        remaining = left - cost + in_bucket
        return Allowance(limit, int(remaining), int((limit - remaining) / limit * 60))

    def _put_back(self, subject: str, tokens: float) -> None:
        # Another request of the same caller may have put tokens back while this one waited for the database.
        self._leased[subject] = self._leased.get(subject, 0.0) + tokens
        while len(self._leased) > _CACHED:
            self._leased.popitem(last=False)

    async def _lease(self, subject: str, limit: int, want: float) -> tuple[float, float]:
        """Takes up to `want` tokens from the shared bucket; returns how many it took and how many are left."""
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
    """Returns the address of the client: the peer, or what a trusted proxy forwards.

    Reads X-Forwarded-For from its end, as long as the addresses are trusted proxies. Returns None for a forwarded
    request from a peer that is not trusted.
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
