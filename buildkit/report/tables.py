"""Builds the tables of the reports, without the format: Markdown, HTML and the terminal render the same rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from buildkit.check.budget import BudgetReport, Status
from buildkit.diff.model import Comparison
from buildkit.image.gpu_code import GpuCodeMeasurement
from buildkit.image.model import Measurement
from buildkit.report.format import (
    CONCERNS,
    FIGURES,
    format_architectures,
    format_change_fraction,
    format_figure,
    format_figure_change,
    format_fraction,
    format_layer_change,
    format_position,
    shorten_instruction,
)
from buildkit.text import format_byte_change, format_bytes

__all__ = [
    "Cell",
    "Styled",
    "Table",
    "budgets",
    "code",
    "concerns",
    "duplicate_content",
    "duplicate_libraries",
    "file_changes",
    "gpu_architectures",
    "gpu_libraries",
    "largest_files",
    "layer_changes",
    "layers",
    "package_changes",
    "packages",
    "removed",
    "summary",
    "tree",
    "trend",
    "waste",
]

Style = Literal["code", "indent"] | Status

_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Styled:
    """Text with a style: `code` for a path or an instruction, `indent` for a part of the row above, or a status.

    `prefix` and `suffix` are plain text around it.
    """

    text: str
    style: Style
    prefix: str = ""
    suffix: str = ""


Cell = str | Styled | tuple[Styled, ...]
"""The content of a cell; a tuple has one line for each element."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. `name` is unique in a page, `numbers` are the positions of right-aligned columns."""

    name: str
    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: frozenset[int]

    def select(self, *headings: str) -> "Table":
        """Returns the table with the columns *headings* only, in that order."""
        places = [self.headings.index(heading) for heading in headings]
        rows = tuple(tuple(row[place] for place in places) for row in self.rows)
        numbers = frozenset(new for new, old in enumerate(places) if old in self.numbers)
        return replace(self, headings=headings, rows=rows, numbers=numbers)

    def first(self, count: int) -> "Table":
        """Returns the table with its first *count* rows, and a row that counts the others."""
        others = len(self.rows) - count
        if others <= 0:
            return self
        last = (f"{others:,} more", *[""] * (len(self.headings) - 1))
        return replace(self, rows=(*self.rows[:count], last))


def table(
    name: str, caption: str, headings: Sequence[str], rows: Iterable[tuple[Cell, ...]], *, numbers: Iterable[int] = ()
) -> Table:
    """Returns a table; *numbers* are the positions of right-aligned columns."""
    return Table(name, caption, tuple(headings), tuple(rows), frozenset(numbers))


def code(text: str, *, prefix: str = "", suffix: str = "") -> Styled:
    """Returns a path or an instruction as a cell."""
    return Styled(text, "code", prefix, suffix)


def layers(measurement: Measurement, *, has_full_instructions: bool = False) -> Table:
    """Returns the layers of an image, the lowest first."""
    return table(
        "layer-table",
        f"Layers of {measurement.image.name}",
        ("#", "Instruction", "Unpacked", "% of total", "Blob", "Visible", "Wasted", "Files", "Executables"),
        (
            (
                str(layer.position),
                code((has_full_instructions and layer.instruction) or shorten_instruction(layer.instruction)),
                format_bytes(layer.unpacked_bytes),
                format_fraction(layer.unpacked_bytes, measurement.totals.unpacked_bytes),
                format_bytes(layer.blob_bytes),
                format_bytes(layer.final_bytes),
                format_bytes(layer.wasted_bytes),
                f"{layer.files:,}",
                f"{layer.executables:,}",
            )
            for layer in measurement.layers
        ),
        numbers=range(2, 9),
    )


def tree(measurement: Measurement) -> Table:
    """Returns the parts of the merged file system."""
    rows = (
        (
            Styled(row.label, "indent") if row.parent else row.label,
            format_bytes(row.final_bytes),
            f"{row.fraction:.1%}",
            f"{row.files:,}",
        )
        for row in measurement.tree
    )
    return table("tree-table", "Parts of the image", ("Part", "Size", "% of total", "Files"), rows, numbers=(1, 2, 3))


