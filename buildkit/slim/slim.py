"""One slim of one tree, from the choice of steps to the manifest."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import ELF_HEADER_BYTES, MAGIC, UnsupportedBinary, map_file
from buildkit.binary.fatbin import target_name
from buildkit.binary.rewrite import replace_content, replace_file
from buildkit.slim import manifest as manifest_format
from buildkit.slim.libraries.check import check_pruned
from buildkit.slim.libraries.loadcheck import check_loads
from buildkit.slim.libraries.prune import plan_prune
from buildkit.slim.libraries.strip import strip_file
from buildkit.slim.manifest import Alteration, Refusal, Removal, SlimManifest, TargetsAlreadyRemoved
from buildkit.slim.placeholders.libraries import is_sign, make_signs
from buildkit.slim.placeholders.stubs import StubRule, find_compiler, is_stub, make_stub
from buildkit.slim.rules.files import match_files
from buildkit.slim.tree import InstalledFile, Tree, hash_file, read_tree, remove_files, update_records

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit.slim.placeholders.libraries import Sign
    from buildkit.slim.rules.rule_sets import Rule

__all__ = ["SlimOptions", "slim_tree", "worker_count"]

# Never machine code: not worth opening. A file with any other suffix is looked into.
_NEVER_ELF: Final = (".py", ".pyc", ".pyi", ".h", ".hpp", ".txt", ".json", ".a", ".md")
# auditwheel puts the libraries that it grafts into a wheel here, rewritten by patchelf; a strip that does not keep
# their alignment breaks them (numpy's OpenBLAS), and they are stripped already where the packager wanted it.
_GRAFTED_SUFFIX: Final = ".libs"


@dataclass(frozen=True, slots=True)
class SlimOptions:
    """The steps of a slim.

    Attributes:
        rules: which files go.
        strips: whether symbols and debug information go.
        targets: the compute capabilities whose GPU code stays, as 90 for 9.0; None leaves all of it.
        stubs: which libraries are replaced by stand-ins.
        is_atomic: whether each changed file is written beside the old one and renamed over it.
        is_loaded: whether each changed library is loaded in a fresh process before it replaces the old one.
    """

    rules: tuple[Rule, ...]
    strips: bool
    targets: frozenset[int] | None = None
    stubs: tuple[StubRule, ...] = ()
    is_atomic: bool = False
    is_loaded: bool = False


@dataclass(frozen=True, slots=True)
class _FileResult:
    """What became of one file; `alteration` is None where no step changed it."""

    alteration: Alteration | None
    refusals: tuple[Refusal, ...]


def slim_tree(root: Path, choice: SlimOptions, *, manifest_path: Path | None = None, workers: int = 1) -> SlimManifest:
    """Slims a tree in place, updates its RECORD files, and returns (and writes) what was done.

    A manifest that lies at `manifest_path` already is continued, so a second run changes nothing, nor the manifest.

    Raises:
        CompilerMissing: a library is to be replaced by a stub where no C compiler is; nothing was changed.
        NotATree: nothing is installed below `root`.
        TargetsAlreadyRemoved: the manifest says that code for a chosen target was taken out before.
        UnknownSlimManifest: what lies at `manifest_path` is no manifest of this schema.
    """
    earlier = manifest_format.load(manifest_path) if manifest_path is not None and manifest_path.exists() else None
    targets = None if choice.targets is None else tuple(target_name(target) for target in sorted(choice.targets))
    if earlier is not None and earlier.targets is not None and targets is not None:
        gone_targets = set(targets).difference(earlier.targets)
        if gone_targets:
            raise TargetsAlreadyRemoved(tuple(sorted(gone_targets)), earlier.targets)
    tree = read_tree(root, ignored=manifest_path)
    if any(_stub_of(file.path, choice) for file in tree.files):
        find_compiler()
    removals, signs = _remove(tree, choice.rules)
    gone = {path for removal in removals for path in removal.removed}
    left = [file for file in tree.files if file.path not in gone]
    outcomes = _change_all(tree, left, choice, workers)
    alterations = [*signs, *(outcome.alteration for outcome in outcomes if outcome.alteration is not None)]
    changed = {change.path: (change.sha256_after, change.bytes_after) for change in alterations}
    sizes = {file.path: file.size_bytes for file in left}
    removed = gone.difference(changed)
    for record, sha256_before in update_records(tree, removed=removed, changed=changed).items():
        path = root / record
        alterations.append(
            Alteration(
                path=record,
                steps=("record",),
                bytes_before=sizes[record],
                bytes_after=path.stat().st_size,
                sha256_before=sha256_before,
                sha256_after=hash_file(path),
            )
        )
    alterations.sort(key=lambda change: change.path)
    present = sizes | {change.path: change.bytes_after for change in alterations}
    here = [*(file.path for file in left if not file.is_link), *(sign.path for sign in signs)]
    manifest = SlimManifest(
        bytes_before=sum(file.size_bytes for file in tree.files if not file.is_link),
        bytes_after=sum(present[path] for path in here),
        removals=removals,
        alterations=tuple(alterations),
        refusals=tuple(refusal for outcome in outcomes for refusal in outcome.refusals),
        targets=targets,
    )
    if earlier is not None:
        manifest = manifest_format.continue_from(earlier, manifest, present=present)
    if manifest_path is not None:
        manifest_format.save(manifest, manifest_path)
    return manifest


def worker_count() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remove(tree: Tree, rules: Iterable[Rule]) -> tuple[tuple[Removal, ...], list[Alteration]]:
    """Takes out what the rules name and puts up the signs that stand for it."""
    rules = tuple(rules)
    sizes = {file.path: 0 if file.is_link else file.size_bytes for file in tree.files}
    removed: dict[str, dict[str, int]] = {rule.name: {} for rule in rules}
    signs: dict[str, tuple[Path, Sign]] = {}
    for site, paths in tree.by_site():
        root = tree.root / site
        prefix = "" if site == "." else f"{site}/"
        claimed = match_files(root, paths, rules)
        claimed = {path: rule for path, rule in claimed.items() if not (rule.sign and is_sign(root / path))}
        for path, rule in claimed.items():
            removed[rule.name][f"{prefix}{path}"] = sizes[f"{prefix}{path}"]
        signs |= {f"{prefix}{sign.path}": (root, sign) for sign in make_signs(root, claimed)}
    gone = {path for files in removed.values() for path in files}
    remove_files(tree.root, sorted(gone.difference(signs)))
    for root, sign in signs.values():
        sign.put_up(root)
    removals = tuple(
        Removal(rule=rule.name, reason=rule.reason, lost=rule.lost, removed=dict(sorted(removed[rule.name].items())))
        for rule in rules
        if removed[rule.name]
    )
    return removals, [_alteration(tree.root, (path, tree.recorded.get(path)), 0, ("sign",)) for path in sorted(signs)]


def _is_elf(tree: Tree, file: InstalledFile) -> bool:
    if file.is_link or file.size_bytes < ELF_HEADER_BYTES or file.path.endswith(_NEVER_ELF):
        return False
    with (tree.root / file.path).open("rb", buffering=0) as content:
        return content.read(len(MAGIC)) == MAGIC


def _change_all(tree: Tree, files: list[InstalledFile], choice: SlimOptions, workers: int) -> list[_FileResult]:
    """Prunes and strips every file with machine code, the largest first; the outcomes are in order of path."""
    if not choice.strips and choice.targets is None and not choice.stubs:
        return []
    machine_code = sorted((file for file in files if _is_elf(tree, file)), key=lambda file: -file.size_bytes)
    change = partial(_change, tree.root, choice)
    jobs = [(file.path, tree.recorded.get(file.path)) for file in machine_code]
    if workers == 1:
        outcomes = [change(job) for job in jobs]
    else:
        # A fork server: the workers then share nothing with threads that the caller may have.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
            outcomes = list(pool.map(change, jobs))
    by_path = dict(zip((path for path, _ in jobs), outcomes, strict=True))
    return [by_path[path] for path in sorted(by_path)]


def _change(root: Path, choice: SlimOptions, job: tuple[str, str | None]) -> _FileResult:
    """Prunes and strips one file; a step that refuses leaves the file as the step before left it."""
    path, _ = job
    file = root / path
    if is_sign(file):
        return _FileResult(None, ())
    bytes_before = file.stat().st_size
    steps: list[str] = []
    refusals: list[Refusal] = []
    left_out: dict[str, tuple[int, int]] = {}
    stub = _stub_of(path, choice)
    if stub is not None:
        try:
            if _stand_in(file, stub):
                return _FileResult(_alteration(root, job, bytes_before, ("stub",)), ())
        except UnsupportedBinary as refusal:
            refusals.append(Refusal(path=path, step="stub", reason=refusal.reason, detail=refusal.detail))
    is_grafted = any(part.endswith(_GRAFTED_SUFFIX) for part in path.split("/")[:-1])
    if choice.targets is not None:
        try:
            left_out = _prune(file, choice.targets, is_loaded=choice.is_loaded)
        except UnsupportedBinary as refusal:
            refusals.append(Refusal(path=path, step="architectures", reason=refusal.reason, detail=refusal.detail))
        if left_out:
            steps.append("architectures")
    # After the prune, whose smaller alignment lets a strip close gaps that the linker's 2 MiB pages left.
    if choice.strips and not is_grafted:
        try:
            check = check_loads if choice.is_loaded else None
            if strip_file(file, is_atomic=choice.is_atomic, check=check) is not None:
                steps.append("strip")
        except UnsupportedBinary as refusal:
            refusals.append(Refusal(path=path, step="strip", reason=refusal.reason, detail=refusal.detail))
    if not steps:
        return _FileResult(None, tuple(refusals))
    return _FileResult(_alteration(root, job, bytes_before, tuple(steps), left_out), tuple(refusals))


def _stub_of(path: str, choice: SlimOptions) -> StubRule | None:
    return next((rule for rule in choice.stubs if fnmatchcase(path, f"*{rule.path}")), None)


def _alteration(
    root: Path,
    job: tuple[str, str | None],
    bytes_before: int,
    steps: tuple[str, ...],
    left_out: dict[str, tuple[int, int]] | None = None,
) -> Alteration:
    path, recorded = job
    return Alteration(
        path=path,
        steps=steps,
        bytes_before=bytes_before,
        bytes_after=(root / path).stat().st_size,
        sha256_before=recorded,
        sha256_after=hash_file(root / path),
        left_out=left_out or {},
    )


def _stand_in(file: Path, rule: StubRule) -> bool:
    """Replaces a library by its stub; False where it is one already."""
    original = map_file(file)
    if is_stub(original):
        return False
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / file.name
        make_stub(original, rule, made)
        replace_content(file, made.read_bytes())
    return True


def _prune(file: Path, targets: frozenset[int], *, is_loaded: bool) -> dict[str, tuple[int, int]]:
    """Prunes one file and compares the new one with the old before it takes its place."""
    original = map_file(file)
    plan = plan_prune(original, targets)
    if plan is None:
        return {}

    def check(written: Path) -> None:
        check_pruned(original, map_file(written), targets)
        if is_loaded:
            check_loads(file, written)

    replace_file(file, plan.rewrite, check)
    return {name: (count, size_bytes) for name, count, size_bytes in plan.removed}
