"""dive's own figures, from the examples of its tests (dive/filetree/efficiency_test.go), and where ours differ."""

import io

import pytest

from buildkit.image.dive import dive_efficiency
from buildkit.image.layer_tar import read_layer
from tests.support.images import LayerMaker


def figures(*makers: LayerMaker) -> tuple[float, int, float]:
    found = dive_efficiency([read_layer(io.BytesIO(maker.tar()), name="x") for maker in makers])
    return found.efficiency_fraction, found.wasted_bytes, found.wasted_user_fraction


FIRST = LayerMaker().file("etc/nginx/nginx.conf", b"x" * 2000).file("etc/nginx/public", b"x" * 3000)
SECOND = LayerMaker().file("etc/nginx/nginx.conf", b"x" * 5000).file("etc/athing", b"x" * 10000)


def test_the_example_of_dives_own_test_gives_its_figures() -> None:
    score, wasted_bytes, user_fraction = figures(FIRST, SECOND, LayerMaker().whiteout("etc/nginx"))
    assert score == 0.75
    assert wasted_bytes == 7000
    assert user_fraction == pytest.approx(7000 / 15000)


def test_a_deleted_directory_that_a_layer_names_makes_the_score_better() -> None:
    """What real archives look like: 10,000 of 20,000 bytes can be seen, and dive says 0.82. Hence our own figure."""
    first = LayerMaker().directory("etc").directory("etc/nginx")
    first.file("etc/nginx/nginx.conf", b"x" * 2000).file("etc/nginx/public", b"x" * 3000)
    score, _, _ = figures(first, SECOND, LayerMaker().whiteout("etc/nginx"))
    assert score == pytest.approx((2000 + 3000 + 10000 + 8000) / (7000 + 3000 + 10000 + 8000))


def test_files_deleted_one_by_one_are_waste_to_dive_too() -> None:
    first = LayerMaker().file("a", b"x" * 100).file("b", b"x" * 300)
    score, wasted_bytes, user_fraction = figures(first, LayerMaker().whiteout("a").file("c", b"x" * 50))
    assert score == pytest.approx((0 + 300 + 50) / 450)
    assert wasted_bytes == 100
    assert user_fraction == pytest.approx(100 / 50)


def test_images_without_files_and_whiteouts_of_nothing() -> None:
    assert figures() == (1.0, 0, 0.0)
    assert figures(LayerMaker().whiteout("never/there")) == (1.0, 0, 0.0)
