"""Proves on this machine that slimming keeps a tree's behaviour: slims a copy and compares it with the original.

It needs a Python with a CUDA torch, and neither a network nor a container engine. With a GPU, the workload runs on both
trees, and every result must have the same bits. A tree pruned for another GPU must fail with "no kernel image": if it
did not, the workload would not have used the pruned files. Without a GPU, the files, their loading and the results on
the CPU are compared, and the verdict names the claims that were not verified.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.fatbin import parse_target, target_name
from buildkit.binary.library import Library
from buildkit.slim.libraries.check import check_pruned
from buildkit.slim.libraries.loadcheck import load_error
from buildkit.slim.proof.nvidia_tools import compare_links, compare_listings
from buildkit.slim.proof.result import CaseResult, Proof
from buildkit.slim.proof.run_workload import run_workload
from buildkit.slim.rules.profiles import PROFILES, choose_profile, rules_of
from buildkit.slim.rules.stub_rules import choose_stubs
from buildkit.slim.slim import slim_tree, worker_count
from buildkit.slim.tree import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from buildkit.slim.manifest import SlimManifest

__all__ = ["prove"]

# The target without a GPU: the one that this project's figures are for.
_DEFAULT_TARGET: Final = 90
_SAMPLES: Final = 3
_NO_KERNEL: Final = "no kernel image"
_FIRST_KERNEL: Final = "first kernel"
# The cases of the workload that need a library that a rule removes: on a GPU they fail, and are not compared.
_CASES_LOST: Final = {
    "cudnn-engines": (
        "convolution fp32",
        "convolution fp16",
        "convolution gradients",
        "recurrent layers",
        "attention cudnn_attention",
    ),
    "dense-solver": ("linear algebra", "linear algebra error"),
    "stub-cufft": ("fft",),
    "stub-cusparse": ("sparse",),
    "stub-cusparselt": ("sparse 2:4",),
    "stub-nvrtc": ("kernels compiled at run time",),
    "stub-nccl": ("collectives with one process",),
}
_NEEDS_DEVICE: Final = (
    "no GPU: that the driver loads the pruned containers, lazily and eagerly",
    "no GPU: that kernels give the same bits: matmul, convolution, attention, FFT, sparse, linear algebra",
    "no GPU: start-up and memory on the device",
    "no GPU: the negative control, a tree pruned for another GPU, which must fail with 'no kernel image'",
)
_CALLS_NEED_DEVICE: Final = "no GPU: that the service calls no library that the profile replaces"
_NOT_LINKED: Final = "no nvJitLink, or no relocatable code: that containers link to the same code as before"
_NOT_LISTED: Final = "no cuobjdump (it comes with triton): that NVIDIA's tool lists the entries that were kept"


@dataclass(frozen=True, slots=True)
class _LibraryComparison:
    """The number of libraries or containers in each comparison, and the differences."""

    compared: int
    loaded: int
    linked: int
    listed: int
    failures: list[str]


@dataclass(frozen=True, slots=True)
class _ServedCases:
    """The service's own cases on a tree with stub libraries: the messages of those called, and the cases that failed.

    `calls` is None if the profile has no stub libraries.
    """

    calls: tuple[str, ...] | None
    failed: tuple[str, ...]


def prove(site: Path, work: Path, *, profile: str, target: str | None, log: Callable[[str], None]) -> Proof:
    """Runs the proof on a copy of a site-packages folder; `site` is only read.

    Args:
        site: the site-packages of a Python with a CUDA torch.
        work: an empty folder with room for two copies.
        profile: the profile to prove.
        target: the compute capability to prune for, as 9.0; None takes that of the GPU, or 9.0 without one.
        log: called with the name of each step when it starts.

    Raises:
        WorkloadFailed: the workload does not run on the original.
    """
    stubs = {rule.name for rule in choose_stubs(PROFILES[profile].stubs)}
    rules = {rule.name for rule in rules_of(profile)} | stubs
    run = partial(run_workload, work=work, has_cudnn="cudnn-engines" not in rules)
    log("workload on the original, twice with lazy and once with eager loading")
    before = {"LAZY": run(site, loading="LAZY"), "EAGER": run(site, loading="EAGER")}
    again = run(site, loading="LAZY")
    device, capability = before["LAZY"]["device"], before["LAZY"]["capability"]
    pruned_for = parse_target(target or capability or target_name(_DEFAULT_TARGET))
    log(f"slimming a copy of {site} for {target_name(pruned_for)}")
    pruned, manifest = _slim_copy(site, work / "pruned", profile, pruned_for)
    libraries = _compare_libraries(site, pruned, manifest, pruned_for, log)
    log("workload on the slimmed tree, with lazy and with eager loading")
    after = {loading: run(pruned, loading=loading) for loading in before}
    cases = _compare_cases(before, again, after, rules=rules if device is not None else set())
    served = _run_served_cases(partial(run, pruned, loading="LAZY"), log) if stubs else _ServedCases(None, ())
    log("start-up times")
    start = {"before": _start(site, work), "after": _start(pruned, work)}
    failures = [*_failures(manifest, libraries, cases, served)]
    failures += _mapped_failures(after["LAZY"]["mapped"], site, pruned, manifest)
    control = _negative_control(site, pruned, pruned_for, log) if device is not None else None
    if control is not None and _NO_KERNEL not in control:
        failures.append(f"negative control: a tree for another GPU gave {control!r} instead of {_NO_KERNEL!r}")
    return Proof(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        versions={name: before["LAZY"][name] for name in ("torch", "cuda", "python")},
        device=device,
        targets=(target_name(pruned_for),),
        profile=profile,
        bytes_before=manifest.bytes_before,
        bytes_after=manifest.bytes_after,
        compared_libraries=libraries.compared,
        loaded_libraries=libraries.loaded,
        linked_containers=libraries.linked,
        listed_libraries=libraries.listed,
        cases=cases,
        negative_control=control,
        start=start,
        placeholder_calls=served.calls,
        is_verified_on_device=device is not None and not failures,
        not_verified=_not_verified(libraries, served, has_device=device is not None),
        failures=tuple(failures),
    )


def _slim_copy(site: Path, target: Path, profile: str, capability: int) -> tuple[Path, SlimManifest]:
    """Copies a tree and slims the copy; returns the copy and its manifest."""
    shutil.copytree(site, target, symlinks=True)
    options = choose_profile(profile, frozenset({capability}))
    return target, slim_tree(target, options, workers=worker_count())


def _compare_libraries(
    site: Path, pruned: Path, manifest: SlimManifest, target: int, log: Callable[[str], None]
) -> _LibraryComparison:
    """Compares the changed libraries with their originals: by address, by loading, and with NVIDIA's tools."""
    changed = [change.path for change in manifest.changes if change.steps not in {("record",), ("placeholder",)}]
    compared = [change.path for change in manifest.changes if "prune" in change.steps]
    log(f"comparing {len(compared)} pruned libraries with their originals by virtual address")
    failures = [error for path in compared if (error := _difference(site, pruned, path, target)) is not None]
    log(f"loading {len(changed)} changed libraries, each in a new process without the loader's cache")
    with ThreadPoolExecutor(worker_count()) as pool:
        errors = pool.map(lambda path: _load_failure(site, pruned, path), changed)
        failures += [error for error in errors if error is not None]
    log("linking relocatable containers with nvJitLink")
    linked, differences = compare_links(site, pruned, compared, target)
    failures += differences
    log("listing the entries of libraries with cuobjdump")
    listed, differences = compare_listings(site, pruned, compared)
    return _LibraryComparison(len(compared), len(changed), linked, listed, failures + differences)


