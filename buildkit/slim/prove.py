"""The whole proof of a slim, on the machine at hand: a copy is slimmed, then compared with the original.

It needs a Python with a CUDA torch and nothing else: no network, no container engine. With a GPU, the same work runs
on both trees and every result must be the same bits; a tree pruned for another GPU must fail with "no kernel image",
or the rest proves nothing. Without one, files, loading and the CPU's results are compared, and the verdict says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from buildkit.binary.elf import UnsupportedBinary, map_file
from buildkit.binary.fatbin import parse_target, target_name
from buildkit.slim.libraries.check import check_pruned
from buildkit.slim.libraries.loadcheck import load_error
from buildkit.slim.libraries.nvidia_tools import compare_links, compare_listings
from buildkit.slim.placeholders.stubs import choose_stubs
from buildkit.slim.rules.profiles import PROFILES, choose_profile, rules_of
from buildkit.slim.slim import slim_tree, worker_count
from buildkit.slim.tree import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.slim.manifest import SlimManifest

__all__ = ["Proof", "WorkloadFailed", "proof_summary", "prove", "run_workload", "save_proof"]

# Without a GPU to ask: the target that the figures of this project are for.
_DEFAULT_TARGET: Final = 90
_SAMPLES: Final = 3
# A run of the workload took 95 s on two busy cores without a GPU; a hang is what this catches.
_WORKLOAD_DEADLINE_SECONDS: Final = 1800
_WORKLOAD: Final = Path(__file__).with_name("workload.py")
_NO_KERNEL: Final = "no kernel image"
_LEFT_OUT: Final = "(slim rule "  # in all that stubs.py and signs.py have libraries say
_FIRST_KERNEL: Final = "first kernel"
# What the cases of the workload need of what a rule takes out: on a GPU they fail, and are not compared.
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
_UNVERIFIED_WITHOUT_A_DEVICE: Final = (
    "no GPU: that the driver takes the pruned containers, lazily and eagerly loaded",
    "no GPU: that kernels give the same bits: matmul, convolution, attention, FFT, sparse, linear algebra",
    "no GPU: start-up and memory on the device",
    "no GPU: the negative control, a tree pruned for another GPU, which must fail with 'no kernel image'",
)
_UNCALLED: Final = "no GPU: that the service calls no library that the profile replaces, which decides what it may"
_UNLINKED: Final = "no nvJitLink, or no relocatable code: that containers link to the same code as before"
_UNLISTED: Final = "no cuobjdump (it comes with triton): that NVIDIA's own tool lists the entries that were kept"
# What `start` holds, as it is shown: unit and how many of the figure's own make one.
_SHOWN: Final = {"bytes": ("MB", 1e6), "seconds": ("s", 1.0)}


class WorkloadFailed(RuntimeError):
    """The workload ended without a report.

    Attributes:
        site: the tree that it ran on.
        exit_code: its status.
        log_tail: the last lines that it wrote.
    """

    def __init__(self, site: Path, exit_code: int, log_tail: str) -> None:
        super().__init__(f"the workload on {site} ended with {exit_code}:\n{log_tail}")
        self.site = site
        self.exit_code = exit_code
        self.log_tail = log_tail


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One case on both trees; each a digest or an error, by the way that modules are loaded.

    `lost_by` is the rule that takes out what the case needs on a GPU.
    """

    name: str
    loading: str
    before: str
    after: str
    is_repeatable: bool
    lost_by: str | None = None

    @property
    def is_as_promised(self) -> bool:
        """Whether the slim changed nothing but what its rules say; what the original does not repeat tells nothing."""
        return self.before == self.after or not self.is_repeatable or self.lost_by is not None


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found; `failures` is empty where the slim changed nothing that was looked at.

    Attributes:
        is_verified_on_device: whether a GPU ran the cases and the negative control failed as it must.
        not_verified: what this run could not look at.
        control: what the first kernel said on a tree pruned for another GPU; None without a GPU.
        start: import and first kernel (seconds), host and device memory (bytes), before and after, least of three.
        called: what the cases that the service is made of called of stand-ins or opened of what is gone, in the
            stand-ins' own words: what decides which libraries a profile may leave out, on a GPU. None where the
            profile has no stand-ins.
    """

    date: str
    versions: dict[str, str | None]
    device: str | None
    targets: tuple[str, ...]
    profile: str
    bytes_before: int
    bytes_after: int
    compared_libraries: int
    loaded_libraries: int
    linked_containers: int
    listed_libraries: int
    cases: tuple[CaseResult, ...]
    control: str | None
    start: dict[str, dict[str, float]]
    called: tuple[str, ...] | None
    is_verified_on_device: bool
    not_verified: tuple[str, ...]
    failures: tuple[str, ...]
    schema_version: int = field(default=1)


def prove(site: Path, work: Path, *, profile: str, target: str | None, log: Callable[[str], None]) -> Proof:
    """Runs the proof on a copy of a site-packages folder; `site` itself is only read.

    Args:
        site: the site-packages of a Python with a CUDA torch.
        work: an empty folder with room for two copies.
        profile: the profile to prove.
        target: the compute capability to prune for; None asks the GPU, or takes 9.0 where there is none.
        log: called with each step as it begins.

    Raises:
        WorkloadFailed: the original does not run, so there is nothing to compare with.
    """
    failures: list[str] = []
    log("the original, twice with lazy and once with eager loading")
    stubs = {stub.name for stub in choose_stubs(PROFILES[profile].stubs)}
    rules = {rule.name for rule in rules_of(profile)} | stubs
    run = partial(run_workload, work=work, has_cudnn="cudnn-engines" not in rules)
    before = {"LAZY": run(site, loading="LAZY"), "EAGER": run(site, loading="EAGER")}
    again = run(site, loading="LAZY")
    device, capability = before["LAZY"]["device"], before["LAZY"]["capability"]
    pruned_for = parse_target(target or capability or target_name(_DEFAULT_TARGET))
    pruned, manifest = _slimmed(site, work / "pruned", profile, pruned_for, log)
    altered = [change.path for change in manifest.alterations if change.steps not in {("record",), ("sign",)}]
    failures += [f"{r.path}: {r.step} refused: {r.reason}: {r.detail}" for r in manifest.refusals]

    log("comparison of each pruned library with its original by virtual address")
    compared = [change.path for change in manifest.alterations if "architectures" in change.steps]
    failures += _failures(compared, lambda path: _compare(site / path, pruned / path, pruned_for))
    log(f"loading of {len(altered)} altered libraries, each in its own process with the loader's cache off")
    with ThreadPoolExecutor(worker_count()) as pool:
        failures += [error for error in pool.map(lambda path: _load(site / path, pruned / path), altered) if error]
    log("linking of relocatable containers by nvJitLink")
    linked, differences = compare_links(site, pruned, compared, pruned_for)
    failures += differences
    log("listing of their entries by cuobjdump")
    listed, differences = compare_listings(site, pruned, compared)
    failures += differences

    log("the slimmed tree, with lazy and with eager loading")
    after = {loading: run(pruned, loading=loading) for loading in before}
    lost = {case: rule for rule, cases in _CASES_LOST.items() if rule in rules and device is not None for case in cases}
    cases = tuple(
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
    failures += [
        f"{case.name} ({case.loading}): {case.before} became {case.after}" for case in cases if not case.is_as_promised
    ]
    failures += _mapped_failures(after["LAZY"]["mapped"], site, pruned, manifest)
    called: tuple[str, ...] | None = None
    idle: list[str] = []
    if stubs:
        log("what the service's own cases call of what the profile leaves out")
        served = run(pruned, loading="LAZY", chosen=("--served",))
        called = tuple(served["left_out"])
        idle = sorted(name for name, result in served["cases"].items() if not _is_result(result))
        failures += [f"the service calls what the profile leaves out: {line}" for line in called]
    log("start-up")
    start = {"before": _start(site, work), "after": _start(pruned, work)}
    control = None
    if device is not None:
        shutil.rmtree(pruned)
        control = _control(site, work, pruned_for, log)
        if _NO_KERNEL not in control:
            failures.append(f"negative control: a tree for another GPU said {control!r}, not {_NO_KERNEL!r}")
    return Proof(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        versions={name: before["LAZY"][name] for name in ("torch", "cuda", "python")},
        device=device,
        targets=(target_name(pruned_for),),
        profile=profile,
        bytes_before=manifest.bytes_before,
        bytes_after=manifest.bytes_after,
        compared_libraries=len(compared),
        loaded_libraries=len(altered),
        linked_containers=linked,
        listed_libraries=listed,
        cases=cases,
        control=control,
        start=start,
        called=called,
        is_verified_on_device=device is not None and not failures,
        not_verified=(
            *(_UNVERIFIED_WITHOUT_A_DEVICE if device is None else ()),
            *((_UNCALLED,) if device is None and called is not None else ()),
            *(f"{name} did not run (no transformers?): what it calls" for name in idle),
            *(() if linked else (_UNLINKED,)),
            *(() if listed else (_UNLISTED,)),
        ),
        failures=tuple(failures),
    )


def _is_result(result: str) -> bool:
    """Whether a case gave something: no error, and not the digest of nothing."""
    return ": " not in result and result != hashlib.sha256().hexdigest()


def save_proof(proof: Proof, path: Path) -> None:
    """Writes a proof as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(proof), indent=1, sort_keys=True) + "\n", "utf-8")


