"""Defines the values of an image: `Image` as it was read, and `Measurement`, its analysis, which is saved as JSON.

Sizes, in bytes:
    unpacked_bytes  regular files in the layers' tar archives; a sparse file with its holes, a hard link as nothing.
    blob_bytes      layers as a registry or the engine stores them, compressed or not.
    final_bytes     regular files of the merged file system, hard-linked content once.
    wasted_bytes    unpacked_bytes - final_bytes: stored by a layer, hidden by the same or a later one.
    efficiency_fraction  final_bytes / unpacked_bytes; 1 for an image without files.

The JSON Schema of a saved measurement is `measurement.schema.json` in this folder.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import msgspec

from buildkit import jsonfile
from buildkit.image.dive import DiveEfficiency
from buildkit.image.gpu_code import GpuCodeMeasurement
from buildkit.image.layer_stream import Compression
from buildkit.image.layer_tar import LayerContents
from buildkit.image.merge import Cause
from buildkit.image.packages import Package
from buildkit.image.tar_format import EntryKind

__all__ = [
    "BASE_LAYERS_LABEL",
    "SCHEMA_VERSION",
    "DuplicateContent",
    "DuplicateLibrary",
    "FileRecord",
    "FolderSize",
    "Image",
    "ImageDescription",
    "ImageLayer",
    "LayerMeasurement",
    "LibraryCopy",
    "Measurement",
    "Source",
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
BASE_LAYERS_LABEL: Final = "io.truthgraph.base.layers"
"""The image label with the number of lowest layers that belong to the base image."""

Source = Literal["engine", "oci-layout", "archive"]


class FileRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One name of the merged file system; written as an array to keep the file small.

    `sha256` is set for regular files, `link` for symbolic links and device nodes. `layer` is the position of the layer
    that stores it, and `package` its position in the measurement's packages; each is -1 for none.
    """

    path: str
    kind: EntryKind
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
    """The name, digests and settings of an image.

    `manifest_digest` is None for an archive without OCI manifest.
    """

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
class ImageLayer:
    """One layer, stored and unpacked; `instruction` made it, None if the image has no history."""

    diff_id: str
    blob_digest: str
    blob_bytes: int
    instruction: str | None
    contents: LayerContents


@dataclass(frozen=True, slots=True)
class Image:
    """An image with all of its layers, the lowest first, every digest verified when its bytes were read."""

    description: ImageDescription
    layers: tuple[ImageLayer, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """The figures of the image. `executables` are regular files with an execute bit, without shared objects."""

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
    """One layer; the lowest has position 0.

    `wasted_bytes` are stored in this layer and hidden by any, `caused_waste_bytes` are hidden by this layer.
    `packages` counts the packages whose list of files is stored in this layer.
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
    """A part of the merged file system; rows without parent add up to the image, children to their parent."""

    label: str
    parent: str | None
    final_bytes: int
    fraction: float
    files: int


@dataclass(frozen=True, slots=True)
class FolderSize:
    """A folder of the merged file system, its subfolders included."""

    path: str
    final_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class WastedFile:
    """A file that a layer stores and no container sees."""

    path: str
    wasted_bytes: int


@dataclass(frozen=True, slots=True)
class WasteGroup:
    """The files of layer `stored_by` that layer `caused_by` hides, for one cause; `instruction` made `caused_by`."""

    cause: Cause
    stored_by: int
    caused_by: int
    instruction: str | None
    wasted_bytes: int
    files: int
    largest: tuple[WastedFile, ...]


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """One of the places that store a content; `is_visible` says whether a container sees it there."""

    layer: int
    path: str
    is_visible: bool


@dataclass(frozen=True, slots=True)
class DuplicateContent:
    """A content that is stored more than once; `extra_bytes` are all copies but one."""

    sha256: str
    size_bytes: int
    extra_bytes: int
    copies: int
    examples: tuple[StoredCopy, ...]


@dataclass(frozen=True, slots=True)
class LibraryCopy:
    """One copy of a shared library; `package` is None if no package owns it."""

    path: str
    size_bytes: int
    layer: int
    package: str | None


@dataclass(frozen=True, slots=True)
class DuplicateLibrary:
    """A shared library that the merged file system holds more than once, by the soname that file names tell.

    The sonames of CUDA libraries have no version here, so two major versions of one count as duplicates.
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
        """Returns the short form."""
        return replace(self, files=None)


def save(measurement: Measurement, path: Path) -> None:
    """Writes *measurement* as JSON; makes the folders, and replaces an existing file."""
    jsonfile.save(measurement, path)


def load(path: Path) -> Measurement:
    """Reads a saved measurement; raises InvalidFile if the file holds anything else."""
    return jsonfile.load(path, Measurement, version=SCHEMA_VERSION, what="a measurement", fix="measure the image again")


def schema() -> dict[str, object]:
    """Returns the JSON Schema (2020-12) of a saved measurement."""
    return jsonfile.schema_of(Measurement, f"Image measurement, version {SCHEMA_VERSION}")
