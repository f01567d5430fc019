"""Lays out measurements, comparisons, timed builds, budgets and check results as rich tables; prints nothing itself."""

from typing import Final

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from buildkit.check.budget import BudgetReport
from buildkit.check.verify import VerifyResult
from buildkit.diff.model import Comparison
from buildkit.image.model import Measurement
from buildkit.report import builds, tables
from buildkit.report.format import FIGURES, format_figure
from buildkit.report.tables import Cell, Styled, Table
from buildkit.text import format_bytes
from buildkit.timing.record import Timings
from checks.results import CheckResult

__all__ = ["budget_table", "check_table", "comparison_tables", "measurement_tables", "timings_tables"]

_ROWS: Final = 20
_FEW_ROWS: Final = 10
_FINDINGS: Final = 5
_STATUS_STYLES: Final = {"failed": "bold red", "waived": "yellow", "not evaluated": "yellow", "passed": "green"}
_OUTCOME_STYLES: Final = {
    "pass": "green",
    "fail": "bold red",
    "error": "bold magenta",
    "not verified": "yellow",
    "not applicable": "dim",
}


def measurement_tables(measurement: Measurement) -> Group:
    """Returns the tables of an image: totals, layers, parts, packages, waste."""
    image, totals = measurement.image, measurement.totals
    figures = ((label, format_figure(name, getattr(totals, name))) for name, label in FIGURES.items())
    layers = tables.layers(measurement).select("#", "Instruction", "Unpacked", "Blob", "Wasted", "Files")
    tree = tables.tree(measurement).select("Part", "Size", "% of total")
    packages = tables.packages(measurement, limit=_FEW_ROWS).select("Package", "Version", "Size")
    waste = tables.waste(measurement).select("Cause", "Hidden by", "Size")
    return Group(
        Text(f"{image.name}  {image.platform}  {image.manifest_digest or image.config_digest}"),
        _grid(tables.table("", "", ("", ""), figures, numbers=(1,))),
        _grid(layers, title="Layers"),
        _grid(tree, title="Parts of the image"),
        _grid(packages, title="Packages"),
        _grid(waste, title="Waste", limit=_FEW_ROWS) if measurement.waste else Text("\nNo wasted bytes."),
    )


def comparison_tables(comparison: Comparison, *, before: str = "Before", after: str = "After") -> Group:
    """Returns the tables of a comparison: totals, layers, packages."""
    if comparison.is_empty:
        return Group(Text("The images are identical."))
    files = "not compared" if comparison.files is None else f"{len(comparison.files):,}"
    return Group(
        _grid(tables.summary(comparison, before, after)),
        _grid(tables.layer_changes(comparison, before, after), title="Layers"),
        _grid(tables.package_changes(comparison, before, after), title="Packages that changed", limit=_ROWS)
        if comparison.packages
        else Text("\nNo package changed."),
        Text(f"\nFiles that changed: {files}. To fetch: {format_bytes(comparison.transfer_bytes)}."),
    )


def timings_tables(timings: Timings) -> Group:
    """Returns the medians and phases of timed builds."""
    phases = builds.phase_table(timings)
    return Group(
        Text(builds.circumstances(timings)),
        _grid(builds.median_table(timings), gap=1),
        _grid(phases, title=phases.caption, gap=1),
        Text(builds.LEGEND, style="dim"),
        *(Text(f"not timed: {line}", style="yellow") for line in builds.not_timed(timings)),
    )


def budget_table(report: BudgetReport) -> Grid:
    """Returns every budget with its result."""
    return _grid(tables.budgets(report), title="Budgets")


def check_table(result: VerifyResult) -> Grid:
    """Returns the results of the checks by group, with the findings and the reason below each check."""
    results = result.results
    counts = {outcome: sum(check.outcome == outcome for check in results.checks) for outcome in _OUTCOME_STYLES}
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    grid = Grid(
        title=f"{results.target}: {results.image}",
        caption=f"{summary}; {results.seconds:.1f} s. {result.json_path}, {result.junit_path}",
        title_justify="left",
        caption_justify="left",
        expand=True,
    )
    grid.add_column("check", ratio=1)
    grid.add_column("result", no_wrap=True)
    grid.add_column("s", justify="right", no_wrap=True)
    group = ""
    for check in results.checks:
        if check.group != group:
            group = check.group
            grid.add_section()
            grid.add_row(Text(group.upper(), style="bold"))
        outcome = Text(check.outcome.upper(), style=_OUTCOME_STYLES[check.outcome])
        grid.add_row(_check_text(check), outcome, f"{check.seconds:.1f}")
    return grid


def _check_text(check: CheckResult) -> Text:
    text = Text(check.title)
    for line in check.found[:_FINDINGS]:
        text.append(f"\n  {line}", style="red")
    if len(check.found) > _FINDINGS:
        text.append(f"\n  and {len(check.found) - _FINDINGS} more, in the JSON file", style="red")
    if check.fix:
        text.append(f"\n  fix: {check.fix}", style="cyan")
    if check.reason:
        text.append(f"\n  {check.reason.strip().splitlines()[-1]}", style="dim")
    return text


def _grid(table: Table, *, title: str | None = None, limit: int | None = None, gap: int = 2) -> Grid:
    """Returns *table* with *gap* spaces between columns; rows beyond *limit* are only counted."""
    grid = Grid(title_justify="left", box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=any(table.headings))
    if title is not None:
        grid.title = f"\n{title}"  # an empty line above it
    for place, heading in enumerate(table.headings):
        grid.add_column(heading, justify="right" if place in table.numbers else "left", overflow="fold")
    shown = table if limit is None else table.first(limit)
    for row in shown.rows:
        grid.add_row(*map(_text, row))
    return grid


def _text(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    if isinstance(cell, Styled):
        indent = "  " if cell.style == "indent" else ""
        return Text.assemble(indent, cell.prefix, (cell.text, _STATUS_STYLES.get(cell.style, "")), cell.suffix)
    return Text("\n").join(map(_text, cell))
