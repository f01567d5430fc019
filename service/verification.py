"""Verifies claims: checks the text, retrieves evidence, scores it, applies the verdict rule."""

import time
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.inference.engine import InferenceEngine
from service.inference.types import Label
from service.retrieval import Retriever
from service.store.evidence import Filters, SearchMode
from service.store.verdicts import NewVerdict, Outcome, ScoredEvidence

__all__ = [
    "CheckedClaim",
    "Decision",
    "InvalidTextError",
    "Options",
    "RequestMismatchError",
    "Verifier",
    "check_claim",
    "decide",
]

RULE_VERSION: Final = "1"
_CONFLICT_PROBABILITY: Final = 0.5
_MIN_SIMILARITY: Final = 0.3
"""Less similar evidence is not scored (the reference's value for its /verify)."""
_LONG_WORDS: Final = 500
_SHORT_WORDS: Final = 3
_TOKENS_PER_WORD: Final = 1.3
_MODEL_TOKENS: Final = 450
_NON_ASCII_FRACTION: Final = 0.5
"""Limits of the warnings, as in the reference's validator."""
_SPACELESS: Final = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")
"""Scripts without spaces between words, as prefixes of character names in the Unicode database."""


class RequestMismatchError(ValueError):
    """A request whose parts contradict one another or do not fit the model."""


class InvalidTextError(ValueError):
    """A text that cannot be a claim; `code` is the reason for programs."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class CheckedClaim:
    """The text of a claim in Unicode normal form C, and the codes of its warnings."""

    text: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to verify a claim. `threshold` is the least score of a verdict, from 0 to 1."""

    max_evidence: int = 10
    threshold: float = 0.7
    mode: SearchMode = "hybrid"
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of the verdict rule; every number is from 0 to 1."""

    outcome: Outcome
    confidence: float
    support_score: float
    refute_score: float
    has_conflict: bool


def decide(evidence: Sequence[ScoredEvidence], threshold: float) -> Decision:
    """Applies the verdict rule.

    The two sides are support (entailment) and refutation (contradiction). For each side, `strongest` is the highest
    probability that any piece of evidence gives it, and `mass` is the sum of its probabilities weighted by similarity.
    A side's score is strongest * mass / (mass of both sides): the confidence of the best piece times the side's share.
    So neutral evidence changes nothing, evidence for the other side lowers the score, and swapping the sides swaps the
    verdict.

    The verdict is the side with the higher score if that score reaches `threshold`; its confidence is the score.
    Otherwise the verdict is NOT_ENOUGH_INFO with a confidence of 1 minus the higher score. There is a conflict if the
    strongest probabilities of both sides are at least 0.5.
    """
    strongest_support = max((each.scores.entailment for each in evidence), default=0.0)
    strongest_refute = max((each.scores.contradiction for each in evidence), default=0.0)
    support_mass = sum(each.hit.similarity * each.scores.entailment for each in evidence)
    refute_mass = sum(each.hit.similarity * each.scores.contradiction for each in evidence)
    both = support_mass + refute_mass
    support = strongest_support * support_mass / both if both > 0 else 0.0
    refute = strongest_refute * refute_mass / both if both > 0 else 0.0
    has_conflict = min(strongest_support, strongest_refute) >= _CONFLICT_PROBABILITY
    if support == refute or max(support, refute) < threshold:
        return Decision(Outcome.NOT_ENOUGH_INFO, 1.0 - max(support, refute), support, refute, has_conflict)
    outcome = Outcome.SUPPORTED if support > refute else Outcome.REFUTED
    return Decision(outcome, max(support, refute), support, refute, has_conflict)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies claims with one tenant's evidence."""

    retriever: Retriever
    engine: InferenceEngine

    async def verify(
        self,
        tenant: str,
        claim: CheckedClaim,
        options: Options,
        on_progress: Callable[[int], Awaitable[None]] | None = None,
    ) -> NewVerdict:
        """Returns the verdict on a claim; stores nothing. Calls `on_progress` with the percentage done.

        Raises what `InferenceEngine.embed` and `classify` raise, and `DatabaseUnavailableError`.
        """
        began = time.perf_counter()
        entailment = self.engine.entailment.get()
        hits = await self.retriever.search(
            tenant,
            claim.text,
            mode=options.mode,
            limit=options.max_evidence,
            min_similarity=0.0 if options.mode == "keyword" else _MIN_SIMILARITY,
            filters=options.filters,
        )
        if on_progress is not None:
            await on_progress(30)
        evidence: tuple[ScoredEvidence, ...] = ()
        if hits:
            pairs = [(hit.content, claim.text) for hit in hits]
            spent_seconds = time.perf_counter() - began
            reply = await self.engine.classify(pairs, truncate=True, spent_seconds=spent_seconds)
            evidence = tuple(ScoredEvidence(hit, scores) for hit, scores in zip(hits, reply.results, strict=True))
        if on_progress is not None:
            await on_progress(90)
        return self._verdict(
            claim, options, evidence, entailment_model=f"{entailment.name}@{entailment.revision}", began=began
        )

    def _verdict(
        self,
        claim: CheckedClaim,
        options: Options,
        evidence: tuple[ScoredEvidence, ...],
        *,
        entailment_model: str,
        began: float,
    ) -> NewVerdict:
        decision = decide(evidence, options.threshold)
        embedding = self.engine.embedding
        return NewVerdict(
            verdict=decision.outcome,
            confidence=decision.confidence,
            support_score=decision.support_score,
            refute_score=decision.refute_score,
            has_conflict=decision.has_conflict,
            reasoning=_reasoning(decision, evidence, options),
            rule_version=RULE_VERSION,
            search_mode=options.mode,
            embedding_model="" if options.mode == "keyword" else f"{embedding.name}@{embedding.get().revision}",
            entailment_model=entailment_model,
            warnings=claim.warnings,
            processing_seconds=time.perf_counter() - began,
            evidence=evidence,
        )


