"""From a claim to a verdict: the checks on its text, the one rule, and the steps from evidence to a kept verdict."""

import time
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.inference.engine import InferenceEngine
from service.inference.types import Label
from service.retrieval import Retriever
from service.store import Filters, NewVerdict, Outcome, ScoredEvidence, SearchMode
from service.telemetry import note_stages

__all__ = [
    "Decision",
    "InvalidTextError",
    "Options",
    "RequestMismatchError",
    "Verifier",
    "checked_text",
    "decide",
]

RULE_VERSION: Final = "1"
_CONFLICT_PROBABILITY: Final = 0.5
_MIN_SIMILARITY: Final = 0.3
"""Evidence less similar than this is not put before the model (the reference's figure for its /verify)."""
_LONG_WORDS: Final = 500
_SHORT_WORDS: Final = 3
_TOKENS_PER_WORD: Final = 1.3
_MODEL_TOKENS: Final = 450
_NON_ASCII_FRACTION: Final = 0.5
"""Limits of the warnings, as in the reference's validator."""
_SPACELESS: Final = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")
"""Scripts that write sentences without spaces, as the names of their characters begin in the Unicode database."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What `decide` found."""

    outcome: Outcome
    confidence: float
    support_score: float
    refute_score: float
    has_conflict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a claim is verified."""

    max_evidence: int = 10
    threshold: float = 0.7
    mode: SearchMode = "hybrid"
    filters: Filters = field(default_factory=Filters)


class RequestMismatchError(ValueError):
    """A request whose parts contradict one another."""


class InvalidTextError(ValueError):
    """A text that cannot be a claim; `code` names why for programs."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def decide(judged: Sequence[ScoredEvidence], threshold: float) -> Decision:
    """The one verdict rule.

    For each side, `strongest` is the highest probability that any piece of evidence gives it, and `mass` the sum of
    its probabilities weighted by similarity. A side's score is strongest * mass / (mass of both sides): how sure the
    best piece is, times the side's share of all that is said. So evidence that says nothing changes nothing, evidence
    for the other side lowers the score, and swapping the sides swaps the verdict.

    The verdict is the side with the higher score if that reaches `threshold`, with the score as confidence; otherwise
    NOT_ENOUGH_INFO, with 1 minus the higher score. There is a conflict when the strongest of both are at least 0.5.
    """
    strongest_support = max((each.scores.entailment for each in judged), default=0.0)
    strongest_refute = max((each.scores.contradiction for each in judged), default=0.0)
    support_mass = sum(each.found.similarity * each.scores.entailment for each in judged)
    refute_mass = sum(each.found.similarity * each.scores.contradiction for each in judged)
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
    """Retrieves evidence, asks the entailment model, decides."""

    retriever: Retriever
    engine: InferenceEngine

    async def verify(
        self, tenant: str, text: str, options: Options, progress: Callable[[int], Awaitable[None]] | None = None
    ) -> NewVerdict:
        """The verdict on `text` by the tenant's evidence. Keeps nothing; `progress` is told per cent done."""
        began = time.perf_counter()
        text, warnings = checked_text(text)
        entailment = self.engine.entailment.get()
        found = await self.retriever.search(
            tenant,
            text,
            mode=options.mode,
            limit=options.max_evidence,
            min_similarity=0.0 if options.mode == "keyword" else _MIN_SIMILARITY,
            filters=options.filters,
        )
        if progress is not None:
            await progress(30)
        judged: tuple[ScoredEvidence, ...] = ()
        if found:
            pairs = [(each.content, text) for each in found]
            spent_seconds = time.perf_counter() - began
            reply = await self.engine.classify(pairs, truncate=True, spent_seconds=spent_seconds)
            note_stages(reply.seconds)
            judged = tuple(ScoredEvidence(each, scores) for each, scores in zip(found, reply.results, strict=True))
        if progress is not None:
            await progress(90)
        decision = decide(judged, options.threshold)
        embedding = self.engine.embedding
        return NewVerdict(
            verdict=decision.outcome,
            confidence=decision.confidence,
            support_score=decision.support_score,
            refute_score=decision.refute_score,
            has_conflict=decision.has_conflict,
            reasoning=_reasoning(decision, judged, options),
            rule_version=RULE_VERSION,
            search_mode=options.mode,
            embedding_model="" if options.mode == "keyword" else f"{embedding.name}@{embedding.get().revision}",
            entailment_model=f"{entailment.name}@{entailment.revision}",
            warnings=warnings,
            processing_seconds=time.perf_counter() - began,
            judged=judged,
        )


def checked_text(text: str) -> tuple[str, tuple[str, ...]]:
    """The text in Unicode's normal form C, and warnings by code; raise `InvalidTextError` for what is no claim."""
    text = unicodedata.normalize("NFC", text.strip())
    words = _words(text)
    refusals = (
        ("EMPTY_TEXT", "the text is empty", not text),
        ("INVALID_UNICODE", "the text has control characters", any(_is_control(character) for character in text)),
        ("REPLACEMENT_CHAR", "the text has U+FFFD: it was decoded wrongly before it came here", "\ufffd" in text),
        ("ENCODING_MISMATCH", "the text is UTF-8 that was read as Windows-1252", _is_mojibake(text)),
        ("NO_ALPHANUMERIC", "the text has neither letters nor digits", not any(map(str.isalnum, text))),
        ("SINGLE_WORD", "one word is no claim", words < 2),  # noqa: PLR2004
    )
    for code, reason, applies in refusals:
        if applies:
            raise InvalidTextError(code, reason)
    non_ascii = sum(not character.isascii() for character in text)
    warnings = (
        ("MINIMAL_CONTEXT", words < _SHORT_WORDS),
        ("POTENTIAL_TRUNCATION", words * _TOKENS_PER_WORD > _MODEL_TOKENS),
        ("EXCESSIVE_LENGTH", words > _LONG_WORDS),
        ("HIGH_NON_ASCII_RATIO", non_ascii > _NON_ASCII_FRACTION * len(text)),
    )
    return text, tuple(code for code, applies in warnings if applies)


def _words(text: str) -> int:
    """Words between spaces; in scripts without spaces, two characters count as a word."""
    spaceless = sum(unicodedata.name(character, "").startswith(_SPACELESS) for character in text)
    return len(text.split()) + spaceless // 2


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\r\t"


def _is_mojibake(text: str) -> bool:
    """Whether `text` makes sense as UTF-8 when taken back to the bytes of Windows-1252, as "Ã©" does for "é"."""
    if text.isascii():
        return False
    try:
        text.encode("cp1252").decode("utf-8")
    except UnicodeError:
        return False
    return True


def _reasoning(decision: Decision, judged: Sequence[ScoredEvidence], options: Options) -> str:
    if not judged:
        return "No evidence was found."
    counts = {label: sum(each.scores.label is label for each in judged) for label in Label}
    conflict = " Strong evidence points both ways." if decision.has_conflict else ""
    return (
        f"Of {len(judged)} pieces of evidence {counts[Label.ENTAILMENT]} support the claim, "
        f"{counts[Label.CONTRADICTION]} contradict it and {counts[Label.NEUTRAL]} say neither. Support scores "
        f"{decision.support_score:.2f}, refutation {decision.refute_score:.2f}, at a threshold of "
        f"{options.threshold:.2f}.{conflict}"
    )
