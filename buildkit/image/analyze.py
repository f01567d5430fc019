"""Adds an image up: sizes, tree, packages, waste with its cause, duplicates. `measurement` says what the words mean."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from buildkit.image.dive import dive_efficiency
from buildkit.image.gpu_code import measure_gpu_code
from buildkit.image.merge import Cause, MergedFileSystem, StoredFile, Waste, merge
from buildkit.image.model import (
    SCHEMA_VERSION,
    DuplicateContent,
    DuplicateLibrary,
    FileRecord,
    FolderSize,
    ImageDescription,
    LayerMeasurement,
    LibraryCopy,
    Measurement,
    StoredCopy,
    Totals,
    TreeRow,
    WastedFile,
    WasteGroup,
)
from buildkit.image.packages import Ownership, Package, attribute
from buildkit.image.read import Image

if TYPE_CHECKING:
    from buildkit.image.tar_format import Kind

__all__ = ["analyze"]

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


def analyze(image: Image) -> Measurement:
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


def _records(file_system: MergedFileSystem, ownership: Ownership) -> tuple[FileRecord, ...]:
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


def _layers(image: Image, file_system: MergedFileSystem, ownership: Ownership) -> tuple[LayerMeasurement, ...]:
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


def _duplicates(file_system: MergedFileSystem) -> tuple[tuple[DuplicateContent, ...], int]:
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
