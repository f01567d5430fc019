"""Writes budget results, waste, duplicate CUDA libraries and check results as SARIF, for code scanning.

The SARIF log is built from plain dictionaries: sarif-om has had no release since 2019, and sarif-pydantic would add
pydantic to the `toolkit` group for four kinds of object.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.image.model import Measurement
from buildkit.text import format_bytes, format_count
from checks.results import CheckResult, Results

__all__ = ["budgets_sarif", "checks_sarif"]

_SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_DOCKERFILE: Final = "docker/Dockerfile"
_RULES: Final = {
    "budget": "The image exceeds a budget",
    "wasted-bytes": "A layer stores bytes that are not visible in a container",
    "duplicate-cuda-library": "The image has a CUDA library more than once",
}

_Level = Literal["error", "warning", "note"]


def budgets_sarif(report: BudgetReport, measurement: Measurement | None = None) -> str:
    """Returns SARIF 2.1.0: failed budgets as errors, waived ones suppressed; waste and duplicate CUDA as warnings.

    Viewers need a file, so every result is at the Dockerfile; the layer is in its logical location.
    """
    results = [_budget_result(each) for each in report.results if each.status in {"failed", "waived"}]
    if measurement is not None:
        results += _image_results(measurement)
    return _log(_RULES, results)


def _image_results(measurement: Measurement) -> Iterator[dict[str, object]]:
    for each in measurement.waste:
        hidden = f"{format_bytes(each.wasted_bytes)} in {format_count(each.files, 'file')}"
        text = (
            f"Layer {each.caused_by} hides {hidden} that layer "
            f"{each.stored_by} stores ({each.cause}): {each.instruction or '(no history)'}"
        )
        yield _result("wasted-bytes", "warning", text, f"layer {each.caused_by}")
    for library in measurement.duplicate_libraries:
        if library.is_cuda:
            paths = ", ".join(copy.path for copy in library.copies)
            extra = format_bytes(library.extra_bytes)
            text = f"{library.soname} is in the image {len(library.copies)} times ({extra} extra): {paths}"
            yield _result("duplicate-cuda-library", "warning", text, library.copies[0].path)


def checks_sarif(results: Results, *, required: Iterable[str] = ()) -> str:
    """Returns SARIF 2.1.0: each finding of a check is an error, a check that broke is a warning.

    A check that was not verified is a note; if its tier is one of *required*, it is an error.
    """
    tiers = frozenset(required)
    found = []
    for each in results.checks:
        if each.outcome == "fail":
            fix = f" Fix: {each.fix}" if each.fix else ""
            lines = each.found or (each.reason,)
            found += [_result(_rule(each), "error", f"{line}.{fix}", each.name) for line in lines]
        elif each.outcome == "error":
            found.append(_result(_rule(each), "warning", f"the check broke: {each.reason}", each.name))
        elif each.outcome == "not verified":
            level: _Level = "error" if each.tier in tiers else "note"
            found.append(_result(_rule(each), level, f"not verified: {each.reason}", each.name))
    return _log({_rule(each): each.title for each in results.checks}, found)


def _rule(check: CheckResult) -> str:
    """Returns the name of a check without its parameter: `absent::tool_is_absent` for `absent::tool_is_absent[gcc]`."""
    return check.name.partition("[")[0]


def _log(rules: dict[str, str], results: list[dict[str, object]]) -> str:
    described = [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()]
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": "buildkit", "rules": described}}, "results": results}],
    }
    return json.dumps(log, indent=2) + "\n"


def _budget_result(budget: BudgetResult) -> dict[str, object]:
    level: _Level = "error" if budget.status == "failed" else "note"
    result = _result("budget", level, budget.message, budget.budget)
    if budget.status == "waived":
        result["suppressions"] = [{"kind": "external", "justification": budget.message}]
    return result


def _result(rule: str, level: _Level, text: str, logical: str) -> dict[str, object]:
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _DOCKERFILE}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": logical}],
            }
        ],
    }
