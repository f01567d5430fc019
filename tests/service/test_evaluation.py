from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from service.evaluation import Judgement, JudgementsError, evaluate, ndcg, read_judgements, recall
from tests.service.conftest import Postgres, settings

if TYPE_CHECKING:
    from pathlib import Path


def test_ndcg_is_1_for_a_perfect_order_and_0_for_a_miss() -> None:
    assert ndcg(["a", "b", "x"], frozenset({"a", "b"})) == 1
    assert ndcg(["x", "y"], frozenset({"a"})) == 0


def test_ndcg_of_a_later_hit_is_lower() -> None:
    """Computed by hand for one relevant sentence at rank 3."""
    assert ndcg(["x", "y", "a"], frozenset({"a"})) == pytest.approx(1 / math.log2(4))


def test_only_the_first_ten_hits_count() -> None:
    found = [str(number) for number in range(20)]
    assert recall(found, frozenset({"3", "15"})) == 0.5
    assert ndcg(found, frozenset({"15"})) == 0


def test_claims_without_relevant_sentences_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    neutral = {"evidence": "n", "evidence_label": "NOT_ENOUGH_INFO"}
    entries = [
        {"claim": "c", "evidences": [{"evidence": "s", "evidence_label": "SUPPORTS"}, neutral]},
        {"claim": "d", "evidences": [neutral]},
    ]
    file.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    assert read_judgements(file) == ([Judgement("c", frozenset({"s"}))], ["s", "n"])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"claim": "c", "evidences": []}\nnonsense', 2),
        ('{"claim": "c"}', 1),
        ('{"claim": "c", "evidences": [{"evidence": "s"}]}', 1),
        ('{"claim": "c", "evidences": []}', 1),
        ("", 0),
    ],
)
def test_an_invalid_file_is_refused_with_the_line(content: str, line: int, tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(JudgementsError) as caught:
        read_judgements(file)
    assert caught.value.line == line


def test_sentences_of_another_file_are_not_found(postgres: Postgres, models_directory: Path, tmp_path: Path) -> None:
    """The second file's sentence is not similar to the claim, so a hit from the first file would lower the recall."""
    url = postgres.fresh()
    configured = settings(url, models_directory, entailment_model=None)
    lines: list[str] = []
    for name, sentences in {"one": [f"The sun rises, {number}." for number in range(12)], "two": ["Cats."]}.items():
        evidences = [{"evidence": sentence, "evidence_label": "SUPPORTS"} for sentence in sentences]
        file = tmp_path / name
        file.write_text(json.dumps({"claim": "The sun rises", "evidences": evidences}), encoding="utf-8")
        qualities = {quality.mode: quality for quality in evaluate(configured, file, lines.append)}
    assert qualities["vector"].recall_at_10 == 1
    assert lines[-1] == "searching, mode hybrid: 1 of 1 claims"
