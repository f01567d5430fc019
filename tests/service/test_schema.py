"""Migration plans: direction, compatibility, data loss. A second migration is added to a copy of migrations/."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from service import schema
from service.database import SCHEMA_REVISION, migrate
from service.schema import MigrationPlan, SchemaError, is_compatible, plan
from tests.service.conftest import Postgres
from tests.support.migration import SECOND_MIGRATION

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a second migration, which is the newest one."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    file = folder / "versions" / "0002_notes.py"
    file.write_text(SECOND_MIGRATION)
    return file


def test_plan_of_an_empty_database_goes_up(postgres: Postgres) -> None:
    expected = MigrationPlan(None, SCHEMA_REVISION, "up", (SCHEMA_REVISION,), is_compatible=False, data_loss=())
    assert plan(postgres.empty()) == expected


def test_plan_of_a_current_database_does_nothing(postgres: Postgres) -> None:
    found = plan(postgres.fresh())
    assert (found.direction, found.revisions, found.is_compatible) == ("none", (), True)


def test_plan_to_an_unknown_revision_is_refused(postgres: Postgres) -> None:
    with pytest.raises(SchemaError, match="no migration path from 0001 to 0099"):
        plan(postgres.fresh(), "0099")


def test_plan_of_a_declared_compatible_migration_says_so(postgres: Postgres, second: Path) -> None:
    url = postgres.fresh()
    expected = MigrationPlan("0001", "0002", "up", ("0002",), is_compatible=True, data_loss=())
    assert plan(url) == expected
    second.write_text(SECOND_MIGRATION.replace('compatible_with = ("0001",)\n', ""))
    assert not plan(url).is_compatible


@pytest.mark.usefixtures("second")
def test_a_downgrade_without_data_loss_runs(postgres: Postgres) -> None:
    url = postgres.fresh()
    migrate(url)
    assert plan(url, "0001") == MigrationPlan("0002", "0001", "down", ("0002",), is_compatible=True, data_loss=())
    migrate(url, "0001")
    assert plan(url).current == "0001"


@pytest.mark.usefixtures("second")
def test_a_downgrade_that_loses_data_is_refused(postgres: Postgres) -> None:
    url = postgres.fresh()
    migrate(url)
    Postgres.execute(url, "INSERT INTO claims (tenant_id, text, note) VALUES ('t', 'a claim', 'a note')")
    assert plan(url, "0001").data_loss == ("1 rows of claims hold data that only migration 0002 can store",)
    with pytest.raises(SchemaError, match="the downgrade would lose data: 1 rows of claims"):
        migrate(url, "0001")
    assert plan(url, "0001").current == "0002"


def test_a_downgrade_without_declared_data_loss_is_refused(postgres: Postgres, second: Path) -> None:
    second.write_text("\n".join(line for line in SECOND_MIGRATION.splitlines() if not line.startswith("data_loss")))
    url = postgres.fresh()
    migrate(url)
    [loss] = plan(url, "0001").data_loss
    assert "does not declare what its downgrade loses" in loss


@pytest.mark.usefixtures("second")
def test_the_database_records_compatible_revisions(postgres: Postgres) -> None:
    url = postgres.fresh()
    migrate(url)
    [row] = Postgres.execute(url, "SELECT obj_description('alembic_version'::regclass) AS comment")
    assert is_compatible("0001", row["comment"])
    assert not is_compatible("0003", row["comment"])
    assert not is_compatible("0001", None)
