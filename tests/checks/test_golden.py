from __future__ import annotations

import math

import pytest

from checks.golden import TEXTS, VECTORS, distance


def test_golden_vectors_have_unit_norm() -> None:
    assert len(TEXTS) == len(VECTORS)
    for vector in VECTORS:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)


def test_distance_is_the_largest_difference() -> None:
    assert distance([[0.0, 1.0], [0.5, 0.5]], [[0.0, 1.25], [0.5, 0.5]]) == 0.25


@pytest.mark.parametrize("other", [[], [[1.0]], [[1.0, math.nan]], [[1.0, 0.0], [1.0, 0.0]]])
def test_distance_of_unlike_vectors_is_infinite(other: list[list[float]]) -> None:
    assert distance([[1.0, 0.0]], other) == math.inf
