from __future__ import annotations

from tests.support.corruption import corrupt_copies

INTACT = bytes(range(64))


def test_corrupt_copies_change_only_the_given_places() -> None:
    copies = list(corrupt_copies(INTACT, 50, seed=1, places=(3, 5), truncated_fraction=0))

    assert len(copies) == 50
    assert {index for copy in copies for index, byte in enumerate(copy) if byte != INTACT[index]} == {3, 5}
    assert list(corrupt_copies(INTACT, 50, seed=1, places=(3, 5), truncated_fraction=0)) == copies


def test_corrupt_copies_are_truncated_in_the_given_fraction() -> None:
    copies = list(corrupt_copies(INTACT, 200, seed=2, places=range(64), truncated_fraction=0.5))

    assert 60 < sum(len(copy) < 64 for copy in copies) < 140
