"""What a slim did, as one JSON document (`slim.json`) that stays with the tree.

It says nothing about when or where it ran, so the same tree and the same choices give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "SCHEMA_VERSION",
    "TOOL_VERSION",
    "Alteration",
    "Refusal",
    "Removal",
    "SlimManifest",
    "TargetsAlreadyRemoved",
    "UnknownSlimManifest",
    "continue_from",
    "explain",
    "join",
    "load",
    "save",
]

SCHEMA_VERSION: Final = 1
TOOL_VERSION: Final = "1"


class UnknownSlimManifest(ValueError):
    """A manifest of another schema, or none at all.

    Attributes:
        path: where it lies.
        value: the schema version found.
    """

    def __init__(self, path: Path, value: object) -> None:
        super().__init__(f"{path} has schema_version {value!r}, this tool writes {SCHEMA_VERSION}")
        self.path = path
        self.value = value


@dataclass(frozen=True, slots=True)
class Removal:
    """A rule of the files table, and every file that it took out.

    Attributes:
        removed: path relative to the tree, to its bytes; a sign may stand there now.
    """

    rule: str
    reason: str
    lost: str
    removed: dict[str, int]


@dataclass(frozen=True, slots=True)
class Alteration:
    """A file with other bytes than it was installed with.

    Attributes:
        steps: what was done to it, in order: `stub`, `architectures`, `strip`, `record`; or `sign`, which stands for a
            file that a rule took out and was nothing before.
        sha256_before: from the distribution's RECORD; None where it gives none.
        left_out: name of each kind of GPU code taken out (`sm_80`, `compute_120`), to its entries and bytes.
    """

    path: str
    steps: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    sha256_before: str | None
    sha256_after: str
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file left exactly as it was, although a step was to change it."""

    path: str
    step: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SlimManifest:
    """The whole result for one tree.

    Attributes:
        bytes_before: sum over its regular files, as installed.
        targets: the compute capabilities that GPU code was kept for, as `9.0`; None where all is there.
    """

    bytes_before: int
    bytes_after: int
    removals: tuple[Removal, ...]
    alterations: tuple[Alteration, ...]
    refusals: tuple[Refusal, ...]
    targets: tuple[str, ...] | None = None
    tool_version: str = field(default=TOOL_VERSION)
    schema_version: int = field(default=SCHEMA_VERSION)


class TargetsAlreadyRemoved(ValueError):
    """GPUs asked for whose code an earlier slim of the tree took out.

    Attributes:
        value: the targets asked for.
        allowed: those that the tree still holds.
    """

    def __init__(self, value: tuple[str, ...], allowed: tuple[str, ...]) -> None:
        super().__init__(f"the tree was slimmed for {', '.join(allowed)}; it cannot serve {', '.join(value)} again")
        self.value = value
        self.allowed = allowed


def load(path: Path) -> SlimManifest:
    """Reads a manifest.

    Raises:
        UnknownSlimManifest: the file is of another schema.
    """
    document = json.loads(path.read_text("utf-8"))
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise UnknownSlimManifest(path, version)
    return SlimManifest(
        bytes_before=document["bytes_before"],
        bytes_after=document["bytes_after"],
        removals=tuple(Removal(**row) for row in document["removals"]),
        alterations=tuple(_alteration(row) for row in document["alterations"]),
        refusals=tuple(Refusal(**row) for row in document["refusals"]),
        targets=tuple(document["targets"]) if document["targets"] is not None else None,
        tool_version=document["tool_version"],
    )


def _alteration(row: dict[str, Any]) -> Alteration:
    left_out = {name: (count, size_bytes) for name, (count, size_bytes) in row["left_out"].items()}
    return Alteration(**{**row, "steps": tuple(row["steps"]), "left_out": left_out})


