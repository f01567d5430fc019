"""Each class of fault, planted alone in an image that is otherwise right, fails exactly its check."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.checks.faults import FAULTS, Fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Future

    from buildkit.check.verify import VerifyResult


def explained(result: VerifyResult) -> str:
    """What the checks found, for a message."""
    lines = (f"{check.outcome} {check.name}: {check.found} {check.reason[-500:]}" for check in result.results.checks)
    return "\n".join(line for line in lines if line.startswith(("fail", "error")))


def test_image_without_fault_has_no_finding(verified: Mapping[str, Future[VerifyResult]]) -> None:
    result = verified["none"].result()
    assert result.exit_code == 0, explained(result)
    assert not result.errors
    outcomes = {check.outcome for check in result.results.checks if check.tier == "static"}
    assert outcomes == {"pass"}, explained(result)
    assert {check.outcome for check in result.results.checks if check.tier == "device"} == {"not verified"}
    assert replace(result, required=frozenset({"device"})).exit_code == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_fails_exactly_its_check(fault: Fault, verified: Mapping[str, Future[VerifyResult]]) -> None:
    result = verified[fault.name].result()
    failed = {check.name for check in result.results.checks if check.outcome == "fail"}
    assert failed == fault.checks, explained(result)
    assert not result.errors, explained(result)
    assert result.exit_code == 1
