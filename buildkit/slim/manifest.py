"""Records the changes of slimming as one JSON document (`slim.json`) that stays with the tree.

It has neither time nor place, so the same tree and the same options give the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from buildkit.errors import BuildkitError
from buildkit.slim.tree import hash_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "SCHEMA_VERSION",
    "TOOL_VERSION",
    "FileChange",
    "InvalidManifest",
    "Refusal",
    "Removal",
    "SlimManifest",
    "TargetsAlreadyRemoved",
    "continue_from",
    "count_files",
    "describe_change",
    "explain",
    "join",
    "load",
    "save",
]

SCHEMA_VERSION: Final = 2
TOOL_VERSION: Final = "2"


class InvalidManifest(BuildkitError):
    """A file that is not a slim manifest of this schema version.

    Attributes:
        path: the file.
        version: its schema version; None if it has none.
    """

    exit_code = 2

    def __init__(self, path: Path, version: object) -> None:
        found = "is not a slim manifest" if version is None else f"has schema_version {version!r}"
        super().__init__(f"{path} {found}; schema_version {SCHEMA_VERSION} is needed: slim a new installation again")
        self.path = path
        self.version = version


class TargetsAlreadyRemoved(BuildkitError):
    """GPU targets whose code was removed by an earlier run on the same tree.

    Attributes:
        targets: the targets that are missing.
        remaining: those that the tree still has code for.
    """

    exit_code = 2

    def __init__(self, targets: tuple[str, ...], remaining: tuple[str, ...]) -> None:
        super().__init__(
            f"GPU code for {', '.join(targets)} was removed from this tree before (left: {', '.join(remaining)}); "
            "install it again to keep other targets"
        )
        self.targets = targets
        self.remaining = remaining


@dataclass(frozen=True, slots=True)
class Removal:
    """The files that one rule removed.

    Attributes:
        reason: why an image does not need them.
        lost: the features that no longer work.
        removed: path relative to the tree, to its bytes; a placeholder may have that path now.
    """

    rule: str
    reason: str
    lost: str
    removed: dict[str, int]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file whose content differs from the installed one, or a placeholder.

    Attributes:
        steps: the steps that changed it, in order: `stub`, `architectures`, `strip`, `record`; or only `placeholder`,
            for a file that replaces a removed one (then `bytes_before` is 0).
        sha256_before: from the distribution's RECORD; None if that has no hash.
        removed_code: name of each kind of GPU code removed (`sm_80`, `compute_120`), to its entries and bytes.
    """

    path: str
    steps: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    sha256_before: str | None
    sha256_after: str
    removed_code: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_placeholder(self) -> bool:
        """Whether the file is a placeholder for a removed one."""
        return self.steps == ("placeholder",)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that left a file unchanged because the file has a feature that it does not support."""

    path: str
    step: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SlimManifest:
    """All changes to one tree.

    Attributes:
        bytes_before: sum of its regular files, as installed.
        targets: the compute capabilities that GPU code was kept for, as `9.0`; None if all code is there.
    """

    bytes_before: int
    bytes_after: int
    removals: tuple[Removal, ...]
    changes: tuple[FileChange, ...]
    refusals: tuple[Refusal, ...]
    targets: tuple[str, ...] | None = None
    tool_version: str = field(default=TOOL_VERSION)
    schema_version: int = field(default=SCHEMA_VERSION)


def describe_change(
    root: Path,
    path: str,
    steps: tuple[str, ...],
    *,
    bytes_before: int,
    sha256_before: str | None,
    removed_code: dict[str, tuple[int, int]] | None = None,
) -> FileChange:
    """Returns the entry for a file below `root` that was changed, with its present size and hash."""
    return FileChange(
        path=path,
        steps=steps,
        bytes_before=bytes_before,
        bytes_after=(root / path).stat().st_size,
        sha256_before=sha256_before,
        sha256_after=hash_file(root / path),
        removed_code=removed_code or {},
    )


def load(path: Path) -> SlimManifest:
    """Reads a manifest.

    Raises:
        InvalidManifest: the file is not a manifest of this schema version.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise InvalidManifest(path, None) from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InvalidManifest(path, version)
    return SlimManifest(
        bytes_before=document["bytes_before"],
        bytes_after=document["bytes_after"],
        removals=tuple(Removal(**row) for row in document["removals"]),
        changes=tuple(_file_change(row) for row in document["changes"]),
        refusals=tuple(Refusal(**row) for row in document["refusals"]),
        targets=tuple(document["targets"]) if document["targets"] is not None else None,
        tool_version=document["tool_version"],
    )


def _file_change(row: dict[str, Any]) -> FileChange:
    removed_code = {name: (count, size_bytes) for name, (count, size_bytes) in row["removed_code"].items()}
    return FileChange(**{**row, "steps": tuple(row["steps"]), "removed_code": removed_code})