def check_claim(text: str) -> CheckedClaim:
    """Converts a text to Unicode normal form C and checks it; raises `InvalidTextError` if it cannot be a claim."""
    text = unicodedata.normalize("NFC", text.strip())
    words = _words(text)
    errors = (
        ("EMPTY_TEXT", "the text is empty", not text),
        ("INVALID_UNICODE", "the text has control characters", any(_is_control(character) for character in text)),
        ("REPLACEMENT_CHAR", "the text has U+FFFD: it was decoded with the wrong encoding", "\ufffd" in text),
        ("ENCODING_MISMATCH", "the text is UTF-8 that was decoded as Windows-1252", _is_mojibake(text)),
        ("NO_ALPHANUMERIC", "the text has neither letters nor digits", not any(map(str.isalnum, text))),
        ("SINGLE_WORD", "the text is a single word: a claim needs at least two", words < 2),  # noqa: PLR2004
    )
    for code, reason, applies in errors:
        if applies:
            raise InvalidTextError(code, reason)
    non_ascii = sum(not character.isascii() for character in text)
    warnings = (
        ("MINIMAL_CONTEXT", words < _SHORT_WORDS),
        ("POTENTIAL_TRUNCATION", words * _TOKENS_PER_WORD > _MODEL_TOKENS),
        ("EXCESSIVE_LENGTH", words > _LONG_WORDS),
        ("HIGH_NON_ASCII_RATIO", non_ascii > _NON_ASCII_FRACTION * len(text)),
    )
    return CheckedClaim(text, tuple(code for code, applies in warnings if applies))


def _words(text: str) -> int:
    """Counts words separated by spaces; in scripts without spaces, two characters count as a word."""
    spaceless = sum(unicodedata.name(character, "").startswith(_SPACELESS) for character in text)
    return len(text.split()) + spaceless // 2


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\r\t"


def _is_mojibake(text: str) -> bool:
    """Whether `text`, encoded as Windows-1252, is valid UTF-8, as with "Ã©" for "é"."""
    if text.isascii():
        return False
    try:
        text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return False
    return True


def _reasoning(decision: Decision, evidence: Sequence[ScoredEvidence], options: Options) -> str:
    if not evidence:
        return "No evidence was found."
    counts = {label: sum(each.scores.label is label for each in evidence) for label in Label}
    conflict = " There is strong evidence on both sides." if decision.has_conflict else ""
    return (
        f"Of {len(evidence)} pieces of evidence, {counts[Label.ENTAILMENT]} support the claim, "
        f"{counts[Label.CONTRADICTION]} contradict it and {counts[Label.NEUTRAL]} are neutral. Support scores "
        f"{decision.support_score:.2f}, refutation {decision.refute_score:.2f}, at a threshold of "
        f"{options.threshold:.2f}.{conflict}"
    )
