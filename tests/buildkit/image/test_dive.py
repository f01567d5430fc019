"""Computes the figures of dive: the examples of its tests (dive/filetree/efficiency_test.go), and known errors."""

import pytest

from buildkit.image.dive import dive_efficiency
from tests.support.images import LayerMaker, read_blob


def figures(*makers: LayerMaker) -> tuple[float, int, float]:
    found = dive_efficiency([read_blob(maker.tar()) for maker in makers])
    return found.efficiency_fraction, found.wasted_bytes, found.wasted_user_fraction


FIRST = LayerMaker().file("etc/nginx/nginx.conf", b"x" * 2000).file("etc/nginx/public", b"x" * 3000)
SECOND = LayerMaker().file("etc/nginx/nginx.conf", b"x" * 5000).file("etc/athing", b"x" * 10000)


def test_example_of_dive_gives_its_figures() -> None:
    score, wasted_bytes, user_fraction = figures(FIRST, SECOND, LayerMaker().whiteout("etc/nginx"))
    assert score == 0.75
    assert wasted_bytes == 7000
    assert user_fraction == pytest.approx(7000 / 15000)


def test_deleted_directory_makes_the_score_too_high() -> None:
    """As in real archives: 10,000 of 20,000 bytes are visible, and dive says 0.82. So we have our own figure."""
    first = LayerMaker().directory("etc").directory("etc/nginx")
    first.file("etc/nginx/nginx.conf", b"x" * 2000).file("etc/nginx/public", b"x" * 3000)
    score, _, _ = figures(first, SECOND, LayerMaker().whiteout("etc/nginx"))
    assert score == pytest.approx((2000 + 3000 + 10000 + 8000) / (7000 + 3000 + 10000 + 8000))


def test_files_deleted_one_by_one_are_waste() -> None:
    first = LayerMaker().file("a", b"x" * 100).file("b", b"x" * 300)
    score, wasted_bytes, user_fraction = figures(first, LayerMaker().whiteout("a").file("c", b"x" * 50))
    assert score == pytest.approx((0 + 300 + 50) / 450)
    assert wasted_bytes == 100
    assert user_fraction == pytest.approx(100 / 50)


def test_image_without_files_is_efficient() -> None:
    assert figures() == (1.0, 0, 0.0)
    assert figures(LayerMaker().whiteout("never/there")) == (1.0, 0, 0.0)
