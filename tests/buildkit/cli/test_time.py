"""The options and exit codes of time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.timing import record
from tests.buildkit.timing.test_record import BUILDS, timings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.buildkit.cli.conftest import RunCommand


def test_saved_timings_are_reported_without_building(
    run: RunCommand, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    path = tmp_path / "timings.json"
    record.save(timings(*BUILDS), path)

    fine = run("time", "--from", path, "--format", "markdown", project=pytestconfig.rootpath)
    path.write_text(path.read_text().replace('"ratio": 0.5', '"ratio": 0.9'))
    broken = run("time", "--from", path, project=pytestconfig.rootpath)

    refused = run("time", "api", "--from", path, project=pytestconfig.rootpath)

    assert fine.returncode == 0, fine.stderr
    assert refused.returncode == 2
    assert "--from with target = 'api': leave it out: --from only reports saved timings" in refused.stderr
    assert "| cold | api | 40.0 | 30.0 50.0 | 0.50 |" in fine.stdout
    assert broken.returncode == 1
    assert "build_seconds_ratio.cold is 0.9000" in " ".join(broken.stdout.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("time", "nothing"), "target = 'nothing'"),
        (("time", "api", "--against", "api"), "against = 'api'"),
        (("time", "api", "--scenarios", "cold,warm"), "scenario = 'warm'"),
        (("time", "api", "--runs", "0"), "runs = 0"),
    ],
)
def test_invalid_plan_is_refused_before_an_engine_starts(
    run: RunCommand, words: tuple[str, ...], message: str, pytestconfig: pytest.Config
) -> None:
    done = run(*words, project=pytestconfig.rootpath)

    assert done.returncode == 2
    assert message in done.stderr
    assert "engine" not in done.stderr


def test_invalid_timings_are_refused_with_a_fix(run: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema_version": 1')

    refused = run("time", "--from", tmp_path / "x.json")

    assert refused.returncode == 2
    assert "x.json: not timings" in refused.stderr
    assert "write it again with this version" in refused.stderr
