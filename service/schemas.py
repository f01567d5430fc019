"""Defines the bodies of requests and responses under /api/v1: fields and limits.

Names and docstrings of the structs appear in the OpenAPI document.
"""

from datetime import date, datetime
from typing import Annotated, Final, Literal, TypeAlias
from uuid import UUID

from msgspec import Meta, Struct, field

from service.inference.types import Label
from service.store.verdicts import Outcome
from service.tasks import TaskState

__all__ = [
    "EXAMPLES",
    "ClaimItem",
    "ClaimPage",
    "EmbedRequest",
    "EmbedResponse",
    "EvidenceAdded",
    "EvidenceItem",
    "HealthReport",
    "IngestReport",
    "LineProblem",
    "Liveness",
    "NewClaim",
    "NewEvidenceItem",
    "NliBatchRequest",
    "NliBatchResponse",
    "NliRequest",
    "NliResult",
    "PartReport",
    "RateLimitStats",
    "Readiness",
    "ScoredEvidenceItem",
    "SearchRequest",
    "SearchResponse",
    "SearchResultItem",
    "ServiceLinks",
    "TaskStatus",
    "VerdictEvidence",
    "VerdictResult",
    "VerdictSummary",
    "VerifyClaimRequest",
    "VerifyOptions",
    "VerifyRequest",
    "VerifyResponse",
]

