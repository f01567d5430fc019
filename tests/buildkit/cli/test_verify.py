"""The options and exit codes of verify, with checks that have run already."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from buildkit.check import verify
from buildkit.check.verify import VerifyResult
from buildkit.cli.verify import add_verify_arguments, run_verify
from buildkit.engine import daemon
from buildkit.engine.client import Engine
from buildkit.jsonfile import InvalidFile
from tests.support.reports import CHECK_RESULTS

if TYPE_CHECKING:
    from pathlib import Path

    from checks.expectations import Expectations


@dataclass
class FakeChecks:
    """A fake of `verify.verify`: returns the sample results and records its arguments."""

    images: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def __call__(self, image: str, expectations: Expectations, *, output: Path, **_others: object) -> VerifyResult:
        self.images.append(image)
        self.targets.append(expectations.target)
        return VerifyResult(CHECK_RESULTS, frozenset(), output / "verify.json", output / "verify.xml")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> FakeChecks:
    fake = FakeChecks()
    monkeypatch.setattr(verify, "verify", fake)
    monkeypatch.setattr(daemon, "find", lambda *_arguments: Engine("", "27.0.0", None))
    return fake


def run(project: Path, *words: str) -> int:
    parser = argparse.ArgumentParser()
    add_verify_arguments(parser)
    arguments = parser.parse_args(words)
    arguments.project = project
    return run_verify(arguments)


def test_findings_are_printed_and_exit_with_1(
    checks: FakeChecks, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(pytestconfig.rootpath, "--image", "sha256:ab", "--target", "core") == 1

    assert (checks.images, checks.targets) == (["sha256:ab"], ["core"])
    assert "/usr/bin/gcc" in capsys.readouterr().out


@pytest.mark.usefixtures("checks")
def test_exit_zero_ignores_findings(pytestconfig: pytest.Config) -> None:
    assert run(pytestconfig.rootpath, "--image", "sha256:ab", "--exit-zero") == 0


@pytest.mark.usefixtures("checks")
def test_report_is_written_in_the_chosen_format(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    run(pytestconfig.rootpath, "--image", "a", "--format", "junit", "--output", str(tmp_path / "new" / "checks.xml"))

    assert (tmp_path / "new" / "checks.xml").read_text().startswith("<?xml")


def test_missing_build_is_an_error_with_its_fix(checks: FakeChecks, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="build-image"):
        run(tmp_path)
    assert checks.images == []


def test_unknown_tier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, "--require", "gpu")
    assert "static" in capsys.readouterr().err
