"""Converts stored verdicts to the bodies of responses: one function for each form of the API."""

from service.inference.types import Label
from service.schemas import ScoredEvidenceItem, VerdictEvidence, VerdictResult, VerdictSummary, VerifyResponse
from service.store.verdicts import ScoredEvidence, Verdict

__all__ = ["verdict_result", "verdict_summary", "verify_response"]


def verdict_summary(verdict: Verdict) -> VerdictSummary:
    """Returns a verdict without its evidence."""
    content = verdict.content
    return VerdictSummary(
        claim_id=verdict.claim.id,
        claim_text=verdict.claim.text,
        verdict=content.verdict,
        confidence=content.confidence,
        has_conflict=content.has_conflict,
        reasoning=content.reasoning,
        evidence_count=len(content.evidence),
        supporting_count=content.count(Label.ENTAILMENT),
        refuting_count=content.count(Label.CONTRADICTION),
        created_at=verdict.created_at,
    )


def verdict_result(verdict: Verdict) -> VerdictResult:
    """Returns a verdict with its evidence, as GET /api/v1/verdicts and finished tasks have it."""
    content = verdict.content
    return VerdictResult(
        claim_id=verdict.claim.id,
        claim_text=verdict.claim.text,
        verdict=content.verdict,
        confidence=content.confidence,
        has_conflict=content.has_conflict,
        reasoning=content.reasoning,
        evidence=[_verdict_evidence(each) for each in content.evidence],
        verified_at=verdict.created_at,
        processing_time_ms=content.processing_seconds * 1000,
        rule_version=content.rule_version,
        embedding_model=content.embedding_model,
        entailment_model=content.entailment_model,
        validation_warnings=list(content.warnings),
    )


def verify_response(verdict: Verdict) -> VerifyResponse:
    """Returns a verdict with its evidence and all NLI scores, as POST /api/v1/verify has it."""
    content = verdict.content
    return VerifyResponse(
        verdict=content.verdict,
        confidence=content.confidence,
        has_conflict=content.has_conflict,
        evidence=[_scored_evidence(each) for each in content.evidence],
        explanation=content.reasoning,
        claim_id=verdict.claim.id,
        verification_id=verdict.id,
        rule_version=content.rule_version,
        processing_time_ms=content.processing_seconds * 1000,
        validation_warnings=list(content.warnings),
    )


def _verdict_evidence(evidence: ScoredEvidence) -> VerdictEvidence:
    hit, scores = evidence.hit, evidence.scores
    return VerdictEvidence(
        id=hit.evidence_id,
        text=hit.content,
        source=hit.source_url,
        relevance=hit.similarity,
        url=hit.source_url,
        publication_date=hit.published_on,
        nli_label=scores.label,
        nli_confidence=scores.confidence,
    )


def _scored_evidence(evidence: ScoredEvidence) -> ScoredEvidenceItem:
    hit, scores = evidence.hit, evidence.scores
    return ScoredEvidenceItem(
        evidence_id=hit.evidence_id,
        content=hit.content,
        source_url=hit.source_url,
        nli_label=scores.label,
        nli_confidence=scores.confidence,
        nli_scores=dict(scores.by_label()),
        similarity=hit.similarity,
    )
