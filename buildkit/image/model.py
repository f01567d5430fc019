"""Defines the values of an image: `Image` as it was read, and `Measurement`, its analysis, which is saved as JSON.

Sizes, in bytes:
    unpacked_bytes  regular files in the layers' tar archives; a sparse file counts with its holes, a hard link as 0.
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

    Attributes:
        name: as the user gave it.
        source: "engine", "oci-layout" or "archive".
        manifest_digest: None for an archive without OCI manifest.
        config_digest: the digest of its configuration, which all copies of the image share.
        platform: "linux/amd64".
        created: the time in its configuration, RFC 3339, if there is one.
        working_dir: the folder in which containers start.
        user: the user of containers; empty for root.
        labels: by name.
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
    """One layer, stored and unpacked.

    Attributes:
        diff_id: the digest of its tar archive.
        blob_digest: the digest of its blob, as stored.
        blob_bytes: the size of its blob.
        instruction: the Dockerfile instruction that made it; None if the image has no history.
        contents: its entries.
    """

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
    """The figures of the image; sizes are defined at the top of this module.

    Attributes:
        largest_layer_bytes: the unpacked bytes of the largest layer.
        duplicate_bytes: all copies but one of every content that is stored several times.
        files: visible names of regular files, hard links included.
        executables: visible regular files with an execute bit, without shared objects.
    """

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
    """One layer; sizes are defined at the top of this module.

    Attributes:
        position: 0 for the lowest layer.
        instruction: the Dockerfile instruction that made it; None if the image has no history.
        final_bytes: files of this layer that containers see.
        wasted_bytes: files of this layer that any layer hides.
        caused_waste_bytes: files of any layer that this layer hides.
        packages: the number of packages whose list of files is in this layer.
        executables: as in `Totals`.
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
    """A part of the merged file system.

    Attributes:
        label: its name.
        parent: the label of the part that contains it. Parts without parent add up to the image.
        final_bytes: its files.
        fraction: its share of the image's bytes, 0 to 1.
        files: the number of its files.
    """

    label: str
    parent: str | None
    final_bytes: int
    fraction: float
    files: int


@dataclass(frozen=True, slots=True)
class FolderSize:
    """A folder of the merged file system.

    Attributes:
        path: relative to the root, which is the empty string.
        final_bytes: its files, those of subfolders included.
        files: their number.
    """

    path: str
    final_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class WastedFile:
    """A file that a layer stores and no container sees: its path and its size in bytes."""

    path: str
    wasted_bytes: int


@dataclass(frozen=True, slots=True)
class WasteGroup:
    """The files that one layer stores and another hides, for one cause.

    Attributes:
        cause: why they are hidden.
        stored_by: the position of the layer that stores them.
        caused_by: the position of the layer that hides them.
        instruction: the instruction of the layer that hides them.
        wasted_bytes: their size.
        files: their number.
        largest: some of them, the largest first.
    """

    cause: Cause
    stored_by: int
    caused_by: int
    instruction: str | None
    wasted_bytes: int
    files: int
    largest: tuple[WastedFile, ...]


@dataclass(frozen=True, slots=True)
class StoredCopy:
    """One of the places that store a content.

    Attributes:
        layer: the position of its layer.
        path: its path in the merged file system, or in the layer if no container sees it.
        is_visible: whether a container sees it.
    """

    layer: int
    path: str
    is_visible: bool


@dataclass(frozen=True, slots=True)
class DuplicateContent:
    """A content that is stored more than once.

    Attributes:
        sha256: in hexadecimal.
        size_bytes: of one copy.
        extra_bytes: of all copies but one.
        copies: their number.
        examples: some of the copies, by layer and path.
    """

    sha256: str
    size_bytes: int
    extra_bytes: int
    copies: int
    examples: tuple[StoredCopy, ...]


@dataclass(frozen=True, slots=True)
class LibraryCopy:
    """One copy of a shared library.

    Attributes:
        path: in the merged file system.
        size_bytes: its size.
        layer: the position of the layer that stores it.
        package: the name of the package that owns it, None if none does.
    """

    path: str
    size_bytes: int
    layer: int
    package: str | None


@dataclass(frozen=True, slots=True)
class DuplicateLibrary:
    """A shared library that the merged file system holds more than once.

    Attributes:
        soname: from the file names; without a version for a CUDA library, so that two major versions are duplicates.
        is_cuda: whether it is one of CUDA's.
        extra_bytes: all copies but the largest.
        copies: the largest first.
    """

    soname: str
    is_cuda: bool
    extra_bytes: int
    copies: tuple[LibraryCopy, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """All figures of one image.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        image: its name, digests and settings.
        totals: its figures.
        dive: the figures that dive reports.
        layers: the lowest first.
        tree: the parts of the merged file system.
        packages: the largest first.
        unowned: the files that no package owns.
        unowned_folders: the largest folders of those files.
        folders: the folders of at least 0.05 % of the image, the largest first.
        largest_files: the largest first.
        waste: groups of hidden files, the largest first.
        duplicates: the contents with the most extra bytes.
        duplicate_libraries: CUDA's first.
        gpu_code: GPU code by architecture and library.
        files: every name; None in the short form, which a series stores and which cannot be compared file by file.
        measured_at: set in a series: RFC 3339, UTC.
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
