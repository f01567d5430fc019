"""Measurements, comparisons and verdicts as Markdown and JSON, and how figures are written in every report.

Sizes are decimal: GB is 10^9 bytes. Beside this module: tables for a terminal (`terminal`), the HTML page
(`page`), and what tools collect (`findings`).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from buildkit.check.budget import BudgetReport
from buildkit.diff.diff import Comparison, FigureChange, LayerChange, PartChange
from buildkit.image.gpu_code import GpuCodeMeasurement, GpuLibrary
from buildkit.image.model import Measurement, TreeRow
from buildkit.text import format_byte_change, format_bytes
from checks.verdicts import Results

__all__ = [
    "FIGURES",
    "architectures_text",
    "as_cell",
    "as_instruction",
    "budget_markdown",
    "checks_markdown",
    "comparison_markdown",
    "figure_text",
    "layer_change",
    "layer_table",
    "layers_not_searched_text",
    "markdown_table",
    "measurement_markdown",
    "removed_table",
    "shortened",
    "summary_row",
    "summary_table",
    "to_json",
]

FIGURES: Final = {
    "unpacked_bytes": "Image size (files in all layers)",
    "blob_bytes": "Stored and sent (blobs)",
    "final_bytes": "Seen by a container",
    "wasted_bytes": "Wasted",
    "largest_layer_bytes": "Largest layer",
    "duplicate_bytes": "Equal content stored again",
    "efficiency_fraction": "Efficiency",
    "layers": "Layers",
    "files": "Files",
    "packages": "Packages",
    "executables": "Executables",
}
_CONCERNS: Final = {
    "build tool": "Build tools in the image",
    "headers to build against": "Headers to build against",
    "package manager": "Package managers and their caches",
    "package index": "Package index and its cache",
    "development": "Development packages",
    "not for production": "Tests, scripts and examples",
}
_INSTRUCTION_LETTERS: Final = 90
_ROWS: Final = 20
_FOUND: Final = 5


def to_json(value: Measurement | Comparison | BudgetReport) -> str:
    """Write any of the values as JSON, indented for readers."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def measurement_markdown(measurement: Measurement, *, title: str = "Image measurement") -> str:
    """Write what is in an image: totals, layers, tree, packages, waste, duplicates, largest files."""
    totals, image = measurement.totals, measurement.image
    sections = [
        f"## {as_cell(title)}\n",
        f"`{_code(image.name)}`, {as_cell(image.platform)}, digest `{image.manifest_digest or image.config_digest}`.\n",
        markdown_table(
            ("Metric", "Value"), ((label, figure_text(name, getattr(totals, name))) for name, label in FIGURES.items())
        ),
        _dive_sentence(measurement),
        "### Layers\n",
        markdown_table(
            ("#", "Instruction", "Unpacked", "% of total", "Blob", "Seen", "Wasted", "Files"),
            (
                (
                    str(layer.position),
                    as_instruction(layer.instruction),
                    format_bytes(layer.unpacked_bytes),
                    _share(layer.unpacked_bytes, totals.unpacked_bytes),
                    format_bytes(layer.blob_bytes),
                    format_bytes(layer.final_bytes),
                    format_bytes(layer.wasted_bytes),
                    f"{layer.files:,}",
                )
                for layer in measurement.layers
            ),
        ),
        "### Tree\n",
        _tree_block(measurement.tree, totals.final_bytes),
        "### Packages\n",
        markdown_table(
            ("Package", "Version", "Kind", "Size", "Files"),
            [
                *(
                    (
                        as_cell(each.name),
                        as_cell(each.version),
                        each.manager,
                        format_bytes(each.final_bytes),
                        f"{each.files:,}",
                    )
                    for each in measurement.packages[:_ROWS]
                ),
                *_more(len(measurement.packages), 5),
                (
                    "in no package",
                    "",
                    "",
                    format_bytes(measurement.unowned.final_bytes),
                    f"{measurement.unowned.files:,}",
                ),
            ],
        ),
        *_waste_section(measurement),
        *_duplicate_section(measurement),
        *_gpu_section(measurement),
        "### Largest files\n",
        markdown_table(
            ("File", "Size", "Layer"),
            (
                (f"`{_code(each.path)}`", format_bytes(each.size_bytes), str(each.layer))
                for each in measurement.largest_files[:10]
            ),
        ),
    ]
    return "\n".join(sections)


