"""Stores verdicts, each with the evidence that it is based on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import asyncpg

from service.database import Database
from service.inference.types import Label, Scores
from service.store.claims import Claim, ClaimStore, insert_claim
from service.store.evidence import SearchHit, SearchMode, hit_of

__all__ = ["NewVerdict", "Outcome", "ScoredEvidence", "Verdict", "VerdictStore", "insert_verdict"]


class Outcome(StrEnum):
    """What the evidence says about a claim, in the words of the FEVER task."""

    SUPPORTED = "SUPPORTED"
    REFUTED = "REFUTED"
    NOT_ENOUGH_INFO = "NOT_ENOUGH_INFO"


@dataclass(frozen=True, slots=True)
class ScoredEvidence:
    """A piece of evidence and the entailment model's scores for the claim, with the evidence as premise."""

    hit: SearchHit
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVerdict:
    """A verdict to store. Scores and `confidence` are from 0 to 1; `warnings` are codes of `service.verification`."""

    verdict: Outcome
    confidence: float
    support_score: float
    refute_score: float
    has_conflict: bool
    reasoning: str
    rule_version: str
    search_mode: SearchMode
    embedding_model: str
    entailment_model: str
    warnings: tuple[str, ...]
    processing_seconds: float
    evidence: tuple[ScoredEvidence, ...]

    def count(self, label: Label) -> int:
        """Counts the pieces of evidence with `label`."""
        return sum(each.scores.label is label for each in self.evidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A stored verdict."""

    id: UUID
    claim: Claim
    content: NewVerdict
    created_at: datetime


_PLAIN_COLUMNS: Final = (
    "confidence",
    "support_score",
    "refute_score",
    "has_conflict",
    "reasoning",
    "rule_version",
    "search_mode",
    "embedding_model",
    "entailment_model",
    "processing_seconds",
)
"""Columns of the table verdicts that are fields of `NewVerdict` under the same name and with the same type."""
_VERDICT_COLUMNS: Final = (
    "claim_id",
    "verdict",
    "supporting_count",
    "refuting_count",
    "neutral_count",
    "warnings",
    *_PLAIN_COLUMNS,
)


class VerdictStore:
    """Reads and writes verdicts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claims = ClaimStore(database)

    async def add_with_claim(self, tenant: str, claim_text: str, content: NewVerdict) -> Verdict:
        """Stores a new claim and the verdict on it, both or neither."""
        async with self._database.transaction() as connection:
            claim = await insert_claim(connection, tenant, claim_text, None)
            return await insert_verdict(connection, claim, content)

    async def latest(self, tenant: str, claim_id: UUID) -> Verdict | None:
        """Returns the newest verdict on a claim, None if it has none; raises `NotFoundError` for an unknown claim."""
        claim = await self._claims.get(tenant, claim_id)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM verdicts WHERE claim_id = $1 ORDER BY created_at DESC LIMIT 1", claim_id
            )
            if row is None:
                return None
            evidence = await connection.fetch(
                "SELECT * FROM nli_results WHERE verdict_id = $1 ORDER BY position", row["id"]
            )
        return Verdict(id=row["id"], claim=claim, content=_content(row, evidence), created_at=row["created_at"])


async def insert_verdict(connection: asyncpg.Connection, claim: Claim, content: NewVerdict) -> Verdict:
    """Stores a verdict with its evidence, in the caller's transaction."""
    numbers = range(1, len(_VERDICT_COLUMNS) + 1)
    row = await connection.fetchrow(
        f"""
        INSERT INTO verdicts ({", ".join(_VERDICT_COLUMNS)}) VALUES ({", ".join(f"${number}" for number in numbers)})
        RETURNING id, created_at
        """,
        claim.id,
        content.verdict,
        content.count(Label.ENTAILMENT),
        content.count(Label.CONTRADICTION),
        content.count(Label.NEUTRAL),
        list(content.warnings),
        *(getattr(content, name) for name in _PLAIN_COLUMNS),
    )
    await connection.executemany(
        """
        INSERT INTO nli_results (
            verdict_id, position, evidence_id, content, source_url, published_on, similarity, label, entailment,
            neutral, contradiction)
        VALUES ($1, $2, (SELECT id FROM evidence WHERE id = $3), $4, $5, $6, $7, $8, $9, $10, $11)
        """,
        [
            (
                row["id"],
                position,
                each.hit.evidence_id,
                each.hit.content,
                each.hit.source_url,
                each.hit.published_on,
                each.hit.similarity,
                each.scores.label,
                each.scores.entailment,
                each.scores.neutral,
                each.scores.contradiction,
            )
            for position, each in enumerate(content.evidence)
        ],
    )
    return Verdict(id=row["id"], claim=claim, content=content, created_at=row["created_at"])


def _content(row: Mapping[str, Any], evidence: Sequence[Mapping[str, Any]]) -> NewVerdict:
    return NewVerdict(
        **{name: row[name] for name in _PLAIN_COLUMNS},
        verdict=Outcome(row["verdict"]),
        warnings=tuple(row["warnings"]),
        evidence=tuple(
            ScoredEvidence(
                hit_of(each),
                Scores(entailment=each["entailment"], neutral=each["neutral"], contradiction=each["contradiction"]),
            )
            for each in evidence
        ),
    )
