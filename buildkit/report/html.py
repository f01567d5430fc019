"""Writes measurements, comparisons and timed builds as one HTML page that needs no server and loads nothing.

Jinja2 fills the templates in `assets/` and escapes every value. plotly.js, which draws the charts, is copied into the
page from the `plotly` distribution; a content security policy forbids the page to load anything. The numbers of each
chart are also in a table or a list, for keyboards and screen readers; without JavaScript only the charts are missing.
"""

import functools
import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import jinja2
from markupsafe import Markup

from buildkit.check.budget import BudgetReport
from buildkit.diff.model import Comparison
from buildkit.errors import BuildkitError
from buildkit.image.gpu_code import GpuCodeMeasurement
from buildkit.image.model import FolderSize, Measurement
from buildkit.report import builds, charts, tables
from buildkit.report.builds import Timeline
from buildkit.report.charts import Chart
from buildkit.report.content import ImageReport
from buildkit.report.format import FIGURES, format_figure, format_figure_change, format_layers_not_searched
from buildkit.text import format_bytes, format_count
from buildkit.timing.record import Timings

__all__ = ["PlotlyMissing", "measurement_page", "timings_page"]

_ASSETS: Final = Path(__file__).parent / "assets"
_DEEPEST_LIST: Final = 40
_CARDS: Final = (
    "unpacked_bytes",
    "blob_bytes",
    "final_bytes",
    "wasted_bytes",
    "largest_layer_bytes",
    "layers",
    "packages",
)


@dataclass
class PlotlyMissing(BuildkitError):
    """The plotly distribution, or the script in it, is not installed."""

    exit_code = 3

    def __str__(self) -> str:
        return "the HTML page needs the plotly distribution: install the `toolkit` dependency group"


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of a page: the template that writes it, the values for that template, and the data of its charts."""

    name: str
    heading: str
    template: str
    values: Mapping[str, object]
    charts: Mapping[str, Chart] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder for the list of folders, with its subfolders."""

    name: str
    final_bytes: int
    files: int
    folders: tuple["_Folder", ...]


def measurement_page(report: ImageReport) -> str:
    """Returns the page of an image.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    measurement = report.measurement
    sections = [_summary(report)]
    if report.budgets is not None:
        sections.append(_budgets(report.budgets))
    sections += [_places(measurement), _layers(report)]
    if report.comparison is not None:
        sections.append(_changes(report.comparison, report.before, report.after))
    sections += [
        _waste(measurement),
        _packages(measurement),
        _duplicates(measurement),
    ]
    if measurement.gpu_code.architectures:
        sections.append(_gpu_code(measurement.gpu_code))
    if report.timelines:
        sections.append(_builds(report.timelines))
    if report.history:
        values = {"count": len(report.history), "table": tables.trend(report.history)}
        drawn = {"trend": charts.trend(report.history)}
        sections.append(_Section("trend", "Trend", "trend.html.j2", values, drawn))
    return _render("measurement.html.j2", sections, image=measurement.image)


def timings_page(timings: Timings, budgets: BudgetReport | None = None) -> str:
    """Returns the page of timed builds: medians, phases, all builds with their timelines.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    values = {
        "circumstances": builds.circumstances(timings),
        "medians": builds.median_table(timings),
        "phases": builds.phase_table(timings),
        "builds": builds.build_table(timings),
        "not_timed": builds.not_timed(timings),
    }
    sections = [_Section("summary", "Summary", "medians.html.j2", values)]
    if budgets is not None:
        sections.append(_budgets(budgets))
    sections.append(_builds([builds.timeline_of_build(build) for build in timings.builds]))
    return _render("timings.html.j2", sections, timings=timings, legend=builds.LEGEND)


def _summary(report: ImageReport) -> _Section:
    comparison, before, after = report.comparison, report.before, report.after
    cards = [
        {
            "label": FIGURES[name],
            "value": format_figure(name, getattr(report.measurement.totals, name)),
            "change": format_figure_change(comparison.figure(name)) if comparison else "",
        }
        for name in _CARDS
    ]
    table = tables.summary(comparison, before, after) if comparison else None
    values = {"cards": cards, "comparison": comparison, "table": table, "before": before, "after": after}
    return _Section("summary", "Summary", "summary.html.j2", values)


def _budgets(report: BudgetReport) -> _Section:
    failed = sum(each.status == "failed" for each in report.results)
    values = {"failed": failed, "table": tables.budgets(report)}
    return _Section("budgets", "Budgets", "budgets.html.j2", values)


