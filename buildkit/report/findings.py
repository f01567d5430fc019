"""Broken budgets, waste and doubled libraries for the tools that collect findings: JUnit and SARIF."""

import json
import re
from typing import Final
from xml.etree import ElementTree as ET

from buildkit.budget import Judgement, Verdict
from buildkit.measurement import Measurement
from buildkit.report.markdown import human_bytes

__all__ = ["junit", "sarif"]

_SARIF_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


def junit(verdict: Verdict) -> str:
    """Write JUnit XML with one case per limit; waived ones and those not judged are skipped, never passed."""
    suite = ET.Element(
        "testsuite",
        name=_xml(f"budgets of {verdict.image}"),
        tests=str(len(verdict.judgements)),
        failures=str(_count(verdict, "failed")),
        errors="0",
        skipped=str(_count(verdict, "waived") + _count(verdict, "not judged")),
        time="0",
    )
    for each in verdict.judgements:
        case = ET.SubElement(suite, "testcase", classname="budgets", name=_xml(each.budget), time="0")
        if each.status == "failed":
            ET.SubElement(case, "failure", message=_xml(each.message), type="BudgetExceeded").text = _xml(each.message)
        elif each.status != "passed":
            ET.SubElement(case, "skipped", message=_xml(f"{each.status}: {each.message}"))
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _count(verdict: Verdict, status: str) -> int:
    return sum(each.status == status for each in verdict.judgements)


def sarif(verdict: Verdict, measurement: Measurement | None = None, *, dockerfile: str = "docker/Dockerfile") -> str:
    """Write SARIF 2.1.0: broken limits as errors, waived ones suppressed; waste and doubled CUDA as warnings.

    Results are placed at *dockerfile*, because viewers need a file; the layer is in their logical location.
    """
    results = [_budget_result(each, dockerfile) for each in verdict.judgements if each.status in {"failed", "waived"}]
    if measurement is not None:
        results += [
            _result(
                "wasted-bytes",
                "warning",
                f"Layer {each.caused_by} hides {human_bytes(each.wasted_bytes)} in {each.files} files that layer "
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
                f"{each.soname} is there {len(each.copies)} times, {human_bytes(each.extra_bytes)} too much: "
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
    log = {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "buildkit",
                        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()],
                    }
                },
                "results": results,
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"


def _budget_result(judgement: Judgement, dockerfile: str) -> dict[str, object]:
    level = "error" if judgement.status == "failed" else "note"
    result = _result("budget", level, judgement.message, dockerfile, judgement.budget)
    if judgement.status == "waived":
        result["suppressions"] = [{"kind": "external", "justification": judgement.message}]
    return result


def _result(rule: str, level: str, text: str, dockerfile: str, logical: str) -> dict[str, object]:
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
