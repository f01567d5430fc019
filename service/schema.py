"""Plans schema migrations: which way, by which revisions, whether older code works after them, what data is lost.

A migration module declares, beside what Alembic needs:

- ``compatible_with``: older revisions whose code also works on this schema. It is recorded in the database, so that
  code of those revisions stays ready during a rolling update, and after a rollback that keeps the schema.
- ``data_loss``: table -> a query that counts the rows whose data a downgrade would lose. A migration without it
  cannot be downgraded.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import Connection

__all__ = [
    "MIGRATIONS",
    "MigrationPlan",
    "SchemaError",
    "is_compatible",
    "plan",
    "record_compatibility",
    "refuse_data_loss",
]

MIGRATIONS: Final = Path(__file__).parent.parent / "migrations"
_COMPATIBLE_WITH: Final = "compatible_with "
"""Prefix of the comment on the table alembic_version; the compatible revisions follow, separated by blanks."""


class SchemaError(Exception):
    """A migration that is refused or unknown; nothing was changed."""


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """The migrations from revision `current` (None: an empty database) to revision `target`.

    `direction` is up, down or none. `revisions` are in the order in which they run. `is_compatible` says whether code
    of the older of the two revisions works on the newer schema. `data_loss` has a sentence for each loss of data.
    """

    current: str | None
    target: str
    direction: str
    revisions: tuple[str, ...]
    is_compatible: bool
    data_loss: tuple[str, ...]


def plan(url: str, target: str = "head") -> MigrationPlan:
    """Returns what `migrate` to `target` would do; changes nothing. Raises `SchemaError` if there is no path."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - as Alembic, see service.database.migrate
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
    from sqlalchemy.pool import NullPool  # noqa: PLC0415

    async def read() -> MigrationPlan:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(lambda sync: _plan(sync, target))
        finally:
            await engine.dispose()

    return asyncio.run(read())


def _plan(connection: "Connection", target: str) -> MigrationPlan:
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    scripts = _scripts()
    current = MigrationContext.configure(connection).get_current_revision()
    try:
        wanted = scripts.get_revision(target)
        known = scripts.get_revision(current) if current else None
    except CommandError as error:
        raise SchemaError(f"this code has no migration path from {current} to {target}: {error}") from error
    if current == wanted.revision:
        return MigrationPlan(current, wanted.revision, "none", (), is_compatible=True, data_loss=())
    below = [each.revision for each in scripts.walk_revisions("base", wanted.revision)]
    if current is None or current in below:
        up = tuple(reversed(below[: below.index(current)] if current else below))
        is_compatible = current in _compatible_with(wanted.module)
        return MigrationPlan(current, wanted.revision, "up", up, is_compatible=is_compatible, data_loss=())
    down = tuple(each.revision for each in scripts.walk_revisions(wanted.revision, current))[:-1]
    data_loss = tuple(_data_loss(connection, scripts, down))
    is_compatible = known is not None and wanted.revision in _compatible_with(known.module)
    return MigrationPlan(current, wanted.revision, "down", down, is_compatible=is_compatible, data_loss=data_loss)


def refuse_data_loss(connection: "Connection", revisions: tuple[str, ...]) -> None:
    """Locks the tables that downgrading `revisions` changes; raises `SchemaError` if data would be lost.

    Call it in the transaction that downgrades, so that the counted rows cannot change any more.
    """
    from sqlalchemy import text  # noqa: PLC0415

    scripts = _scripts()
    for revision in revisions:
        for table in _loss_queries(scripts, revision) or ():
            connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
    if data_loss := tuple(_data_loss(connection, scripts, revisions)):
        raise SchemaError("the downgrade would lose data: " + "; ".join(data_loss))


def record_compatibility(connection: "Connection") -> None:
    """Writes into the database which older code works on its present schema."""
    from alembic.migration import MigrationContext  # noqa: PLC0415
    from sqlalchemy import text  # noqa: PLC0415

    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return
    compatible = _compatible_with(_scripts().get_revision(current).module)
    connection.execute(text(f"COMMENT ON TABLE alembic_version IS '{_COMPATIBLE_WITH}{' '.join(compatible)}'"))


def is_compatible(revision: str, comment: str | None) -> bool:
    """Whether the comment that `record_compatibility` wrote names `revision`."""
    return revision in (comment or "").removeprefix(_COMPATIBLE_WITH).split()


def _data_loss(connection: "Connection", scripts: "ScriptDirectory", revisions: tuple[str, ...]) -> list[str]:
    """A sentence for each table of which a downgrade of `revisions` would lose rows or columns."""
    from sqlalchemy import text  # noqa: PLC0415

    found: list[str] = []
    for revision in revisions:
        queries = _loss_queries(scripts, revision)
        if queries is None:
            found.append(f"migration {revision} does not declare what its downgrade loses (`data_loss`)")
            continue
        for table, query in queries.items():
            rows = connection.execute(text(query)).scalar_one()
            if rows:
                found.append(f"{rows} rows of {table} hold data that only migration {revision} can store")
    return found


def _loss_queries(scripts: "ScriptDirectory", revision: str) -> dict[str, str] | None:
    queries: dict[str, str] | None = getattr(scripts.get_revision(revision).module, "data_loss", None)
    return queries


def _compatible_with(module: ModuleType) -> tuple[str, ...]:
    revisions: tuple[str, ...] = getattr(module, "compatible_with", ())
    return revisions


def _scripts() -> "ScriptDirectory":
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    return ScriptDirectory(str(MIGRATIONS))
