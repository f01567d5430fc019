"""Checks the workflows of .github: commands and options exist, actions are pinned, permissions are minimal."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from buildkit.cli.main import make_parser
from tests.support.sessions import sessions

PROJECT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
# Jobs that may write: file, job, scope.
WRITERS = {("comment.yml", "comment", "pull-requests")}


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def jobs() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path.name, name, job) for path in WORKFLOWS for name, job in load(path)["jobs"].items()]


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{file}: {name}", step) for file, name, job in jobs() for step in job["steps"]]


def nox_calls(script: str) -> list[list[str]]:
    """Returns the arguments of each call of nox in *script*."""
    joined = script.replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in map(str.strip, joined.splitlines()) if line.startswith("nox ")]


def faults_of(call: list[str]) -> list[str]:
    """Returns the faults of a call of nox: unknown sessions, and options that a command does not take."""
    split = call.index("--") if "--" in call else len(call)
    (flag, *names), given = call[:split], call[split + 1 :]
    if flag != "-s":
        return [f"expected -s, found {flag}"]
    known = sessions()
    faults = [f"no session {name}" for name in names if name not in known]
    for command in (known.get(name) for name in names):
        if command is not None:
            try:
                make_parser(command).parse_args([command, *given])
            except (SystemExit, argparse.ArgumentError):
                faults.append(f"python -m buildkit {command} does not take {given}")
    return faults


def test_workflows_call_nox() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "comment.yml"]
    called = {
        name for _, step in steps() for call in nox_calls(step.get("run", "")) for name in call if name in sessions()
    }
    assert called >= {"lint", "types", "tests", "build-image", "verify-image", "measure-image", "compare-images"}


@pytest.mark.parametrize(("place", "step"), steps())
def test_command_exists_with_its_options(place: str, step: dict[str, Any]) -> None:
    assert [fault for call in nox_calls(step.get("run", "")) for fault in faults_of(call)] == [], place


@pytest.mark.parametrize(("place", "step"), steps())
def test_script_is_valid_bash(place: str, step: dict[str, Any]) -> None:
    done = subprocess.run(["bash", "-n"], input=step.get("run", ""), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{place}: {done.stderr}"


@pytest.mark.parametrize(
    "call", ["-s tset", "-s measure-image -- --formt html", "-s compare-images -- one.json", "measure-image"]
)
def test_unknown_command_is_a_fault(call: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults_of(call.split())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("place", "step"), steps())
def test_actions_are_pinned_and_scripts_use_no_expression(place: str, step: dict[str, Any]) -> None:
    if "uses" in step:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), place
        text = next(path.read_text() for path in WORKFLOWS if place.startswith(path.name))
        assert re.search(rf"{re.escape(step['uses'])} # v\d+\.\d+\.\d+$", text, re.MULTILINE), place
    assert "${{" not in step.get("run", ""), "pass it in `env`: a title could be a command"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_tokens_have_only_the_permissions_of_their_jobs(path: Path) -> None:
    workflow = load(path)
    assert workflow["permissions"] == {}
    assert "pull_request_target" not in path.read_text()
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 60
        for scope, access in job["permissions"].items():
            assert access == "read" or (path.name, name, scope) in WRITERS, (name, scope)


def test_job_with_write_permission_checks_nothing_out() -> None:
    for file, name, job in jobs():
        if "write" in job["permissions"].values():
            assert not [step for step in job["steps"] if "uses" in step], (file, name)