def packages(measurement: Measurement, *, limit: int | None = None) -> Table:
    """Returns the packages of an image, the largest first, and files in no package; counts packages beyond *limit*."""
    rows = (
        (each.name, each.version, each.manager, format_bytes(each.final_bytes), f"{each.files:,}")
        for each in measurement.packages
    )
    listed = table("package-table", "Packages", ("Package", "Version", "Kind", "Size", "Files"), rows, numbers=(3, 4))
    shown = listed if limit is None else listed.first(limit)
    rest = measurement.unowned
    return replace(
        shown, rows=(*shown.rows, ("in no package", "", "", format_bytes(rest.final_bytes), f"{rest.files:,}"))
    )


def largest_files(measurement: Measurement) -> Table:
    """Returns the largest files of the merged file system."""
    rows = ((code(each.path), format_bytes(each.size_bytes), str(each.layer)) for each in measurement.largest_files)
    return table("largest-files", "Largest files", ("File", "Size", "Layer"), rows, numbers=(1, 2))


def waste(measurement: Measurement) -> Table:
    """Returns the wasted bytes by cause: the layer that stores them, the layer that hides them, the largest files."""
    rows = (
        (
            each.cause,
            format_bytes(each.wasted_bytes),
            f"{each.files:,}",
            str(each.stored_by),
            code(shorten_instruction(each.instruction), prefix=f"{each.caused_by}: "),
            tuple(code(file.path, suffix=f" {format_bytes(file.wasted_bytes)}") for file in each.largest[:_EXAMPLES]),
        )
        for each in measurement.waste
    )
    headings = ("Cause", "Size", "Files", "Stored by", "Hidden by", "Largest")
    return table("waste-table", "Wasted bytes by cause", headings, rows, numbers=(1, 2, 3))


def duplicate_libraries(measurement: Measurement) -> Table:
    """Returns the shared libraries that an image has more than once."""
    rows = (
        (
            each.soname + (" (CUDA)" if each.is_cuda else ""),
            format_bytes(each.extra_bytes),
            tuple(code(copy.path, suffix=f" {format_bytes(copy.size_bytes)}") for copy in each.copies),
        )
        for each in measurement.duplicate_libraries
    )
    return table("library-table", "Duplicate shared libraries", ("Library", "Extra", "Copies"), rows, numbers=(1,))


def duplicate_content(measurement: Measurement) -> Table:
    """Returns the content that an image stores more than once."""
    rows = (
        (
            format_bytes(each.extra_bytes),
            str(each.copies),
            format_bytes(each.size_bytes),
            tuple(code(copy.path, suffix=f" (layer {copy.layer})") for copy in each.examples[:_EXAMPLES]),
        )
        for each in measurement.duplicates
    )
    headings = ("Extra", "Copies", "Size of each", "Examples")
    return table("content-table", "Duplicate content", headings, rows, numbers=(0, 1, 2))


def gpu_architectures(gpu_code: GpuCodeMeasurement) -> Table:
    """Returns the bytes of GPU code for each architecture."""
    rows = ((each.architecture, format_bytes(each.code_bytes), str(each.libraries)) for each in gpu_code.architectures)
    return table("architecture-table", "GPU code", ("Architecture", "Code", "Libraries"), rows, numbers=(1, 2))


def gpu_libraries(gpu_code: GpuCodeMeasurement) -> Table:
    """Returns the libraries with GPU code, the largest first."""
    rows = ((code(each.path), format_bytes(each.code_bytes), format_architectures(each)) for each in gpu_code.libraries)
    headings = ("Library", "Code", "Largest architectures")
    return table("gpu-libraries", "Libraries with GPU code", headings, rows, numbers=(1,))


