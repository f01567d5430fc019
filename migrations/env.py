"""Runs the migrations over asyncpg, or prints their SQL with --sql, which needs no database. Alembic's entry point."""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from service.schema import record_compatibility, refuse_data_loss
from service.settings import Settings


def database_url() -> URL | None:
    """The database that `service.database.migrate` passes, or else that of the settings, with asyncpg as its driver."""
    url = context.config.attributes.get("database_url") or Settings.from_environment().database_url
    return make_url(url).set(drivername="postgresql+asyncpg") if url else None


def migrate(connection: Connection) -> None:
    """Runs the migrations in one transaction. Refuses a downgrade that would lose data."""
    refuse_data_loss(connection, context.config.attributes.get("down_revisions", ()))
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
    record_compatibility(connection)


async def migrate_online(url: URL) -> None:
    """Connects and migrates."""
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (address := database_url()) is None:
    raise SystemExit("no database: set TRUTHGRAPH_DATABASE_URL, or print the SQL with --sql")
else:
    asyncio.run(migrate_online(address))