def _difference(site: Path, pruned: Path, path: str, target: int) -> str | None:
    """Returns the first difference between a pruned library and its original that no prune makes, or None."""
    try:
        check_pruned(Library.open(site / path), Library.open(pruned / path), frozenset({target}))
    except UnsupportedBinary as error:
        return f"{path}: {error}"
    return None


def _load_failure(site: Path, pruned: Path, path: str) -> str | None:
    """Returns the error of a library that no longer loads, or None."""
    error = load_error(Library.open(pruned / path))
    if error is None or load_error(Library.open(site / path)) is not None:
        return None
    return f"{pruned / path}: {error}"


def _compare_cases(
    before: dict[str, dict[str, Any]], again: dict[str, Any], after: dict[str, dict[str, Any]], *, rules: set[str]
) -> tuple[CaseResult, ...]:
    """Returns the results of each case on both trees; `rules` are those whose cases fail on this device."""
    lost = {case: rule for rule, cases in _CASES_LOST.items() if rule in rules for case in cases}
    return tuple(
        CaseResult(
            name=name,
            loading=loading,
            before=result,
            after=after[loading]["cases"][name],
            is_repeatable=before["LAZY"]["cases"][name] == again["cases"][name],
            lost_by=lost.get(name),
        )
        for loading, report in before.items()
        for name, result in report["cases"].items()
    )