def _dive_sentence(measurement: Measurement) -> str:
    dive = measurement.dive
    return (
        f"dive's own figures: efficiency {dive.efficiency_fraction:.4f}, {format_bytes(dive.wasted_bytes)} wasted, "
        f"{dive.wasted_user_fraction:.2%} of what the layers above the lowest hold.\n"
    )


def _transfer_sentence(comparison: Comparison, before: str, after: str) -> str:
    whole = format_bytes(comparison.figure("blob_bytes").after)
    part = format_bytes(comparison.transfer_bytes)
    return f"A node that holds {as_cell(before)} fetches {part} of {whole} for {as_cell(after)}.\n"


def _waste_section(measurement: Measurement) -> Iterator[str]:
    yield "### Waste\n"
    if not measurement.waste:
        yield "No byte is stored and not seen.\n"
        return
    yield markdown_table(
        ("Cause", "Size", "Files", "Stored by layer", "By layer", "Instruction that did it", "Largest"),
        (
            (
                each.cause,
                format_bytes(each.wasted_bytes),
                f"{each.files:,}",
                str(each.stored_by),
                str(each.caused_by),
                as_instruction(each.instruction),
                f"`{_code(each.largest[0].path)}`",
            )
            for each in measurement.waste[:_ROWS]
        ),
    )


def _duplicate_section(measurement: Measurement) -> Iterator[str]:
    if measurement.duplicate_libraries:
        yield "### Shared libraries more than once\n"
        yield markdown_table(
            ("Library", "Extra", "Copies"),
            (
                (
                    as_cell(each.soname) + (" (CUDA)" if each.is_cuda else ""),
                    format_bytes(each.extra_bytes),
                    "<br>".join(f"`{_code(copy.path)}`" for copy in each.copies),
                )
                for each in measurement.duplicate_libraries[:_ROWS]
            ),
        )
    if measurement.duplicates:
        yield "### Equal content\n"
        yield markdown_table(
            ("Extra", "Copies", "Size of each", "For example"),
            (
                (
                    format_bytes(each.extra_bytes),
                    str(each.copies),
                    format_bytes(each.size_bytes),
                    "<br>".join(f"`{_code(copy.path)}` (layer {copy.layer})" for copy in each.examples[:3]),
                )
                for each in measurement.duplicates[:10]
            ),
        )


def _gpu_section(measurement: Measurement) -> Iterator[str]:
    gpu_code = measurement.gpu_code
    if not gpu_code.architectures:
        return
    yield "### GPU code\n"
    yield markdown_table(
        ("Architecture", "Code", "Libraries"),
        ((each.architecture, format_bytes(each.code_bytes), str(each.libraries)) for each in gpu_code.architectures),
    )
    yield markdown_table(
        ("Library", "Code", "Most of it for"),
        (
            (f"`{_code(each.path)}`", format_bytes(each.code_bytes), architectures_text(each))
            for each in gpu_code.libraries[:10]
        ),
    )
    if gpu_code.layers_not_searched:
        yield f"{layers_not_searched_text(gpu_code)}\n"


def architectures_text(library: GpuLibrary) -> str:
    """Write a library's four largest architectures with their sizes."""
    largest = sorted(library.architectures.items(), key=lambda each: -each[1])[:4]
    return ", ".join(f"{name} {format_bytes(size_bytes)}" for name, size_bytes in largest)


def layers_not_searched_text(gpu_code: GpuCodeMeasurement) -> str:
    """Say which layers the figures of GPU code leave out."""
    layers = ", ".join(str(position) for position in gpu_code.layers_not_searched)
    return f"Not searched for GPU code, because they are compressed or came in a stream: layers {layers}."


