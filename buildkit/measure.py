"""What is in an image: every byte named once, with the layer, instruction and package that it belongs to.

Sizes, in bytes:
    unpacked_bytes  regular files in the layers' tars, added up; a sparse file with its holes, a hard link as nothing.
    blob_bytes      what a registry or the engine stores for the layers, compressed as they are.
    final_bytes     regular files of the merged file system, hard-linked content once.
    wasted_bytes    unpacked_bytes - final_bytes: stored by a layer and hidden by the same or a later one.
    efficiency_fraction = final_bytes / unpacked_bytes, and 1 for an image without files.

The published schema of the saved form is `schemas/measurement.json` beside this module.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from buildkit.dive import DiveEfficiency, dive_efficiency
from buildkit.errors import BuildkitError
from buildkit.gpu_code import GpuCodeMeasurement, measure_gpu_code
from buildkit.image import Image, Source
from buildkit.layer_stream import Compression
from buildkit.merge import Cause, FileSystem, StoredFile, Waste, merge
from buildkit.packages import Ownership, Package, attribute
from buildkit.tar_format import Kind

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
    "MeasurementUnreadable",
    "StoredCopy",
    "Totals",
    "TreeRow",
    "WasteGroup",
    "WastedFile",
    "load",
    "measure",
    "save",
    "schema",
]

SCHEMA_VERSION: Final = 1

_SITE: Final = re.compile(
    r"(?P<site>(?:(?P<prefix>.*)/)?lib(?:64)?/python3[^/]*/(?:site|dist)-packages)/(?P<top>[^/]+)"
)
_DEBIAN_SITE: Final = "usr/lib/python3/dist-packages"  # Debian Policy for Python: only dpkg installs there
_SHARED_OBJECT: Final = re.compile(r"\.so(\.[0-9.]+)?$")
# `libcudart-d0da41ae.so.11.0`, as auditwheel renames what it bundles, is libcudart.so.11.0 still
_LIBRARY: Final = re.compile(r"(?P<stem>lib[\w+.]+?)(?:-[0-9a-f]{8})?\.so\.(?P<major>\d+)(?:\.[\d.]+)?")
# the libraries that CUDA's installer and NVIDIA's wheels both carry: nvidia/cuda's runtime image, cu12 and cu13 wheels
_CUDA_LIBRARY: Final = re.compile(
    r"lib(cudart|cublas|cublasLt|nvblas|cudnn\w*|cufft|cufftw|curand|cusolver|cusolverMg|cusparse|cusparseLt|cufile\w*"
    r"|cupti|nccl|nvrtc|nvrtc-builtins|nvJitLink|nvToolsExt|nvperf\w*|nvshmem\w*|npp\w+|nvjpeg|nvinfer\w*|OpenCL)"
)
_SITE_FOLDERS: Final = ("nvidia", "torch", "triton", "others")
_LONGEST_LIST: Final = 100
_EXAMPLES: Final = 20
_FOLDER_SHARE: Final = 0.0005  # smaller folders are no rectangle that anyone could see


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
    """An image, measured. `files` is None in the short form, for keeping; comparing files needs the long one."""

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

    def without_files(self) -> "Measurement":
        """Return the short form."""
        return replace(self, files=None)


@dataclass
class MeasurementUnreadable(BuildkitError):
    """*path* holds no measurement that this version can read."""

    path: Path
    reason: str

    exit_code = 2

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def save(measurement: Measurement, path: Path) -> None:
    """Write as JSON; folders are made, a file is replaced whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(msgspec.json.encode(measurement) + b"\n")
    part.replace(path)


def load(path: Path) -> Measurement:
    """Read what `save` wrote; MeasurementUnreadable where it is anything else."""
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise MeasurementUnreadable(path, f"schema version {version}, this program reads {SCHEMA_VERSION}")
        return msgspec.json.decode(content, type=Measurement)
    except OSError as error:
        raise MeasurementUnreadable(path, error.strerror or str(error)) from error
    except msgspec.DecodeError as error:
        raise MeasurementUnreadable(path, f"not a measurement ({error})") from error


