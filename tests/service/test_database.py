"""Both PostgreSQL versions of the package: schema, indexes, the API; and databases that fail or do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.database import SCHEMA_REVISION, migrate
from tests.service.conftest import Postgres, running_postgres, served, settings
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[16, 18])
def each_postgres(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Postgres]:
    """A server of each version, only for this module, so that a test may stop it."""
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


def test_the_schema_can_be_downgraded_and_upgraded(each_postgres: Postgres) -> None:
    url = each_postgres.empty()
    migrate(url)
    first = columns(url)
    assert len({table for table, _, _ in first}) == 9
    migrate(url, "base")
    assert columns(url) == []
    migrate(url)
    assert columns(url) == first


def test_the_code_needs_the_newest_revision(each_postgres: Postgres) -> None:
    url = each_postgres.fresh()
    [row] = Postgres.execute(url, "SELECT version_num FROM alembic_version")
    assert row["version_num"] == SCHEMA_REVISION


def test_vector_search_uses_its_index(each_postgres: Postgres) -> None:
    """The index supports the operator of the statement."""
    plan = Postgres.execute(
        each_postgres.fresh(),
        "SET enable_seqscan = off",
        "EXPLAIN SELECT * FROM embeddings ORDER BY embedding <=> array_fill(0.1::real, ARRAY[384])::vector LIMIT 5",
    )
    assert any("embeddings_cosine" in row[0] for row in plan)


def test_keyword_search_uses_its_index(each_postgres: Postgres) -> None:
    plan = Postgres.execute(
        each_postgres.fresh(),
        "SET enable_seqscan = off",
        "EXPLAIN SELECT * FROM evidence WHERE search @@ plainto_tsquery('english', 'ice')",
    )
    assert any("evidence_search" in row[0] for row in plan)


def test_the_api_works_on_each_postgres_version(each_postgres: Postgres) -> None:
    with served(settings(each_postgres.fresh())) as running:
        running.client.post("/api/v1/evidence", json={"content": "Bananas are rich in potassium"})
        body = running.client.post("/api/v1/verify", json={"claim": "Bananas are rich"}).json()
        assert body["verdict"] == "SUPPORTED"


def test_a_stopped_database_is_a_503_and_the_service_recovers(each_postgres: Postgres) -> None:
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


def test_readyz_with_an_empty_database_says_how_to_migrate(postgres: Postgres) -> None:
    with served(settings(postgres.empty())) as running:
        reply = running.client.get("/readyz")
        assert "python -m service migrate" in reply.json()["reasons"]["database"]
        assert running.client.post("/api/v1/claims", json={"text": "two words"}).status_code == 503


def test_readyz_with_another_revision_names_it(postgres: Postgres) -> None:
    url = postgres.fresh()
    Postgres.execute(url, "UPDATE alembic_version SET version_num = '9999'")
    with served(settings(url)) as running:
        assert "9999" in running.client.get("/readyz").json()["reasons"]["database"]


def test_vectors_of_another_model_are_a_503(postgres: Postgres) -> None:
    url = postgres.fresh()
    with served(settings(url)) as running:
        running.client.post("/api/v1/evidence", json={"content": "stored by the first model"})
    Postgres.execute(url, "UPDATE embedding_space SET model_revision = 'another'")
    with served(settings(url)) as running:
        assert "another" in running.client.get("/readyz").json()["reasons"]["database"]
        for path, body in (("evidence", {"content": "new"}), ("search", {"query": "stored"})):
            reply = running.client.post(f"/api/v1/{path}", json=body)
            assert reply.status_code == 503
        keyword = running.client.post("/api/v1/search", json={"query": "stored", "mode": "keyword"})
        assert keyword.json()["count"] == 1


def test_alembic_prints_the_sql_without_a_database() -> None:
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
