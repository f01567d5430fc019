"""A verdict with two pieces of evidence, for tests."""

from __future__ import annotations

from datetime import date

from service.inference.types import Scores
from service.store.evidence import SearchHit
from service.store.verdicts import NewVerdict, Outcome, ScoredEvidence

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
