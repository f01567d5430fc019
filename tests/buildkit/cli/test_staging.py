"""The staging commands on a fake `docker`; `stage-down` also on a real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from buildkit.cli.main import main
from buildkit.staging import retention, status, watch
from buildkit.staging.release import records, release, rollback
from buildkit.staging.stack import swarm
from buildkit.staging.status import StackStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buildkit.staging.release.run import ReleaseContext
    from tests.support.docker_stub import DockerStub

ROOT = Path(__file__).parents[3]
HEALTHY = StackStatus(
    desired=dict.fromkeys(("api", "database", "proxy"), 0),
    replicas=dict.fromkeys(("api", "database", "proxy"), ()),
    failed={},
    memory_bytes={},
    scrapes=(),
)


@pytest.fixture
def run(docker_stub: DockerStub, tmp_path: Path) -> Callable[..., int]:
    """Runs a command with its own state folder, on an engine that has one container of each service."""
    docker_stub.answer("info *", output=json.dumps({"ServerVersion": "26.1.5", "DockerRootDir": "/nowhere"}))
    docker_stub.answer("ps *", output="container1 Up 5 minutes (healthy)")

    def run_command(command: str, *words: str) -> int:
        return main(["--project", str(ROOT), command, "--state", str(tmp_path / "state"), *words])

    return run_command


def test_backup_writes_a_private_file(run: Callable[..., int], docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer("exec --interactive container1 backup", output="PGDMP")
    file = tmp_path / "staging.dump"

    assert run("backup", str(file)) == 0

    assert file.read_text() == "PGDMP\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_failed_backup_keeps_the_older_file(run: Callable[..., int], docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer("exec --interactive container1 backup", output="half", errors="pg_dump: error", exit_code=1)
    file = tmp_path / "staging.dump"
    file.write_text("older")

    assert run("backup", str(file)) == 3

    assert file.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.endswith((".dump", ".part"))) == [
        "staging.dump"
    ]


def test_backup_into_a_missing_folder_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("backup", str(tmp_path / "none" / "staging.dump")) == 2
    assert "its folder does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--replace",)])
def test_restore_sends_the_file(
    run: Callable[..., int], docker_stub: DockerStub, tmp_path: Path, options: tuple[str, ...]
) -> None:
    words = " ".join(("exec --interactive container1 restore", *options))
    docker_stub.answer(words, script=f"cat >{tmp_path}/restored")
    file = tmp_path / "staging.dump"
    file.write_text("PGDMP")

    assert run("restore", str(file), *options) == 0

    assert (tmp_path / "restored").read_text() == "PGDMP"


def test_restore_of_a_missing_file_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("restore", str(tmp_path / "none.dump")) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("problem", "code"), [("", 0), ("the stack is not running", 1)])
def test_status_exits_with_the_health_of_the_stack(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    problem: str,
    code: int,
) -> None:
    found = StackStatus(HEALTHY.desired, HEALTHY.replicas, {}, {}, (), problem)
    monkeypatch.setattr(status, "read_status", lambda _stack: found)

    assert run("stage-status") == code

    assert "releases, newest first" in capsys.readouterr().out


def test_watch_passes_its_options_and_rolls_back(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[watch.WatchOptions] = []
    released = replace(records.new_release(), name="0.1.0-aaaa", outcome="serving")

    def exceed(options: watch.WatchOptions, _console: object) -> tuple[str, ...]:
        given.append(options)
        return ("error fraction 0.5, allowed 0.0",)

    monkeypatch.setattr(watch, "watch", exceed)
    monkeypatch.setattr(rollback, "roll_back", lambda _context, _name: released)

    assert run("watch", "--hours", "2", "--interval", "5", "--minutes", "1", "--rollback") == 1

    [options] = given
    assert (options.duration_seconds, options.interval_seconds, options.tolerated_minutes) == (7200, 5, 1)
    assert options.history == tmp_path / "state" / "watch.jsonl"
    output = capsys.readouterr()
    assert "rolling back: error fraction 0.5, allowed 0.0" in output.err
    assert "0.1.0-aaaa is serving at http://127.0.0.1:8080" in output.out


def test_stage_without_a_registry_is_refused(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stage") == 2
    assert "set it by --registry or in docker/images.toml" in capsys.readouterr().err


def test_stage_pushes_to_the_registry_and_prunes(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts: list[ReleaseContext] = []

    def stage(context: ReleaseContext) -> records.Release:
        contexts.append(context)
        return replace(records.new_release(), name="0.1.0-aaaa", outcome="serving")

    removed = retention.Removed(("registry.test/api@sha256:old",), 12_000_000, 0)
    monkeypatch.setattr(release, "stage", stage)
    monkeypatch.setattr(swarm, "ensure_swarm", lambda *_arguments, **_options: None)
    monkeypatch.setattr(retention, "prune_images", lambda *_arguments, **_options: removed)
    monkeypatch.setenv("TRUTHGRAPH_REPLICAS", "3")
    monkeypatch.setenv("TRUTHGRAPH_API_IMAGE", "set by the release")

    assert run("stage", "--registry", "registry.test/", "--allow-downtime", "--build", str(tmp_path / "b.json")) == 0

    [context] = contexts
    assert context.repository == "registry.test/truthgraph-api"
    assert (context.allow_downtime, context.build_path) == (True, tmp_path / "b.json")
    assert context.stack.settings == {"TRUTHGRAPH_REPLICAS": "3"}
    secrets = tmp_path / "state" / "secrets"
    assert sorted(path.name for path in secrets.iterdir()) == ["database-password", "database-url"]
    output = capsys.readouterr()
    assert "0.1.0-aaaa is serving at http://127.0.0.1:8080" in output.out
    assert "freed 12.0 MB in the engine, 0 B in the registry" in output.err


def test_down_keeps_the_state_and_marks_the_release(
    run: Callable[..., int], docker_stub: DockerStub, tmp_path: Path
) -> None:
    docker_stub.answer("info *Swarm*", output=json.dumps({"LocalNodeState": "inactive"}))
    docker_stub.answer(
        "info --format {{json .}}", output=json.dumps({"ServerVersion": "26.1.5", "DockerRootDir": "/x"})
    )
    serving = replace(records.new_release(), name="0.1.0-aaaa", outcome="serving")
    records.save(tmp_path / "state", records.Releases(releases=(serving,)))

    assert run("stage-down") == 0

    assert [each.outcome for each in records.load(tmp_path / "state").releases] == ["replaced"]


def test_purge_removes_the_volume_outside_a_swarm(docker: Sequence[str], tmp_path: Path) -> None:
    """`stage-down` leaves the swarm that was made for staging; a later `--purge` finds the volume without one."""
    name, state = "tgdown", tmp_path / "state"
    volume, other = f"{name}_database", "tgother_database"
    for made, stack in ((volume, name), (other, "tgother")):
        label = f"com.docker.stack.namespace={stack}"
        subprocess.run([*docker, "volume", "create", "--label", label, made], check=True, capture_output=True)
    try:
        command = [sys.executable, "-m", "buildkit", "stage-down", "--purge", "--name", name, "--state", str(state)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        listed = subprocess.run([*docker, "volume", "ls", "--quiet"], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*docker, "volume", "rm", "--force", volume, other], check=False, capture_output=True)

    assert done.returncode == 0, done.stderr
    assert f"removing the volume {volume}" in done.stderr
    assert volume not in listed.split()
    assert other in listed.split()
    assert not state.exists()
