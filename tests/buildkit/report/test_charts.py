from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from buildkit.image.gpu_code import GpuArchitecture, GpuCodeMeasurement
from buildkit.image.model import FolderSize
from buildkit.report import charts
from buildkit.report.builds import Timeline, TimelineStep

if TYPE_CHECKING:
    from buildkit.diff.model import Comparison
    from buildkit.image.model import Measurement


def values_by_series(chart: dict[str, Any]) -> dict[str, list[int]]:
    return {series["name"]: list(series["values"]) for series in chart["series"]}


def test_treemap_draws_a_folder_with_one_subfolder_as_that_one() -> None:
    folders = [FolderSize(path, size, 1) for path, size in (("", 100), ("opt", 60), ("opt/venv", 60), ("usr", 40))]

    chart: Any = charts.treemap(folders)

    assert chart["ids"] == ["/", "/opt/venv", "/usr"]
    assert chart["labels"] == ["/", "opt/venv", "usr"]
    assert chart["parents"] == ["", "/", "/"]
    assert chart["values"] == [100, 60, 40]


def test_treemap_of_no_folders_is_empty() -> None:
    assert charts.treemap([])["ids"] == []


def test_layer_bars_split_visible_and_wasted_bytes(after: Measurement) -> None:
    assert values_by_series(charts.layer_bars(after)) == {"visible": [700, 1], "wasted": [1000, 0]}


def test_layer_change_bars_mark_removed_layers(comparison: Comparison) -> None:
    removed = replace(comparison, layers=(replace(comparison.layers[0], after=None),))

    chart: Any = charts.layer_change_bars(removed, "old", "new")

    assert chart["names"][0].startswith("−0 RUN")  # noqa: RUF001 - a minus sign
    assert set(values_by_series(chart)) == {"old", "new"}


def test_gpu_code_bars_have_a_bar_for_each_architecture() -> None:
    gpu_code = GpuCodeMeasurement((GpuArchitecture("sm_90", 7, 1), GpuArchitecture("sm_80", 5, 1)), (), ())

    chart: Any = charts.gpu_code_bars(gpu_code)

    assert (chart["names"], values_by_series(chart)) == (["sm_90", "sm_80"], {"code": [7, 5]})


def test_timeline_labels_are_shortened_and_escaped() -> None:
    chart: Any = charts.timeline(Timeline("t", (TimelineStep("<b>", "RUN <b>" + "x" * 99, 0.5, 1.5, is_cached=True),)))
    (step,) = chart["steps"]

    assert step["stage"] == "&lt;b>"
    assert step["name"].startswith("RUN &lt;b>xx")
    assert step["name"].endswith("…")
    assert (step["start"], step["seconds"], step["cached"]) == (0.5, 1.5, True)


def test_trend_has_a_point_for_each_measurement(before: Measurement, after: Measurement) -> None:
    chart: Any = charts.trend([replace(before, measured_at="2026-11-23"), after])

    assert chart["times"] == ["2026-11-23", ""]
    assert values_by_series(chart)["Wasted"] == [0, 1000]