def save(manifest: SlimManifest, path: Path) -> None:
    """Writes a manifest; the same manifest gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n", "utf-8")


def continue_from(earlier: SlimManifest, now: SlimManifest, *, present: dict[str, int]) -> SlimManifest:
    """Returns one manifest for a tree that was slimmed several times: its first state compared with the present one.

    Args:
        earlier: the manifest of the earlier runs.
        now: the manifest of this run.
        present: path to bytes of every file in the tree. Entries of `earlier` for a file with another size now are
            dropped: the file was installed again.
    """
    changes = _continued_changes(earlier, now, present)
    removals = _continued_removals(earlier, now, present.keys() - {c.path for c in changes if c.is_placeholder})
    saved_bytes = sum(change.bytes_before - change.bytes_after for change in changes)
    saved_bytes += sum(sum(removal.removed.values()) for removal in removals)
    return dataclasses.replace(
        now,
        bytes_before=now.bytes_after + saved_bytes,
        removals=removals,
        changes=changes,
        targets=now.targets if now.targets is not None else earlier.targets,
    )


def _continued_changes(earlier: SlimManifest, now: SlimManifest, present: dict[str, int]) -> tuple[FileChange, ...]:
    """Returns the changes of all runs, one for each file; a placeholder replaces the earlier changes of its file."""
    changes = {old.path: old for old in earlier.changes}
    for new in now.changes:
        old = changes.get(new.path)
        if old is None or old.sha256_after != new.sha256_before or new.is_placeholder:
            changes[new.path] = new
        else:
            changes[new.path] = dataclasses.replace(
                new,
                steps=(*old.steps, *(step for step in new.steps if step not in old.steps)),
                bytes_before=old.bytes_before,
                sha256_before=old.sha256_before,
                removed_code=_added(old.removed_code, new.removed_code),
            )
    return tuple(change for path, change in sorted(changes.items()) if present.get(path) == change.bytes_after)


def _continued_removals(earlier: SlimManifest, now: SlimManifest, present: set[str]) -> tuple[Removal, ...]:
    """Returns the removals of all runs, one for each rule, without the files that are present again."""
    removed: dict[str, dict[str, int]] = {}
    for removal in (*earlier.removals, *now.removals):
        removed.setdefault(removal.rule, {}).update(removal.removed)
    latest = {removal.rule: removal for removal in (*earlier.removals, *now.removals)}
    removals = (
        dataclasses.replace(
            latest[rule], removed={path: size for path, size in sorted(files.items()) if path not in present}
        )
        for rule, files in removed.items()
    )
    return tuple(removal for removal in removals if removal.removed)


def join(manifests: Sequence[SlimManifest]) -> SlimManifest:
    """Returns one manifest for trees that are merged; each file must be in one of them only.

    Its targets are those that every tree has code for.
    """
    removals: dict[str, Removal] = {}
    for removal in (removal for manifest in manifests for removal in manifest.removals):
        before = removals.get(removal.rule, dataclasses.replace(removal, removed={}))
        removed = dict(sorted((before.removed | removal.removed).items()))
        removals[removal.rule] = dataclasses.replace(removal, removed=removed)
    pruned = [set(manifest.targets) for manifest in manifests if manifest.targets is not None]
    targets = sorted(set.intersection(*pruned), key=float) if pruned else None
    changes = [change for manifest in manifests for change in manifest.changes]
    return SlimManifest(
        bytes_before=sum(manifest.bytes_before for manifest in manifests),
        bytes_after=sum(manifest.bytes_after for manifest in manifests),
        removals=tuple(removals[rule] for rule in sorted(removals)),
        changes=tuple(sorted(changes, key=lambda change: change.path)),
        refusals=tuple(refusal for manifest in manifests for refusal in manifest.refusals),
        targets=None if targets is None else tuple(targets),
    )


def count_files(count: int) -> str:
    """Returns a number of files: "1 file", "2 files"."""
    return f"{count:,} file" if count == 1 else f"{count:,} files"


def explain(manifest: SlimManifest, name: str) -> tuple[str, ...]:
    """Returns a line for each rule and each change that affects a name: a package, a library or a part of a path.

    It explains errors such as `No module named 'triton'` and `libcusolver.so.12: cannot open`.
    """
    lines = [
        f"{removal.rule} removed {count_files(len(found))} ({sum(removal.removed[path] for path in found):,} bytes), "
        f"such as {found[0]}: {removal.reason}. Lost: {removal.lost}."
        for removal in manifest.removals
        if (found := [path for path in removal.removed if _names(path, name)])
    ]
    for change in manifest.changes:
        if _names(change.path, name) and change.steps != ("record",):
            code = ", ".join(f"{count} of {kind}" for kind, (count, _) in sorted(change.removed_code.items()))
            sizes = f"{change.bytes_before:,} bytes before, {change.bytes_after:,} after"
            line = f"{change.path}: {', '.join(change.steps)}; {sizes}"
            lines.append(f"{line}; removed GPU code: {code}" if code else line)
    return tuple(lines)


def _names(path: str, name: str) -> bool:
    """Returns whether a name is a component of a path, several components, or a library's name without `.so`."""
    wanted = name.strip("/").replace(".", "/") if "/" not in name and ".so" not in name else name.strip("/")
    components = path.split("/")
    return f"/{wanted}/" in f"/{path}/" or any(part.split(".so")[0] == wanted or part == name for part in components)


def _added(left: dict[str, tuple[int, int]], right: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Returns the sums of entries and bytes by name."""
    names = sorted({*left, *right})
    none = (0, 0)
    return {
        name: (left.get(name, none)[0] + right.get(name, none)[0], left.get(name, none)[1] + right.get(name, none)[1])
        for name in names
    }
