"""Analyzes an image: sizes, directory tree, packages, waste by cause, duplicates, GPU code."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from buildkit.image.dive import dive_efficiency
from buildkit.image.duplicates import find_duplicate_libraries, find_duplicates
from buildkit.image.gpu_code import measure_gpu_code
from buildkit.image.merge import Cause, MergedFileSystem, Waste, merge
from buildkit.image.model import (
    SCHEMA_VERSION,
    FileRecord,
    Image,
    LayerMeasurement,
    Measurement,
    Totals,
    WastedFile,
    WasteGroup,
)
from buildkit.image.packages import Ownership, find_owners
from buildkit.image.tree import folder_sizes, make_row, make_tree

if TYPE_CHECKING:
    from buildkit.image.tar_format import EntryKind

__all__ = ["analyze"]

_SHARED_OBJECT: Final = re.compile(r"\.so(\.[0-9.]+)?$")
_MAX_ROWS: Final = 100
_MAX_EXAMPLES: Final = 20
_FOLDER_FRACTION: Final = 0.0005  # a smaller folder is too small for a rectangle in the HTML page


def analyze(image: Image) -> Measurement:
    """Returns the measurement of *image*; raises LayerError if its layers cannot be merged."""
    contents = [layer.contents for layer in image.layers]
    dive = dive_efficiency(contents)  # first, so that its memory is free again before the file system is built
    file_system = merge(contents)
    ownership = _largest_first(find_owners(file_system, [layer.captured for layer in contents]))
    records = _records(file_system, ownership)
    files = [record for record in records if record.kind == "file"]
    layers = _layers(image, file_system, ownership)
    duplicates = find_duplicates(file_system)
    waste = _waste_groups(file_system.waste, layers)
    gpu_code = measure_gpu_code(contents, file_system, ownership.name_of)
    del file_system
    totals = _totals(
        layers,
        files,
        names=sum(record.kind in {"file", "hardlink"} for record in records),
        packages=len(ownership.packages),
        duplicate_bytes=sum(each.extra_bytes for each in duplicates),
    )
    unowned = [record for record in files if record.package < 0]
    return Measurement(
        schema_version=SCHEMA_VERSION,
        image=image.description,
        totals=totals,
        dive=dive,
        layers=layers,
        tree=make_tree(files, totals.final_bytes, image.description.working_dir.strip("/")),
        packages=ownership.packages,
        unowned=make_row("in no package", None, unowned, totals.final_bytes),
        unowned_folders=folder_sizes(unowned)[:_MAX_ROWS],
        folders=folder_sizes(files, int(totals.final_bytes * _FOLDER_FRACTION)),
        largest_files=tuple(sorted(files, key=lambda record: (-record.size_bytes, record.path))[:_MAX_ROWS]),
        waste=waste,
        duplicates=duplicates[:_MAX_ROWS],
        duplicate_libraries=find_duplicate_libraries(files, ownership.packages),
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


def _records(file_system: MergedFileSystem, ownership: Ownership) -> tuple[FileRecord, ...]:
    """Lists every name; hard-linked content has its size at its first name, the others are links to that name."""
    first_name: dict[int, str] = {}
    records = []
    for path, node in file_system.walk():
        entry, stored = node.entry, node.file
        kind: EntryKind = "directory" if entry is None else entry.kind
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


def _totals(
    layers: Sequence[LayerMeasurement], files: Sequence[FileRecord], *, names: int, packages: int, duplicate_bytes: int
) -> Totals:
    """Returns the totals; *files* have each content once, *names* counts hard links too."""
    unpacked_bytes = sum(layer.unpacked_bytes for layer in layers)
    final_bytes = sum(record.size_bytes for record in files)
    return Totals(
        unpacked_bytes=unpacked_bytes,
        blob_bytes=sum(layer.blob_bytes for layer in layers),
        final_bytes=final_bytes,
        wasted_bytes=unpacked_bytes - final_bytes,
        largest_layer_bytes=max((layer.unpacked_bytes for layer in layers), default=0),
        duplicate_bytes=duplicate_bytes,
        efficiency_fraction=final_bytes / unpacked_bytes if unpacked_bytes else 1.0,
        layers=len(layers),
        files=names,
        packages=packages,
        executables=sum(_is_executable(record.path, record.mode) for record in files),
    )


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


def _waste_groups(waste: Iterable[Waste], layers: Sequence[LayerMeasurement]) -> tuple[WasteGroup, ...]:
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
                largest=tuple(WastedFile(each.path, each.wasted_bytes) for each in members[:_MAX_EXAMPLES]),
            )
        )
    return tuple(sorted(found, key=lambda group: (-group.wasted_bytes, group.caused_by, group.stored_by)))
