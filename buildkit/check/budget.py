"""Budgets: what an image may take, judged one by one; a limit that could not be judged is said so, never passed.

    [budgets]                          # absolute; numbers, or text with a unit: "5.5 GB" is 10^9, "5.5 GiB" 2^30 bytes
    unpacked_bytes = "5.5 GB"
    wasted_bytes = 0
    layers = 20
    efficiency_fraction = 0.99         # this one is a least, not a most

    [budgets.growth_fraction]          # against the baseline's measurement: 0.02 allows 2 % more
    unpacked_bytes = 0.02

    [budgets.transfer_bytes]           # by the name of the scenario that was measured
    code = "1 MB"

    [budgets.build_seconds_ratio]      # build time by scenario, as a ratio to the baseline's in the same run
    cold = 0.3

    [[budgets.waivers]]                # lets one limit be broken until a day, that day included
    budget = "growth_fraction.unpacked_bytes"
    reason = "cuDNN 9.21 needs its new engines"
    expires = 2026-12-31

The rules of a `.dive-ci` file are taken under their own names and judged by dive's own figures.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from buildkit.errors import UsageError
from buildkit.image.model import Measurement
from buildkit.text import parse_bytes
from buildkit.timing.record import SCENARIOS

__all__ = [
    "BudgetReport",
    "BudgetResult",
    "Budgets",
    "Status",
    "Waiver",
    "evaluate",
    "parse_budgets",
    "parse_dive_rules",
    "parse_size",
]

Status = Literal["passed", "failed", "waived", "not judged"]

_MOST: Final = (
    "unpacked_bytes",
    "blob_bytes",
    "final_bytes",
    "wasted_bytes",
    "duplicate_bytes",
    "largest_layer_bytes",
    "layers",
    "files",
    "packages",
    "executables",
)
_LEAST: Final = ("efficiency_fraction",)
# dive's README, "CI Integration"; wastes are failed above, efficiency below (cmd/dive/cli/internal/command/ci/rules.go)
_DIVE: Final = ("lowestEfficiency", "highestWastedBytes", "highestUserWastedPercent")
_GROUPS: Final = ("growth_fraction", "transfer_bytes", "build_seconds_ratio")
_OF_BUILDS: Final = ("transfer_bytes.", "build_seconds_ratio.")


@dataclass(frozen=True, slots=True)
class Waiver:
    """Leave to break one limit for a reason, until the end of a day."""

    budget: str
    reason: str
    expires: dt.date


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits by their full name, as "layers" or "growth_fraction.layers"."""

    limits: Mapping[str, float]
    waivers: tuple[Waiver, ...] = ()

    def of_builds(self) -> "Budgets":
        """Return those that timed builds are judged by."""
        limits = {name: limit for name, limit in self.limits.items() if name.startswith(_OF_BUILDS)}
        return Budgets(limits, tuple(waiver for waiver in self.waivers if waiver.budget in limits))


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """One limit, held against what was measured. `message` is a sentence for the user."""

    budget: str
    status: Status
    limit: float
    measured: float | None
    message: str


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """All limits, judged. `is_fine` says that none failed; what was not judged does not fail."""

    image: str
    judgements: tuple[BudgetResult, ...] = field(default_factory=tuple)

    @property
    def is_fine(self) -> bool:
        """Whether no limit was broken without leave."""
        return all(judgement.status != "failed" for judgement in self.judgements)


def parse_budgets(table: Mapping[str, object], *, where: str = "budgets") -> Budgets:
    """Read the table `[budgets]` of docker/images.toml; UsageError for a key or value that is not known."""
    limits: dict[str, float] = {}
    waivers: tuple[Waiver, ...] = ()
    for key, value in table.items():
        if key in _MOST or key in _LEAST or key in _DIVE:
            limits[key] = parse_size(f"{where}.{key}", value)
        elif key in _GROUPS:
            for name, inner in _table(f"{where}.{key}", value).items():
                if key == "growth_fraction" and name not in _MOST:
                    raise UsageError(f"{where}.{key}.{name}", inner, f"unknown; one of {', '.join(_MOST)}")
                if key != "growth_fraction" and name not in SCENARIOS:
                    raise UsageError(f"{where}.{key}.{name}", inner, f"no scenario; one of {', '.join(SCENARIOS)}")
                limits[f"{key}.{name}"] = parse_size(f"{where}.{key}.{name}", inner)
        elif key == "waivers":
            waivers = _waivers(f"{where}.waivers", value)
        else:
            known = ", ".join((*_MOST, *_LEAST, *_DIVE, *_GROUPS, "waivers"))
            raise UsageError(f"{where}.{key}", value, f"unknown; one of {known}")
    for waiver in waivers:
        if waiver.budget not in limits:
            raise UsageError(f"{where}.waivers", waiver.budget, "waives a limit that there is not")
    return Budgets(limits, waivers)


