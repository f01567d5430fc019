"""Evaluates budgets: limits on an image and its builds. A budget without a measured value is "not evaluated".

    [budgets]                          # absolute; numbers, or text with a unit: "5.5 GB" is 10^9, "5.5 GiB" 2^30 bytes
    unpacked_bytes = "5.5 GB"
    wasted_bytes = 0
    layers = 20
    efficiency_fraction = 0.99         # a minimum; the others are maximums

    [budgets.growth_fraction]          # relative to the measurement of the baseline: 0.02 allows 2 % more
    unpacked_bytes = 0.02

    [budgets.transfer_bytes]           # by the name of the timed scenario
    code = "1 MB"

    [budgets.build_seconds_ratio]      # build time by scenario, as a ratio to that of the baseline in the same run
    cold = 0.3

    [[budgets.waivers]]                # allows one budget to fail up to and including a day
    budget = "growth_fraction.unpacked_bytes"
    reason = "cuDNN 9.21 needs its new engines"
    expires = 2026-12-31

The rules of a `.dive-ci` file keep their own names and are evaluated with dive's formulas.
"""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import yaml

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

Status = Literal["passed", "failed", "waived", "not evaluated"]

_MAXIMUMS: Final = (
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
_MINIMUMS: Final = ("efficiency_fraction",)
# dive's README, "CI Integration"; efficiency is a minimum (cmd/dive/cli/internal/command/ci/rules.go)
_DIVE_RULES: Final = ("lowestEfficiency", "highestWastedBytes", "highestUserWastedPercent")
_GROUPS: Final = ("growth_fraction", "transfer_bytes", "build_seconds_ratio")
_BUILD_GROUPS: Final = ("transfer_bytes.", "build_seconds_ratio.")


@dataclass(frozen=True, slots=True)
class Waiver:
    """Allows one budget to fail for a reason, up to and including the day *expires*."""

    budget: str
    reason: str
    expires: dt.date


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits by their full names, such as "layers" or "growth_fraction.layers", and the waivers for them."""

    limits: Mapping[str, float]
    waivers: tuple[Waiver, ...] = ()

    def of_builds(self) -> "Budgets":
        """Returns the budgets of timed builds."""
        limits = {name: limit for name, limit in self.limits.items() if name.startswith(_BUILD_GROUPS)}
        return Budgets(limits, tuple(waiver for waiver in self.waivers if waiver.budget in limits))


@dataclass(frozen=True, slots=True)
class BudgetResult:
    """The result of one budget. `measured` is None if it was not evaluated; `message` is a sentence for the user."""

    budget: str
    status: Status
    limit: float
    measured: float | None
    message: str


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """The results of all budgets of *image*."""

    image: str
    results: tuple[BudgetResult, ...] = ()

    @property
    def has_passed(self) -> bool:
        """Whether no budget failed; waived ones and those that were not evaluated do not fail."""
        return all(result.status != "failed" for result in self.results)


def parse_budgets(table: Mapping[str, object], *, where: str = "budgets") -> Budgets:
    """Reads the table `[budgets]` of docker/images.toml; *where* is its name in messages.

    Raises:
        UsageError: a key is unknown, or a value is not valid.
    """
    limits: dict[str, float] = {}
    waivers: tuple[Waiver, ...] = ()
    for key, value in table.items():
        if key in _MAXIMUMS or key in _MINIMUMS or key in _DIVE_RULES:
            limits[key] = parse_size(f"{where}.{key}", value)
        elif key in _GROUPS:
            for name, inner in _table(f"{where}.{key}", value).items():
                if key == "growth_fraction" and name not in _MAXIMUMS:
                    raise UsageError(f"{where}.{key}.{name}", inner, f"unknown; one of {', '.join(_MAXIMUMS)}")
                if key != "growth_fraction" and name not in SCENARIOS:
                    raise UsageError(f"{where}.{key}.{name}", inner, f"not a scenario; one of {', '.join(SCENARIOS)}")
                limits[f"{key}.{name}"] = parse_size(f"{where}.{key}.{name}", inner)
        elif key == "waivers":
            waivers = _waivers(f"{where}.waivers", value)
        else:
            known = ", ".join((*_MAXIMUMS, *_MINIMUMS, *_DIVE_RULES, *_GROUPS, "waivers"))
            raise UsageError(f"{where}.{key}", value, f"unknown; one of {known}")
    for waiver in waivers:
        if waiver.budget not in limits:
            raise UsageError(f"{where}.waivers", waiver.budget, "there is no such budget to waive")
    return Budgets(limits, waivers)


def parse_dive_rules(text: str, *, where: str = ".dive-ci") -> Budgets:
    """Reads a `.dive-ci` file: the rules that dive documents, below `rules`. Those set to "disabled" are left out.

    Raises:
        UsageError: the text is not YAML, or has another structure, an unknown rule or an invalid value; the field names
            *where* and the line.
    """
    limits: dict[str, float] = {}
    for name, value in _yaml_rules(text, where):
        place = f"{where}:{name.start_mark.line + 1}"
        if name.value not in _DIVE_RULES:
            raise UsageError(place, name.value, f"unknown rule; one of {', '.join(_DIVE_RULES)}")
        if not isinstance(value, yaml.ScalarNode):
            raise UsageError(place, name.value, "expected a number, a size or `disabled`")
        if value.value != "disabled":
            limits[name.value] = parse_size(place, value.value)
    return Budgets(limits)


def _yaml_rules(text: str, where: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """Returns the names and values below `rules` as nodes, which have line numbers (`yaml.safe_load` drops them)."""
    expected = "expected `rules:` and below it lines of `name: value`"
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        raise UsageError(f"{where}:{mark.line + 1 if mark else 1}", str(error).partition("\n")[0], expected) from error
    if root is None or _is_empty(root):
        return []
    if not isinstance(root, yaml.MappingNode) or [name.value for name, _ in root.value] != ["rules"]:
        raise UsageError(f"{where}:1", text.partition("\n")[0], expected)
    ((_, rules),) = root.value
    if _is_empty(rules):
        return []
    if not isinstance(rules, yaml.MappingNode):
        raise UsageError(f"{where}:{rules.start_mark.line + 1}", rules.value, expected)
    return list(rules.value)


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.value


def parse_size(where: str, value: object) -> float:
    """Reads a number, or a size with a unit: "5.5 GB" is 5.5 times 10^9 bytes, "5.5 GiB" is 5.5 times 2^30.

    Raises:
        UsageError: *value* is neither; the message starts with *where*.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UsageError(where, value, 'expected a number, or a size such as "1.5 GB"')
    if isinstance(value, str):
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        try:
            return float(parse_bytes(value))
        except ValueError:
            fix = 'expected a number, or a size such as "1.5 GB" (10^9 bytes) or "1.5 GiB" (2^30)'
            raise UsageError(where, value, fix) from None
    if value < 0:
        raise UsageError(where, value, "a limit cannot be negative")
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
    """Evaluates every budget.

    Args:
        measurement: the image; without it only the budgets of builds are evaluated.
        budgets: the limits.
        today: decides whether a waiver has expired.
        baseline: the image that `growth_fraction` is relative to.
        transfer_bytes: bytes to fetch, by scenario.
        build_seconds_ratio: build time relative to the baseline, by scenario.
        image: the name in the report; by default that of the measurement.
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
            _result(name, limit, figures.get(name), waivers.get(name), today) for name, limit in budgets.limits.items()
        ),
    )


def _measured(measurement: Measurement, baseline: Measurement | None) -> dict[str, float]:
    totals = {name: float(getattr(measurement.totals, name)) for name in (*_MAXIMUMS, *_MINIMUMS)}
    figures = {
        **totals,
        "lowestEfficiency": measurement.dive.efficiency_fraction,
        "highestWastedBytes": measurement.dive.wasted_bytes,
        "highestUserWastedPercent": measurement.dive.wasted_user_fraction,
    }
    if baseline is not None:
        for name in _MAXIMUMS:
            figures[f"growth_fraction.{name}"] = _growth(float(getattr(baseline.totals, name)), totals[name])
    return figures


def _growth(before: float, after: float) -> float:
    """Returns the growth as a fraction of *before*; infinite if that is 0."""
    if before:
        return after / before - 1
    return float("inf") if after else 0.0


def _result(name: str, limit: float, measured: float | None, waiver: Waiver | None, today: dt.date) -> BudgetResult:
    is_minimum = name in _MINIMUMS or name == "lowestEfficiency"
    bound = "at least" if is_minimum else "at most"
    if measured is None:
        return BudgetResult(name, "not evaluated", limit, None, f"{name} was not measured")
    text = f"{name} is {_amount(name, measured)}; allowed: {bound} {_amount(name, limit)}"
    if (measured >= limit) if is_minimum else (measured <= limit):
        return BudgetResult(name, "passed", limit, measured, text)
    if waiver is None:
        return BudgetResult(name, "failed", limit, measured, text)
    if waiver.expires < today:
        return BudgetResult(name, "failed", limit, measured, f"{text}; its waiver expired on {waiver.expires}")
    return BudgetResult(name, "waived", limit, measured, f"{text}; waived until {waiver.expires}: {waiver.reason}")


def _amount(name: str, value: float) -> str:
    if "fraction" in name or "ratio" in name or name in {"lowestEfficiency", "highestUserWastedPercent"}:
        return f"{value:.4f}"
    return f"{value:,.0f}" + (" bytes" if "ytes" in name else "")


def _table(where: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UsageError(where, value, "expected a table")
    return value


def _waivers(where: str, value: object) -> tuple[Waiver, ...]:
    if not isinstance(value, list):
        raise UsageError(where, value, "expected an array of tables")
    waivers = []
    for number, each in enumerate(value):
        table = _table(f"{where}[{number}]", each)
        budget, reason, expires = table.get("budget"), table.get("reason"), table.get("expires")
        unknown = sorted(table.keys() - {"budget", "reason", "expires"})
        if unknown:
            raise UsageError(f"{where}[{number}].{unknown[0]}", table[unknown[0]], "unknown key")
        if not isinstance(budget, str) or not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"{where}[{number}]", each, "expected a `budget` and a `reason`")
        if not isinstance(expires, dt.date) or isinstance(expires, dt.datetime):
            raise UsageError(f"{where}[{number}].expires", expires, "expected a date such as 2026-12-31")
        waivers.append(Waiver(budget, reason, expires))
    return tuple(waivers)
