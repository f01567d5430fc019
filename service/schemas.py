"""What comes in and goes out over HTTP: fields and limits. Struct names are the names in the OpenAPI document."""

from datetime import date, datetime
from typing import Annotated, Final, Literal, TypeAlias
from uuid import UUID

from msgspec import Meta, Struct, field

from service.inference.types import Label
from service.store import Outcome
from service.tasks import TaskState

__all__ = [
    "EXAMPLES",
    "ClaimItem",
    "ClaimPage",
    "ClaimToVerify",
    "Embedded",
    "EvidenceAdded",
    "EvidenceItem",
    "EvidenceLines",
    "FoundItem",
    "HealthReport",
    "JudgedItem",
    "LineProblem",
    "Liveness",
    "NewClaim",
    "NewEvidenceItem",
    "NliBatch",
    "NliBatchResult",
    "NliPair",
    "NliResult",
    "PartReport",
    "RateLimitStats",
    "Readiness",
    "SearchResult",
    "ServiceMap",
    "TaskStatus",
    "ToEmbed",
    "ToSearch",
    "ToVerify",
    "VerdictEvidence",
    "VerdictResult",
    "VerdictSummary",
    "VerificationResult",
    "VerifyOptions",
]

# A NUL is the one character that PostgreSQL cannot keep in a text.
_NO_NUL = r"^[^\x00]*$"
Text = Annotated[str, Meta(min_length=1, max_length=100_000, pattern=_NO_NUL)]
ClaimText = Annotated[str, Meta(min_length=1, max_length=5_000, pattern=_NO_NUL)]
ShortText = Annotated[str, Meta(min_length=1, max_length=2_000, pattern=_NO_NUL)]
Url = Annotated[str, Meta(min_length=1, max_length=2_048, pattern=_NO_NUL)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Mode: TypeAlias = Literal["hybrid", "vector", "keyword"]


class PartReport(Struct, frozen=True):
    """One part of the service."""

    status: str
    message: str


class HealthReport(Struct, frozen=True):
    """How the service is: `status` is healthy, degraded or unhealthy, by its worst part."""

    status: Literal["healthy", "degraded", "unhealthy"]
    timestamp: datetime
    version: str
    services: dict[str, PartReport]


class Liveness(Struct, frozen=True):
    """Whether this process can still work."""

    is_alive: bool


class Readiness(Struct, frozen=True):
    """Whether requests should be sent here now; why not, by part; and what works less than fully, by part."""

    is_ready: bool
    reasons: dict[str, str]
    notes: dict[str, str]


class ServiceMap(Struct, frozen=True):
    """Where things are."""

    name: str
    version: str
    documentation: str
    openapi: str
    health: str


class RateLimitStats(Struct, frozen=True):
    """The caller's bucket, in tokens; null for a caller without a limit. `refused` counts this process's refusals."""

    limit: int | None
    remaining: int | None
    reset_seconds: int | None
    refused: int


class NewClaim(Struct, frozen=True, forbid_unknown_fields=True):
    """A claim to keep."""

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
    """A claim, and the newest verdict on it when one claim is asked for."""

    id: UUID
    text: str
    source_url: str | None
    submitted_at: datetime
    verdict: VerdictSummary | None = None


class ClaimPage(Struct, frozen=True):
    """Claims, newest first."""

    items: list[ClaimItem]
    total: int
    skip: int
    limit: int


class NewEvidenceItem(Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence to keep. The same content is kept once."""

    content: Text
    source_url: Url | None = None
    source_type: Annotated[str, Meta(max_length=50, pattern=_NO_NUL)] | None = None
    published_on: date | None = None


class EvidenceAdded(Struct, frozen=True):
    """Where the evidence is; `is_new` is false if the same content was there before."""

    id: UUID
    is_new: bool


class LineProblem(Struct, frozen=True):
    """A line that was not kept; lines count from 1."""

    line: int
    message: str


class EvidenceLines(Struct, frozen=True):
    """What became of a stream of evidence. At most the first hundred problems are listed."""

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


class ToEmbed(Struct, frozen=True, forbid_unknown_fields=True):
    """Texts to embed. `batch_size` is accepted for compatibility; batches form across requests, by tokens."""

    texts: Annotated[list[Text], Meta(min_length=1, max_length=100)]
    batch_size: Annotated[int, Meta(ge=1, le=128)] = 32
    truncate: bool = False


class Embedded(Struct, frozen=True):
    """One vector of unit norm per text, in the order given."""

    embeddings: list[list[float]]
    count: int
    dimension: int
    processing_time_ms: float


class ToSearch(Struct, frozen=True, forbid_unknown_fields=True):
    """What to look for. `source_filter` is how a source's address begins; dates are the evidence's own, inclusive.

    `tenant_id` may only repeat the key's own tenant.
    """

    query: Annotated[str, Meta(min_length=1, max_length=1_000, pattern=_NO_NUL)]
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    mode: Mode = "hybrid"
    min_similarity: Fraction = 0.0
    tenant_id: Annotated[str, Meta(max_length=255)] | None = None
    source_filter: Url | None = None
    published_from: date | None = None
    published_to: date | None = None


class FoundItem(Struct, frozen=True):
    """Evidence that was found; the first has rank 1."""

    evidence_id: UUID
    content: str
    source_url: str | None
    similarity: float
    rank: int


class SearchResult(Struct, frozen=True):
    """Evidence, best first."""

    results: list[FoundItem]
    count: int
    query: str
    mode: Mode
    query_time_ms: float


class NliPair(Struct, frozen=True, forbid_unknown_fields=True):
    """Does the premise entail the hypothesis?"""

    premise: ShortText
    hypothesis: ShortText
    truncate: bool = False


class NliResult(Struct, frozen=True):
    """The most probable label, and the probabilities of all three."""

    label: Label
    confidence: float
    scores: dict[Label, float]
    processing_time_ms: float


class NliBatch(Struct, frozen=True, forbid_unknown_fields=True):
    """Pairs of premise and hypothesis. `batch_size` is accepted for compatibility."""

    pairs: Annotated[list[tuple[ShortText, ShortText]], Meta(min_length=1, max_length=50)]
    batch_size: Annotated[int, Meta(ge=1, le=32)] = 8
    truncate: bool = False


class NliBatchResult(Struct, frozen=True):
    """One result per pair, in the order given."""

    results: list[NliResult]
    count: int
    total_processing_time_ms: float


class ToVerify(Struct, frozen=True, forbid_unknown_fields=True):
    """A claim to verify now. `tenant_id` may only repeat the key's own tenant."""

    claim: ShortText
    tenant_id: Annotated[str, Meta(max_length=255)] | None = None
    max_evidence: Annotated[int, Meta(ge=1, le=50)] = 10
    confidence_threshold: Fraction = 0.7
    search_mode: Mode = "hybrid"


class JudgedItem(Struct, frozen=True):
    """Evidence and what it says about the claim. `evidence_id` is null once the evidence was deleted."""

    evidence_id: UUID | None
    content: str
    source_url: str | None
    nli_label: Label
    nli_confidence: float
    nli_scores: dict[Label, float]
    similarity: float


class VerificationResult(Struct, frozen=True):
    """A verdict and the evidence that it rests on."""

    verdict: Outcome
    confidence: float
    has_conflict: bool
    evidence: list[JudgedItem]
    explanation: str
    claim_id: UUID
    verification_id: UUID
    rule_version: str
    processing_time_ms: float
    validation_warnings: list[str]


class VerifyOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """How to verify. `return_reasoning` is accepted for compatibility; the reasoning is always kept and returned."""

    max_evidence_items: Annotated[int, Meta(ge=1, le=50)] = 10
    confidence_threshold: Fraction = 0.5
    return_reasoning: bool = True
    search_mode: Mode = "hybrid"


class ClaimToVerify(Struct, frozen=True, forbid_unknown_fields=True):
    """Which claim to verify, and how. `claim_id` and `claim_text`, if given, must be those of the claim in the path.

    `corpus_ids` are beginnings of source addresses; at most one is supported.
    """

    claim_id: str | None = None
    claim_text: ClaimText | None = None
    corpus_ids: Annotated[list[Url], Meta(min_length=1, max_length=1)] | None = None
    options: VerifyOptions = field(default_factory=VerifyOptions)


class VerdictEvidence(Struct, frozen=True):
    """Evidence of a verdict."""

    id: UUID | None
    text: str
    source: str | None
    relevance: float
    url: str | None
    publication_date: date | None
    nli_label: Label
    nli_confidence: float


class VerdictResult(Struct, frozen=True):
    """A verdict as kept."""

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
    """How far a verification is. `result` is there when it is completed, `error` when an attempt failed."""

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
    ToEmbed(["The sun rises in the east."]),
    ToSearch("How fast does Arctic ice shrink?", limit=5),
    NliPair("All cats sleep by day.", "Some cats sleep by day."),
    NliBatch([("All cats sleep by day.", "Some cats sleep by day."), ("It rains.", "The sky is clear.")]),
    ToVerify("The Arctic's summer ice has shrunk since 1979.", max_evidence=5),
    ClaimToVerify(options=VerifyOptions(max_evidence_items=5)),
)
"""One request of each kind, for the OpenAPI document."""
