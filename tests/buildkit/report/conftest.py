"""Measurements of two small images, before and after a change, with names that every format has to escape."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.diff.diff import compare
from tests.support.images import LayerMaker, measure_layers

if TYPE_CHECKING:
    from buildkit.diff.model import Comparison
    from buildkit.image.model import Measurement

SITE = "opt/venv/lib/python3.13/site-packages"
ODD = "we|ird`*<b>:x:"
INSTRUCTIONS = [f"RUN {ODD} {number}" for number in range(2)]


@pytest.fixture(scope="session")
def odd_name() -> str:
    """A file name with characters that Markdown, HTML and rich would interpret."""
    return ODD


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """Two layers, with a CUDA library twice and a package cache."""
    cuda = LayerMaker().file("usr/local/cuda/libcudart.so.12", "c" * 9000)
    cuda.file(f"{SITE}/nvidia/libcudart.so.12", "d" * 8000).file("root/.cache/uv/x", "u" * 53_600)
    base = LayerMaker().file("a", "1" * 1000).file(ODD, "2" * 500)
    return measure_layers(tmp_path_factory.mktemp("before"), base, cuda, instructions=INSTRUCTIONS)


@pytest.fixture(scope="session")
def after(tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """Two layers; the second overwrites 1,000 bytes of the first."""
    base = LayerMaker().file("a", "1" * 1000).file(ODD, "3" * 700)
    folder = tmp_path_factory.mktemp("after")
    return measure_layers(folder, base, LayerMaker().file("a", "x"), instructions=INSTRUCTIONS)


@pytest.fixture(scope="session")
def comparison(before: Measurement, after: Measurement) -> Comparison:
    """The comparison of `before` with `after`."""
    return compare(before, after)
