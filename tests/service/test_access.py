from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from service.access import (
    ApiKeyRepository,
    Authenticator,
    Caller,
    RateLimitedError,
    RateLimiter,
    Scope,
    UnauthorizedError,
    client_address,
)
from service.database import ConflictError, Database, NotFoundError
from tests.service.conftest import Postgres, in_database

PROXIES = [ip_network("10.0.0.0/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("::ffff:127.0.0.1", None, "127.0.0.1"),
        ("9.9.9.9", None, "9.9.9.9"),
        ("9.9.9.9", "127.0.0.1", None),  # not a trusted proxy: its header is ignored
        ("127.0.0.1", "1.2.3.4", None),  # a proxy on this machine that is not configured
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "127.0.0.1, 1.2.3.4", "1.2.3.4"),  # the client's own header is left of what the proxy adds
        ("10.0.0.1", "1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "rubbish", None),
        ("10.0.0.1", None, "10.0.0.1"),
        (None, None, None),
    ],
)
def test_client_address_believes_trusted_proxies_only(
    peer: str | None, forwarded: str | None, expected: str | None
) -> None:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    assert client_address(peer, headers, PROXIES) == (ip_address(expected) if expected else None)


def test_without_keys_only_this_machine_has_access(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        authenticator = Authenticator(ApiKeyRepository(database), has_database=True, allow_anonymous=False)
        assert Scope.ADMIN in (await authenticator.caller(None, ip_address("127.0.0.1"))).scopes
        assert Scope.ADMIN in (await authenticator.caller("anything", ip_address("::1"))).scopes
        for address in (ip_address("192.168.0.9"), None):
            with pytest.raises(UnauthorizedError):
                await authenticator.caller(None, address)

    in_database(postgres.fresh(), work)


def test_once_a_key_exists_every_caller_needs_one(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        keys = ApiKeyRepository(database)
        key = await keys.add("reader", ["read"], "acme", 1000)
        authenticator = Authenticator(keys, has_database=True, allow_anonymous=False)
        caller = await authenticator.caller(key, ip_address("8.8.8.8"))
        assert caller.tenant == "acme"
        assert caller.scopes == frozenset({Scope.PUBLIC, Scope.READ})
        for wrong in (None, "tg_wrong"):
            with pytest.raises(UnauthorizedError):
                await authenticator.caller(wrong, ip_address("127.0.0.1"))
        with pytest.raises(ConflictError):
            await keys.add("reader", ["read"], "acme", 1000)
        await keys.revoke("reader")
        fresh = Authenticator(keys, has_database=True, allow_anonymous=False)
        with pytest.raises(UnauthorizedError):
            await fresh.caller(key, ip_address("127.0.0.1"))

    in_database(postgres.fresh(), work)


def test_purge_deletes_the_key_and_what_its_tenant_stored(postgres: Postgres) -> None:
    url = postgres.fresh()

    async def work(database: Database) -> None:
        keys = ApiKeyRepository(database)
        await keys.add("temporary", ["write"], "temporary", 1000)
        await keys.add("other", ["write"], "other", 1000)
        async with database.connection() as connection:
            for tenant in ("temporary", "other"):
                await connection.execute("INSERT INTO claims (tenant_id, text) VALUES ($1, 'a claim')", tenant)
        await keys.purge("temporary")
        assert [record.name for record in await keys.all()] == ["other"]

    in_database(url, work)

    assert [row["tenant_id"] for row in Postgres.execute(url, "SELECT tenant_id FROM claims")] == ["other"]


def test_purge_refuses_an_unknown_key_and_a_shared_tenant(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        keys = ApiKeyRepository(database)
        await keys.add("only", ["write"], "default", 1000)
        await keys.add("first", ["write"], "shared", 1000)
        await keys.add("second", ["write"], "shared", 1000)
        with pytest.raises(NotFoundError):
            await keys.purge("unknown")
        for name in ("only", "first"):
            with pytest.raises(ConflictError, match="is shared"):
                await keys.purge(name)
        assert len(await keys.all()) == 3

    in_database(postgres.fresh(), work)


def test_the_database_does_not_contain_the_key(postgres: Postgres) -> None:
    url = postgres.fresh()

    async def work(database: Database) -> None:
        key = await ApiKeyRepository(database).add("k", ["write"], "t", 1000)
        async with database.connection() as connection:
            assert key not in str(await connection.fetch("SELECT api_keys::text FROM api_keys"))

    in_database(url, work)


def test_a_bucket_is_shared_by_replicas_and_refills(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        one, two = RateLimiter(database), RateLimiter(database)
        caller = Caller("subject", "t", frozenset(), 600)
        for _ in range(5):
            await one.take(caller, 59 * 4)
        allowance = await two.take(caller, 199 * 4)
        assert allowance is not None
        assert 90 <= allowance.remaining <= 130
        with pytest.raises(RateLimitedError) as caught:
            await one.take(caller, 500 * 4)
        assert 30 < caught.value.retry_after_seconds < 60
        async with database.connection() as connection:
            await connection.execute("UPDATE rate_buckets SET updated_at = now() - interval '1 minute'")
        await one.take(caller, 500 * 4)

    in_database(postgres.fresh(), work)
