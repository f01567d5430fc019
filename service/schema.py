"""Which way the schema can go, and what would be lost: read from the database and from the migrations' own words.

A migration says in its module, beside what Alembic asks for:

- ``serves``: older revisions whose code works on this schema too. It is kept in the database, so that code of those
  revisions stays ready while a release replaces it, and so that a release may be taken back without its schema.
- ``losses``: table -> a query that counts the rows that its downgrade would take data from. A migration without it
  cannot be taken back.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection

__all__ = ["Plan", "SchemaError", "note_serves", "plan", "refuse_losses"]

MIGRATIONS: Final = Path(__file__).parent.parent / "migrations"
SERVES: Final = "serves "
"""What the comment on alembic_version begins with; the revisions follow, blanks between them."""


class SchemaError(Exception):
    """The schema cannot be brought where it was asked to be; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The way from `current` to `target`, by revisions; None is an empty database.

    `losses` are sentences, one for each thing that going down would lose; `is_served` says whether code of the older
    of the two revisions works on the schema of the newer one.
    """

    current: str | None
    target: str
    direction: str
    revisions: tuple[str, ...]
    is_served: bool
    losses: tuple[str, ...]


def plan(url: str, target: str = "head") -> Plan:
    """What `migrate` to `target` would do; changes nothing. Raises `SchemaError` where there is no way."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - as Alembic, see service.database.migrate
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    async def read() -> Plan:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(lambda sync: _plan(sync, target))
        finally:
            await engine.dispose()

    return asyncio.run(read())


def _plan(connection: "Connection", target: str) -> Plan:
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    scripts = _scripts()
    current = MigrationContext.configure(connection).get_current_revision()
    try:
        wanted = scripts.get_revision(target)
        known = scripts.get_revision(current) if current else None
    except CommandError as error:
        raise SchemaError(f"this code does not know the way from {current} to {target}: {error}") from error
    if current == wanted.revision:
        return Plan(current, wanted.revision, "none", (), is_served=True, losses=())
    below = [each.revision for each in scripts.walk_revisions("base", wanted.revision)]
    if current is None or current in below:
        up = tuple(reversed(below[: below.index(current)] if current else below))
        return Plan(current, wanted.revision, "up", up, is_served=current in _said_serves(wanted.module), losses=())
    down = tuple(each.revision for each in scripts.walk_revisions(wanted.revision, current))[:-1]
    losses = tuple(_losses(connection, scripts, down))
    is_served = known is not None and wanted.revision in _said_serves(known.module)
    return Plan(current, wanted.revision, "down", down, is_served=is_served, losses=losses)


def refuse_losses(connection: "Connection", revisions: tuple[str, ...]) -> None:
    """Lock what going down from `revisions` would change, and raise `SchemaError` if it would lose anything.

    To be called in the transaction that goes down: what was counted cannot change any more.
    """
    from sqlalchemy import text  # noqa: PLC0415

    scripts = _scripts()
    for revision in revisions:
        for table in _said_losses(scripts, revision) or ():
            connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
    if losses := tuple(_losses(connection, scripts, revisions)):
        raise SchemaError("going back would lose data: " + "; ".join(losses))


def note_serves(connection: "Connection") -> None:
    """Keep in the database which older code works on the schema that it has now."""
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from sqlalchemy import text  # noqa: PLC0415

    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return
    serves = _said_serves(_scripts().get_revision(current).module)
    connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{SERVES}{' '.join(serves)}'"))


def _losses(connection: "Connection", scripts: "ScriptDirectory", revisions: tuple[str, ...]) -> list[str]:
    from sqlalchemy import text  # noqa: PLC0415

    found: list[str] = []
    for revision in revisions:
        said = _said_losses(scripts, revision)
        if said is None:
            found.append(f"migration {revision} does not say what its downgrade loses")
            continue
        for table, query in said.items():
            rows = connection.execute(text(query)).scalar_one()
            if rows:
                found.append(f"{rows} rows of {table} hold what only migration {revision} has a place for")
    return found


def _said_losses(scripts: "ScriptDirectory", revision: str) -> dict[str, str] | None:
    losses: dict[str, str] | None = getattr(scripts.get_revision(revision).module, "losses", None)
    return losses


def _said_serves(module: ModuleType) -> tuple[str, ...]:
    serves: tuple[str, ...] = getattr(module, "serves", ())
    return serves


def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return ScriptDirectory(str(MIGRATIONS))
