"""Access over HTTP: API keys, scopes, origins, rate limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from service.access import (
    ApiKeyRepository,
)
from tests.service.conftest import Postgres, in_database, served, settings

if TYPE_CHECKING:
    from service.database import Database


def test_a_request_without_the_scope_is_a_403(postgres: Postgres) -> None:
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


def test_a_web_page_without_a_key_is_a_403() -> None:
    with served(settings()) as running:
        headers = {"origin": "https://evil.example"}
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers).status_code == 403
        assert "access-control-allow-origin" not in running.client.get("/livez", headers=headers).headers


def test_a_configured_origin_is_allowed() -> None:
    with served(settings(allowed_origins=("https://app.example",))) as running:
        headers = {"origin": "https://app.example"}
        reply = running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://app.example"


def test_a_reached_rate_limit_is_a_429_with_headers(postgres: Postgres) -> None:
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


def test_without_a_database_only_this_machine_has_access() -> None:
    with served(settings()) as running:
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}).status_code == 200
        headers = {"x-forwarded-for": "1.2.3.4"}
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers).status_code == 401
    with served(settings(allow_anonymous=True)) as running:
        assert running.client.post("/api/v1/embed", json={"texts": ["a"]}, headers=headers).status_code == 200
