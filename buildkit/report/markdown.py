"""Writes measurements, comparisons, timed builds, budgets and check results as Markdown."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from buildkit.check.budget import BudgetReport
from buildkit.diff.model import Comparison
from buildkit.image.model import Measurement, TreeRow
from buildkit.report import builds, tables
from buildkit.report.format import FIGURES, format_figure, format_layers_not_searched
from buildkit.report.tables import Cell, Styled, Table
from buildkit.text import format_byte_change, format_bytes
from buildkit.timing.record import Timings
from checks.results import Results

__all__ = [
    "budgets_markdown",
    "checks_markdown",
    "comparison_markdown",
    "markdown_table",
    "measurement_markdown",
    "removed_markdown",
    "summary_markdown",
    "timings_markdown",
]

_ROWS: Final = 20
_FEW_ROWS: Final = 10
_FOUND: Final = 5


def measurement_markdown(measurement: Measurement) -> str:
    """Returns the contents of an image: totals, layers, parts, packages, waste, duplicates, GPU code, largest files."""
    totals, image = measurement.totals, measurement.image
    figures = ((label, format_figure(name, getattr(totals, name))) for name, label in FIGURES.items())
    layers = tables.layers(measurement).select(
        "#", "Instruction", "Unpacked", "% of total", "Blob", "Visible", "Wasted", "Files"
    )
    digest = image.manifest_digest or image.config_digest
    sections = [
        "## Image measurement\n",
        f"`{_code(image.name)}`, {_escape(image.platform)}, digest `{digest}`.\n",
        _table(("Metric", "Value"), figures),
        _dive_sentence(measurement),
        "### Layers\n",
        markdown_table(layers),
        "### Parts of the image\n",
        _tree_block(measurement.tree, totals.final_bytes),
        "### Packages\n",
        markdown_table(tables.packages(measurement, limit=_ROWS)),
        *_waste_section(measurement),
        *_duplicate_section(measurement),
        *_gpu_section(measurement),
        "### Largest files\n",
        markdown_table(tables.largest_files(measurement), limit=_FEW_ROWS),
    ]
    return "\n".join(sections)


def _dive_sentence(measurement: Measurement) -> str:
    dive = measurement.dive
    return (
        f"By dive's formulas: efficiency {dive.efficiency_fraction:.4f}, {format_bytes(dive.wasted_bytes)} wasted, "
        f"{dive.wasted_user_fraction:.2%} of the bytes in the layers above the lowest.\n"
    )


def _waste_section(measurement: Measurement) -> Iterator[str]:
    yield "### Waste\n"
    if measurement.waste:
        yield markdown_table(tables.waste(measurement), limit=_ROWS)
    else:
        yield "No wasted bytes: every stored file is visible.\n"


def _duplicate_section(measurement: Measurement) -> Iterator[str]:
    if measurement.duplicate_libraries:
        yield "### Duplicate shared libraries\n"
        yield markdown_table(tables.duplicate_libraries(measurement), limit=_ROWS)
    if measurement.duplicates:
        yield "### Duplicate content\n"
        yield markdown_table(tables.duplicate_content(measurement), limit=_FEW_ROWS)


def _gpu_section(measurement: Measurement) -> Iterator[str]:
    gpu_code = measurement.gpu_code
    if not gpu_code.architectures:
        return
    yield "### GPU code\n"
    yield markdown_table(tables.gpu_architectures(gpu_code))
    yield markdown_table(tables.gpu_libraries(gpu_code), limit=_FEW_ROWS)
    if gpu_code.layers_not_searched:
        yield f"{format_layers_not_searched(gpu_code)}\n"


def _tree_block(rows: Sequence[TreeRow], total_bytes: int) -> str:
    """Returns the tree of the image's parts in a block of fixed width."""
    lines = []
    for number, row in enumerate(rows):
        is_last = number + 1 == len(rows) or rows[number + 1].parent != row.parent
        name = row.label.rpartition("/")[2] + "/" if row.parent else row.label
        label = ("  └─ " if is_last else "  ├─ ") + name if row.parent else name
        lines.append(f"{label:<36}{format_bytes(row.final_bytes):>10}{row.fraction:>9.1%}")
    rule = "─" * 55
    head, total = f"{'Part':<36}{'Size':>10}{'Total':>9}", f"{'TOTAL':<36}{format_bytes(total_bytes):>10}"
    return "\n".join(["```", head, rule, *lines, rule, total, "```", ""])


