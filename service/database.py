"""Connects to PostgreSQL: a pool that starts without a database, our errors for its failures, and a readiness check."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from service import schema
from service.current_request import note_stage
from service.inference.types import EmbeddingSpace

__all__ = [
    "SCHEMA_REVISION",
    "ConflictError",
    "Database",
    "DatabaseUnavailableError",
    "NotFoundError",
    "migrate",
    "mismatch",
    "stored_space",
]

SCHEMA_REVISION: Final = "0001"
"""The schema revision that the service's SQL is written for."""
_SETTINGS: Final = {
    "application_name": "truthgraph",
    "timezone": "UTC",
    # From the sixth execution on a connection PostgreSQL may use a plan that knows no values. Such a plan of a search
    # does not use the vector index: 211 to 848 ms instead of 1.4 ms at 3,002 rows, and 5 s at 50,000 (measured).
    "plan_cache_mode": "force_custom_plan",
    # A filtered search continues until it has enough rows, instead of filtering the first ef_search only.
    "hnsw.iterative_scan": "strict_order",
    "hnsw.ef_search": "100",
}
_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InternalClientError,
)
"""No connection, a lost one, a server that is stopping or starting, or one that rejects our credentials."""


class DatabaseUnavailableError(Exception):
    """There is no database, or not one that this code can use; `reason` says which and how to fix it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotFoundError(Exception):
    """There is no `kind` with this `identifier`, or it belongs to another tenant. `hint` says what there is."""

    def __init__(self, kind: str, identifier: object, hint: str = "") -> None:
        super().__init__(f"there is no {kind} {identifier}" + (f": {hint}" if hint else ""))
        self.kind = kind
        self.identifier = identifier


class ConflictError(Exception):
    """The request conflicts with stored data; `location` is the path of that data."""

    def __init__(self, reason: str, location: str = "") -> None:
        super().__init__(reason)
        self.location = location


class Database:
    """A pool of connections. It connects only when a connection is needed.

    So a process starts without its database, and recovers by itself when the database returns.
    """

    def __init__(self, url: str | None, *, connections: int, timeout_seconds: float) -> None:
        self.url = url
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Creates the pool; does not connect yet."""
        if self.url is not None:
            self._pool = await asyncpg.create_pool(
                self.url,
                min_size=0,
                max_size=self._connections,
                timeout=self._timeout_seconds,
                command_timeout=self._timeout_seconds,
                server_settings=_SETTINGS,
            )

    async def close(self) -> None:
        """Waits for connections in use, and closes those that are not returned within the timeout."""
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), self._timeout_seconds)
            except TimeoutError:
                self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Opens a connection. Notes its time as the stage `database`. Raises `DatabaseUnavailableError`."""
        if self._pool is None:
            raise DatabaseUnavailableError("no database is configured: set TRUTHGRAPH_DATABASE_URL")
        began = time.perf_counter()
        try:
            async with self._pool.acquire(timeout=self._timeout_seconds) as connection:
                yield connection
        except _UNAVAILABLE as error:
            if isinstance(error, ValueError):  # asyncpg's error for an argument of the wrong type: a bug of ours
                raise
            raise DatabaseUnavailableError(f"the database does not answer ({type(error).__name__})") from error
        except asyncpg.UndefinedTableError as error:
            raise DatabaseUnavailableError("the database has no schema: run `python -m service migrate`") from error
        finally:
            note_stage("database", time.perf_counter() - began)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Opens a connection with a transaction: it commits at the end, and rolls back on an error."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def problem(self, space: EmbeddingSpace | None) -> str | None:
        """Returns why the database cannot be used with vectors of `space`, or None if it can."""
        try:
            async with self.connection() as connection:
                revision, comment = await connection.fetchrow(
                    "SELECT version_num, obj_description('alembic_version'::regclass) FROM alembic_version"
                ) or (None, None)
                # During a rolling update the old code runs on a newer schema that is compatible with it.
                if revision != SCHEMA_REVISION and not schema.is_compatible(SCHEMA_REVISION, comment):
                    return f"the schema is at revision {revision}, and this code needs {SCHEMA_REVISION}"
                stored = await stored_space(connection)
        except DatabaseUnavailableError as error:
            return error.reason
        return None if space is None or stored is None else mismatch(stored, space)


async def stored_space(connection: asyncpg.Connection) -> EmbeddingSpace | None:
    """Returns the space of the stored vectors, None if there are none."""
    row = await connection.fetchrow("SELECT model_name, model_revision, dimension FROM embedding_space")
    return EmbeddingSpace(**row) if row else None


def mismatch(stored: EmbeddingSpace, ours: EmbeddingSpace) -> str | None:
    """Returns why vectors of `ours` cannot be compared with the stored ones, or None if they can."""
    if stored == ours:
        return None
    return (
        f"the stored vectors are from {stored.model_name} {stored.model_revision[:12]} (dimension {stored.dimension}), "
        f"and this process uses {ours.model_name} {ours.model_revision[:12]} (dimension {ours.dimension}): configure "
        "the first model, or use an empty database"
    )


def migrate(url: str, revision: str = "head") -> None:
    """Migrates the database at `url` to `revision`. Blocks; needs the folder migrations/ beside this package.

    Raises:
        SchemaError: a downgrade would lose data. A downgrade to "base" drops every table and is never refused.
    """
    from alembic import command  # noqa: PLC0415 - takes half a second to import, and serving does not need it
    from alembic.config import Config  # noqa: PLC0415

    configuration = Config()
    configuration.set_main_option("script_location", str(schema.MIGRATIONS))
    configuration.attributes["database_url"] = url
    if revision == "base":
        command.downgrade(configuration, revision)
    elif (path := schema.plan(url, revision)).direction == "down":
        configuration.attributes["down_revisions"] = path.revisions
        command.downgrade(configuration, revision)
    else:
        command.upgrade(configuration, revision)