def proof_summary(proof: Proof) -> str:
    """The verdict and the figures, for a terminal."""
    unrepeatable = sorted({case.name for case in proof.cases if not case.is_repeatable})
    before, after = proof.start["before"], proof.start["after"]
    lines = [
        f"proof of {proof.profile} for {', '.join(proof.targets)} on {proof.device or 'no GPU'}, {proof.date}",
        f"  {proof.bytes_before / 1e6:,.1f} MB before, {proof.bytes_after / 1e6:,.1f} MB after",
        f"  {proof.compared_libraries} pruned libraries equal by address, {proof.loaded_libraries} altered ones load",
        f"  {proof.linked_containers} containers link alike, {proof.listed_libraries} libraries are listed alike",
        f"  {len(proof.cases)} results, {sum(case.before == case.after for case in proof.cases)} of them bit-identical",
        *(_shown(name, before[name], after[name]) for name in sorted(before) if before[name] or after[name]),
    ]
    if unrepeatable:
        lines.append(f"  not comparable, the original differs from itself: {', '.join(unrepeatable)}")
    lost = sorted({f"{case.name} ({case.lost_by})" for case in proof.cases if case.lost_by is not None})
    if lost:
        lines.append(f"  not compared, a rule takes out what they need: {', '.join(lost)}")
    if proof.called is not None:
        heard = "; ".join(proof.called) or "nothing"
        lines.append(f"  of what the profile leaves out, the service's own cases call: {heard}")
    if proof.control is not None:
        lines.append(f"  pruned for another GPU: {proof.control}")
    lines += [f"  not verified: {claim}" for claim in proof.not_verified]
    lines += [f"  FAILED {failure}" for failure in proof.failures]
    verdict = "NOT VERIFIED on a device" if proof.device is None else "verified on the device"
    return "\n".join([*lines, f"  {'FAILED' if proof.failures else verdict}", ""])


