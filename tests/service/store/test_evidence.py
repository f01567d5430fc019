"""Stored evidence: tenants are isolated, the same content is stored once."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json

import httpx

from service.database import Database
from service.inference.types import Vector
from service.store.evidence import EvidenceStore, Filters, SearchMode
from tests.service.conftest import Postgres, served, settings
from tests.service.processes import command


def test_tenants_are_isolated(postgres: Postgres) -> None:
    url = postgres.fresh()
    keys = {
        tenant: command("keys", "add", tenant, "--tenant", tenant, DATABASE_URL=url).strip()
        for tenant in ("red", "blue")
    }
    with served(settings(url)) as running:
        as_red, as_blue = (
            httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            for key in keys.values()
        )
        with as_red, as_blue:
            evidence = as_red.post("/api/v1/evidence", json={"content": "red secret plans"}).json()["id"]
            claim = as_red.post("/api/v1/claims", json={"text": "red secret claim"}).json()["id"]
            assert as_blue.get(f"/api/v1/evidence/{evidence}").status_code == 404
            assert as_blue.delete(f"/api/v1/evidence/{evidence}").status_code == 404
            assert as_blue.get(f"/api/v1/claims/{claim}").status_code == 404
            assert as_blue.post(f"/api/v1/claims/{claim}/verify", json={}).status_code == 404
            assert as_blue.get("/api/v1/claims").json()["total"] == 0
            for mode in ("vector", "keyword", "hybrid"):
                assert as_blue.post("/api/v1/search", json={"query": "secret", "mode": mode}).json()["count"] == 0
                assert as_red.post("/api/v1/search", json={"query": "secret", "mode": mode}).json()["count"] == 1
            other = as_blue.post("/api/v1/search", json={"query": "secret", "tenant_id": "red"})
            assert other.status_code == 403
            assert as_blue.post("/api/v1/evidence", json={"content": "red secret plans"}).json()["is_new"]


def test_concurrent_requests_store_the_same_content_once(postgres: Postgres) -> None:
    url = postgres.fresh()
    lines = [json.dumps({"content": f"piece {number}"}) for number in range(64)]
    with served(settings(url)) as running, concurrent.futures.ThreadPoolExecutor(8) as callers:
        bodies = ["\n".join(lines[start:] + lines[:start]) for start in range(0, 64, 8)]
        headers = {"content-type": "application/x-ndjson"}
        calls = [
            callers.submit(running.client.post, "/api/v1/evidence", content=body, headers=headers) for body in bodies
        ]
        replies = [call.result() for call in calls]
    assert [reply.status_code for reply in replies] == [200] * 8
    assert sum(reply.json()["added"] for reply in replies) == 64
    [row] = Postgres.execute(url, "SELECT count(*) AS n FROM embeddings")
    assert row["n"] == 64


def test_search_repeated_on_one_connection_keeps_custom_plans(postgres: Postgres) -> None:
    # From the sixth execution PostgreSQL may plan without the values, and such a plan does not use the vector index.
    url = postgres.fresh()
    Postgres.execute(
        url,
        "WITH new AS (INSERT INTO evidence (tenant_id, content, content_sha256)"
        " SELECT 'default', 'river ' || n, sha256(n::text::bytea) FROM generate_series(1, 3002) AS n RETURNING id)"
        " INSERT INTO embeddings (evidence_id, embedding)"
        " SELECT id, (SELECT array_agg(sin(hashtext(id::text) + n)) FROM generate_series(1, 384) n)::vector FROM new",
    )
    vector = Vector.of([float(n % 7 - 3) for n in range(384)])
    modes: tuple[SearchMode, ...] = ("vector", "keyword", "hybrid")

    async def search_often() -> list[dict[str, object]]:
        database = Database(url, connections=1, timeout_seconds=60.0)
        await database.open()
        try:
            for mode in modes * 20:
                hits = await EvidenceStore(database).search(
                    "default",
                    "river",
                    None if mode == "keyword" else vector,
                    mode=mode,
                    candidates=10,
                    min_similarity=-1.0,
                    filters=Filters(),
                    space=None,
                )
                assert len(hits) >= 10
            async with database.connection() as connection:
                rows = await connection.fetch(
                    "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE $1",
                    "%starts_with%",
                )
                return [dict(row) for row in rows]
        finally:
            await database.close()

    assert asyncio.run(search_often()) == [{"generic_plans": 0, "custom_plans": 20}] * len(modes)