def _places(measurement: Measurement) -> _Section:
    values = {
        "parts": [row for row in measurement.tree if not row.parent],
        "table": tables.tree(measurement),
        "folders": _nested(measurement.folders),
    }
    drawn = {"treemap": charts.treemap(measurement.folders)} if measurement.folders else {}
    return _Section("places", "Sizes by folder", "places.html.j2", values, drawn)


def _nested(folders: Sequence[FolderSize]) -> tuple[_Folder, ...]:
    """Returns the folders at the root of the image, each with its subfolders to a depth of 40."""
    children: dict[str, list[FolderSize]] = defaultdict(list)
    for folder in folders:
        if folder.path:
            children[folder.path.rpartition("/")[0]].append(folder)

    def below(path: str, depth: int) -> tuple[_Folder, ...]:
        if depth > _DEEPEST_LIST:
            return ()
        return tuple(
            _Folder(each.path.rpartition("/")[2], each.final_bytes, each.files, below(each.path, depth + 1))
            for each in children.get(path, ())
        )

    return below("", 0)


def _layers(report: ImageReport) -> _Section:
    measurement, comparison = report.measurement, report.comparison
    layers = tables.layers(measurement, has_full_instructions=True).select(
        "#", "Instruction", "Unpacked", "Blob", "Visible", "Wasted", "Files", "Executables"
    )
    if comparison is None:
        bars, changes, count = charts.layer_bars(measurement), None, len(measurement.layers)
    else:
        bars = charts.layer_change_bars(comparison, report.before, report.after)
        changes, count = tables.layer_changes(comparison, report.before, report.after), len(comparison.layers)
    values = {"count": count, "changes": changes, "table": layers}
    return _Section("layers", "Layers", "layers.html.j2", values, {"layers": bars})


def _changes(comparison: Comparison, before: str, after: str) -> _Section:
    values = {
        "removed": tables.removed(comparison).select("Component", "Size", "Reason"),
        "packages": tables.package_changes(comparison, before, after),
        "files": None if comparison.files is None else tables.file_changes(comparison, before, after),
    }
    return _Section("changes", "Changes", "changes.html.j2", values)


def _waste(measurement: Measurement) -> _Section:
    values = {"wasted_bytes": measurement.totals.wasted_bytes, "table": tables.waste(measurement)}
    return _Section("waste", "Waste", "waste.html.j2", values)


def _packages(measurement: Measurement) -> _Section:
    values = {"table": tables.packages(measurement), "largest_files": tables.largest_files(measurement)}
    return _Section("packages", "Packages and files", "packages.html.j2", values)


def _duplicates(measurement: Measurement) -> _Section:
    values = {
        "libraries": tables.duplicate_libraries(measurement),
        "content": tables.duplicate_content(measurement).select("Extra", "Copies", "Examples"),
    }
    return _Section("duplicates", "Duplicates", "duplicates.html.j2", values)


def _gpu_code(gpu_code: GpuCodeMeasurement) -> _Section:
    values = {
        "architectures": tables.gpu_architectures(gpu_code),
        "libraries": tables.gpu_libraries(gpu_code),
        "note": format_layers_not_searched(gpu_code) if gpu_code.layers_not_searched else "",
    }
    return _Section("gpu", "GPU code", "gpu_code.html.j2", values, {"gpu-code": charts.gpu_code_bars(gpu_code)})


def _builds(timelines: Sequence[Timeline]) -> _Section:
    named = {f"timeline-{number}": each for number, each in enumerate(timelines)}
    shown = [(name, each, builds.steps_table(each, f"{name}-table")) for name, each in named.items()]
    drawn = {name: charts.timeline(each) for name, each in named.items()}
    return _Section("builds", "Builds", "builds.html.j2", {"builds": shown}, drawn)


def _render(template: str, sections: Sequence[_Section], **values: object) -> str:
    """Returns a page; *values* are the template's variables besides its sections."""
    return (
        _environment()
        .get_template(template)
        .render(
            sections=sections,
            charts={name: chart for section in sections for name, chart in section.charts.items()},
            css=_trusted(_ASSETS / "page.css"),
            script=_trusted(_ASSETS / "page.js"),
            plotly=_plotly(),
            **values,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = format_bytes
    environment.filters["counted"] = format_count
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment


def _plotly() -> Markup:
    """Returns plotly.js from its distribution, without importing the distribution, which takes a second."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        script = Path(folder) / "package_data" / "plotly.min.js"
        if script.is_file():
            return _trusted(script)
    raise PlotlyMissing


def _trusted(path: Path) -> Markup:
    """Returns our or plotly's style sheet or script, escaped so that it cannot end its element."""
    text = path.read_text(encoding="utf-8").replace("</script", "<\\/script")
    return Markup(text)  # noqa: S704 - no value from an image is in it
