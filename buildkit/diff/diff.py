"""Compares two measurements of images: layers, parts, packages, files, and the bytes that a node must fetch.

Identical images give an empty comparison. File times are not compared, so two builds of the same input have the same
content; the digests of their layers show whether a registry stores them twice.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from buildkit.diff.matching import FilePair, match_files, match_layers
from buildkit.diff.model import (
    SCHEMA_VERSION,
    ChangeKind,
    Comparison,
    FigureChange,
    FileChange,
    LayerCause,
    LayerChange,
    PackageChange,
    PartChange,
)
from buildkit.diff.removed import CONCERNS, concern_bytes, removed_components
from buildkit.image.labels import BASE_LAYERS_LABEL
from buildkit.image.model import FileRecord, Measurement

__all__ = ["compare"]


def compare(before: Measurement, after: Measurement, *, base_layers: int | None = None) -> Comparison:
    """Compares two images.

    Args:
        before: the earlier image.
        after: the later image.
        base_layers: the number of lowest layers that belong to the base image. By default the larger of the numbers
            in the images' labels (`BASE_LAYERS_LABEL`), or 1 without labels.
    """
    if base_layers is None:
        base_layers = max(_base_layers(before), _base_layers(after))
    has_files = before.files is not None and after.files is not None
    pairs = tuple(match_files(before, after)) if has_files else ()
    files = tuple(_files(pairs, before, after)) if has_files else None
    packages = tuple(_packages(before, after))
    totals_before, totals_after = msgspec.to_builtins(before.totals), msgspec.to_builtins(after.totals)
    present = {layer.blob_digest for layer in before.layers}
    missing = {layer.blob_digest: layer.blob_bytes for layer in after.layers if layer.blob_digest not in present}
    return Comparison(
        schema_version=SCHEMA_VERSION,
        before=before.image,
        after=after.image,
        figures=tuple(FigureChange(name, totals_before[name], totals_after[name]) for name in totals_before),
        transfer_bytes=sum(missing.values()),
        layers=tuple(_layers(before, after, missing, base_layers)),
        tree=tuple(_tree(before, after)),
        packages=packages,
        files=files,
        concerns=() if files is None else tuple(_concerns(before, after)),
        removed=removed_components(pairs, before, after),
    )


def _base_layers(measurement: Measurement) -> int:
    label = measurement.image.labels.get(BASE_LAYERS_LABEL, "")
    return min(int(label), len(measurement.layers)) if label.isdecimal() else 1


def _kind(before_bytes: int, after_bytes: int) -> ChangeKind:
    if before_bytes == after_bytes:
        return "changed"
    return "grown" if after_bytes > before_bytes else "shrunk"


def _layers(
    before: Measurement, after: Measurement, missing: Mapping[str, int], base_layers: int
) -> Iterator[LayerChange]:
    contents_before, contents_after = _contents_by_layer(before), _contents_by_layer(after)
    for old, new in match_layers(before, after, base_layers=base_layers):
        kind: ChangeKind
        cause: LayerCause | None = None
        if old is None or new is None:
            kind = "added" if old is None else "removed"
        elif old.diff_id == new.diff_id:
            kind = "same"
        else:
            kind = _kind(old.unpacked_bytes, new.unpacked_bytes)
            if max(old.position, new.position) < base_layers:
                cause = "base"
            elif old.instruction != new.instruction:
                cause = "instruction"
            elif contents_before is not None and contents_after is not None:
                is_same = contents_before[old.position] == contents_after[new.position]
                cause = "metadata only" if is_same and kind == "changed" else "input"
            else:
                cause = "input"
        shown = new or old
        yield LayerChange(
            kind=kind,
            cause=cause,
            before=None if old is None else old.position,
            after=None if new is None else new.position,
            instruction=None if shown is None else shown.instruction,
            before_bytes=0 if old is None else old.unpacked_bytes,
            after_bytes=0 if new is None else new.unpacked_bytes,
            fetch_bytes=0 if new is None else missing.get(new.blob_digest, 0),
        )


def _contents_by_layer(measurement: Measurement) -> dict[int, set[tuple[str, str]]] | None:
    if measurement.files is None:
        return None
    contents: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for record in measurement.files:
        if record.kind != "directory":
            contents[record.layer].add((record.path, record.sha256 or record.link))
    return contents


def _tree(before: Measurement, after: Measurement) -> Iterator[PartChange]:
    old = {row.label: row.final_bytes for row in before.tree}
    for row in after.tree:
        yield PartChange(row.label, row.parent, old.get(row.label, 0), row.final_bytes)


def _concerns(before: Measurement, after: Measurement) -> Iterator[PartChange]:
    old, new = concern_bytes(before), concern_bytes(after)
    for label in CONCERNS:
        yield PartChange(label, None, old[label], new[label])


def _packages(before: Measurement, after: Measurement) -> Iterator[PackageChange]:
    has_files = before.files is not None and after.files is not None
    states_before, states_after = (_by_package(each, has_files=has_files) for each in (before, after))
    changes = []
    for manager, name in sorted(states_before.keys() | states_after.keys()):
        old, new = states_before.get((manager, name)), states_after.get((manager, name))
        if old == new:
            continue
        before_bytes, after_bytes = old.size_bytes if old else 0, new.size_bytes if new else 0
        kind = "added" if old is None else "removed" if new is None else _kind(before_bytes, after_bytes)
        changes.append(
            PackageChange(
                manager=manager,
                name=name,
                kind=kind,
                before_version=old.version if old else "",
                after_version=new.version if new else "",
                before_bytes=before_bytes,
                after_bytes=after_bytes,
            )
        )
    yield from sorted(changes, key=lambda each: (-abs(each.after_bytes - each.before_bytes), each.manager, each.name))


@dataclass(frozen=True, slots=True)
class _PackageState:
    version: str
    size_bytes: int
    content: str


def _by_package(measurement: Measurement, *, has_files: bool) -> dict[tuple[str, str], _PackageState]:
    """Sums packages by name; installations of one name in several places count as one, with all versions.

    The content is a digest of contents and of paths relative to the package's location, so that an environment that was
    moved is equal.
    """
    hashes = [hashlib.sha256() for _ in measurement.packages]
    for record in (measurement.files or ()) if has_files else ():
        if record.package >= 0:
            location = measurement.packages[record.package].location
            hashes[record.package].update(f"{record.path.removeprefix(location)}\0{record.sha256}\0".encode())
    states: dict[tuple[str, str], _PackageState] = {}
    for package, content in zip(measurement.packages, hashes, strict=True):
        key = package.manager, package.name
        other = states.get(key)
        version = package.version if other is None else f"{other.version}, {package.version}"
        size_bytes = package.final_bytes + (0 if other is None else other.size_bytes)
        states[key] = _PackageState(version, size_bytes, content.hexdigest() + ("" if other is None else other.content))
    return states


def _files(pairs: Sequence[FilePair], before: Measurement, after: Measurement) -> Iterable[FileChange]:
    changes = []
    for old, new in pairs:
        kind = _file_kind(old, new)
        if kind == "same":
            continue
        shown, measurement = (new, after) if new is not None else (old, before)
        if shown is None:
            continue
        changes.append(
            FileChange(
                path=shown.path,
                kind=kind,
                before_bytes=old.size_bytes if old else 0,
                after_bytes=new.size_bytes if new else 0,
                package=measurement.packages[shown.package].name if shown.package >= 0 else None,
                moved_from=old.path if old is not None and old.path != shown.path else None,
            )
        )
    return sorted(changes, key=lambda each: (-abs(each.after_bytes - each.before_bytes), each.path))


def _file_kind(old: FileRecord | None, new: FileRecord | None) -> ChangeKind:
    if old is None:
        return "added"
    if new is None:
        return "removed"
    if old.size_bytes != new.size_bytes:
        return _kind(old.size_bytes, new.size_bytes)
    if old.sha256 != new.sha256:
        return "changed"
    if old.path != new.path:
        return "moved"
    metadata_before = (old.kind, old.mode, old.uid, old.gid, old.link)
    metadata_after = (new.kind, new.mode, new.uid, new.gid, new.link)
    return "same" if metadata_before == metadata_after else "metadata only"