def schema() -> dict[str, object]:
    """Return the JSON Schema (2020-12) of a saved measurement."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Image measurement, version {SCHEMA_VERSION}",
        **msgspec.json.schema(Measurement),
    }


class _Versioned(msgspec.Struct):
    schema_version: int


def measure(image: Image) -> Measurement:
    """Add up an image; LayerError where its layers cannot be applied one upon the other."""
    contents = [layer.contents for layer in image.layers]
    dive = dive_efficiency(contents)  # first, so that what it needs is free again before the file system is built
    file_system = merge(contents)
    ownership = _largest_first(attribute(file_system, [layer.captured for layer in contents]))
    records = _records(file_system, ownership)
    files = [record for record in records if record.kind == "file"]
    final_bytes = sum(record.size_bytes for record in files)
    unpacked_bytes = sum(layer.unpacked_bytes for layer in contents)
    layers = _layers(image, file_system, ownership)
    duplicates, duplicate_bytes = _duplicates(file_system)
    waste = _waste(file_system.waste, layers)
    gpu_code = measure_gpu_code(contents, file_system, ownership.name_of)
    del file_system
    unowned = [record for record in files if record.package < 0]
    return Measurement(
        schema_version=SCHEMA_VERSION,
        image=ImageDescription(
            name=image.name,
            source=image.source,
            manifest_digest=image.manifest_digest,
            config_digest=image.config_digest,
            platform=image.platform,
            created=image.created,
            working_dir=image.working_dir,
            user=image.user,
            labels=dict(image.labels),
        ),
        totals=Totals(
            unpacked_bytes=unpacked_bytes,
            blob_bytes=sum(layer.blob_bytes for layer in image.layers),
            final_bytes=final_bytes,
            wasted_bytes=unpacked_bytes - final_bytes,
            largest_layer_bytes=max((layer.unpacked_bytes for layer in contents), default=0),
            duplicate_bytes=duplicate_bytes,
            efficiency_fraction=final_bytes / unpacked_bytes if unpacked_bytes else 1.0,
            layers=len(contents),
            files=sum(record.kind in {"file", "hardlink"} for record in records),
            packages=len(ownership.packages),
            executables=sum(_is_executable(record.path, record.mode) for record in files),
        ),
        dive=dive,
        layers=layers,
        tree=_tree(files, final_bytes, image.working_dir.strip("/")),
        packages=ownership.packages,
        unowned=_row("in no package", None, unowned, final_bytes),
        unowned_folders=_folders(unowned, 0)[:_LONGEST_LIST],
        folders=_folders(files, int(final_bytes * _FOLDER_SHARE)),
        largest_files=tuple(_largest(files)[:_LONGEST_LIST]),
        waste=waste,
        duplicates=duplicates,
        duplicate_libraries=_duplicate_libraries(files, ownership.packages),
        gpu_code=gpu_code,
        files=records,
    )


def _largest_first(ownership: Ownership) -> Ownership:
    packages = ownership.packages
    order = sorted(range(len(packages)), key=lambda each: (-packages[each].final_bytes, packages[each].name))
    place = {old: new for new, old in enumerate(order)}
    return Ownership(
        tuple(packages[each] for each in order), {path: place[old] for path, old in ownership.owner_of.items()}
    )


def _largest(files: Iterable[FileRecord]) -> list[FileRecord]:
    return sorted(files, key=lambda record: (-record.size_bytes, record.path))


def _records(file_system: FileSystem, ownership: Ownership) -> tuple[FileRecord, ...]:
    """List every name; hard-linked content has its size at its first name, the others are links to that one."""
    first_name: dict[int, str] = {}
    records = []
    for path, node in file_system.walk():
        entry, stored = node.entry, node.file
        kind: Kind = "directory" if entry is None else entry.kind
        link = "" if entry is None else entry.link
        size_bytes, sha256 = 0, ""
        if stored is not None:
            kind, sha256 = "file", stored.entry.sha256.hex()
            first = first_name.setdefault(id(stored), path)
            if first == path:
                size_bytes, link = stored.entry.size_bytes, ""
            else:
                kind, link = "hardlink", first
        mode, uid, gid = (entry.mode, entry.uid, entry.gid) if entry is not None else (0o755, 0, 0)
        package = ownership.owner_of.get(path, -1)
        records.append(FileRecord(path, kind, size_bytes, mode, uid, gid, sha256, link, node.layer, package))
    return tuple(records)


def _is_executable(path: str, mode: int) -> bool:
    return mode & 0o111 != 0 and not _SHARED_OBJECT.search(path)


def _layers(image: Image, file_system: FileSystem, ownership: Ownership) -> tuple[LayerMeasurement, ...]:
    final = [0] * len(image.layers)
    for stored in file_system.stored:
        if stored.names:
            final[stored.layer] += stored.entry.size_bytes
    caused = [0] * len(image.layers)
    for waste in file_system.waste:
        caused[waste.caused_by] += waste.wasted_bytes
    packages = [package.layer for package in ownership.packages]
    return tuple(
        LayerMeasurement(
            position=position,
            diff_id=layer.diff_id,
            blob_digest=layer.blob_digest,
            instruction=layer.instruction,
            compression=layer.contents.compression,
            unpacked_bytes=layer.contents.unpacked_bytes,
            blob_bytes=layer.blob_bytes,
            final_bytes=final[position],
            wasted_bytes=layer.contents.unpacked_bytes - final[position],
            caused_waste_bytes=caused[position],
            entries=len(layer.contents.entries),
            files=sum(entry.kind in {"file", "hardlink"} for entry in layer.contents.entries),
            packages=packages.count(position),
            executables=sum(
                entry.kind == "file" and _is_executable(entry.path, entry.mode) for entry in layer.contents.entries
            ),
        )
        for position, layer in enumerate(image.layers)
    )


def _row(label: str, parent: str | None, files: Sequence[FileRecord], whole_bytes: int) -> TreeRow:
    part_bytes = sum(record.size_bytes for record in files)
    return TreeRow(label, parent, part_bytes, part_bytes / whole_bytes if whole_bytes else 0.0, len(files))


def _tree(files: Sequence[FileRecord], whole_bytes: int, working_dir: str) -> tuple[TreeRow, ...]:
    """Share the files out among the parts that the before/after report names, each file to the first that fits.

    site-packages: of any Python but Debian's own, by top-level folder. bin: the programs beside such a site-packages,
    and usr/local/bin. application: the image's working directory. home: /root and /home, where tools leave caches. base
    system: everything else.
    """
    prefixes = {"usr/local"}
    for record in files:
        match = _SITE.match(record.path)
        if match and match["site"] != _DEBIAN_SITE:
            prefixes.add(match["prefix"] or "")
    parts: dict[str, list[FileRecord]] = {
        label: []
        for label in (*(f"site-packages/{name}" for name in _SITE_FOLDERS), "bin", "application", "home", "base system")
    }
    for record in files:
        parts[_part(record.path, prefixes, working_dir)].append(record)
    inside = [record for name in _SITE_FOLDERS for record in parts[f"site-packages/{name}"]]
    rows = [_row("site-packages", None, inside, whole_bytes)]
    rows += [
        _row(label, "site-packages" if label.startswith("site-packages/") else None, records, whole_bytes)
        for label, records in parts.items()
    ]
    return tuple(rows)


def _part(path: str, prefixes: Iterable[str], working_dir: str) -> str:
    match = _SITE.match(path)
    if match and match["site"] != _DEBIAN_SITE:
        return f"site-packages/{match['top'] if match['top'] in _SITE_FOLDERS else 'others'}"
    if any(path.startswith(f"{prefix}/bin/") for prefix in prefixes):
        return "bin"
    if working_dir and path.startswith(f"{working_dir}/"):
        return "application"
    return "home" if path.startswith(("root/", "home/")) else "base system"


def _folders(files: Iterable[FileRecord], least_bytes: int) -> tuple[FolderSize, ...]:
    """Add up folders with all that is below them, the largest first; those below *least_bytes* are left out."""
    sizes: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for record in files:
        folder = record.path.rpartition("/")[0]
        sizes[folder] += record.size_bytes
        counts[folder] += 1
    for path in list(sizes):
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            sizes[folder] += 0
    for path in sorted(sizes, key=lambda each: -each.count("/")):
        if path:
            parent = path.rpartition("/")[0]
            sizes[parent] += sizes[path]
            counts[parent] += counts[path]
    found = [FolderSize(path, size, counts[path]) for path, size in sizes.items() if size >= least_bytes]
    return tuple(sorted(found, key=lambda folder: (-folder.final_bytes, folder.path)))


def _waste(waste: Iterable[Waste], layers: Sequence[LayerMeasurement]) -> tuple[WasteGroup, ...]:
    groups: dict[tuple[Cause, int, int], list[Waste]] = defaultdict(list)
    for each in waste:
        groups[each.cause, each.stored_by, each.caused_by].append(each)
    found = []
    for (cause, stored_by, caused_by), members in groups.items():
        members.sort(key=lambda each: (-each.wasted_bytes, each.path))
        found.append(
            WasteGroup(
                cause=cause,
                stored_by=stored_by,
                caused_by=caused_by,
                instruction=layers[caused_by].instruction,
                wasted_bytes=sum(each.wasted_bytes for each in members),
                files=len(members),
                largest=tuple(WastedFile(each.path, each.wasted_bytes) for each in members[:_EXAMPLES]),
            )
        )
    return tuple(sorted(found, key=lambda group: (-group.wasted_bytes, group.caused_by, group.stored_by)))


def _duplicates(file_system: FileSystem) -> tuple[tuple[DuplicateContent, ...], int]:
    """Find equal contents among all that is stored; return the costliest and the extra bytes of all of them."""
    first: dict[bytes, StoredFile] = {}
    groups: dict[bytes, list[StoredFile]] = {}
    for stored in file_system.stored:
        if stored.entry.size_bytes:
            other = first.setdefault(stored.entry.sha256, stored)
            if other is not stored:
                groups.setdefault(stored.entry.sha256, [other]).append(stored)
    del first
    repeated = {id(stored) for members in groups.values() for stored in members}
    path_of = {id(node.file): path for path, node in file_system.walk() if id(node.file) in repeated}
    found = []
    for sha256, members in groups.items():
        size_bytes = members[0].entry.size_bytes
        copies = sorted(
            (StoredCopy(each.layer, path_of.get(id(each), each.entry.path), each.names > 0) for each in members),
            key=lambda copy: (copy.layer, copy.path),
        )
        extra_bytes = size_bytes * (len(members) - 1)
        found.append(DuplicateContent(sha256.hex(), size_bytes, extra_bytes, len(members), tuple(copies[:_EXAMPLES])))
    found.sort(key=lambda each: (-each.extra_bytes, each.sha256))
    return tuple(found[:_LONGEST_LIST]), sum(each.extra_bytes for each in found)


def _duplicate_libraries(files: Iterable[FileRecord], packages: Sequence[Package]) -> tuple[DuplicateLibrary, ...]:
    groups: dict[tuple[str, bool], list[FileRecord]] = defaultdict(list)
    for record in files:
        match = _LIBRARY.fullmatch(record.path.rpartition("/")[2])
        if match:
            is_cuda = _CUDA_LIBRARY.fullmatch(match["stem"]) is not None
            soname = f"{match['stem']}.so" if is_cuda else f"{match['stem']}.so.{match['major']}"
            groups[soname, is_cuda].append(record)
    found = [
        DuplicateLibrary(
            soname=soname,
            is_cuda=is_cuda,
            extra_bytes=sum(each.size_bytes for each in members) - max(each.size_bytes for each in members),
            copies=tuple(
                LibraryCopy(
                    each.path, each.size_bytes, each.layer, None if each.package < 0 else packages[each.package].name
                )
                for each in _largest(members)
            ),
        )
        for (soname, is_cuda), members in groups.items()
        if len(members) > 1
    ]
    return tuple(sorted(found, key=lambda each: (not each.is_cuda, -each.extra_bytes, each.soname)))
