"""Tests that each fault, planted in an otherwise correct image, fails exactly its own check."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.checks.batches import group
from tests.checks.faults import FAULTS, Fault

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from buildkit.check.verify import VerifyResult
    from tests.checks.conftest import Verified, Workshop


def findings_of(result: VerifyResult, names: Collection[str] = ()) -> str:
    """Returns the findings and errors of the checks *names*, or of all checks, for a message."""
    return "\n".join(
        f"{check.outcome} {check.name}: {check.found} {check.reason[-500:]}"
        for check in result.results.checks
        if check.name in names or (not names and check.outcome in ("fail", "error"))
    )


def test_image_without_faults_has_no_findings(verified: Mapping[str, Verified]) -> None:
    result = verified[""].result
    assert result.exit_code == 0, findings_of(result)
    assert not result.errors
    outcomes = {check.outcome for check in result.results.checks if check.tier == "static"}
    assert outcomes == {"pass"}, findings_of(result)
    assert {check.outcome for check in result.results.checks if check.tier == "device"} == {"not verified"}
    assert replace(result, required=frozenset({"device"})).exit_code == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_fails_exactly_its_check(fault: Fault, verified: Mapping[str, Verified], workshop: Workshop) -> None:
    """Several faults share an image, so each finding must name the fault of its own check."""
    batch, result = verified[fault.name].batch, verified[fault.name].result
    failed = {check.name: check for check in result.results.checks if check.outcome == "fail"}
    own = failed.keys() - batch.checks_of_others(fault)
    assert own == fault.checks, findings_of(result, own ^ fault.checks)
    pattern = workshop.places.fill(fault.pattern)
    for name in fault.checks:
        assert failed[name].found
        assert all(re.search(pattern, line) for line in failed[name].found), f"{pattern}: {failed[name].found}"
    assert not result.errors, findings_of(result)
    assert result.exit_code == 1


def test_faults_share_few_images() -> None:
    """Each image costs 10 seconds of a processor."""
    batches = group(FAULTS)

    assert sum(len(batch.faults) for batch in batches) == len(FAULTS)
    assert len(batches) <= 8
