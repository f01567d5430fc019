from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from buildkit.engine import daemon
from buildkit.engine.client import Engine
from buildkit.engine.daemon import ManagedDaemon
from buildkit.errors import EngineTooOld, EngineUnavailable
from tests.support.polling import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.docker_stub import DockerStub

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock", "PATH": os.environ["PATH"]}


@pytest.fixture
def managed(tmp_path: Path) -> ManagedDaemon:
    return ManagedDaemon(state=tmp_path / "state", run=tmp_path / "run")


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names an engine that does not answer."""
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE["DOCKER_HOST"])


def answer_info(docker_stub: DockerStub, version: str) -> None:
    docker_stub.answer("info *", output=json.dumps({"ServerVersion": version, "DockerRootDir": "/var/lib/docker"}))


def test_engine_that_answers_is_found(docker_stub: DockerStub, managed: ManagedDaemon) -> None:
    answer_info(docker_stub, "26.1.5")

    found = daemon.find({}, managed)

    assert (found.host, found.version) == ("", "26.1.5")


def test_old_engine_is_refused_with_both_versions(docker_stub: DockerStub, managed: ManagedDaemon) -> None:
    answer_info(docker_stub, "20.10.24+dfsg1")

    with pytest.raises(EngineTooOld, match=r"Docker Engine 20\.10\.24\+dfsg1 is too old: 23\.0 or newer"):
        daemon.find({}, managed)


@pytest.mark.usefixtures("no_engine")
def test_missing_engine_is_reported_with_the_command_to_run(managed: ManagedDaemon) -> None:
    with pytest.raises(EngineUnavailable, match="nox -s engine") as caught:
        daemon.find(NO_ENGINE, managed)

    assert caught.value.exit_code == 3


def test_engine_that_fails_without_output_has_its_exit_code(docker_stub: DockerStub, managed: ManagedDaemon) -> None:
    docker_stub.answer("info *", exit_code=7)

    with pytest.raises(EngineUnavailable, match="exit code 7"):
        daemon.find({}, managed)


@pytest.mark.usefixtures("no_engine")
def test_engine_that_the_user_named_is_never_replaced(managed: ManagedDaemon) -> None:
    logged: list[str] = []

    with pytest.raises(EngineUnavailable):
        daemon.ensure(NO_ENGINE, managed, logged.append)

    assert logged == []


def test_bridge_isolates_the_daemon_from_the_network(managed: ManagedDaemon, tmp_path: Path) -> None:
    isolated = ManagedDaemon(tmp_path, tmp_path, "br0").configuration()

    assert (isolated["bridge"], isolated["iptables"], isolated["ip-forward"]) == ("br0", False, False)
    assert "bridge" not in managed.configuration()


def test_leftovers_of_a_killed_daemon_are_removed(managed: ManagedDaemon) -> None:
    """A pid file with the number of another program would keep dockerd from starting."""
    managed.run.mkdir(parents=True)
    managed.pid_file.write_text(str(os.getpid()))
    managed.socket.touch()

    daemon._clear_leftovers(managed, lambda _: None)

    assert not managed.pid_file.exists()
    assert not managed.socket.exists()


def test_pid_file_counts_only_for_its_live_program(managed: ManagedDaemon) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        managed.run.mkdir(parents=True)
        managed.pid_file.write_text(str(process.pid))
        assert daemon._running_pid(managed.pid_file, "sleep") == process.pid
        assert daemon._running_pid(managed.pid_file, "dockerd") is None

        process.kill()

        until(lambda: daemon._running_pid(managed.pid_file, "sleep") is None, "the killed process counts as ended")


def test_stop_without_a_running_daemon_returns_false(managed: ManagedDaemon) -> None:
    assert daemon.stop(managed, lambda _: None) is False


def test_purge_removes_the_state_of_the_daemon(managed: ManagedDaemon) -> None:
    (managed.state / "data").mkdir(parents=True)

    daemon.stop(managed, lambda _: None, purge=True)

    assert not managed.state.exists()


@pytest.mark.parametrize("is_managed", [False, True])
def test_clean_prunes_the_build_cache_of_the_managed_daemon_only(
    docker_stub: DockerStub, managed: ManagedDaemon, *, is_managed: bool
) -> None:
    docker_stub.answer("image ls *", output="sha256:b\nsha256:a\nsha256:b")
    docker_stub.answer("image rm *")
    docker_stub.answer("buildx prune *")
    engine = Engine(managed.host if is_managed else "", "26.1.5", None)

    daemon.clean(engine, managed, ["api"], lambda _: None)

    assert "image rm --force sha256:a sha256:b" in docker_stub.calls
    assert ("buildx prune --all --force" in docker_stub.calls) == is_managed