def comparison_markdown(comparison: Comparison, *, before: str = "Before", after: str = "After") -> str:
    """Write the summary, the layers, the tree, what was removed and the changes of packages and files."""
    if comparison.is_empty:
        heading = f"## {as_cell(before)} and {as_cell(after)}\n"
        return f"{heading}\nThe images are identical: no layer, package or file differs.\n"
    sections = [
        f"## {as_cell(before)} and {as_cell(after)}\n",
        summary_table(comparison, before=before, after=after),
        _transfer_sentence(comparison, before, after),
        "### Layers\n",
        layer_table(comparison, before=before, after=after),
        "### Tree\n",
        markdown_table(
            ("Part", before, after, "Change"),
            (
                (
                    ("&nbsp;&nbsp;" if each.parent else "") + each.label,
                    format_bytes(each.before_bytes),
                    format_bytes(each.after_bytes),
                    format_byte_change(each.before_bytes, each.after_bytes),
                )
                for each in comparison.tree
            ),
        ),
    ]
    if comparison.removed:
        sections += ["### Removed\n", removed_table(comparison)]
    if comparison.packages:
        sections += [
            "### Packages\n",
            markdown_table(
                ("Package", "Kind", before, after, "Change"),
                [
                    *(
                        (
                            f"{as_cell(each.name)} ({each.manager})",
                            each.kind,
                            as_cell(each.before_version) or "-",
                            as_cell(each.after_version) or "-",
                            format_byte_change(each.before_bytes, each.after_bytes),
                        )
                        for each in comparison.packages[:_ROWS]
                    ),
                    *_more(len(comparison.packages), 5),
                ],
            ),
        ]
    if comparison.files is None:
        sections.append("Files were not compared: a measurement was kept without them.\n")
    elif comparison.files:
        sections += [
            "### Files\n",
            markdown_table(
                ("File", "Kind", before, after),
                [
                    *(
                        (
                            f"`{_code(each.path)}`",
                            each.kind,
                            format_bytes(each.before_bytes),
                            format_bytes(each.after_bytes),
                        )
                        for each in comparison.files[:_ROWS]
                    ),
                    *_more(len(comparison.files), 4),
                ],
            ),
        ]
    return "\n".join(sections)


def summary_table(comparison: Comparison, *, before: str = "Before", after: str = "After") -> str:
    """Write the table that opens the before/after report: each figure and how it changed."""
    rows = [summary_row(figure) for figure in comparison.figures]
    rows += [_concern_row(concern) for concern in comparison.concerns if concern.before_bytes or concern.after_bytes]
    return markdown_table(("Metric", before, after, "Change", "% change"), rows)


def summary_row(figure: FigureChange) -> tuple[str, ...]:
    """Write one of the totals: its label, before, after, change, and that as a part of what was before."""
    label = FIGURES[figure.name]
    if figure.name.endswith("_bytes"):
        change = format_byte_change(figure.before, figure.after)
    elif figure.name.endswith("_fraction"):
        change = f"{figure.after - figure.before:+.4f}"
    else:
        change = f"{figure.after - figure.before:+,.0f}"
    return (
        label,
        figure_text(figure.name, figure.before),
        figure_text(figure.name, figure.after),
        change,
        "" if figure.name.endswith("_fraction") else _change_fraction(figure.before, figure.after),
    )


def _concern_row(concern: PartChange) -> tuple[str, ...]:
    def shown(size_bytes: int) -> str:
        return f"yes ({format_bytes(size_bytes)})" if size_bytes else "no"

    return (
        _CONCERNS.get(concern.label, concern.label),
        shown(concern.before_bytes),
        shown(concern.after_bytes),
        format_byte_change(concern.before_bytes, concern.after_bytes),
        _change_fraction(concern.before_bytes, concern.after_bytes),
    )


def layer_table(comparison: Comparison, *, before: str = "Before", after: str = "After") -> str:
    """Write the layers of both images side by side, with the cause of each change and what must be fetched."""

    def position(number: int | None) -> str:
        return "-" if number is None else str(number)

    return markdown_table(
        ("#", "Instruction", before, after, "Change", "Cause", "To fetch"),
        (
            (
                f"{position(layer.before)} → {position(layer.after)}",
                as_instruction(layer.instruction),
                format_bytes(layer.before_bytes),
                format_bytes(layer.after_bytes),
                layer_change(layer),
                layer.cause or "",
                format_bytes(layer.fetch_bytes) if layer.fetch_bytes else "",
            )
            for layer in comparison.layers
        ),
    )


