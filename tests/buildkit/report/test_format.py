from __future__ import annotations

import pytest

from buildkit.diff.model import FigureChange, LayerChange
from buildkit.image.gpu_code import GpuCodeMeasurement, GpuLibrary
from buildkit.report.format import (
    format_architectures,
    format_change_fraction,
    format_figure,
    format_figure_change,
    format_fraction,
    format_layer_change,
    format_layers_not_searched,
    format_optional_bytes,
    format_position,
    format_seconds,
    shorten_instruction,
)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("unpacked_bytes", 7.93e9, "7.93 GB"), ("efficiency_fraction", 0.99, "0.9900"), ("files", 12_345, "12,345")],
)
def test_figure_has_its_unit(name: str, value: float, text: str) -> None:
    assert format_figure(name, value) == text


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (FigureChange("blob_bytes", 2000, 500), "-1.5 kB"),
        (FigureChange("efficiency_fraction", 0.9, 1.0), "+0.1000"),
        (FigureChange("layers", 3, 3), "+0"),
    ],
)
def test_figure_change_has_a_sign(figure: FigureChange, text: str) -> None:
    assert format_figure_change(figure) == text


def test_fraction_of_nothing_has_no_percentage() -> None:
    assert (format_fraction(1, 4), format_fraction(1, 0)) == ("25.0%", "-")
    assert (format_change_fraction(4, 5), format_change_fraction(0, 5)) == ("+25.0%", "")


def test_layer_change_names_bytes_if_the_size_differs() -> None:
    same = LayerChange("moved", None, 0, 1, "RUN x", 10, 10, 0)
    grown = LayerChange("grown", "input", 0, 0, "RUN x", 1000, 3000, 3000)

    assert format_layer_change(same) == "moved"
    assert format_layer_change(grown) == "grown, +2.0 kB"


def test_missing_values_have_a_text() -> None:
    assert (format_position(None), format_position(0)) == ("-", "0")
    assert (format_optional_bytes(None), format_optional_bytes(0)) == ("", "0 B")


def test_seconds_lose_a_decimal_from_ten_on() -> None:
    assert (format_seconds(9.876), format_seconds(12.34)) == ("9.88", "12.3")


def test_long_instruction_is_shortened_to_90_characters() -> None:
    assert shorten_instruction("RUN a") == "RUN a"
    assert shorten_instruction(None) == "(no history)"
    assert shorten_instruction("x" * 91) == "x" * 89 + "…"


def test_architectures_are_the_four_largest() -> None:
    library = GpuLibrary("a.so", 0, None, 15_000, {f"sm_{n}0": n * 1000 for n in range(1, 6)})

    assert format_architectures(library) == "sm_50 5.0 kB, sm_40 4.0 kB, sm_30 3.0 kB, sm_20 2.0 kB"


def test_layers_not_searched_are_listed() -> None:
    assert format_layers_not_searched(GpuCodeMeasurement((), (), (1, 3))).endswith("layers 1, 3.")
