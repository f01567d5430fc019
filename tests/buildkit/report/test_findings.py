"""The checks of an image for the tools that collect findings: nothing is passed by being skipped."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest

from buildkit.errors import UsageError
from buildkit.report.findings import checks_junit, checks_sarif
from buildkit.report.markdown import checks_markdown
from buildkit.report.render import render_checks
from checks.verdicts import CheckResult, Results


def check(name: str, outcome: str, tier: str = "static", **more: object) -> CheckResult:
    fields = {
        "name": name,
        "title": f"Claim of {name}",
        "group": "g",
        "tier": tier,
        "outcome": outcome,
        "seconds": 0.25,
    }
    return CheckResult(**(fields | more))  # type: ignore[arg-type] # the fields are those of CheckResult


RESULTS = Results(
    image="sha256:ab",
    target="api",
    seconds=2.5,
    checks=(
        check("absent::tool_is_absent[gcc]", "fail", found=("/usr/bin/gcc", "\x00 <gcc>"), fix="leave it out"),
        check("absent::tool_is_absent[uv]", "pass"),
        check("device::kernel_runs", "not verified", "device", reason="no GPU"),
        check("contents::torch_is_cuda", "not applicable", reason="no torch"),
        check("application::it_starts", "error", reason="docker went away"),
    ),
)


def outcomes(text: str) -> list[str]:
    (suite,) = ET.fromstring(text)  # noqa: S314 (our own text)
    return ["".join(child.tag for child in case) or "passed" for case in suite]


def test_junit_has_a_case_for_each_check_and_passes_only_what_passed() -> None:
    text = checks_junit(RESULTS)

    assert outcomes(text) == ["failure", "passed", "skipped", "skipped", "error"]
    (suite,) = ET.fromstring(text)  # noqa: S314
    assert {name: suite.attrib[name] for name in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "2",
        "time": "2.500",
    }
    assert suite[0].attrib["classname"] == "absent.static"
    assert suite[0].attrib["name"] == "tool_is_absent[gcc]"
    assert "fix: leave it out" in (suite[0][0].text or "")


def test_what_was_required_and_not_verified_is_a_failure() -> None:
    assert outcomes(checks_junit(RESULTS, required=["device"]))[2] == "failure"
    levels = [each["level"] for each in sarif(required=("device",))]
    assert levels == ["error", "error", "error", "warning"]


def sarif(required: tuple[str, ...] = ()) -> list[dict[str, object]]:
    (run,) = json.loads(checks_sarif(RESULTS, required=required))["runs"]
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    found: list[dict[str, object]] = run["results"]
    assert {each["ruleId"] for each in found} <= rules
    return found


def test_sarif_has_a_result_for_each_finding_and_a_note_for_what_was_not_verified() -> None:
    found = sarif()

    assert [each["level"] for each in found] == ["error", "error", "note", "warning"]
    assert [each["ruleId"] for each in found][:2] == ["absent::tool_is_absent"] * 2
    assert "leave it out" in json.dumps(found[0])


def test_markdown_shows_what_speaks_against_the_image_and_counts_the_rest() -> None:
    text = checks_markdown(RESULTS)

    assert "1 fail, 1 pass, 1 not verified, 1 not applicable, 1 error; 2.5 s" in text
    assert "Claim of absent::tool\\_is\\_absent\\[gcc\\] | FAIL | /usr/bin/gcc<br>" in text
    assert "NOT VERIFIED" in text
    assert "\\[uv\\]" not in text
    assert "\\<gcc\\>" in text


def test_every_format_but_html_shows_checks() -> None:
    assert json.loads(render_checks("json", RESULTS))["target"] == "api"
    assert render_checks("junit", RESULTS) == checks_junit(RESULTS)
    assert render_checks("sarif", RESULTS) == checks_sarif(RESULTS)
    assert render_checks("markdown", RESULTS) == checks_markdown(RESULTS)
    with pytest.raises(UsageError, match="junit or sarif"):
        render_checks("html", RESULTS)
