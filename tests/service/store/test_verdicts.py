"""Stored verdicts: every field is read back as it was written."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING

from service.inference.types import Label, Scores
from service.store.claims import ClaimStore
from service.store.evidence import SearchHit
from service.store.verdicts import NewVerdict, Outcome, ScoredEvidence, VerdictStore, insert_verdict
from tests.service.conftest import Postgres, in_database

if TYPE_CHECKING:
    from service.database import Database

SUPPORT = ScoredEvidence(
    SearchHit(
        evidence_id=None,
        content="supporting text",
        source_url="https://a.example",
        published_on=date(2020, 1, 2),
        similarity=0.75,
    ),
    Scores(entailment=0.5, neutral=0.375, contradiction=0.125),
)
NEUTRAL = ScoredEvidence(
    SearchHit(evidence_id=None, content="neutral text", source_url=None, published_on=None, similarity=0.25),
    Scores(entailment=0.125, neutral=0.75, contradiction=0.125),
)
VERDICT = NewVerdict(
    verdict=Outcome.SUPPORTED,
    confidence=0.9375,
    support_score=0.875,
    refute_score=0.0625,
    has_conflict=True,
    reasoning="because",
    rule_version="7",
    search_mode="keyword",
    embedding_model="an embedder",
    entailment_model="a classifier",
    warnings=("MINIMAL_CONTEXT", "EXCESSIVE_LENGTH"),
    processing_seconds=0.5,
    evidence=(SUPPORT, NEUTRAL),
)


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
