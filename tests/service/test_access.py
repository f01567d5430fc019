from __future__ import annotations

from ipaddress import ip_address, ip_network

import httpx
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
from tests.service.conftest import Postgres, in_database, served, settings

PROXIES = [ip_network("10.0.0.0/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("127.0.0.1", None, "127.0.0.1"),
        ("::ffff:127.0.0.1", None, "127.0.0.1"),
        ("9.9.9.9", None, "9.9.9.9"),
        ("9.9.9.9", "127.0.0.1", None),  # not a proxy of ours: what it says is not believed
        ("127.0.0.1", "1.2.3.4", None),  # a proxy on this machine that nobody configured
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "127.0.0.1, 1.2.3.4", "1.2.3.4"),  # the caller's own claim is left of what the proxy adds
        ("10.0.0.1", "1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "rubbish", None),
        ("10.0.0.1", None, "10.0.0.1"),
        (None, None, None),
    ],
)
def test_an_address_is_believed_as_far_as_proxies_are_ours(
    peer: str | None, forwarded: str | None, expected: str | None
) -> None:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    assert client_address(peer, headers, PROXIES) == (ip_address(expected) if expected else None)


def test_without_keys_only_this_machine_is_let_in(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        gate = Authenticator(ApiKeyRepository(database), has_database=True, allow_anonymous=False)
        assert Scope.ADMIN in (await gate.caller(None, ip_address("127.0.0.1"))).scopes
        assert Scope.ADMIN in (await gate.caller("anything", ip_address("::1"))).scopes
        for address in (ip_address("192.168.0.9"), None):
            with pytest.raises(UnauthorizedError):
                await gate.caller(None, address)

    in_database(postgres.fresh(), work)


def test_with_a_key_everyone_needs_one(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        keys = ApiKeyRepository(database)
        key = await keys.add("reader", ["read"], "acme", 1000)
        gate = Authenticator(keys, has_database=True, allow_anonymous=False)
        caller = await gate.caller(key, ip_address("8.8.8.8"))
        assert caller.tenant == "acme"
        assert caller.scopes == frozenset({Scope.PUBLIC, Scope.READ})
        for wrong in (None, "tg_wrong"):
            with pytest.raises(UnauthorizedError):
                await gate.caller(wrong, ip_address("127.0.0.1"))
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


def test_the_database_never_has_the_key_itself(postgres: Postgres) -> None:
    url = postgres.fresh()

    async def work(database: Database) -> None:
        key = await ApiKeyRepository(database).add("k", ["write"], "t", 1000)
        async with database.connection() as connection:
            assert key not in str(await connection.fetch("SELECT api_keys::text FROM api_keys"))

    in_database(url, work)


def test_scopes_hold_over_http(postgres: Postgres) -> None:
    url = postgres.fresh()
    made: list[str] = []

    async def work(database: Database) -> None:
        made.append(await ApiKeyRepository(database).add("r", ["read"], "t", 10**6))
        made.append(await ApiKeyRepository(database).add("w", ["write"], "t", 10**6))

    in_database(url, work)
    with served(settings(url)) as running:
        claim = {"text": "some claim"}
        anonymous = running.client.post("/api/v1/claims", json=claim)
        assert anonymous.status_code == 401
        assert anonymous.headers["www-authenticate"] == "Bearer"
        assert running.client.get("/livez").status_code == 200
        reader, writer = ({"Authorization": f"Bearer {key}"} for key in made)
        assert running.client.post("/api/v1/claims", json=claim, headers=reader).status_code == 403
        assert running.client.post("/api/v1/claims", json=claim, headers=writer).status_code == 201
        assert running.client.get("/api/v1/claims", headers=reader).json()["total"] == 1
        assert running.client.get("/api/v1/claims", headers={"X-API-Key": made[0]}).status_code == 200
        error = running.client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
        assert (error.status_code, error.json()["error"]["type"]) == (401, "authentication_error")


def test_a_web_page_in_this_machines_browser_is_not_let_in_without_a_key() -> None:
    with served(settings()) as running:
        headers = {"origin": "https://evil.example"}
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers).status_code == 403
        assert "access-control-allow-origin" not in running.client.get("/livez", headers=headers).headers


def test_configured_origins_are_allowed() -> None:
    with served(settings(allowed_origins=("https://app.example",))) as running:
        headers = {"origin": "https://app.example"}
        reply = running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://app.example"


def test_a_bucket_is_shared_by_replicas_and_fills_again(postgres: Postgres) -> None:
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


def test_used_up_tokens_are_a_429_with_the_headers(postgres: Postgres) -> None:
    url = postgres.fresh()
    made: list[str] = []

    async def work(database: Database) -> None:
        made.append(await ApiKeyRepository(database).add("small", ["read"], "t", 100))

    in_database(url, work)
    with served(settings(url)) as running:
        client = httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {made[0]}"}, timeout=60)
        with client:
            first = client.post("/api/v1/embed", json={"texts": ["a"]})
            assert first.headers["ratelimit-limit"] == "100"
            assert 80 < int(first.headers["ratelimit-remaining"]) < 100
            assert client.get("/rate-limit-stats").json()["limit"] == 100
            replies = [client.post("/api/v1/embed", json={"texts": ["word " * 40]}) for _ in range(4)]
            assert replies[-1].status_code == 429
            assert int(replies[-1].headers["retry-after"]) >= 1


def test_no_database_means_no_keys_and_this_machine_only() -> None:
    with served(settings()) as running:
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}).status_code == 200
        headers = {"x-forwarded-for": "1.2.3.4"}
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers).status_code == 401
    with served(settings(allow_anonymous=True)) as running:
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers).status_code == 200