def save(manifest: SlimManifest, path: Path) -> None:
    """Writes a manifest, the same bytes for the same value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n", "utf-8")


def continue_from(earlier: SlimManifest, now: SlimManifest, *, present: dict[str, int]) -> SlimManifest:
    """One manifest for a tree that was slimmed before and is slimmed again: what it was at first, what it is now.

    Args:
        earlier: the manifest of the slim before.
        now: the manifest of this one.
        present: path to bytes of every file that the tree holds now; what an earlier slim says of a file that has
            other bytes now (it was installed anew) is left out.
    """
    removals = {removal.rule: dict(removal.removed) for removal in earlier.removals}
    texts = {removal.rule: removal for removal in (*earlier.removals, *now.removals)}
    for removal in now.removals:
        removals.setdefault(removal.rule, {}).update(removal.removed)
    altered = {old.path: old for old in earlier.alterations}
    for new in now.alterations:
        old = altered.get(new.path)
        is_sign = new.steps == ("sign",)  # what it stands for is gone, whatever was done to it before
        if old is not None and old.sha256_after == new.sha256_before and not is_sign:
            steps = (*old.steps, *(step for step in new.steps if step not in old.steps))
            new = dataclasses.replace(  # noqa: PLW2901 - the same alteration, begun earlier
                new,
                steps=steps,
                bytes_before=old.bytes_before,
                sha256_before=old.sha256_before,
                left_out=_added(old.left_out, new.left_out),
            )
        altered[new.path] = new
    alterations = tuple(
        alteration for path, alteration in sorted(altered.items()) if present.get(path) == alteration.bytes_after
    )
    still = present.keys() - {alteration.path for alteration in alterations if alteration.steps == ("sign",)}
    kept = tuple(
        dataclasses.replace(
            texts[rule], removed={path: size for path, size in sorted(files.items()) if path not in still}
        )
        for rule, files in removals.items()
    )
    saved_bytes = sum(change.bytes_before - change.bytes_after for change in alterations) + sum(
        sum(removal.removed.values()) for removal in kept
    )
    return dataclasses.replace(
        now,
        bytes_before=now.bytes_after + saved_bytes,
        removals=tuple(removal for removal in kept if removal.removed),
        alterations=alterations,
        targets=now.targets if now.targets is not None else earlier.targets,
    )


def join(manifests: Sequence[SlimManifest]) -> SlimManifest:
    """One manifest for trees that are merged into one: a file is in one of them only.

    Its targets are those that every tree still serves.
    """
    removals: dict[str, Removal] = {}
    for removal in (removal for manifest in manifests for removal in manifest.removals):
        before = removals.get(removal.rule, dataclasses.replace(removal, removed={}))
        removed = dict(sorted((before.removed | removal.removed).items()))
        removals[removal.rule] = dataclasses.replace(removal, removed=removed)
    pruned = [set(manifest.targets) for manifest in manifests if manifest.targets is not None]
    targets = sorted(set.intersection(*pruned), key=float) if pruned else None
    changes = [change for manifest in manifests for change in manifest.alterations]
    return SlimManifest(
        bytes_before=sum(manifest.bytes_before for manifest in manifests),
        bytes_after=sum(manifest.bytes_after for manifest in manifests),
        removals=tuple(removals[rule] for rule in sorted(removals)),
        alterations=tuple(sorted(changes, key=lambda change: change.path)),
        refusals=tuple(refusal for manifest in manifests for refusal in manifest.refusals),
        targets=None if targets is None else tuple(targets),
    )


def explain(manifest: SlimManifest, name: str) -> tuple[str, ...]:
    """What was done to everything of this name (a package, a library, a part of a path), a line each by rule or file.

    It answers the error of whoever misses it: `No module named 'triton'`, `libcusolver.so.12: cannot open`.
    """
    lines = [
        f"{removal.rule} took {len(found)} files out ({sum(removal.removed[path] for path in found):,} bytes), such as "
        f"{found[0]}: {removal.reason}. Lost: {removal.lost}."
        for removal in manifest.removals
        if (found := [path for path in removal.removed if _names(path, name)])
    ]
    for change in manifest.alterations:
        if _names(change.path, name) and change.steps != ("record",):
            code = ", ".join(f"{count} of {kind}" for kind, (count, _) in sorted(change.left_out.items()))
            what = (
                f"{change.path}: {', '.join(change.steps)}, {change.bytes_before:,} bytes became {change.bytes_after:,}"
            )
            lines.append(f"{what}; without {code}" if code else what)
    return tuple(lines)


def _names(path: str, name: str) -> bool:
    """Whether a name is a component of a path, the start of one up to a dot, or several components."""
    wanted = name.strip("/").replace(".", "/") if "/" not in name and ".so" not in name else name.strip("/")
    components = path.split("/")
    return f"/{wanted}/" in f"/{path}/" or any(part.split(".so")[0] == wanted or part == name for part in components)


def _added(left: dict[str, tuple[int, int]], right: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Entries and bytes by name, summed."""
    names = sorted({*left, *right})
    none = (0, 0)
    return {
        name: (left.get(name, none)[0] + right.get(name, none)[0], left.get(name, none)[1] + right.get(name, none)[1])
        for name in names
    }