def _shown(name: str, before: float, after: float) -> str:
    what, _, measure = name.rpartition("_")
    unit, divisor = _SHOWN[measure]
    title = what.replace("_", " ")
    return f"  {title}: {before / divisor:,.2f} {unit} before, {after / divisor:,.2f} {unit} after"


def run_workload(
    site: Path, work: Path, loading: str, *, chosen: tuple[str, ...] = (), has_cudnn: bool = True
) -> dict[str, Any]:
    """Runs the workload with `site` as its only site-packages, and returns its report.

    The report has one more key, `left_out`: each line that a stand-in for what a slim took out wrote.

    Args:
        site: a site-packages folder.
        work: where its files may lie.
        loading: what CUDA is told about loading modules, `LAZY` or `EAGER`.
        chosen: the workload's options that choose cases; none, for all of them.
        has_cudnn: False has torch choose cuDNN for nothing, as the service does in such an image.

    Raises:
        WorkloadFailed: it ended without one.
    """
    with tempfile.TemporaryDirectory(dir=work, prefix="run-") as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-S", "-W", "ignore", str(_WORKLOAD), str(report)]
        command += [*chosen]
        command += [] if has_cudnn else ["--without-cudnn"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
        environment |= {
            "PYTHONPATH": str(site),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_MODULE_LOADING": loading,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS promises no equal bits (cuBLAS guide, 2.1.4)
            "HOME": folder,
        }
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_WORKLOAD_DEADLINE_SECONDS,
        )
        if not report.exists():
            raise WorkloadFailed(site, result.returncode, "\n".join(result.stderr.splitlines()[-20:]))
        document: dict[str, Any] = json.loads(report.read_text("utf-8"))
        return document | {"left_out": sorted({line for line in result.stderr.splitlines() if _LEFT_OUT in line})}