def trend(history: Iterable[Measurement]) -> Table:
    """Returns the totals of saved measurements, one row each."""
    rows = (
        (each.measured_at or "", *(format_figure(name, getattr(each.totals, name)) for name in FIGURES))
        for each in history
    )
    headings = ("Measured", *FIGURES.values())
    return table("trend-table", "Saved measurements", headings, rows, numbers=range(1, len(headings)))


def summary(comparison: Comparison, before: str, after: str) -> Table:
    """Returns each total of two images and its change."""
    rows = (
        (
            FIGURES[figure.name],
            format_figure(figure.name, figure.before),
            format_figure(figure.name, figure.after),
            format_figure_change(figure),
            "" if figure.name.endswith("_fraction") else format_change_fraction(figure.before, figure.after),
        )
        for figure in comparison.figures
    )
    headings = ("Metric", before, after, "Change", "% change")
    return table("summary-table", f"Totals of {before} and {after}", headings, rows, numbers=(1, 2, 3, 4))


def concerns(comparison: Comparison, before: str, after: str) -> Table:
    """Returns the unwanted content of either image, such as build tools; the headings are those of `summary`."""

    def amount(size_bytes: int) -> str:
        return f"yes ({format_bytes(size_bytes)})" if size_bytes else "no"

    rows = (
        (
            CONCERNS.get(each.label, each.label),
            amount(each.before_bytes),
            amount(each.after_bytes),
            format_byte_change(each.before_bytes, each.after_bytes),
            format_change_fraction(each.before_bytes, each.after_bytes),
        )
        for each in comparison.concerns
        if each.before_bytes or each.after_bytes
    )
    headings = ("Metric", before, after, "Change", "% change")
    return table("concern-table", "Build tools and caches", headings, rows, numbers=(1, 2, 3, 4))


def layer_changes(comparison: Comparison, before: str, after: str) -> Table:
    """Returns the layers of two images side by side, with the cause of each change and the bytes to fetch."""
    rows = (
        (
            f"{format_position(layer.before)} → {format_position(layer.after)}",
            code(shorten_instruction(layer.instruction)),
            format_bytes(layer.before_bytes),
            format_bytes(layer.after_bytes),
            format_layer_change(layer),
            layer.cause or "",
            format_bytes(layer.fetch_bytes) if layer.fetch_bytes else "",
        )
        for layer in comparison.layers
    )
    headings = ("Layer", "Instruction", before, after, "Change", "Cause", "To fetch")
    return table("layer-changes", f"Layers of {before} and {after}", headings, rows, numbers=(2, 3, 6))


def removed(comparison: Comparison) -> Table:
    """Returns the components that the image after does not have, the largest first."""
    rows = (
        (each.name, format_bytes(each.removed_bytes), f"{each.files:,}", each.reason) for each in comparison.removed
    )
    headings = ("Component", "Size", "Files", "Reason")
    return table("removed-table", "Removed components", headings, rows, numbers=(1, 2))


def package_changes(comparison: Comparison, before: str, after: str) -> Table:
    """Returns the packages that differ."""
    rows = (
        (
            f"{each.name} ({each.manager})",
            each.kind,
            each.before_version or "-",
            each.after_version or "-",
            format_byte_change(each.before_bytes, each.after_bytes),
        )
        for each in comparison.packages
    )
    headings = ("Package", "Change", before, after, "Size")
    return table("package-changes", "Packages that changed", headings, rows, numbers=(4,))


def file_changes(comparison: Comparison, before: str, after: str) -> Table:
    """Returns the files that differ; none if the files were not compared."""
    rows = (
        (code(each.path), each.kind, format_bytes(each.before_bytes), format_bytes(each.after_bytes))
        for each in comparison.files or ()
    )
    return table("file-changes", "Files that changed", ("File", "Change", before, after), rows, numbers=(2, 3))


def budgets(report: BudgetReport) -> Table:
    """Returns every budget with its result."""
    rows = ((each.budget, Styled(each.status, each.status), each.message) for each in report.results)
    return table("budget-table", "Budgets", ("Budget", "Result", "Measured and allowed"), rows)