# NUL is the one character that PostgreSQL cannot store in a text.
_NO_NUL = r"^[^\x00]*$"
Text = Annotated[str, Meta(min_length=1, max_length=100_000, pattern=_NO_NUL)]
ClaimText = Annotated[str, Meta(min_length=1, max_length=5_000, pattern=_NO_NUL)]
ShortText = Annotated[str, Meta(min_length=1, max_length=2_000, pattern=_NO_NUL)]
Url = Annotated[str, Meta(min_length=1, max_length=2_048, pattern=_NO_NUL)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Mode: TypeAlias = Literal["hybrid", "vector", "keyword"]


class PartReport(Struct, frozen=True):
    """The health of one part of the service."""

    status: str
    message: str


class HealthReport(Struct, frozen=True):
    """The health of the service: `status` is that of its worst part."""

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: datetime
    version: str
    services: dict[str, PartReport]


class Liveness(Struct, frozen=True):
    """Whether this process can still work; if not, restart it."""

    is_alive: bool


class Readiness(Struct, frozen=True):
    """Whether requests should be sent here now; the reasons why not and the limitations, by part."""

    is_ready: bool
    reasons: dict[str, str]
    notes: dict[str, str]


class ServiceLinks(Struct, frozen=True):
    """The service's name and version, and the paths of its documentation and health."""

    name: str
    version: str
    documentation: str
    openapi: str
    health: str


class RateLimitStats(Struct, frozen=True):
    """The caller's rate limit, in tokens; null without a limit. `refused` counts this process's refusals."""

    limit: int | None
    remaining: int | None
    reset_seconds: int | None
    refused: int


class NewClaim(Struct, frozen=True, forbid_unknown_fields=True):
    """A claim to store."""

    text: ClaimText
    source_url: Url | None = None


class VerdictSummary(Struct, frozen=True):
    """The newest verdict on a claim."""

    claim_id: UUID
    claim_text: str
    verdict: Outcome
    confidence: float
    has_conflict: bool
    reasoning: str
    evidence_count: int
    supporting_count: int
    refuting_count: int
    created_at: datetime


class ClaimItem(Struct, frozen=True):
    """A claim. The newest verdict on it is included if a single claim is requested."""

    id: UUID
    text: str
    source_url: str | None
    submitted_at: datetime
    verdict: VerdictSummary | None = None


class ClaimPage(Struct, frozen=True):
    """A page of claims, newest first, and how many there are in total."""

    items: list[ClaimItem]
    total: int
    skip: int
    limit: int


class NewEvidenceItem(Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence to store. The same content is stored once."""

    content: Text
    source_url: Url | None = None
    source_type: Annotated[str, Meta(max_length=50, pattern=_NO_NUL)] | None = None
    published_on: date | None = None


class EvidenceAdded(Struct, frozen=True):
    """The id of the evidence; `is_new` is false if the same content was already stored."""

    id: UUID
    is_new: bool


class LineProblem(Struct, frozen=True):
    """A line that was rejected; the first line is 1."""

    line: int
    message: str


class IngestReport(Struct, frozen=True):
    """Counts of a stream of evidence, and the first hundred problems."""

    added: int
    duplicates: int
    failed: int
    problems: list[LineProblem]


class EvidenceItem(Struct, frozen=True):
    """A piece of evidence."""

    id: UUID
    content: str
    source_url: str | None
    source_type: str | None
    published_on: date | None
    created_at: datetime


class EmbedRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Texts to embed. `batch_size` is accepted and ignored: batches form across requests, by tokens."""

    texts: Annotated[list[Text], Meta(min_length=1, max_length=100)]
    batch_size: Annotated[int, Meta(ge=1, le=128)] = 32
    truncate: bool = False


class EmbedResponse(Struct, frozen=True):
    """One vector of unit norm per text, in the order of the request."""

    embeddings: list[list[float]]
    count: int
    dimension: int
    processing_time_ms: float


class SearchRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A search. `source_filter` is a prefix of the source URL; the dates are inclusive publication dates.

    `tenant_id`, if given, must be the tenant of the API key.
    """

    query: Annotated[str, Meta(min_length=1, max_length=1_000, pattern=_NO_NUL)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    mode: Mode = "hybrid"
    min_similarity: Fraction = 0.0
    tenant_id: Annotated[str, Meta(max_length=255)] | None = None
    source_filter: Url | None = None
    published_from: date | None = None
    published_to: date | None = None


class SearchResultItem(Struct, frozen=True):
    """A piece of evidence in a search result; the best has rank 1."""

    evidence_id: UUID
    content: str
    source_url: str | None
    similarity: float
    rank: int


class SearchResponse(Struct, frozen=True):
    """The evidence found, best first."""

    results: list[SearchResultItem]
    count: int
    query: str
    mode: Mode
    query_time_ms: float


class NliRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A premise and a hypothesis to classify."""

    premise: ShortText
    hypothesis: ShortText
    truncate: bool = False


class NliResult(Struct, frozen=True):
    """The most probable label, and the probabilities of all three."""

    label: Label
    confidence: float
    scores: dict[Label, float]
    processing_time_ms: float


class NliBatchRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Pairs of premise and hypothesis to classify. `batch_size` is accepted for compatibility and ignored."""

    pairs: Annotated[list[tuple[ShortText, ShortText]], Meta(min_length=1, max_length=50)]
    batch_size: Annotated[int, Meta(ge=1, le=32)] = 8
    truncate: bool = False


class NliBatchResponse(Struct, frozen=True):
    """One result per pair, in the order of the request."""

    results: list[NliResult]
    count: int
    total_processing_time_ms: float


class VerifyRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A claim to verify at once. `tenant_id`, if given, must be the tenant of the API key."""

    claim: ShortText
    tenant_id: Annotated[str, Meta(max_length=255)] | None = None
    max_evidence: Annotated[int, Meta(ge=1, le=50)] = 10
    confidence_threshold: Fraction = 0.7
    search_mode: Mode = "hybrid"


class ScoredEvidenceItem(Struct, frozen=True):
    """A piece of evidence with its NLI scores for the claim. `evidence_id` is null once the evidence is deleted."""

    evidence_id: UUID | None
    content: str
    source_url: str | None
    nli_label: Label
    nli_confidence: float
    nli_scores: dict[Label, float]
    similarity: float


class VerifyResponse(Struct, frozen=True):
    """A verdict and the evidence that it is based on."""

    verdict: Outcome
    confidence: float
    has_conflict: bool
    evidence: list[ScoredEvidenceItem]
    explanation: str
    claim_id: UUID
    verification_id: UUID
    rule_version: str
    processing_time_ms: float
    validation_warnings: list[str]


class VerifyOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to verify. `return_reasoning` is accepted for compatibility and ignored: the reasoning is always returned."""

    max_evidence_items: Annotated[int, Meta(ge=1, le=50)] = 10
    confidence_threshold: Fraction = 0.5
    return_reasoning: bool = True
    search_mode: Mode = "hybrid"


class VerifyClaimRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """How to verify the claim in the path. `claim_id` and `claim_text`, if given, must be those of that claim.

    `corpus_ids` is a list with one prefix of source URLs.
    """

    claim_id: str | None = None
    claim_text: ClaimText | None = None
    corpus_ids: Annotated[list[Url], Meta(min_length=1, max_length=1)] | None = None
    options: VerifyOptions = field(default_factory=VerifyOptions)


class VerdictEvidence(Struct, frozen=True):
    """A piece of evidence of a verdict. `id` is null once the evidence is deleted."""

    id: UUID | None
    text: str
    source: str | None
    relevance: float
    url: str | None
    publication_date: date | None
    nli_label: Label
    nli_confidence: float


class VerdictResult(Struct, frozen=True):
    """A stored verdict with its evidence."""

    claim_id: UUID
    claim_text: str
    verdict: Outcome
    confidence: float
    has_conflict: bool
    reasoning: str
    evidence: list[VerdictEvidence]
    verified_at: datetime
    processing_time_ms: float
    rule_version: str
    embedding_model: str
    entailment_model: str
    validation_warnings: list[str]


class TaskStatus(Struct, frozen=True):
    """State of a verification task. `result` is set once it is completed, `error` if an attempt failed."""

    task_id: UUID
    claim_id: UUID
    status: TaskState
    created_at: datetime
    completed_at: datetime | None
    progress_percentage: int
    attempts: int
    error: str | None
    result: VerdictResult | None


EXAMPLES: Final[tuple[Struct, ...]] = (
    NewClaim("The Arctic's summer ice has shrunk since 1979.", "https://news.example/ice"),
    NewEvidenceItem(
        "Satellites show that the ice cover of September has shrunk by 13 per cent a decade since 1979.",
        "https://report.example/chapter-4",
        "report",
        date(2021, 8, 9),
    ),
    EmbedRequest(["The sun rises in the east."]),
    SearchRequest("How fast does Arctic ice shrink?", limit=5),
    NliRequest("All cats sleep by day.", "Some cats sleep by day."),
    NliBatchRequest([("All cats sleep by day.", "Some cats sleep by day."), ("It rains.", "The sky is clear.")]),
    VerifyRequest("The Arctic's summer ice has shrunk since 1979.", max_evidence=5),
    VerifyClaimRequest(options=VerifyOptions(max_evidence_items=5)),
)
"""One example of each request, for the OpenAPI document."""
