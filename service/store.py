"""All SQL: the asyncpg pool and every statement of the service."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from service.telemetry import note_stage

__all__ = ["SCHEMA_REVISION", "ConflictError", "DatabaseUnavailableError", "NotFoundError", "Store"]

SCHEMA_REVISION: Final = "0001"
"""The migration that these statements are written against."""


class DatabaseUnavailableError(Exception):
    """No database, or not the one that this code is written for: `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotFoundError(Exception):
    """There is no `kind` with this `identifier`."""

    def __init__(self, kind: str, identifier: object) -> None:
        super().__init__(f"no {kind} {identifier}")
        self.kind = kind
        self.identifier = identifier


class ConflictError(Exception):
    """What was asked contradicts what is stored."""


class Store:
    """The database. Opened without connecting, so that a process starts, and recovers, whatever the database does."""

    def __init__(self, url: str | None, *, connections: int, timeout_seconds: float) -> None:
        self._url = url
        self._connections = connections
        self._timeout_seconds = timeout_seconds
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Make the pool; connects to nothing yet."""
        if self._url is not None:
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=0,
                max_size=self._connections,
                timeout=self._timeout_seconds,
                command_timeout=self._timeout_seconds,
            )

    async def close(self) -> None:
        """Give every connection back, or cut those that do not come back in time."""
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), self._timeout_seconds)
            except TimeoutError:
                self._pool.terminate()

    async def problem(self) -> str | None:
        """What keeps the database from being used, or None: one round trip."""
        try:
            async with self._connection() as connection:
                revision = await connection.fetchval("SELECT version_num FROM alembic_version")
        except DatabaseUnavailableError as error:
            return error.reason
        except asyncpg.UndefinedTableError:
            return "the database is empty: run `alembic upgrade head`"
        if revision != SCHEMA_REVISION:
            return f"the database is at migration {revision}, this code needs {SCHEMA_REVISION}: `alembic upgrade head`"
        return None

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection; anything that says "no database" becomes `DatabaseUnavailableError`. Times the whole use."""
        if self._pool is None:
            raise DatabaseUnavailableError("no database is configured: set TRUTHGRAPH_DATABASE_URL")
        began = time.perf_counter()
        try:
            async with self._pool.acquire(timeout=self._timeout_seconds) as connection:
                yield connection
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError) as error:
            raise DatabaseUnavailableError(f"the database does not answer ({type(error).__name__})") from error
        except (asyncpg.CannotConnectNowError, asyncpg.InvalidAuthorizationSpecificationError) as error:
            raise DatabaseUnavailableError(f"the database refuses ({type(error).__name__})") from error
        finally:
            note_stage("database", time.perf_counter() - began)
