"""Formats figures, changes and instructions as text, the same way in every report.

Sizes are decimal: 1 GB is 10^9 bytes. `buildkit.text` formats the sizes themselves.
"""

from typing import Final

from buildkit.diff.model import FigureChange, LayerChange
from buildkit.image.gpu_code import GpuCodeMeasurement, GpuLibrary
from buildkit.text import format_byte_change, format_bytes

__all__ = [
    "CONCERNS",
    "FIGURES",
    "format_architectures",
    "format_change_fraction",
    "format_figure",
    "format_figure_change",
    "format_fraction",
    "format_layer_change",
    "format_layers_not_searched",
    "format_optional_bytes",
    "format_position",
    "format_seconds",
    "shorten_instruction",
]

FIGURES: Final = {
    "unpacked_bytes": "Image size (files in all layers)",
    "blob_bytes": "Layer blobs (stored and sent)",
    "final_bytes": "Merged file system",
    "wasted_bytes": "Wasted",
    "largest_layer_bytes": "Largest layer",
    "duplicate_bytes": "Duplicate content",
    "efficiency_fraction": "Efficiency",
    "layers": "Layers",
    "files": "Files",
    "packages": "Packages",
    "executables": "Executables",
}
"""The label of each total of an image, in the order of the reports."""

CONCERNS: Final = {
    "build tool": "Build tools in the image",
    "development headers": "Development headers",
    "package manager": "Package managers and their caches",
    "package index": "Package index and its cache",
    "development tool": "Development tools",
    "tests and examples": "Tests, scripts and examples",
}
"""The label of each kind of content that a runtime image should not have."""

_INSTRUCTION_LETTERS: Final = 90
_LARGEST_ARCHITECTURES: Final = 4
_SHORT_SECONDS: Final = 10.0


def format_figure(name: str, value: float) -> str:
    """Returns the total *name* with its unit: "7.93 GB", "0.9997", "1,234"."""
    if name.endswith("_bytes"):
        return format_bytes(value)
    return f"{value:.4f}" if name.endswith("_fraction") else f"{value:,.0f}"


def format_figure_change(figure: FigureChange) -> str:
    """Returns the difference of a total with its sign and unit."""
    if figure.name.endswith("_bytes"):
        return format_byte_change(figure.before, figure.after)
    change = figure.after - figure.before
    return f"{change:+.4f}" if figure.name.endswith("_fraction") else f"{change:+,.0f}"


def format_fraction(part: float, total: float) -> str:
    """Returns *part* as a percentage of *total*; "-" if the total is 0."""
    return f"{part / total:.1%}" if total else "-"


def format_change_fraction(before: float, after: float) -> str:
    """Returns the change as a percentage of *before*; "" if that is 0."""
    return f"{after / before - 1:+.1%}" if before else ""


def format_layer_change(layer: LayerChange) -> str:
    """Returns the kind of change of a layer, and the difference in bytes if its size differs."""
    if layer.before_bytes == layer.after_bytes:
        return layer.kind
    return f"{layer.kind}, {format_byte_change(layer.before_bytes, layer.after_bytes)}"


def format_position(position: int | None) -> str:
    """Returns the position of a layer; "-" if the image does not have it."""
    return "-" if position is None else str(position)


def format_optional_bytes(size_bytes: int | None) -> str:
    """Returns a size; "" if it is unknown."""
    return "" if size_bytes is None else format_bytes(size_bytes)


def format_seconds(seconds: float) -> str:
    """Returns seconds with two decimals, or one from 10 s on."""
    return f"{seconds:.2f}" if seconds < _SHORT_SECONDS else f"{seconds:.1f}"


def shorten_instruction(instruction: str | None) -> str:
    """Returns an instruction of at most 90 characters, so that it fits into a table."""
    text = instruction or "(no history)"
    return text if len(text) <= _INSTRUCTION_LETTERS else text[: _INSTRUCTION_LETTERS - 1] + "…"


def format_architectures(library: GpuLibrary) -> str:
    """Returns the four GPU architectures with the most code in a library, with their sizes."""
    largest = sorted(library.architectures.items(), key=lambda each: -each[1])[:_LARGEST_ARCHITECTURES]
    return ", ".join(f"{name} {format_bytes(size_bytes)}" for name, size_bytes in largest)


def format_layers_not_searched(gpu_code: GpuCodeMeasurement) -> str:
    """Returns a sentence that names the layers that the figures of GPU code leave out."""
    layers = ", ".join(str(position) for position in gpu_code.layers_not_searched)
    return f"Not searched for GPU code, because they are compressed or were read as a stream: layers {layers}."
