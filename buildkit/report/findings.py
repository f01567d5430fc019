"""What tools collect, as JUnit and SARIF: broken budgets, waste and doubled libraries, and the checks of an image."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Final, Literal
from xml.etree import ElementTree as ET

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.image.model import Measurement
from buildkit.text import format_bytes
from checks.verdicts import CheckResult, Results

__all__ = ["checks_junit", "checks_sarif", "junit", "sarif"]

_SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2
_DOCKERFILE: Final = "docker/Dockerfile"

_Level = Literal["error", "warning", "note"]


def junit(verdict: BudgetReport) -> str:
    """Write JUnit XML with one case per limit; waived ones and those not judged are skipped, never passed."""
    cases = []
    for each in verdict.judgements:
        case = ET.Element("testcase", classname="budgets", name=_xml(each.budget), time="0")
        if each.status == "failed":
            ET.SubElement(case, "failure", message=_xml(each.message), type="BudgetExceeded").text = _xml(each.message)
        elif each.status != "passed":
            ET.SubElement(case, "skipped", message=_xml(f"{each.status}: {each.message}"))
        cases.append(case)
    return _suite(f"budgets of {verdict.image}", cases, seconds=0)


def checks_junit(results: Results, *, required: Iterable[str] = ()) -> str:
    """Write JUnit XML with one case per check; an error is a check that could not be made because something broke.

    What was not verified is skipped, or failed where its tier is *required*.
    """
    tiers = frozenset(required)
    cases = []
    for each in results.checks:
        group, _, name = each.name.rpartition("::")
        place = _xml(f"{group or each.group}.{each.tier}")
        case = ET.Element("testcase", classname=place, name=_xml(name), time=f"{each.seconds:.3f}")
        fix = [f"fix: {each.fix}"] if each.fix else []
        text = _xml("\n".join([each.title, *each.found, *fix, each.reason]).strip())
        message = _xml(each.found[0] if each.found else each.reason or each.title)
        if each.outcome == "error":
            ET.SubElement(case, "error", message=message, type="CheckBroke").text = text
        elif each.outcome == "fail" or (each.outcome == "not verified" and each.tier in tiers):
            ET.SubElement(case, "failure", message=message, type="Findings").text = text
        elif each.outcome != "pass":
            ET.SubElement(case, "skipped", message=_xml(f"{each.outcome}: {each.reason}"))
        cases.append(case)
    return _suite(f"checks of {results.target}, {results.image}", cases, seconds=results.seconds)


def _suite(name: str, cases: Sequence[ET.Element], *, seconds: float) -> str:
    counts = {
        kind: str(sum(case.find(tag) is not None for case in cases))
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    suite = ET.Element("testsuite", counts, name=_xml(name), tests=str(len(cases)), time=f"{seconds:.3f}")
    suite.extend(cases)
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def sarif(verdict: BudgetReport, measurement: Measurement | None = None, *, dockerfile: str = _DOCKERFILE) -> str:
    """Write SARIF 2.1.0: broken limits as errors, waived ones suppressed; waste and doubled CUDA as warnings.

    Results are placed at *dockerfile*, because viewers need a file; the layer is in their logical location.
    """
    results = [_budget_result(each, dockerfile) for each in verdict.judgements if each.status in {"failed", "waived"}]
    if measurement is not None:
        results += [
            _result(
                "wasted-bytes",
                "warning",
                f"Layer {each.caused_by} hides {format_bytes(each.wasted_bytes)} in {each.files} files that layer "
                f"{each.stored_by} stores ({each.cause}): {each.instruction or 'no instruction on record'}",
                dockerfile,
                f"layer {each.caused_by}",
            )
            for each in measurement.waste
        ]
        results += [
            _result(
                "cuda-twice",
                "warning",
                f"{each.soname} is there {len(each.copies)} times, {format_bytes(each.extra_bytes)} too much: "
                + ", ".join(copy.path for copy in each.copies),
                dockerfile,
                each.copies[0].path,
            )
            for each in measurement.duplicate_libraries
            if each.is_cuda
        ]
    rules = {
        "budget": "A budget of the image is exceeded",
        "wasted-bytes": "A layer stores bytes that no container sees",
        "cuda-twice": "A library of CUDA is in the image more than once",
    }
    return _sarif_log(rules, results)


def checks_sarif(results: Results, *, required: Iterable[str] = (), dockerfile: str = _DOCKERFILE) -> str:
    """Write SARIF 2.1.0: each finding of a check an error, a check that broke a warning.

    What was not verified is a note, or an error where its tier is *required*.
    """
    tiers = frozenset(required)
    found = []
    for each in results.checks:
        if each.outcome == "fail":
            fix = f" Fix: {each.fix}" if each.fix else ""
            lines = each.found or (each.reason,)
            found += [_result(_rule(each), "error", f"{line}.{fix}", dockerfile, each.name) for line in lines]
        elif each.outcome == "error":
            found.append(_result(_rule(each), "warning", f"could not be made: {each.reason}", dockerfile, each.name))
        elif each.outcome == "not verified":
            level: _Level = "error" if each.tier in tiers else "note"
            found.append(_result(_rule(each), level, f"not verified: {each.reason}", dockerfile, each.name))
    return _sarif_log({_rule(each): each.title for each in results.checks}, found)


def _rule(check: CheckResult) -> str:
    """Name a rule by its check, without what it is tried with: `absent::tool_is_absent[gcc]` is of one rule."""
    return check.name.partition("[")[0]


def _sarif_log(rules: dict[str, str], results: list[dict[str, object]]) -> str:
    described = [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()]
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": "buildkit", "rules": described}}, "results": results}],
    }
    return json.dumps(log, indent=2) + "\n"


def _budget_result(judgement: BudgetResult, dockerfile: str) -> dict[str, object]:
    level: _Level = "error" if judgement.status == "failed" else "note"
    result = _result("budget", level, judgement.message, dockerfile, judgement.budget)
    if judgement.status == "waived":
        result["suppressions"] = [{"kind": "external", "justification": judgement.message}]
    return result


def _result(rule: str, level: _Level, text: str, dockerfile: str, logical: str) -> dict[str, object]:
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": dockerfile}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": logical}],
            }
        ],
    }


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
