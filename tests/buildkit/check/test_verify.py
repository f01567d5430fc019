from __future__ import annotations

import io
import os
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
from rich.console import Console

from buildkit import spec
from buildkit.check.verify import VerifyResult, expect, read_lock, table, verify
from buildkit.errors import CommandFailed, UsageError
from checks.expectations import Expectations, SecretFingerprint, SizeLimits, UnknownExpectations
from checks.verdicts import CheckResult, Outcome, Results
from tests.checks.faults import DER, PEM

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def project(pytestconfig: pytest.Config) -> spec.ImageSpec:
    return spec.load(pytestconfig.rootpath)


def check(outcome: Outcome, tier: str = "static") -> CheckResult:
    return CheckResult(name="a::b", title="A claim.", group="a", tier=tier, outcome=outcome, seconds=0.1)


def result(tmp_path: Path, checks: Sequence[CheckResult], *required: str) -> VerifyResult:
    results = Results(image="sha256:00", target="api", seconds=1.0, checks=tuple(checks))
    return VerifyResult(results, frozenset(required), tmp_path / "verify.json", tmp_path / "verify.xml")


@pytest.mark.parametrize(
    ("checks", "required", "exit_code"),
    [
        ([check("pass"), check("not applicable")], [], 0),
        ([check("pass"), check("not verified", "device")], [], 0),
        ([check("pass"), check("not verified", "device")], ["device"], 1),
        ([check("pass"), check("not verified", "static")], ["device"], 0),
        ([check("pass"), check("fail")], [], 1),
        ([check("fail"), check("error")], [], 1),
        ([check("pass"), check("error")], [], 3),
        ([], [], 3),
    ],
)
def test_exit_code_tells_the_image_from_the_environment(
    checks: list[CheckResult], required: list[str], exit_code: int, tmp_path: Path
) -> None:
    assert result(tmp_path, checks, *required).exit_code == exit_code


def test_unknown_tier_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="static, device"):
        verify("a", Expectations(target="api"), output=tmp_path / "out", environment={}, require=["gpu"])
    assert not (tmp_path / "out").exists()


def test_engine_that_does_not_answer_is_no_finding(tmp_path: Path) -> None:
    """The environment's fault (3), told in one error that holds what the engine's client said."""
    said = io.StringIO()
    with pytest.raises(CommandFailed) as raised:
        verify(
            "a",
            Expectations(target="api"),
            output=tmp_path,
            environment=os.environ,
            engine_host=f"unix://{tmp_path}/nobody.sock",
            progress=said,
        )
    assert raised.value.exit_code == 3
    assert "nobody.sock" in raised.value.log_tail
    assert said.getvalue()


def test_options_of_the_callers_own_pytest_do_not_reach_the_checks(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"nobody\.sock"):
        verify(
            "a",
            Expectations(target="api"),
            output=tmp_path,
            environment={**os.environ, "PYTEST_ADDOPTS": "--no-such-option"},
            engine_host=f"unix://{tmp_path}/nobody.sock",
            progress=io.StringIO(),
        )


def test_image_that_the_engine_lacks_is_a_usage_error(docker: Sequence[str], tmp_path: Path) -> None:
    host = docker[2] if len(docker) > 1 else None
    with pytest.raises(UsageError, match="No such image"):
        verify(
            "truthgraph-nowhere:none",
            Expectations(target="api"),
            output=tmp_path,
            environment=os.environ,
            engine_host=host,
            progress=io.StringIO(),
        )


def test_value_handed_in_is_in_no_file(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed):
        verify(
            "a",
            Expectations(target="api"),
            output=tmp_path,
            environment=os.environ,
            engine_host=f"unix://{tmp_path}/nobody.sock",
            handed_in={"index": "https://a:s3cr3t@b.invalid"},
            progress=io.StringIO(),
        )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"s3cr3t" in path.read_bytes() for path in files)


