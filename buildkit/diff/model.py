"""Defines the values of a comparison of two images, which is written as JSON.

The JSON Schema of a comparison is `comparison.schema.json` in this folder.
"""

from dataclasses import dataclass
from typing import Final, Literal

from buildkit.diff.removed import RemovedComponent
from buildkit.image.model import ImageDescription
from buildkit.jsonfile import schema_of

__all__ = [
    "SCHEMA_VERSION",
    "ChangeKind",
    "Comparison",
    "FigureChange",
    "FileChange",
    "LayerCause",
    "LayerChange",
    "PackageChange",
    "PartChange",
    "schema",
]

SCHEMA_VERSION: Final = 2

ChangeKind = Literal["same", "added", "removed", "grown", "shrunk", "changed", "moved", "metadata only"]
LayerCause = Literal["base", "instruction", "input", "metadata only"]


@dataclass(frozen=True, slots=True)
class FigureChange:
    """One of the totals before and after.

    Attributes:
        name: its name in `Totals`, which says the unit.
        before: in the image before.
        after: in the image after.
    """

    name: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class LayerChange:
    """A layer of either image, with its counterpart in the other if there is one.

    Attributes:
        kind: how its size or content changed.
        cause: why. "base": a layer of the base image; "instruction": the instruction has another text; "metadata only":
            the same files with the same content; "input": other content. None if it is equal, added or removed.
        before: its position in the image before, None if it was added.
        after: its position in the image after, None if it was removed.
        instruction: the instruction of the image after, or that of the image before if it was removed.
        before_bytes: unpacked.
        after_bytes: unpacked.
        fetch_bytes: stored bytes that a node with the image before must fetch for this layer.
    """

    kind: ChangeKind
    cause: LayerCause | None
    before: int | None
    after: int | None
    instruction: str | None
    before_bytes: int
    after_bytes: int
    fetch_bytes: int


@dataclass(frozen=True, slots=True)
class PartChange:
    """A part of the directory tree before and after.

    Attributes:
        label: its name.
        parent: the label of the part that contains it, None for a top-level part.
        before_bytes: its files in the image before.
        after_bytes: its files in the image after.
    """

    label: str
    parent: str | None
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class PackageChange:
    """A package that differs.

    Attributes:
        manager: "python" or "debian".
        name: its name.
        kind: how its size or content changed. "changed": same size, other content.
        before_version: empty if the image before does not have it.
        after_version: empty if the image after does not have it.
        before_bytes: its files in the image before.
        after_bytes: its files in the image after.
    """

    manager: str
    name: str
    kind: ChangeKind
    before_version: str
    after_version: str
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True, slots=True)
class FileChange:
    """A path that differs.

    Attributes:
        path: in the image after, or in the image before if it was removed.
        kind: "changed": same size, other content; "moved": another path only; "metadata only": another mode, owner,
            kind or link target.
        before_bytes: its size in the image before.
        after_bytes: its size in the image after.
        package: the name of the package that owns it, None if none does.
        moved_from: its path in the image before, if that was another one.
    """

    path: str
    kind: ChangeKind
    before_bytes: int
    after_bytes: int
    package: str | None
    moved_from: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two images.

    Attributes:
        figures: all totals, equal ones too.
        transfer_bytes: stored bytes that a node with the image before must fetch for the image after.
        tree: all parts of the directory tree, equal ones too.
        files: None if a measurement has no list of files.
        concerns: files that a runtime image should not have (build tools, caches); empty without lists of files.
        removed: packages and folders that only the image before has.
    """

    schema_version: int
    before: ImageDescription
    after: ImageDescription
    figures: tuple[FigureChange, ...]
    transfer_bytes: int
    layers: tuple[LayerChange, ...]
    tree: tuple[PartChange, ...]
    packages: tuple[PackageChange, ...]
    files: tuple[FileChange, ...] | None
    concerns: tuple[PartChange, ...]
    removed: tuple[RemovedComponent, ...]

    @property
    def is_empty(self) -> bool:
        """Whether both are the same image, with the same configuration and the same metadata of files."""
        return (
            all(layer.kind == "same" for layer in self.layers)
            and not self.packages
            and not self.files
            and self.before.config_digest == self.after.config_digest
        )

    def figure(self, name: str) -> FigureChange:
        """Returns one of the totals by its name in `Totals`."""
        return next(figure for figure in self.figures if figure.name == name)


def schema() -> dict[str, object]:
    """Returns the JSON Schema (2020-12) of a comparison."""
    return schema_of(Comparison, f"Image comparison, version {SCHEMA_VERSION}")