def layer_change(layer: LayerChange) -> str:
    """Write how a layer changed, by how much where it did."""
    if layer.before_bytes == layer.after_bytes:
        return layer.kind
    return f"{layer.kind}, {format_byte_change(layer.before_bytes, layer.after_bytes)}"


def removed_table(comparison: Comparison) -> str:
    """Write what the image no longer holds, the largest first, with the sum of all."""
    rows = [
        (as_cell(each.name), format_bytes(each.removed_bytes), f"{each.files:,}", each.reason)
        for each in comparison.removed[:_ROWS]
    ]
    rest = comparison.removed[_ROWS:]
    if rest:
        rows.append(
            (
                f"{len(rest)} more",
                format_bytes(sum(each.removed_bytes for each in rest)),
                f"{sum(each.files for each in rest):,}",
                "",
            )
        )
    total_bytes = sum(each.removed_bytes for each in comparison.removed)
    rows.append(
        ("**Total**", f"**{format_bytes(total_bytes)}**", f"{sum(each.files for each in comparison.removed):,}", "")
    )
    return markdown_table(("Component", "Size", "Files", "Reason"), rows)


def budget_markdown(verdict: BudgetReport) -> str:
    """Write every limit with its judgement."""
    if not verdict.judgements:
        return "No budget was set.\n"
    return markdown_table(
        ("Budget", "BudgetResult", "Measured and allowed"),
        ((as_cell(each.budget), each.status, as_cell(each.message)) for each in verdict.judgements),
    )


def checks_markdown(results: Results) -> str:
    """Write what the checks of an image found, what was not verified, and how many passed."""
    counts: dict[str, int] = {}
    for each in results.checks:
        counts[each.outcome] = counts.get(each.outcome, 0) + 1
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    rows = []
    for each in results.checks:
        if each.outcome in {"fail", "error", "not verified"}:
            fix = [f"fix: {each.fix}"] if each.fix else []
            said = "<br>".join(map(as_cell, [*each.found[:_FOUND], *fix, each.reason]))
            rows.append((as_cell(each.title), each.outcome.upper(), said))
    parts = [
        f"## Checks of {as_cell(results.target)}\n",
        f"`{_code(results.image)}`: {summary}; {results.seconds:.1f} s.\n",
        *([markdown_table(("Check", "Result", "Found"), rows)] if rows else []),
    ]
    return "\n".join(parts)


def _tree_block(rows: Sequence[TreeRow], total_bytes: int) -> str:
    """Draw the tree as the report does, in a block of fixed width."""
    lines = []
    for number, row in enumerate(rows):
        is_last = number + 1 == len(rows) or rows[number + 1].parent != row.parent
        name = row.label.rpartition("/")[2] + "/" if row.parent else row.label
        label = ("  └─ " if is_last else "  ├─ ") + name if row.parent else name
        lines.append(f"{label:<36}{format_bytes(row.final_bytes):>10}{row.fraction:>9.1%}")
    rule = "─" * 55
    lines = [
        f"{'Part':<36}{'Size':>10}{'Total':>9}",
        rule,
        *lines,
        rule,
        f"{'TOTAL':<36}{format_bytes(total_bytes):>10}",
    ]
    return "\n".join(["```", *lines, "```", ""])


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of cells that are Markdown already."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _more(count: int, columns: int) -> list[tuple[str, ...]]:
    return [(f"{count - _ROWS:,} more", *[""] * (columns - 1))] if count > _ROWS else []


def figure_text(name: str, value: float) -> str:
    """Write one of the totals, by its name, with its unit."""
    if name.endswith("_bytes"):
        return format_bytes(value)
    return f"{value:.4f}" if name.endswith("_fraction") else f"{value:,.0f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _change_fraction(before: float, after: float) -> str:
    return f"{after / before - 1:+.1%}" if before else ""


def shortened(instruction: str | None) -> str:
    """Write an instruction so that it fits into a table."""
    text = instruction or "(no history)"
    return text if len(text) <= _INSTRUCTION_LETTERS else text[: _INSTRUCTION_LETTERS - 1] + "…"


def as_instruction(instruction: str | None) -> str:
    """Write an instruction for a cell, shortened."""
    return f"`{_code(shortened(instruction))}`"


def as_cell(text: str) -> str:
    """Escape what Markdown would read as its own, or as HTML."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Make a text fit between backticks in a table."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
