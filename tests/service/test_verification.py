from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.types import Scores
from service.store.evidence import SearchHit
from service.store.verdicts import Outcome, ScoredEvidence
from service.verification import InvalidTextError, check_claim, decide

probability = st.floats(0, 1)


@st.composite
def scored_evidence(draw: st.DrawFn) -> ScoredEvidence:
    entailment = draw(probability)
    contradiction = draw(st.floats(0, 1)) * (1 - entailment)
    return scored(entailment, contradiction, draw(probability))


def scored(entailment: float, contradiction: float, similarity: float = 0.8) -> ScoredEvidence:
    scores = Scores(entailment, max(0.0, 1 - entailment - contradiction), contradiction)
    hit = SearchHit(evidence_id=uuid.uuid4(), content="text", source_url=None, published_on=None, similarity=similarity)
    return ScoredEvidence(hit, scores)


def mirrored(each: ScoredEvidence) -> ScoredEvidence:
    scores = Scores(each.scores.contradiction, each.scores.neutral, each.scores.entailment)
    return ScoredEvidence(each.hit, scores)


def test_no_evidence_is_not_enough_info() -> None:
    decision = decide([], 0.7)
    assert (decision.outcome, decision.confidence) == (Outcome.NOT_ENOUGH_INFO, 1.0)


def test_one_strong_piece_decides_among_neutral_ones() -> None:
    evidence = [scored(0.95, 0.0), *[scored(0.0, 0.0) for _ in range(9)]]
    assert decide(evidence, 0.7).outcome is Outcome.SUPPORTED


def test_strong_evidence_on_both_sides_is_a_conflict() -> None:
    decision = decide([scored(0.95, 0.02), scored(0.02, 0.95)], 0.7)
    assert decision.outcome is Outcome.NOT_ENOUGH_INFO
    assert decision.has_conflict


def test_weak_evidence_is_not_enough_info() -> None:
    assert decide([scored(0.5, 0.1)], 0.7).outcome is Outcome.NOT_ENOUGH_INFO


@given(st.lists(scored_evidence(), max_size=12), probability)
def test_all_scores_are_between_0_and_1(evidence: list[ScoredEvidence], threshold: float) -> None:
    decision = decide(evidence, threshold)
    for score in (decision.confidence, decision.support_score, decision.refute_score):
        assert 0 <= score <= 1 + 1e-9


@given(st.lists(scored_evidence(), max_size=12), probability)
def test_swapping_the_sides_swaps_the_verdict(evidence: list[ScoredEvidence], threshold: float) -> None:
    swap = {
        Outcome.SUPPORTED: Outcome.REFUTED,
        Outcome.REFUTED: Outcome.SUPPORTED,
        Outcome.NOT_ENOUGH_INFO: Outcome.NOT_ENOUGH_INFO,
    }
    here, there = decide(evidence, threshold), decide([mirrored(each) for each in evidence], threshold)
    assert there.outcome is swap[here.outcome]
    assert (there.support_score, there.refute_score) == (here.refute_score, here.support_score)
    assert there.confidence == here.confidence


@given(st.lists(scored_evidence(), max_size=8), st.lists(probability, max_size=8), probability)
def test_neutral_evidence_changes_nothing(
    evidence: list[ScoredEvidence], similarities: list[float], threshold: float
) -> None:
    neutral = [scored(0.0, 0.0, similarity) for similarity in similarities]
    assert decide(evidence + neutral, threshold) == decide(evidence, threshold)


@given(st.lists(scored_evidence(), min_size=1, max_size=8), probability)
def test_more_support_never_lowers_the_support_score(evidence: list[ScoredEvidence], similarity: float) -> None:
    before = decide(evidence, 0.7).support_score
    after = decide([*evidence, scored(1.0, 0.0, similarity)], 0.7).support_score
    assert after >= before - 1e-9


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "EMPTY_TEXT"),
        ("   ", "EMPTY_TEXT"),
        ("word", "SINGLE_WORD"),
        ("caf\ufffd is open", "REPLACEMENT_CHAR"),
        ("Le cafÃ© est ouvert", "ENCODING_MISMATCH"),
        ("!!! ???", "NO_ALPHANUMERIC"),
        ("a \x01 b", "INVALID_UNICODE"),
    ],
)
def test_an_invalid_claim_is_refused_with_its_code(text: str, code: str) -> None:
    with pytest.raises(InvalidTextError) as caught:
        check_claim(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "text",
    [
        "地球是圆的",
        "富士山は日本一高い山です",
        "โลกกลม",
        "지구는 둥글다",
        "Земля круглая",
        "Le café est ouvert",
        "naïve façade coöperate",
    ],
)
def test_claims_in_any_script_are_accepted(text: str) -> None:
    assert check_claim(text).text == text


def test_the_text_is_normalized_to_nfc() -> None:
    assert check_claim("cafe\u0301 is open").text == "café is open"


def test_unusual_claims_are_accepted_with_warnings() -> None:
    assert check_claim("two words").warnings == ("MINIMAL_CONTEXT",)
    assert check_claim("word " * 501).warnings == ("POTENTIAL_TRUNCATION", "EXCESSIVE_LENGTH")
    assert check_claim("地球是圆的").warnings == ("HIGH_NON_ASCII_RATIO",)
