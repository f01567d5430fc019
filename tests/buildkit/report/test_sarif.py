from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from buildkit.report.sarif import budgets_sarif, checks_sarif
from tests.support.reports import BUDGETS, CHECK_RESULTS

if TYPE_CHECKING:
    from buildkit.image.model import Measurement


def results(text: str) -> list[dict[str, Any]]:
    """Returns the results of a SARIF log, after checking that each has a described rule."""
    (run,) = json.loads(text)["runs"]
    found: list[dict[str, Any]] = run["results"]
    assert {each["ruleId"] for each in found} <= {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    return found


@pytest.mark.parametrize(("image", "rule"), [("before", "duplicate-cuda-library"), ("after", "wasted-bytes")])
def test_failed_budgets_are_errors_and_waste_is_a_warning(
    image: str, rule: str, request: pytest.FixtureRequest
) -> None:
    measurement: Measurement = request.getfixturevalue(image)

    found = results(budgets_sarif(BUDGETS, measurement))

    assert [each["ruleId"] for each in found] == ["budget", "budget", rule]
    assert [each["level"] for each in found] == ["error", "note", "warning"]


def test_waived_budget_is_suppressed() -> None:
    found = results(budgets_sarif(BUDGETS))

    assert found[1]["suppressions"][0]["kind"] == "external"


def test_every_result_is_at_the_dockerfile() -> None:
    for each in results(budgets_sarif(BUDGETS)):
        assert each["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "docker/Dockerfile"
        assert each["message"]["text"]


def test_every_finding_of_a_check_is_a_result_with_its_fix() -> None:
    found = results(checks_sarif(CHECK_RESULTS))

    assert [each["level"] for each in found] == ["error", "error", "note", "warning"]
    assert [each["ruleId"] for each in found][:2] == ["absent::tool_is_absent"] * 2
    assert "use another base" in found[0]["message"]["text"]


def test_required_check_that_was_not_verified_is_an_error() -> None:
    found = results(checks_sarif(CHECK_RESULTS, required=["device"]))

    assert [each["level"] for each in found] == ["error", "error", "error", "warning"]
