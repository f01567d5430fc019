"""Measurements, comparisons and verdicts as tables that rich prints; nothing here prints by itself."""

from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from buildkit.check.budget import BudgetReport
from buildkit.diff.diff import Comparison
from buildkit.image.model import Measurement
from buildkit.report.markdown import FIGURES, figure_text, layer_change, shortened, summary_row
from buildkit.text import format_byte_change, format_bytes

__all__ = ["budget_table", "comparison_tables", "measurement_tables"]

_ROWS: Final = 20


def measurement_tables(measurement: Measurement) -> Group:
    """Return the tables of an image for a terminal: totals, layers, tree, largest packages, waste."""
    totals = measurement.totals
    figures = _grid("", "")
    for name, label in FIGURES.items():
        figures.add_row(label, figure_text(name, getattr(totals, name)))
    layers = _grid("#", "Instruction", "Unpacked", "Blob", "Wasted", "Files", title="Layers")
    for layer in measurement.layers:
        layers.add_row(
            str(layer.position),
            Text(shortened(layer.instruction)),
            format_bytes(layer.unpacked_bytes),
            format_bytes(layer.blob_bytes),
            format_bytes(layer.wasted_bytes),
            f"{layer.files:,}",
        )
    tree = _grid("Part", "", "Size", "% of total", title="Tree")
    for row in measurement.tree:
        label = f"  {row.label}" if row.parent else row.label
        tree.add_row(Text(label), "", format_bytes(row.final_bytes), f"{row.fraction:.1%}")
    packages = _grid("Package", "Version", "Size", title="Largest packages")
    for package in measurement.packages[:10]:
        packages.add_row(Text(package.name), Text(package.version), format_bytes(package.final_bytes))
    waste = _grid("Cause", "Instruction that did it", "Size", title="Waste")
    for group in measurement.waste[:10]:
        waste.add_row(group.cause, Text(shortened(group.instruction)), format_bytes(group.wasted_bytes))
    image = measurement.image
    heading = Text(f"{image.name}  {image.platform}  {image.manifest_digest or image.config_digest}")
    return Group(heading, figures, layers, tree, packages, waste if measurement.waste else Text("No waste."))


def comparison_tables(comparison: Comparison, *, before: str = "Before", after: str = "After") -> Group:
    """Return the tables of a comparison for a terminal: figures, layers, packages."""
    if comparison.is_empty:
        return Group(Text("The images are identical."))
    figures = _grid("", before, after, "Change", "% change")
    for figure in comparison.figures:
        figures.add_row(*summary_row(figure))
    layers = _grid("Layer", "Instruction", before, after, "Change", "To fetch", title="Layers")
    for layer in comparison.layers:
        layers.add_row(
            "-" if layer.after is None else str(layer.after),
            Text(shortened(layer.instruction)),
            format_bytes(layer.before_bytes),
            format_bytes(layer.after_bytes),
            layer_change(layer) + (f" ({layer.cause})" if layer.cause else ""),
            format_bytes(layer.fetch_bytes) if layer.fetch_bytes else "",
        )
    packages = _grid("Package", before, after, "Change", title="Packages that changed")
    for package in comparison.packages[:_ROWS]:
        packages.add_row(
            Text(package.name),
            Text(package.before_version or "-"),
            Text(package.after_version or "-"),
            f"{package.kind}, {format_byte_change(package.before_bytes, package.after_bytes)}",
        )
    count = "not compared" if comparison.files is None else f"{len(comparison.files):,}"
    note = f"Files that changed: {count}. To fetch: {format_bytes(comparison.transfer_bytes)}."
    return Group(figures, layers, packages, Text(note))


def budget_table(verdict: BudgetReport) -> Table:
    """Return the limits and their judgements as a table for a terminal."""
    table = _grid("Budget", "BudgetResult", "Measured and allowed")
    styles = {"failed": "bold red", "waived": "yellow", "not judged": "yellow", "passed": "green"}
    for each in verdict.judgements:
        table.add_row(Text(each.budget), Text(each.status, style=styles[each.status]), Text(each.message))
    return table


def _grid(*headings: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    texts = {
        "",
        "Instruction",
        "Instruction that did it",
        "Part",
        "Package",
        "Version",
        "Cause",
        "Budget",
        "BudgetResult",
    }
    for heading in headings:
        is_text = heading in texts or heading.startswith("Measured")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    return table
