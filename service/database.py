"""The way to PostgreSQL: a pool that needs no database to start, errors in our words, and what a usable database is."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from service.schema import is_compatible, plan
from service.telemetry import note_stage

__all__ = [
    "SCHEMA_REVISION",
    "ConflictError",
    "Database",
    "DatabaseUnavailableError",
    "EmbeddingSpace",
    "NotFoundError",
    "migrate",
    "mismatch",
    "stored_space",
]

SCHEMA_REVISION: Final = "0001"
"""The migration that the service's statements are written against."""
_SETTINGS: Final = {
    "application_name": "truthgraph",
    "timezone": "UTC",
    # A filtered search goes on until it has enough rows, instead of returning what is left of the first ef_search.
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
"""No connection, a lost one, a server that stops or starts, or one that does not let us in."""


class DatabaseUnavailableError(Exception):
    """No database, or not the one that this code is written for: `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotFoundError(Exception):
    """There is no `kind` with this `identifier` (or it is another tenant's)."""

    def __init__(self, kind: str, identifier: object) -> None:
        super().__init__(f"no {kind} {identifier}")
        self.kind = kind
        self.identifier = identifier


class ConflictError(Exception):
    """What was asked contradicts what is stored; `location` is the path of what it contradicts."""

    def __init__(self, reason: str, location: str = "") -> None:
        super().__init__(reason)
        self.location = location


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Which model makes the vectors. Vectors of different spaces cannot be compared."""

    model_name: str
    model_revision: str
    dimension: int


class Database:
    """A pool of connections. Opened without connecting, so that a process starts whatever the database does.

    A connection is made when one is needed, so the service recovers by itself when the database comes back.
    """

    def __init__(self, url: str | None, *, connections: int, timeout_seconds: float) -> None:
        self.url = url
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Make the pool; connects to nothing yet."""
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
        """Wait for connections in use, and cut those that do not come back in time."""
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), self._timeout_seconds)
            except TimeoutError:
                self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection; raises `DatabaseUnavailableError` for all troubles with having one. Times the whole use."""
        if self._pool is None:
            raise DatabaseUnavailableError("no database is configured: set TRUTHGRAPH_DATABASE_URL")
        began = time.perf_counter()
        try:
            async with self._pool.acquire(timeout=self._timeout_seconds) as connection:
                yield connection
        except _UNAVAILABLE as error:
            if isinstance(error, ValueError):  # asyncpg's word for an argument of the wrong type: our mistake
                raise
            raise DatabaseUnavailableError(f"the database does not answer ({type(error).__name__})") from error
        except asyncpg.UndefinedTableError as error:
            raise DatabaseUnavailableError("the database is not migrated: run `alembic upgrade head`") from error
        finally:
            note_stage("database", time.perf_counter() - began)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction: everything within happens, or nothing does."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def problem(self, space: EmbeddingSpace | None) -> str | None:
        """What keeps the database from being used with `space`, or None."""
        try:
            async with self.connection() as connection:
                revision, comment = await connection.fetchrow(
                    "SELECT version_num, obj_description('alembic_version'::regclass) FROM alembic_version"
                ) or (None, None)
                # During a rolling update the old code runs on a newer schema that is compatible with it.
                if revision != SCHEMA_REVISION and not is_compatible(SCHEMA_REVISION, comment):
                    return f"the database is at migration {revision}, this code needs {SCHEMA_REVISION}"
                stored = await stored_space(connection)
        except DatabaseUnavailableError as error:
            return error.reason
        return None if space is None or stored is None else mismatch(stored, space)


async def stored_space(connection: asyncpg.Connection) -> EmbeddingSpace | None:
    """The space of the vectors in the database; None as long as there are none."""
    row = await connection.fetchrow("SELECT model_name, model_revision, dimension FROM embedding_space")
    return EmbeddingSpace(**row) if row else None


def mismatch(stored: EmbeddingSpace, ours: EmbeddingSpace) -> str | None:
    """Why vectors of `ours` must not meet the stored ones, or None."""
    if stored == ours:
        return None
    return (
        f"the database holds vectors of {stored.model_name} {stored.model_revision[:12]} ({stored.dimension}), this "
        f"process makes those of {ours.model_name} {ours.model_revision[:12]} ({ours.dimension}): use that model, "
        "or an empty database"
    )


def migrate(url: str, revision: str = "head") -> None:
    """Migrates the database at `url` to `revision`. Blocks; needs the folder migrations/ beside this package.

    Raises:
        SchemaError: a downgrade would lose data. A downgrade to "base" drops every table and is never refused.
    """
    from alembic import command  # noqa: PLC0415 - takes half a second to import, and serving does not need it
    from alembic.config import Config  # noqa: PLC0415

    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    configuration.attributes["database_url"] = url
    if revision == "base":
        command.downgrade(configuration, revision)
    elif (path := plan(url, revision)).direction == "down":
        configuration.attributes["down_revisions"] = path.revisions
        command.downgrade(configuration, revision)
    else:
        command.upgrade(configuration, revision)
