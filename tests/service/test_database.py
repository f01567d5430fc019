"""Migrations on both PostgreSQLs that the package ships, the recorded embedding space, a database that goes away."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from service.database import SCHEMA_REVISION, migrate
from tests.service.conftest import Postgres, running_postgres, served, settings
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[16, 18])
def each_postgres(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """A server of its own, which may be stopped."""
    with running_postgres(pytestconfig, request.param) as running:
        yield running


def columns(url: str) -> list[tuple[str, str, str]]:
    rows = Postgres.execute(
        url,
        """
        SELECT table_name, column_name, data_type FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1, 2
        """,
    )
    return [tuple(row) for row in rows]


def test_the_schema_goes_up_down_and_up_again(each_postgres: Postgres) -> None:
    url = each_postgres.empty()
    migrate(url)
    first = columns(url)
    assert len({table for table, _, _ in first}) == 9
    migrate(url, "base")
    assert columns(url) == []
    migrate(url)
    assert columns(url) == first


def test_the_codes_revision_is_the_newest(each_postgres: Postgres) -> None:
    url = each_postgres.fresh()
    [row] = Postgres.execute(url, "SELECT version_num FROM alembic_version")
    assert row["version_num"] == SCHEMA_REVISION


def test_vector_search_is_served_by_the_index(each_postgres: Postgres) -> None:
    """The operator of the statement is the one of the index."""
    plan = Postgres.execute(
        each_postgres.fresh(),
        "SET enable_seqscan = off",
        "EXPLAIN SELECT * FROM embeddings ORDER BY embedding <=> array_fill(0.1::real, ARRAY[384])::vector LIMIT 5",
    )
    assert any("embeddings_cosine" in row[0] for row in plan)


def test_keyword_search_is_served_by_the_index(each_postgres: Postgres) -> None:
    plan = Postgres.execute(
        each_postgres.fresh(),
        "SET enable_seqscan = off",
        "EXPLAIN SELECT * FROM evidence WHERE search @@ plainto_tsquery('english', 'ice')",
    )
    assert any("evidence_search" in row[0] for row in plan)


def test_the_whole_api_works_on_each_version(each_postgres: Postgres) -> None:
    with served(settings(each_postgres.fresh())) as running:
        running.client.post("/api/v1/evidence", json={"content": "Bananas are rich in potassium"})
        body = running.client.post("/api/v1/verify", json={"claim": "Bananas are rich"}).json()
        assert body["verdict"] == "SUPPORTED"


def test_a_database_that_stops_is_told_fails_fast_and_recovers(each_postgres: Postgres) -> None:
    with served(settings(each_postgres.fresh())) as running:
        assert running.client.get("/readyz").status_code == 200
        each_postgres.server.stop()
        try:
            until(lambda: running.client.get("/readyz").status_code == 503, "readiness is false")
            assert running.client.get("/livez").status_code == 200
            reply = running.client.post("/api/v1/claims", json={"text": "two words"})
            assert (reply.status_code, reply.json()["type"]) == (503, "urn:truthgraph:problem:database-unavailable")
        finally:
            each_postgres.server.start()
        until(lambda: running.client.get("/readyz").status_code == 200, "readiness comes back")
        assert running.client.post("/api/v1/claims", json={"text": "two words"}).status_code == 201


def test_an_empty_database_is_told(postgres: Postgres) -> None:
    with served(settings(postgres.empty())) as running:
        reply = running.client.get("/readyz")
        assert "python -m service migrate" in reply.json()["reasons"]["database"]
        assert running.client.post("/api/v1/claims", json={"text": "two words"}).status_code == 503


def test_another_migration_is_told(postgres: Postgres) -> None:
    url = postgres.fresh()
    Postgres.execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with served(settings(url)) as running:
        assert "9999" in running.client.get("/readyz").json()["reasons"]["database"]


def test_vectors_of_another_model_are_refused(postgres: Postgres) -> None:
    url = postgres.fresh()
    with served(settings(url)) as running:
        running.client.post("/api/v1/evidence", json={"content": "kept by the first model"})
    Postgres.execute(url, "UPDATE embedding_space SET model_revision = 'another'")
    with served(settings(url)) as running:
        assert "another" in running.client.get("/readyz").json()["reasons"]["database"]
        for path, body in (("evidence", {"content": "new"}), ("search", {"query": "kept"})):
            reply = running.client.post(f"/api/v1/{path}", json=body)
            assert reply.status_code == 503
        keyword = running.client.post("/api/v1/search", json={"query": "kept", "mode": "keyword"})
        assert keyword.json()["count"] == 1


def test_sql_can_be_printed_without_a_database() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head", "--sql"],
        cwd=ROOT,
        env={"PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CREATE TABLE claims" in done.stdout
    assert done.stdout.rstrip().endswith("COMMIT;")


def test_tenants_do_not_see_one_another(postgres: Postgres) -> None:
    url = postgres.fresh()
    keys = {tenant: made_key(url, tenant) for tenant in ("red", "blue")}
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


def made_key(url: str, tenant: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service", "keys", "add", f"key of {tenant}", "--tenant", tenant],
        cwd=ROOT,
        env={"PATH": "/usr/bin", "TRUTHGRAPH_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_same_pieces_brought_at_once_are_kept_once(postgres: Postgres) -> None:
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