def test_lock_is_read_by_normal_names(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(
        "# a==1\nA_b.c==1.2 \\\n    --hash=sha256:00\nsqlalchemy[asyncio]==2.0 ; python_version > '3'\nd==1.0+cu130\n"
    )
    assert read_lock(path) == {"a-b-c": "1.2", "sqlalchemy": "2.0", "d": "1.0+cu130"}


def test_api_expects_what_the_project_says(project: spec.ImageSpec) -> None:
    expected = expect(project, "api", certificates=PEM.encode(), handed_in={"index": "https://a:b@c.invalid"})
    pins = tomllib.loads((project.project / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ml"]
    assert f"torch=={expected.locked['torch']}" in pins
    assert expected.has_models
    assert expected.has_application
    assert {"pytest", "hypothesis", "ruff", "mypy"} <= expected.development_only.keys()
    assert not expected.development_only.keys() & expected.locked.keys()
    assert expected.cuda_targets == project.cuda_targets
    assert len(expected.certificates_sha256) == 1
    assert expected.handed_in == SecretFingerprint.of({"index": "https://a:b@c.invalid"})


def test_core_expects_no_models(project: spec.ImageSpec) -> None:
    expected = expect(project, "core")
    assert not expected.has_models
    assert "torch" not in expected.locked
    assert "litestar" in expected.locked


def test_dev_may_have_development_tools(project: spec.ImageSpec) -> None:
    expected = expect(project, "dev")
    assert expected.development_only == {}
    assert "pytest" in expected.locked


def test_reference_has_no_virtual_environment(project: spec.ImageSpec) -> None:
    expected = expect(project, "phase1")
    assert expected.virtual_environment is None
    assert expected.has_models


def test_labels_of_the_build_are_expected_to_the_letter(project: spec.ImageSpec) -> None:
    name = "org.opencontainers.image.revision"
    assert expect(project, "core").labels[name] is None
    assert expect(project, "core", labels={name: "0123abc"}).labels[name] == "0123abc"


def test_budgets_are_the_targets_own(project: spec.ImageSpec) -> None:
    given = msgspec.structs.replace(
        project, budgets={"core": {"unpacked_bytes": "0.5 GB", "layers": 9, "efficiency_fraction": 0.9}}
    )
    assert expect(given, "core").budgets == SizeLimits(unpacked_bytes=500_000_000, layers=9)
    assert expect(given, "api").budgets == SizeLimits()


def test_unknown_target_is_refused(project: spec.ImageSpec) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        expect(project, "nowhere")


def test_expectations_come_back_as_they_were_saved(project: spec.ImageSpec, tmp_path: Path) -> None:
    expected = expect(project, "api", certificates=DER)
    expected.save(tmp_path / "new" / "expect.json")
    assert Expectations.load(tmp_path / "new" / "expect.json") == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "schema_version is None"),
        (b'{"schema_version": 2, "target": "a"}', "schema_version is 2"),
        (b'{"schema_version": 1, "target": "a", "has_modles": true}', "unknown keys: has_modles"),
        (b'{"schema_version": 1}', "target"),
        (b'{"schema_version": 1, "target": "a", "port": "many"}', "port"),
    ],
)
def test_expectations_that_are_not_understood_are_refused(document: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "expect.json"
    path.write_bytes(document)
    with pytest.raises(UnknownExpectations, match=message):
        Expectations.load(path)


def test_table_says_what_where_and_what_to_do(tmp_path: Path) -> None:
    failed = replace(check("fail"), found=tuple(f"/usr/bin/gcc-{n}" for n in range(9)), fix="start from base")
    unverified = replace(check("not verified", "device"), reason="torch finds no GPU")
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(table(result(tmp_path, [check("pass"), failed, unverified])))
    shown = console.export_text()
    for words in (
        "A claim.",
        "/usr/bin/gcc-0",
        "and 4 more",
        "fix: start from base",
        "NOT VERIFIED",
        "torch finds no GPU",
    ):
        assert words in shown
    assert "1 pass, 1 fail, 1 not verified" in shown


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    results = result(tmp_path, [check("pass"), check("error")]).results
    results.save(tmp_path / "verify.json")
    assert msgspec.json.decode((tmp_path / "verify.json").read_bytes(), type=Results) == results
