"""Slims the libraries of a tree: each is replaced by a stub, or loses GPU code and symbols."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from buildkit.binary.elf import ELF_HEADER_BYTES, MAGIC, UnsupportedBinary
from buildkit.binary.library import Library
from buildkit.binary.rewrite import replace_content
from buildkit.slim.libraries.prune import prune_library
from buildkit.slim.libraries.strip import strip_library
from buildkit.slim.manifest import FileChange, Refusal, describe_change
from buildkit.slim.placeholders.kinds import is_placeholder
from buildkit.slim.placeholders.stubs import stub_library

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.slim.rules.options import SlimOptions
    from buildkit.slim.tree import InstalledFile, Tree

__all__ = ["LibraryResult", "slim_libraries", "slim_library"]

# The library after a step, and the GPU code removed: name (`sm_80`) to entries and bytes.
_StepResult: TypeAlias = "tuple[Library, dict[str, tuple[int, int]]]"

# Files with these suffixes are never ELF files and are not opened; of any other file, the first bytes are read.
_NEVER_ELF: Final = (".py", ".pyc", ".pyi", ".h", ".hpp", ".txt", ".json", ".a", ".md")
# auditwheel puts the libraries that it adds to a wheel into folders with this suffix, rewritten by patchelf. A strip
# that does not preserve their alignment breaks them (numpy's OpenBLAS), and packagers have stripped them already.
_GRAFTED_SUFFIX: Final = ".libs"


@dataclass(frozen=True, slots=True)
class LibraryResult:
    """The result for one file; `change` is None if no step changed it."""

    change: FileChange | None
    refusals: tuple[Refusal, ...]


def slim_libraries(
    tree: Tree, files: list[InstalledFile], options: SlimOptions, *, workers: int
) -> list[LibraryResult]:
    """Slims every file with machine code, the largest first; the results are sorted by path."""
    if not options.changes_libraries:
        return []
    machine_code = sorted((file for file in files if _is_elf(tree, file)), key=lambda file: -file.size_bytes)
    slim_one = partial(_slim_job, tree.root, options)
    jobs = [(file.path, tree.recorded.get(file.path)) for file in machine_code]
    if workers == 1:
        results = [slim_one(job) for job in jobs]
    else:
        # A fork server, so that the workers share nothing with threads of the calling process.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver")) as pool:
            results = list(pool.map(slim_one, jobs))
    by_path = dict(zip((path for path, _ in jobs), results, strict=True))
    return [by_path[path] for path in sorted(by_path)]


def slim_library(root: Path, path: str, options: SlimOptions, *, sha256_before: str | None = None) -> LibraryResult:
    """Slims one file below `root`. A step that does not support the file leaves it as the step before did."""
    library = Library.open(root / path)
    bytes_before = len(library.content)
    if is_placeholder(library.content):
        return LibraryResult(None, ())
    steps: list[str] = []
    refusals: list[Refusal] = []
    removed_code: dict[str, tuple[int, int]] = {}
    for step, run in _STEPS.items():
        try:
            result = run(library, path, options)
        except UnsupportedBinary as error:
            refusals.append(Refusal(path=path, step=step, reason=error.reason, detail=error.detail))
            continue
        if result is not None:
            library, step_code = result
            removed_code |= step_code
            steps.append(step)
        if steps == ["stub"]:
            break  # a stub has neither GPU code nor symbols
    if not steps:
        return LibraryResult(None, tuple(refusals))
    change = describe_change(
        root,
        path,
        tuple(steps),
        bytes_before=bytes_before,
        sha256_before=sha256_before,
        removed_code=removed_code,
    )
    return LibraryResult(change, tuple(refusals))


def _replace_by_stub(library: Library, path: str, options: SlimOptions) -> _StepResult | None:
    rule = options.stub_for(path)
    if rule is None:
        return None
    content = stub_library(library, rule)
    replace_content(library.path, content)
    return Library(library.path, content), {}


def _prune(library: Library, path: str, options: SlimOptions) -> _StepResult | None:
    del path
    if options.targets is None:
        return None
    return prune_library(library, options.targets, is_load_checked=options.is_load_checked)


def _strip(library: Library, path: str, options: SlimOptions) -> _StepResult | None:
    if not options.strips or _is_grafted(path):
        return None
    stripped = strip_library(library, is_atomic=options.is_atomic, is_load_checked=options.is_load_checked)
    return None if stripped is None else (stripped, {})


# A prune reduces the alignment of segments, so that a strip after it can close the gaps of the linker's 2 MiB pages.
_STEPS: Final = {"stub": _replace_by_stub, "prune": _prune, "strip": _strip}


def _slim_job(root: Path, options: SlimOptions, job: tuple[str, str | None]) -> LibraryResult:
    """Slims one file, given as its path and its recorded hash."""
    path, sha256_before = job
    return slim_library(root, path, options, sha256_before=sha256_before)


def _is_elf(tree: Tree, file: InstalledFile) -> bool:
    if file.is_link or file.size_bytes < ELF_HEADER_BYTES or file.path.endswith(_NEVER_ELF):
        return False
    with (tree.root / file.path).open("rb", buffering=0) as content:
        return content.read(len(MAGIC)) == MAGIC


def _is_grafted(path: str) -> bool:
    """Returns whether a library was added to a wheel by auditwheel."""
    return any(part.endswith(_GRAFTED_SUFFIX) for part in path.split("/")[:-1])
