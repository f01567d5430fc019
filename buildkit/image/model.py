"""What is in an image, as one value that is saved and loaded: every byte once, with its layer and its package.

Sizes, in bytes:
    unpacked_bytes  regular files in the layers' tars, added up; a sparse file with its holes, a hard link as nothing.
    blob_bytes      what a registry or the engine stores for the layers, compressed as they are.
    final_bytes     regular files of the merged file system, hard-linked content once.
    wasted_bytes    unpacked_bytes - final_bytes: stored by a layer and hidden by the same or a later one.
    efficiency_fraction = final_bytes / unpacked_bytes, and 1 for an image without files.

The published schema of the saved form is `measurement.schema.json` beside this module.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from buildkit import jsonfile
from buildkit.image.dive import DiveEfficiency
from buildkit.image.gpu_code import GpuCodeMeasurement
from buildkit.image.layer_stream import Compression
from buildkit.image.merge import Cause
from buildkit.image.packages import Package
from buildkit.image.read import Source
from buildkit.image.tar_format import Kind

__all__ = [
    "SCHEMA_VERSION",
    "DuplicateContent",
    "DuplicateLibrary",
    "FileRecord",
    "FolderSize",
    "ImageDescription",
    "LayerMeasurement",
    "LibraryCopy",
    "Measurement",
    "StoredCopy",
    "Totals",
    "TreeRow",
    "WasteGroup",
    "WastedFile",
    "load",
    "save",
    "schema",
]

SCHEMA_VERSION: Final = 2


class FileRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name of the merged file system; written as an array to keep the file small.

    `sha256` is set for regular files, `link` for symbolic links and device nodes. `layer` is where it is stored and
    `package` a position in the measurement's packages, each -1 for nothing.
    """

    path: str
    kind: Kind
    size_bytes: int
    mode: int
    uid: int
    gid: int
    sha256: str
    link: str
    layer: int
    package: int


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """Which image was measured; the digests are those of what was read."""

    name: str
    source: Source
    manifest_digest: str | None
    config_digest: str
    platform: str
    created: str | None
    working_dir: str
    user: str
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Totals:
    """The image as a whole. `executables` are regular files that anyone may execute, shared objects left out."""

    unpacked_bytes: int
    blob_bytes: int
    final_bytes: int
    wasted_bytes: int
    largest_layer_bytes: int
    duplicate_bytes: int
    efficiency_fraction: float
    layers: int
    files: int
    packages: int
    executables: int


@dataclass(frozen=True, slots=True)
class LayerMeasurement:
    """One layer, the lowest being position 0.

    `wasted_bytes` are stored here and hidden, `caused_waste_bytes` are stored here or below and hidden by this layer.
    `packages` counts those whose list of files is stored here.
    """

    position: int
    diff_id: str
    blob_digest: str
    instruction: str | None
    compression: Compression
    unpacked_bytes: int
    blob_bytes: int
    final_bytes: int
    wasted_bytes: int
    caused_waste_bytes: int
    entries: int
    files: int
    packages: int
    executables: int


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A part of the merged file system; top-level rows add up to the image, the rows below one to that one."""

    label: str
    parent: str | None
    final_bytes: int
    fraction: float
    files: int


@dataclass(frozen=True, slots=True)
class FolderSize:
    """A folder of the merged file system with all that is below it."""

    path: str
    final_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class WastedFile:
    """One file that is stored and never seen."""

    path: str
    wasted_bytes: int


@dataclass(frozen=True, slots=True)
class WasteGroup:
    """All that one layer hides of another for one cause; `instruction` is the one that did it."""

    cause: Cause
    stored_by: int
    caused_by: int
    instruction: str | None
    wasted_bytes: int
    files: int
    largest: tuple[WastedFile, ...]


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """Where a content is stored; `is_visible` says whether a container sees it there."""

    layer: int
    path: str
    is_visible: bool


@dataclass(frozen=True, slots=True)
class DuplicateContent:
    """The same bytes more than once, in several layers or at several paths; `extra_bytes` is all but one of them."""

    sha256: str
    size_bytes: int
    extra_bytes: int
    copies: int
    examples: tuple[StoredCopy, ...]


@dataclass(frozen=True, slots=True)
class LibraryCopy:
    """One of the places of a shared library."""

    path: str
    size_bytes: int
    layer: int
    package: str | None


@dataclass(frozen=True, slots=True)
class DuplicateLibrary:
    """A shared library that the merged file system holds more than once under one soname, judged by file names.

    For libraries of CUDA the major version is left out: two generations of one are two CUDAs.
    """

    soname: str
    is_cuda: bool
    extra_bytes: int
    copies: tuple[LibraryCopy, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """All figures of one image.

    `files` is None in the short form, which a series stores; only the long form can be compared file by file.
    `measured_at` is set in a series: RFC 3339, UTC.
    """

    schema_version: int
    image: ImageDescription
    totals: Totals
    dive: DiveEfficiency
    layers: tuple[LayerMeasurement, ...]
    tree: tuple[TreeRow, ...]
    packages: tuple[Package, ...]
    unowned: TreeRow
    unowned_folders: tuple[FolderSize, ...]
    folders: tuple[FolderSize, ...]
    largest_files: tuple[FileRecord, ...]
    waste: tuple[WasteGroup, ...]
    duplicates: tuple[DuplicateContent, ...]
    duplicate_libraries: tuple[DuplicateLibrary, ...]
    gpu_code: GpuCodeMeasurement
    files: tuple[FileRecord, ...] | None = None
    measured_at: str | None = None

    def renamed(self, name: str) -> "Measurement":
        """Returns the measurement under another image name, such as the tag of an image that was read by its digest."""
        return replace(self, image=replace(self.image, name=name))

    def without_files(self) -> "Measurement":
        """Return the short form."""
        return replace(self, files=None)


def save(measurement: Measurement, path: Path) -> None:
    """Write as JSON; folders are made, a file is replaced whole."""
    jsonfile.save(measurement, path)


def load(path: Path) -> Measurement:
    """Read what `save` wrote; InvalidFile where it is anything else."""
    return jsonfile.load(path, Measurement, version=SCHEMA_VERSION, what="a measurement", fix="measure the image again")


def schema() -> dict[str, object]:
    """Return the JSON Schema (2020-12) of a saved measurement."""
    return jsonfile.schema_of(Measurement, f"Image measurement, version {SCHEMA_VERSION}")
