"""Stored verdicts: every field is read back as it was written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from service.inference.types import Label
from service.store.claims import ClaimStore
from service.store.verdicts import Outcome, VerdictStore, insert_verdict
from tests.service.conftest import Postgres, in_database
from tests.service.samples import VERDICT

if TYPE_CHECKING:
    from service.database import Database


def test_a_verdict_is_read_back_with_every_field(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        verdicts = VerdictStore(database)
        stored = await verdicts.add_with_claim("t", "a claim", VERDICT)
        assert stored.content == VERDICT
        assert await verdicts.latest("t", stored.claim.id) == stored

    url = postgres.fresh()
    in_database(url, work)
    [row] = Postgres.execute(url, "SELECT supporting_count, refuting_count, neutral_count FROM verdicts")
    assert tuple(row) == (1, 0, 1)


def test_the_latest_verdict_is_the_newest(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        verdicts = VerdictStore(database)
        claim = (await verdicts.add_with_claim("t", "a claim", VERDICT)).claim
        newer = replace(VERDICT, verdict=Outcome.REFUTED, evidence=())
        async with database.transaction() as connection:
            await insert_verdict(connection, claim, newer)
        latest = await verdicts.latest("t", claim.id)
        assert latest is not None
        assert latest.content == newer

    in_database(postgres.fresh(), work)


def test_a_claim_without_a_verdict_has_none(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        claim = await ClaimStore(database).add("t", "a claim", None)
        assert await VerdictStore(database).latest("t", claim.id) is None

    in_database(postgres.fresh(), work)


def test_evidence_is_counted_by_label() -> None:
    assert [VERDICT.count(label) for label in (Label.ENTAILMENT, Label.CONTRADICTION, Label.NEUTRAL)] == [1, 0, 1]
