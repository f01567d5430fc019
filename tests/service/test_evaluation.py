from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from service.evaluation import Judgement, ndcg, read_judgements, recall

if TYPE_CHECKING:
    from pathlib import Path


def test_a_perfect_order_scores_1_and_a_miss_0() -> None:
    assert ndcg(["a", "b", "x"], frozenset({"a", "b"})) == 1
    assert ndcg(["x", "y"], frozenset({"a"})) == 0


def test_a_later_hit_is_worth_less() -> None:
    """By hand: one relevant piece, on the third place."""
    assert ndcg(["x", "y", "a"], frozenset({"a"})) == pytest.approx(1 / math.log2(4))


def test_only_the_first_ten_count() -> None:
    found = [str(number) for number in range(20)]
    assert recall(found, frozenset({"3", "15"})) == 0.5
    assert ndcg(found, frozenset({"15"})) == 0


def test_judgements_are_read_and_claims_without_any_left_out(tmp_path: Path) -> None:
    file = tmp_path / "judged.jsonl"
    silent = {"evidence": "n", "evidence_label": "NOT_ENOUGH_INFO"}
    entries = [
        {"claim": "c", "evidences": [{"evidence": "s", "evidence_label": "SUPPORTS"}, silent]},
        {"claim": "d", "evidences": [silent]},
    ]
    file.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    assert read_judgements(file) == ([Judgement("c", frozenset({"s"}))], ["s", "n"])
