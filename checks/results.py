"""Defines the outcomes of a check (findings with their fix, not applicable, not verified) and the results file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "RESULTS_VERSION",
    "CheckResult",
    "Findings",
    "NotApplicable",
    "NotVerified",
    "Outcome",
    "Results",
    "fail_if",
    "not_applicable",
    "not_verified",
]

RESULTS_VERSION = 2
SHOWN_FINDINGS = 20

Outcome = Literal["pass", "fail", "not verified", "not applicable", "error"]


class Findings(Exception):
    """The check failed: `found` has a line for each finding, `fix` says how to repair the image."""

    def __init__(self, found: list[str], fix: str) -> None:
        shown = [f"  {line}" for line in found[:SHOWN_FINDINGS]]
        if len(found) > SHOWN_FINDINGS:
            shown.append(f"  and {len(found) - SHOWN_FINDINGS} more")
        super().__init__("\n".join([f"found {len(found)}:", *shown, f"fix: {fix}"]))
        self.found = found
        self.fix = fix


class NotApplicable(Exception):
    """The check does not apply to this kind of image."""


class NotVerified(Exception):
    """The check could not run here. It counts as neither a pass nor a failure."""


def fail_if(found: Iterable[str], *, fix: str) -> None:
    """Fails the check if there are findings; each is one line that names a path, layer or instruction."""
    lines = list(found)
    if lines:
        raise Findings(lines, fix)


def not_applicable(reason: str) -> NoReturn:
    """Ends the check as not applicable."""
    raise NotApplicable(reason)


def not_verified(reason: str) -> NoReturn:
    """Ends the check as not verified."""
    raise NotVerified(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: stable across versions, such as `absent::tool_is_absent[gcc]`.
        title: what the check requires, as a sentence.
        tier: `static` needs no GPU, `device` does.
        reason: why it was not verified or not applicable, or the error that stopped it.
        found: one line per finding.
        fix: how to repair the image.
    """

    name: str
    title: str
    group: str
    tier: str
    outcome: Outcome
    seconds: float
    reason: str = ""
    found: tuple[str, ...] = ()
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All results of one image, the contents of `build/verify.json`.

    Attributes:
        image: the digest.
        seconds: the duration of the whole run.
        observation_seconds: observation -> its duration; observations overlap.
    """

    image: str
    target: str
    seconds: float
    observation_seconds: dict[str, float] = field(default_factory=dict)
    checks: tuple[CheckResult, ...] = ()
    schema_version: int = RESULTS_VERSION

    def save(self, path: Path) -> None:
        """Writes the results to *path*, and makes its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
