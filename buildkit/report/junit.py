"""Writes budget results and check results as JUnit XML, for the test reports of a CI system."""

import re
from collections.abc import Iterable
from typing import Final

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from buildkit.check.budget import BudgetReport
from checks.results import CheckResult, Results

__all__ = ["budgets_junit", "checks_junit"]

_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


def budgets_junit(report: BudgetReport) -> str:
    """Returns JUnit XML with one case per budget; waived ones and those not evaluated are skipped."""
    cases = []
    for each in report.results:
        case = TestCase(_xml(each.budget), "budgets", 0)
        message = _xml(each.message)
        if each.status == "failed":
            failure = Failure(message, "BudgetExceeded")
            failure.text = message
            case.result = [failure]
        elif each.status != "passed":
            case.result = [Skipped(_xml(f"{each.status}: {each.message}"))]
        cases.append(case)
    return _document(f"budgets of {report.image}", cases, seconds=0)


def checks_junit(results: Results, *, required: Iterable[str] = ()) -> str:
    """Returns JUnit XML with one case per check; an error is a check that broke.

    A check that was not verified is skipped; if its tier is one of *required*, it failed.
    """
    tiers = frozenset(required)
    cases = [_check_case(each, is_required=each.tier in tiers) for each in results.checks]
    return _document(f"checks of {results.target}, {results.image}", cases, seconds=results.seconds)


def _check_case(check: CheckResult, *, is_required: bool) -> TestCase:
    group, _, name = check.name.rpartition("::")
    case = TestCase(_xml(name), _xml(f"{group or check.group}.{check.tier}"), check.seconds)
    fix = [f"fix: {check.fix}"] if check.fix else []
    text = _xml("\n".join([check.title, *check.found, *fix, check.reason]).strip())
    message = _xml(check.found[0] if check.found else check.reason or check.title)
    result: Error | Failure | Skipped
    if check.outcome == "pass":
        return case
    if check.outcome == "error":
        result = Error(message, "CheckBroke")
        result.text = text
    elif check.outcome == "fail" or (check.outcome == "not verified" and is_required):
        result = Failure(message, "Findings")
        result.text = text
    else:
        result = Skipped(_xml(f"{check.outcome}: {check.reason}"))
    case.result = [result]
    return case


def _document(name: str, cases: list[TestCase], *, seconds: float) -> str:
    suite = TestSuite(_xml(name))
    suite.add_testcases(cases)
    suite.time = seconds
    document = JUnitXml()
    document.add_testsuite(suite)
    text: bytes = document.tostring()  # type: ignore[no-untyped-call] # junitparser does not type it
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text.decode()}\n'


def _xml(text: str) -> str:
    """Returns *text* with the characters that XML does not allow replaced."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
