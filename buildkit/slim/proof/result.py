"""Holds the result of a proof: comparisons, figures and failures, as values, JSON and text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CaseResult", "Proof", "proof_summary", "save_proof"]

# The units of the figures in `Proof.start`, by the end of their names: unit shown, and how many make one.
_UNITS: Final = {"bytes": ("MB", 1e6), "seconds": ("s", 1.0)}


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The results of one case on both trees.

    Attributes:
        loading: how CUDA loads modules, `LAZY` or `EAGER`.
        before, after: a digest of the results, or an error, on the original and on the slimmed tree.
        is_repeatable: whether two runs on the original gave the same result.
        lost_by: the rule that removes a library that the case needs on a GPU, or None.
    """

    name: str
    loading: str
    before: str
    after: str
    is_repeatable: bool
    lost_by: str | None = None

    @property
    def is_expected(self) -> bool:
        """Whether the results are equal, or cannot be compared."""
        return self.before == self.after or not self.is_repeatable or self.lost_by is not None


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a proof; it has succeeded if `failures` is empty.

    Attributes:
        negative_control: the result of the first kernel on a tree pruned for another GPU; None without a GPU.
        start: import and first kernel (seconds), host and device memory (bytes), before and after, least of 3 runs.
        placeholder_calls: the messages of stub and warning libraries that the service's own cases used. On a GPU, they
            decide which libraries a profile may replace. None if the profile has no stub libraries.
        is_verified_on_device: whether a GPU ran the cases, and nothing failed.
        not_verified: the claims that this run could not check.
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
    negative_control: str | None
    start: dict[str, dict[str, float]]
    placeholder_calls: tuple[str, ...] | None
    is_verified_on_device: bool
    not_verified: tuple[str, ...]
    failures: tuple[str, ...]
    schema_version: int = field(default=2)


def save_proof(proof: Proof, path: Path) -> None:
    """Writes a proof as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(proof), indent=1, sort_keys=True) + "\n", "utf-8")


def proof_summary(proof: Proof) -> str:
    """Returns the verdict and the figures as text for a terminal."""
    before, after = proof.start["before"], proof.start["after"]
    lines = [
        f"proof of {proof.profile} for {', '.join(proof.targets)} on {proof.device or 'no GPU'}, {proof.date}",
        f"  {proof.bytes_before / 1e6:,.1f} MB before, {proof.bytes_after / 1e6:,.1f} MB after",
        f"  {proof.compared_libraries} pruned libraries equal by address, {proof.loaded_libraries} changed ones load",
        f"  {proof.linked_containers} containers link alike, {proof.listed_libraries} libraries are listed alike",
        f"  {len(proof.cases)} results, {sum(case.before == case.after for case in proof.cases)} of them bit-identical",
        *(_start_line(name, before[name], after[name]) for name in sorted(before) if before[name] or after[name]),
    ]
    unrepeatable = sorted({case.name for case in proof.cases if not case.is_repeatable})
    if unrepeatable:
        lines.append(f"  not comparable, two runs of the original differ: {', '.join(unrepeatable)}")
    lost = sorted({f"{case.name} ({case.lost_by})" for case in proof.cases if case.lost_by is not None})
    if lost:
        lines.append(f"  not compared, a rule removes a library that they need: {', '.join(lost)}")
    if proof.placeholder_calls is not None:
        calls = "; ".join(proof.placeholder_calls) or "nothing"
        lines.append(f"  of the removed libraries, the service's own cases call: {calls}")
    if proof.negative_control is not None:
        lines.append(f"  pruned for another GPU: {proof.negative_control}")
    lines += [f"  not verified: {claim}" for claim in proof.not_verified]
    lines += [f"  FAILED {failure}" for failure in proof.failures]
    verdict = "NOT VERIFIED on a device" if proof.device is None else "verified on the device"
    return "\n".join([*lines, f"  {'FAILED' if proof.failures else verdict}", ""])


def _start_line(name: str, before: float, after: float) -> str:
    title, _, measure = name.rpartition("_")
    unit, divisor = _UNITS[measure]
    return f"  {title.replace('_', ' ')}: {before / divisor:,.2f} {unit} before, {after / divisor:,.2f} {unit} after"
