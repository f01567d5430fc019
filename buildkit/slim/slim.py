"""Slims one installed tree: removes files, slims libraries, updates RECORD files and writes the manifest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildkit.binary.fatbin import target_name
from buildkit.slim import manifest as manifest_format
from buildkit.slim.libraries.slim_library import slim_libraries
from buildkit.slim.manifest import SlimManifest, TargetsAlreadyRemoved, describe_change
from buildkit.slim.placeholders.compiler import find_compiler
from buildkit.slim.removal import plan_removal, remove_planned
from buildkit.slim.tree import read_tree, update_records

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.slim.manifest import FileChange
    from buildkit.slim.rules.options import SlimOptions
    from buildkit.slim.tree import Tree

__all__ = ["slim_tree", "worker_count"]


def slim_tree(root: Path, options: SlimOptions, *, manifest_path: Path | None = None, workers: int = 1) -> SlimManifest:
    """Slims a tree in place, updates its RECORD files, and returns (and writes) the manifest.

    An existing manifest at `manifest_path` is continued. A second run with the same options changes nothing.

    Raises:
        CompilerMissing: a placeholder library must be compiled, and there is no C compiler; nothing was changed.
        NotInstalledTree: nothing is installed below `root`.
        TargetsAlreadyRemoved: code for a chosen target was removed before, according to the manifest.
        InvalidManifest: the file at `manifest_path` is not a manifest of this schema version.
        UnsupportedBinary: the compiler cannot make a placeholder library; nothing was changed.
    """
    earlier = _earlier_manifest(manifest_path, options)
    tree = read_tree(root, ignored=manifest_path)
    if any(options.stub_for(file.path) for file in tree.files):
        find_compiler()
    plan = plan_removal(tree, options.rules)
    placeholders = remove_planned(tree, plan)
    removed = plan.removed_paths()
    remaining = [file for file in tree.files if file.path not in removed]
    results = slim_libraries(tree, remaining, options, workers=workers)
    changes = [*placeholders, *(result.change for result in results if result.change is not None)]
    changes += _update_records(tree, removed=removed, changes=changes)
    changes.sort(key=lambda change: change.path)
    sizes = {file.path: file.size_bytes for file in remaining} | {change.path: change.bytes_after for change in changes}
    links = {file.path for file in remaining if file.is_link}
    manifest = SlimManifest(
        bytes_before=sum(file.size_bytes for file in tree.files if not file.is_link),
        bytes_after=sum(size_bytes for path, size_bytes in sizes.items() if path not in links),
        removals=plan.removals,
        changes=tuple(changes),
        refusals=tuple(refusal for result in results for refusal in result.refusals),
        targets=_target_names(options),
    )
    if earlier is not None:
        manifest = manifest_format.continue_from(earlier, manifest, present=sizes)
    if manifest_path is not None:
        manifest_format.save(manifest, manifest_path)
    return manifest


def worker_count() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _earlier_manifest(manifest_path: Path | None, options: SlimOptions) -> SlimManifest | None:
    """Returns the manifest to continue, or None; it must still have code for the chosen targets."""
    if manifest_path is None or not manifest_path.exists():
        return None
    earlier = manifest_format.load(manifest_path)
    targets = _target_names(options)
    if earlier.targets is not None and targets is not None:
        missing = set(targets).difference(earlier.targets)
        if missing:
            raise TargetsAlreadyRemoved(tuple(sorted(missing)), earlier.targets)
    return earlier


def _target_names(options: SlimOptions) -> tuple[str, ...] | None:
    return None if options.targets is None else tuple(target_name(target) for target in sorted(options.targets))


def _update_records(tree: Tree, *, removed: set[str], changes: list[FileChange]) -> list[FileChange]:
    """Updates the RECORD files for the changes, and returns an entry for each that was rewritten."""
    changed = {change.path: (change.sha256_after, change.bytes_after) for change in changes}
    sizes = {file.path: file.size_bytes for file in tree.files}
    rewritten = update_records(tree, removed=removed.difference(changed), changed=changed)
    return [
        describe_change(tree.root, path, ("record",), bytes_before=sizes[path], sha256_before=sha256_before)
        for path, sha256_before in rewritten.items()
    ]
