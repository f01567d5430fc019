from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit.check.verify import VerifyResult, verify
from buildkit.errors import CommandFailed, UsageError
from checks.expectations import Expectations
from tests.support.reports import CHECK_RESULTS, check_result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from checks.results import CheckResult


@pytest.fixture
def verify_without_engine(tmp_path: Path) -> Callable[..., VerifyResult]:
    """Verifies an image with an engine that does not answer."""

    def call(**arguments: object) -> VerifyResult:
        given = {
            "output": tmp_path,
            "environment": os.environ,
            "engine_host": f"unix://{tmp_path}/missing.sock",
            "progress": io.StringIO(),
        }
        return verify("a", Expectations(target="api"), **(given | arguments))  # type: ignore[arg-type] # its arguments

    return call


@pytest.mark.parametrize(
    ("checks", "required", "exit_code"),
    [
        ([check_result("a", "pass"), check_result("b", "not applicable")], [], 0),
        ([check_result("a", "pass"), check_result("b", "not verified", "device")], [], 0),
        ([check_result("a", "pass"), check_result("b", "not verified", "device")], ["device"], 1),
        ([check_result("a", "pass"), check_result("b", "not verified", "static")], ["device"], 0),
        ([check_result("a", "pass"), check_result("b", "fail")], [], 1),
        ([check_result("a", "fail"), check_result("b", "error")], [], 1),
        ([check_result("a", "pass"), check_result("b", "error")], [], 3),
        ([], [], 3),
    ],
)
def test_exit_code_separates_findings_from_broken_checks(
    checks: list[CheckResult], required: list[str], exit_code: int, tmp_path: Path
) -> None:
    results = replace(CHECK_RESULTS, checks=tuple(checks))

    assert VerifyResult(results, frozenset(required), tmp_path, tmp_path).exit_code == exit_code


def test_unknown_tier_is_refused_before_anything_runs(
    verify_without_engine: Callable[..., VerifyResult], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="static, device"):
        verify_without_engine(output=tmp_path / "out", require=["gpu"])
    assert not (tmp_path / "out").exists()


def test_missing_engine_is_an_error_and_no_finding(verify_without_engine: Callable[..., VerifyResult]) -> None:
    progress = io.StringIO()

    with pytest.raises(CommandFailed) as raised:
        verify_without_engine(progress=progress)

    assert raised.value.exit_code == 3
    assert "missing.sock" in raised.value.log_tail
    assert progress.getvalue()


def test_pytest_options_of_the_caller_do_not_reach_the_checks(
    verify_without_engine: Callable[..., VerifyResult],
) -> None:
    with pytest.raises(CommandFailed, match=r"missing\.sock"):
        verify_without_engine(environment={**os.environ, "PYTEST_ADDOPTS": "--no-such-option"})


def test_missing_image_is_a_usage_error(
    docker: Sequence[str], verify_without_engine: Callable[..., VerifyResult]
) -> None:
    with pytest.raises(UsageError, match="No such image"):
        verify_without_engine(engine_host=docker[2] if len(docker) > 1 else None)


def test_build_secrets_are_in_no_file(verify_without_engine: Callable[..., VerifyResult], tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        verify_without_engine(build_secrets={"index": "https://a:s3cr3t@b.invalid"})

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"s3cr3t" in path.read_bytes() for path in files)
