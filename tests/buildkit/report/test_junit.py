from __future__ import annotations

from xml.etree import ElementTree as ET

from buildkit.report.junit import budgets_junit, checks_junit
from tests.support.reports import BUDGETS, CHECK_RESULTS


def suite(text: str) -> ET.Element:
    (found,) = ET.fromstring(text)  # noqa: S314 (our own text)
    return found


def outcomes(text: str) -> list[str]:
    return ["".join(child.tag for child in case) or "passed" for case in suite(text)]


def test_only_passed_budgets_pass() -> None:
    text = budgets_junit(BUDGETS)

    assert outcomes(text) == ["passed", "failure", "skipped", "skipped"]
    assert {name: suite(text).attrib[name] for name in ("tests", "failures", "skipped", "errors")} == {
        "tests": "4",
        "failures": "1",
        "skipped": "2",
        "errors": "0",
    }


def test_characters_that_xml_lacks_are_replaced() -> None:
    message = suite(budgets_junit(BUDGETS))[1][0].attrib["message"]

    assert message == "files is 2 \N{REPLACEMENT CHARACTER} & <more>"


def test_only_passed_checks_pass() -> None:
    text = checks_junit(CHECK_RESULTS)

    assert outcomes(text) == ["failure", "passed", "skipped", "skipped", "error"]
    counts = {name: suite(text).attrib[name] for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "1", "errors": "1", "skipped": "2"}
    assert float(suite(text).attrib["time"]) == 2.5


def test_case_has_the_name_and_the_fix_of_its_check() -> None:
    case = suite(checks_junit(CHECK_RESULTS))[0]

    assert case.attrib["classname"] == "absent.static"
    assert case.attrib["name"] == "tool_is_absent[gcc]"
    assert "fix: use another base" in (case[0].text or "")


def test_required_check_that_was_not_verified_fails() -> None:
    assert outcomes(checks_junit(CHECK_RESULTS, required=["device"]))[2] == "failure"
