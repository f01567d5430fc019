"""Verifies an image: runs `checks/` against its digest in a process of its own, and loads the results.

The two processes exchange files in the output folder: the checks read `expect.json` (expectations) and write
`verify.json` (results), `verify.xml` (JUnit) and `observations.json` (answers and logs of the running image).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from buildkit import jsonfile
from buildkit.errors import CommandFailed, UsageError
from checks.expectations import BUILD_SECRETS_VARIABLE, Expectations, SecretFingerprint
from checks.results import RESULTS_VERSION, CheckResult, Results

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["TIERS", "VerifyResult", "verify"]

TIERS: Final = ("static", "device")
_PROJECT: Final = Path(__file__).resolve().parents[2]
_PYTEST_USAGE: Final = 2
_TAIL_LINES: Final = 40


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The results of all checks of an image.

    Attributes:
        results: the outcome of each check, as in `verify.json`.
        required: the tiers in which "not verified" is a finding.
        json_path: the results as JSON.
        junit_path: the results as JUnit XML.
    """

    results: Results
    required: frozenset[str]
    json_path: Path
    junit_path: Path

    @property
    def findings(self) -> tuple[CheckResult, ...]:
        """The checks that failed, and those of a required tier that were not verified."""
        return tuple(
            check
            for check in self.results.checks
            if check.outcome == "fail" or (check.outcome == "not verified" and check.tier in self.required)
        )

    @property
    def errors(self) -> tuple[CheckResult, ...]:
        """The checks that broke."""
        return tuple(check for check in self.results.checks if check.outcome == "error")

    @property
    def exit_code(self) -> int:
        """0: no findings. 1: findings. 3: no findings, but checks broke or none ran."""
        if self.findings:
            return 1
        return 3 if self.errors or not self.results.checks else 0


def verify(
    image: str,
    expectations: Expectations,
    *,
    output: Path,
    environment: Mapping[str, str],
    engine_host: str | None = None,
    require: Collection[str] = (),
    build_secrets: Mapping[str, str] | None = None,
    cache: Path | None = None,
    progress: IO[str] = sys.stderr,
) -> VerifyResult:
    """Runs every check against *image* and writes the files into *output*.

    Side effects: containers labelled `io.truthgraph.checks`, removed at the end.

    Args:
        image: digest or name; the results name the digest.
        expectations: the properties that the image must have.
        output: the folder for the files.
        environment: of the process that runs the checks; usually the caller's own.
        engine_host: address of the engine, as in DOCKER_HOST; None uses *environment*.
        require: the tiers, of `TIERS`, in which "not verified" is a finding.
        build_secrets: name -> plain value of the build secrets; passed by the environment only, never in a file.
        cache: a folder that caches the contents of layers; without it every layer is read every time.
        progress: the stream for pytest's output while it runs.

    Raises:
        UsageError: *require* names no tier, the engine has no such image, or the checks refuse the expectations.
        CommandFailed: the engine cannot be reached, or the checks broke before the first result.
        InvalidFile: the results are of another version.
    """
    for tier in require:
        if tier not in TIERS:
            raise UsageError("require", tier, f"expected one of {', '.join(TIERS)}")
    given = dict(build_secrets or {})
    json_path, junit_path, expect_path = (output / name for name in ("verify.json", "verify.xml", "expect.json"))
    json_path.unlink(missing_ok=True)
    junit_path.unlink(missing_ok=True)
    replace(expectations, build_secrets=SecretFingerprint.of(given)).save(expect_path)
    command = _command(image, output, cache)
    exit_code, tail = _run(command, _environment(environment, given, engine_host), progress)
    if not json_path.exists():
        if exit_code == _PYTEST_USAGE:
            raise UsageError("image", image, tail)
        raise CommandFailed(command, exit_code, tail)
    results = jsonfile.load(json_path, Results, version=RESULTS_VERSION, what="check results", fix="verify again")
    return VerifyResult(results, frozenset(require), json_path, junit_path)


def _command(image: str, output: Path, cache: Path | None) -> list[str]:
    """Returns the call of pytest that runs the checks; the process runs in another folder, so paths are absolute."""
    files = {name: str((output / name).resolve()) for name in ("expect.json", "verify.json", "observations.json")}
    return [
        *(sys.executable, "-m", "pytest", "checks", "--quiet", "--no-header", "--no-summary", "--tb=no"),
        *("-p", "no:cacheprovider", "--image", image, "--expect", files["expect.json"]),
        *("--results", files["verify.json"], f"--junit-xml={(output / 'verify.xml').resolve()}"),
        *("--record", files["observations.json"]),
        *(("--layer-cache", str(cache.resolve())) if cache else ()),
    ]


def _environment(inherited: Mapping[str, str], secrets: Mapping[str, str], engine_host: str | None) -> dict[str, str]:
    """Returns the environment of the checks, without the caller's pytest options and plugins."""
    environment = {name: value for name, value in inherited.items() if not name.startswith("PYTEST_")}
    environment |= {BUILD_SECRETS_VARIABLE: json.dumps(secrets), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return environment | ({"DOCKER_HOST": engine_host} if engine_host else {})


def _run(command: Sequence[str], environment: Mapping[str, str], progress: IO[str]) -> tuple[int, str]:
    """Runs *command* and copies its output to *progress*; returns the exit code and the last 40 lines."""
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        command, cwd=_PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            progress.write(line)
            progress.flush()
            tail.append(line)
    return process.returncode, "".join(tail).strip()