def comparison_markdown(comparison: Comparison, *, before: str = "Before", after: str = "After") -> str:
    """Returns the changes between two images: totals, layers, parts, removed components, packages, files."""
    sections = [f"## {_escape(before)} and {_escape(after)}\n"]
    if comparison.is_empty:
        return "\n".join([*sections, "The images are identical: no layer, package or file differs.\n"])
    to_fetch = f"{format_bytes(comparison.transfer_bytes)} of {format_bytes(comparison.figure('blob_bytes').after)}"
    parts = (
        (
            ("&nbsp;&nbsp;" if each.parent else "") + _escape(each.label),
            format_bytes(each.before_bytes),
            format_bytes(each.after_bytes),
            format_byte_change(each.before_bytes, each.after_bytes),
        )
        for each in comparison.tree
    )
    sections += [
        summary_markdown(comparison, before=before, after=after),
        f"A node that has {_escape(before)} fetches {to_fetch} for {_escape(after)}.\n",
        "### Layers\n",
        markdown_table(tables.layer_changes(comparison, before, after)),
        "### Parts of the image\n",
        _raw_table(("Part", _escape(before), _escape(after), "Change"), parts),
    ]
    if comparison.removed:
        sections += ["### Removed\n", removed_markdown(comparison)]
    if comparison.packages:
        sections += ["### Packages\n", markdown_table(tables.package_changes(comparison, before, after), limit=_ROWS)]
    if comparison.files is None:
        sections.append("Files were not compared: a measurement was saved without its list of files.\n")
    elif comparison.files:
        sections += ["### Files\n", markdown_table(tables.file_changes(comparison, before, after), limit=_ROWS)]
    return "\n".join(sections)


def summary_markdown(comparison: Comparison, *, before: str = "Before", after: str = "After") -> str:
    """Returns the first table of the before/after report: each total, and the content that should not be there."""
    summary = tables.summary(comparison, before, after)
    return _table(summary.headings, [*summary.rows, *tables.concerns(comparison, before, after).rows])


def removed_markdown(comparison: Comparison) -> str:
    """Returns the removed components, the largest first, with the sum of all."""
    shown, others = comparison.removed[:_ROWS], comparison.removed[_ROWS:]
    rows = list(tables.removed(comparison).rows[: len(shown)])
    if others:
        size_bytes, files = sum(each.removed_bytes for each in others), sum(each.files for each in others)
        rows.append((f"{len(others)} more", format_bytes(size_bytes), f"{files:,}", ""))
    total_bytes = sum(each.removed_bytes for each in comparison.removed)
    total_files = sum(each.files for each in comparison.removed)
    total = ("**Total**", f"**{format_bytes(total_bytes)}**", f"{total_files:,}", "")
    return _raw_table(tables.removed(comparison).headings, [*(tuple(map(_cell, row)) for row in rows), total])


def budgets_markdown(report: BudgetReport) -> str:
    """Returns every budget with its result."""
    return markdown_table(tables.budgets(report)) if report.results else "No budget is set.\n"


def checks_markdown(results: Results) -> str:
    """Returns the checks that failed, broke or were not verified, and how many had each outcome."""
    counts: dict[str, int] = {}
    for each in results.checks:
        counts[each.outcome] = counts.get(each.outcome, 0) + 1
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    rows = []
    for each in results.checks:
        if each.outcome in {"fail", "error", "not verified"}:
            fix = [f"fix: {each.fix}"] if each.fix else []
            found = "<br>".join(_escape(line) for line in [*each.found[:_FOUND], *fix, each.reason] if line)
            rows.append((_escape(each.title), each.outcome.upper(), found))
    parts = [
        f"## Checks of {_escape(results.target)}\n",
        f"`{_code(results.image)}`: {summary}; {results.seconds:.1f} s.\n",
    ]
    if rows:
        parts.append(_raw_table(("Check", "Result", "Found"), rows))
    return "\n".join(parts)


def timings_markdown(timings: Timings, budgets: BudgetReport | None = None) -> str:
    """Returns medians, phases and slowest steps, with the builder and the state of its cache."""
    parts = [
        f"## Build times of {timings.target}" + (f" against {timings.against}" if timings.against else "") + "\n",
        builds.circumstances(timings) + "\n",
        markdown_table(builds.median_table(timings)),
        builds.LEGEND + "\n",
        "### Phases\n",
        f"{builds.PHASES_LEGEND}\n",
        markdown_table(builds.phase_table(timings)),
        "### Slowest steps\n",
        *(f"{each.caption}:\n\n{markdown_table(each)}" for each in builds.slowest_steps(timings)),
        "### All builds\n",
        markdown_table(builds.build_table(timings)),
    ]
    if timings.skipped:
        parts += ["### Not timed\n", "".join(f"- {_escape(line)}\n" for line in builds.not_timed(timings))]
    if budgets is not None:
        parts += ["### Budgets\n", budgets_markdown(budgets)]
    return "\n".join(parts)


def markdown_table(table: Table, *, limit: int | None = None) -> str:
    """Returns a table; the rows beyond *limit* are only counted."""
    shown = table if limit is None else table.first(limit)
    return _table(shown.headings, shown.rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    return _raw_table([_escape(heading) for heading in headings], (tuple(map(_cell, row)) for row in rows))


def _raw_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return _escape(cell)
    if isinstance(cell, Styled):
        text = f"`{_code(cell.text)}`" if cell.style == "code" else _escape(cell.text)
        return _escape(cell.prefix) + text + _escape(cell.suffix)
    return "<br>".join(map(_cell, cell))


def _escape(text: str) -> str:
    """Returns *text* so that no character in it is Markdown or HTML; spaces at its ends stay."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", re.sub(r"\s+", " ", text))


def _code(text: str) -> str:
    """Returns *text* so that it fits between backticks in a table."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