def _slimmed(
    site: Path, target: Path, profile: str, capability: int, log: Callable[[str], None]
) -> tuple[Path, SlimManifest]:
    log(f"a copy of {site}, slimmed for {target_name(capability)}")
    shutil.copytree(site, target, symlinks=True)
    choice = choose_profile(profile, frozenset({capability}))
    return target, slim_tree(target, choice, workers=worker_count())


def _compare(original: Path, pruned: Path, target: int) -> None:
    check_pruned(map_file(original), map_file(pruned), frozenset({target}))


def _failures(paths: list[str], check: Callable[[str], None]) -> list[str]:
    failures = []
    for path in paths:
        try:
            check(path)
        except UnsupportedBinary as refusal:
            failures.append(f"{path}: {refusal}")
    return failures


def _load(original: Path, changed: Path) -> str | None:
    error = load_error(changed)
    return f"{changed}: {error}" if error is not None and load_error(original) is None else None


def _mapped_failures(mapped: list[str], site: Path, pruned: Path, manifest: SlimManifest) -> list[str]:
    """The process must have run on the copy: nothing of the original mapped, and the copy as the manifest has it."""
    failures = [f"{path} of the original was mapped" for path in mapped if path.startswith(f"{site}/")]
    hashes = {change.path: change.sha256_after for change in manifest.alterations}
    used = [path.removeprefix(f"{pruned}/") for path in mapped if path.startswith(f"{pruned}/")]
    if not any(path in hashes for path in used):
        failures.append("no altered library was mapped")
    failures += [
        f"{path} changed since the slim" for path in used if path in hashes and hash_file(pruned / path) != hashes[path]
    ]
    return failures


def _start(site: Path, work: Path) -> dict[str, float]:
    """The least of some starts, each with one kernel: what is measured is the start and not what else ran."""
    samples = [run_workload(site, work, "LAZY", chosen=("--case", "random numbers"))["start"] for _ in range(_SAMPLES)]
    return {name: min(sample[name] for sample in samples) for name in samples[0]}


def _control(site: Path, work: Path, pruned_for: int, log: Callable[[str], None]) -> str:
    """The first kernel's result on a tree pruned for a GPU of another generation only."""
    other = 80 if pruned_for // 10 != 8 else 90  # noqa: PLR2004 - generations of compute capabilities
    wrong, _ = _slimmed(site, work / "control", "single", other, log)
    report = run_workload(wrong, work, "LAZY", chosen=("--case", "pointwise and reductions"))
    shutil.rmtree(wrong)
    return str(report["cases"][_FIRST_KERNEL])