def _run_served_cases(run: Callable[..., dict[str, Any]], log: Callable[[str], None]) -> _ServedCases:
    """Runs the service's own cases on the slimmed tree."""
    log("the service's own cases, for calls of removed libraries")
    report = run(chosen=("--served",))
    nothing = hashlib.sha256().hexdigest()
    failed = sorted(name for name, result in report["cases"].items() if ": " in result or result == nothing)
    return _ServedCases(tuple(report["placeholder_calls"]), tuple(failed))


def _not_verified(libraries: _LibraryComparison, served: _ServedCases, *, has_device: bool) -> tuple[str, ...]:
    """Returns the claims that a run with these tools and cases cannot check."""
    return (
        *(() if has_device else _NEEDS_DEVICE),
        *((_CALLS_NEED_DEVICE,) if not has_device and served.calls is not None else ()),
        *(f"{name} did not run (is transformers installed?): the libraries that it calls" for name in served.failed),
        *(() if libraries.linked else (_NOT_LINKED,)),
        *(() if libraries.listed else (_NOT_LISTED,)),
    )


def _mapped_failures(mapped: list[str], site: Path, pruned: Path, manifest: SlimManifest) -> list[str]:
    """Returns the mapped files that show that the process did not run on the slimmed copy."""
    failures = [f"{path} of the original was mapped" for path in mapped if path.startswith(f"{site}/")]
    hashes = {change.path: change.sha256_after for change in manifest.changes}
    used = [path.removeprefix(f"{pruned}/") for path in mapped if path.startswith(f"{pruned}/")]
    if not any(path in hashes for path in used):
        failures.append("no changed library was mapped")
    failures += [
        f"{path} differs from the manifest"
        for path in used
        if path in hashes and hash_file(pruned / path) != hashes[path]
    ]
    return failures


def _start(site: Path, work: Path) -> dict[str, float]:
    """Returns the least figures of some starts with one kernel each, so that other load counts little."""
    samples = [run_workload(site, work, "LAZY", chosen=("--case", "random numbers"))["start"] for _ in range(_SAMPLES)]
    return {name: min(sample[name] for sample in samples) for name in samples[0]}


def _failures(
    manifest: SlimManifest, libraries: _LibraryComparison, cases: tuple[CaseResult, ...], served: _ServedCases
) -> Iterator[str]:
    """Yields a line for each step that refused a file, difference, changed result, and call of a removed library."""
    yield from (f"{r.path}: {r.step} refused: {r.reason}: {r.detail}" for r in manifest.refusals)
    yield from libraries.failures
    yield from (f"{c.name} ({c.loading}): {c.before} became {c.after}" for c in cases if not c.is_expected)
    yield from (f"the service calls a library that the profile removes: {line}" for line in served.calls or ())


def _negative_control(site: Path, pruned: Path, pruned_for: int, log: Callable[[str], None]) -> str:
    """Returns the first kernel's result on a tree pruned for a GPU of another generation only.

    The tree at `pruned` is deleted first, to have room for this one.
    """
    shutil.rmtree(pruned)
    other = 80 if pruned_for // 10 != 8 else 90  # noqa: PLR2004 - generations of compute capabilities
    log(f"negative control: slimming a copy of {site} for {target_name(other)}")
    wrong, _ = _slim_copy(site, pruned.with_name("control"), "single", other)
    report = run_workload(wrong, pruned.parent, "LAZY", chosen=("--case", "pointwise and reductions"))
    shutil.rmtree(wrong)
    return str(report["cases"][_FIRST_KERNEL])
