"""One diet of one tree, from the choice of steps to the manifest."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.diet import manifest as manifest_format
from buildkit.diet.elf import ELF_HEADER_BYTES, MAGIC, Refused
from buildkit.diet.files import Rule, match_files
from buildkit.diet.manifest import Alteration, Manifest, Refusal, Removal
from buildkit.diet.strip import strip_file
from buildkit.diet.tree import InstalledFile, Tree, hash_file, read_tree, remove_files, update_records

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Choice", "diet_tree", "worker_count"]

# Never machine code: not worth opening. A file with any other suffix is looked into.
_NEVER_ELF: Final = (".py", ".pyc", ".pyi", ".h", ".hpp", ".txt", ".json", ".a", ".md")
# auditwheel puts the libraries that it grafts into a wheel here, rewritten by patchelf; a strip that does not keep
# their alignment breaks them (numpy's OpenBLAS), and they are stripped already where the packager wanted it.
_GRAFTED_SUFFIX: Final = ".libs"


@dataclass(frozen=True, slots=True)
class Choice:
    """The steps of a diet.

    Attributes:
        rules: which files go.
        strips: whether symbols and debug information go.
        is_atomic: whether each changed file is written beside the old one and renamed over it.
    """

    rules: tuple[Rule, ...]
    strips: bool
    is_atomic: bool = False


def diet_tree(root: Path, choice: Choice, *, manifest_path: Path | None = None) -> Manifest:
    """Diets a tree in place, updates its RECORD files, and returns (and writes) what was done.

    A manifest that lies at `manifest_path` already is continued, so a second run changes nothing, nor the manifest.

    Raises:
        NotATree: nothing is installed below `root`.
        UnknownManifest: what lies at `manifest_path` is no manifest of this schema.
    """
    earlier = manifest_format.load(manifest_path) if manifest_path is not None and manifest_path.exists() else None
    tree = read_tree(root, ignored=manifest_path)
    removals = _remove(tree, choice.rules)
    gone = {path for removal in removals for path in removal.removed}
    left = [file for file in tree.files if file.path not in gone]
    alterations: list[Alteration] = []
    refusals: list[Refusal] = []
    if choice.strips:
        with ThreadPoolExecutor(worker_count()) as pool:
            machine_code = [file for file in left if _is_elf(tree, file)]
            for outcome in pool.map(lambda file: _strip(tree, file, is_atomic=choice.is_atomic), machine_code):
                if isinstance(outcome, Alteration):
                    alterations.append(outcome)
                elif outcome is not None:
                    refusals.append(outcome)
    changed = {change.path: (change.sha256_after, change.bytes_after) for change in alterations}
    sizes = {file.path: file.size_bytes for file in left}
    for record in update_records(tree, removed=gone, changed=changed):
        path = root / record
        alterations.append(
            Alteration(
                path=record,
                steps=("record",),
                bytes_before=sizes[record],
                bytes_after=path.stat().st_size,
                sha256_before=None,
                sha256_after=hash_file(path),
            )
        )
    alterations.sort(key=lambda change: change.path)
    present = sizes | {change.path: change.bytes_after for change in alterations}
    manifest = Manifest(
        bytes_before=sum(file.size_bytes for file in tree.files if not file.is_link),
        bytes_after=sum(present[file.path] for file in left if not file.is_link),
        removals=removals,
        alterations=tuple(alterations),
        refusals=tuple(refusals),
    )
    if earlier is not None:
        manifest = manifest_format.continue_from(earlier, manifest, present=present)
    if manifest_path is not None:
        manifest_format.save(manifest, manifest_path)
    return manifest


def worker_count() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remove(tree: Tree, rules: Iterable[Rule]) -> tuple[Removal, ...]:
    rules = tuple(rules)
    sizes = {file.path: 0 if file.is_link else file.size_bytes for file in tree.files}
    removed: dict[str, dict[str, int]] = {rule.name: {} for rule in rules}
    for site, paths in tree.by_site():
        for path, rule in match_files(tree.root / site, paths, rules).items():
            installed = path if site == "." else f"{site}/{path}"
            removed[rule.name][installed] = sizes[installed]
    remove_files(tree.root, sorted(path for files in removed.values() for path in files))
    return tuple(
        Removal(rule=rule.name, reason=rule.reason, lost=rule.lost, removed=dict(sorted(removed[rule.name].items())))
        for rule in rules
        if removed[rule.name]
    )


def _is_elf(tree: Tree, file: InstalledFile) -> bool:
    if file.is_link or file.size_bytes < ELF_HEADER_BYTES or file.path.endswith(_NEVER_ELF):
        return False
    with (tree.root / file.path).open("rb", buffering=0) as content:
        return content.read(len(MAGIC)) == MAGIC


def _strip(tree: Tree, file: InstalledFile, *, is_atomic: bool) -> Alteration | Refusal | None:
    if any(part.endswith(_GRAFTED_SUFFIX) for part in file.path.split("/")[:-1]):
        return None
    path = tree.root / file.path
    try:
        plan = strip_file(path, is_atomic=is_atomic)
    except Refused as refusal:
        return Refusal(path=file.path, step="strip", reason=refusal.reason, detail=refusal.detail)
    if plan is None:
        return None
    return Alteration(
        path=file.path,
        steps=("strip",),
        bytes_before=plan.bytes_before,
        bytes_after=plan.bytes_after,
        sha256_before=tree.recorded.get(file.path),
        sha256_after=hash_file(path),
    )