def parse_dive_rules(text: str, *, where: str = ".dive-ci") -> Budgets:
    """Read a `.dive-ci` file: the rules with plain values that dive documents, "disabled" ones left out.

    This is the part of YAML that such files use; anything else is a UsageError.
    """
    limits: dict[str, float] = {}
    is_in_rules = False
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        if not bare or bare == "---":
            continue
        if bare == "rules:":
            is_in_rules = True
            continue
        match = re.fullmatch(r"""\s+['"]?(\w+)['"]?\s*:\s*(['"]?)(.*?)\2""", bare)
        if match is None or not is_in_rules:
            raise UsageError(f"{where}:{number}", line, "expected `rules:` and below it lines of `name: value`")
        name, value = match[1], match[3]
        if name not in _DIVE:
            raise UsageError(f"{where}:{number}", name, f"unknown rule; one of {', '.join(_DIVE)}")
        if value != "disabled":
            limits[name] = parse_size(f"{where}:{number}", value)
    return Budgets(limits)


def parse_size(where: str, value: object) -> float:
    """Read a number, or a size with a unit; UsageError names *where* it stands.

    "5.5 GB" is 5.5 times 10^9 bytes, "5.5 GiB" 5.5 times 2^30.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(where, value, 'a number, or a size as "1.5 GB"')
    if isinstance(value, str):
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        try:
            return float(parse_bytes(value))
        except ValueError:
            fix = 'a number, or a size as "1.5 GB" (10^9 bytes) or "1.5 GiB" (2^30)'
            raise UsageError(where, value, fix) from None
    if value < 0:
        raise UsageError(where, value, "a limit is not negative")
    return float(value)


def evaluate(
    measurement: Measurement | None,
    budgets: Budgets,
    *,
    today: dt.date,
    baseline: Measurement | None = None,
    transfer_bytes: Mapping[str, int] | None = None,
    build_seconds_ratio: Mapping[str, float] | None = None,
    image: str = "",
) -> BudgetReport:
    """Hold an image against every limit. *transfer_bytes* and *build_seconds_ratio* are by scenario.

    Without a *measurement* its limits are not judged, and the verdict is on what *image* names.
    """
    figures: dict[str, float] = {
        **{f"transfer_bytes.{name}": value for name, value in (transfer_bytes or {}).items()},
        **{f"build_seconds_ratio.{name}": value for name, value in (build_seconds_ratio or {}).items()},
    }
    if measurement is not None:
        figures |= _measured(measurement, baseline)
    waivers = {waiver.budget: waiver for waiver in budgets.waivers}
    return BudgetReport(
        image or (measurement.image.name if measurement is not None else ""),
        tuple(
            _judged(name, limit, figures.get(name), waivers.get(name), today) for name, limit in budgets.limits.items()
        ),
    )


def _measured(measurement: Measurement, baseline: Measurement | None) -> dict[str, float]:
    totals = {name: float(getattr(measurement.totals, name)) for name in (*_MOST, *_LEAST)}
    figures = {
        **totals,
        "lowestEfficiency": measurement.dive.efficiency_fraction,
        "highestWastedBytes": measurement.dive.wasted_bytes,
        "highestUserWastedPercent": measurement.dive.wasted_user_fraction,
    }
    if baseline is not None:
        for name in _MOST:
            figures[f"growth_fraction.{name}"] = _growth(float(getattr(baseline.totals, name)), totals[name])
    return figures


def _growth(before: float, after: float) -> float:
    """Return the growth as a fraction of *before*; what grows from nothing grows without limit."""
    if before:
        return after / before - 1
    return float("inf") if after else 0.0


def _judged(name: str, limit: float, measured: float | None, waiver: Waiver | None, today: dt.date) -> BudgetResult:
    is_least = name in _LEAST or name == "lowestEfficiency"
    bound = "at least" if is_least else "at most"
    if measured is None:
        return BudgetResult(name, "not judged", limit, None, f"{name}: nothing was measured to evaluate it by")
    text = f"{name} is {_shown(name, measured)}, {bound} {_shown(name, limit)} is allowed"
    if (measured >= limit) if is_least else (measured <= limit):
        return BudgetResult(name, "passed", limit, measured, text)
    if waiver is None:
        return BudgetResult(name, "failed", limit, measured, text)
    if waiver.expires < today:
        return BudgetResult(name, "failed", limit, measured, f"{text}; its waiver expired on {waiver.expires}")
    return BudgetResult(name, "waived", limit, measured, f"{text}; waived until {waiver.expires}: {waiver.reason}")


def _shown(name: str, value: float) -> str:
    if "fraction" in name or "ratio" in name or name in {"lowestEfficiency", "highestUserWastedPercent"}:
        return f"{value:.4f}"
    return f"{value:,.0f}" + (" bytes" if "ytes" in name else "")


def _table(where: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UsageError(where, value, "a table")
    return value


def _waivers(where: str, value: object) -> tuple[Waiver, ...]:
    if not isinstance(value, list):
        raise UsageError(where, value, "an array of tables")
    waivers = []
    for number, each in enumerate(value):
        table = _table(f"{where}[{number}]", each)
        budget, reason, expires = table.get("budget"), table.get("reason"), table.get("expires")
        unknown = sorted(table.keys() - {"budget", "reason", "expires"})
        if unknown:
            raise UsageError(f"{where}[{number}].{unknown[0]}", table[unknown[0]], "unknown; budget, reason or expires")
        if not isinstance(budget, str) or not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"{where}[{number}]", each, "needs `budget` and a `reason`")
        if not isinstance(expires, dt.date) or isinstance(expires, dt.datetime):
            raise UsageError(f"{where}[{number}].expires", expires, "a date, as 2026-12-31")
        waivers.append(Waiver(budget, reason, expires))
    return tuple(waivers)
