from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from buildkit.engine import client, daemon, install
from buildkit.errors import CommandFailed, EngineTooOld, EngineUnavailable

if TYPE_CHECKING:
    from pathlib import Path

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock", "PATH": os.environ["PATH"]}


def program(folder: Path, name: str, script: str) -> None:
    """A stand-in for a program of the machine, found first on PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def private(tmp_path: Path) -> daemon.ManagedDaemon:
    return daemon.ManagedDaemon(state=tmp_path / "state", run=tmp_path / "run")


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return folder


def info(version: str) -> str:
    return f"echo '{json.dumps({'ServerVersion': version, 'DockerRootDir': '/var/lib/docker'})}'"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("26.1.5+dfsg1", (26, 1, 5)), ("0.13.1+ds1", (0, 13, 1)), ("24.0.7-rc.1", (24, 0, 7)), ("dev", (0,))],
)
def test_versions_compare_by_their_leading_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert numbers == client.version_numbers(text)


def test_an_engine_that_answers_is_used_as_it_is(on_path: Path, private: daemon.ManagedDaemon) -> None:
    program(on_path, "docker", info("26.1.5"))

    found = daemon.find({}, private)

    assert (found.host, found.version) == ("", "26.1.5")


def test_an_old_engine_is_refused_with_both_versions(on_path: Path, private: daemon.ManagedDaemon) -> None:
    program(on_path, "docker", info("20.10.24+dfsg1"))

    with pytest.raises(EngineTooOld, match=r"Docker Engine 20\.10\.24\+dfsg1 is too old: 23\.0 or newer"):
        daemon.find({}, private)


@pytest.mark.parametrize(
    ("answer", "shown"), [("exit 1", "not installed"), ("echo github.com/docker/buildx v0.9.1 x", "0.9.1")]
)
def test_missing_or_old_buildx_is_refused(on_path: Path, answer: str, shown: str) -> None:
    program(on_path, "docker", f'case "$1" in version) echo 26.1.5;; buildx) {answer};; esac')

    with pytest.raises(EngineTooOld, match=shown):
        client.versions(client.Engine("", "26.1.5", None))


def test_no_engine_says_how_to_have_one(private: daemon.ManagedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE["DOCKER_HOST"])

    with pytest.raises(EngineUnavailable) as caught:
        daemon.find(NO_ENGINE, private)

    assert "nox -s engine" in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_engine_that_the_user_named_is_never_replaced(
    private: daemon.ManagedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", NO_ENGINE["DOCKER_HOST"])
    said: list[str] = []

    with pytest.raises(EngineUnavailable):
        daemon.ensure(NO_ENGINE, private, said.append)

    assert said == []


def test_an_engine_that_hangs_counts_as_none(on_path: Path) -> None:
    program(on_path, "docker", "exec sleep 30")

    with pytest.raises(CommandFailed, match="no answer within"):
        client.docker("", "info", seconds=0.2)


def test_whoever_may_not_install_is_told_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(EngineUnavailable) as caught:
        install._require_root_and_apt(("docker.io", "docker-cli"))

    assert "docker.io" in str(caught.value)
    assert caught.value.commands


def test_the_pin_takes_only_dockers_packages_from_debian_13() -> None:
    everything, ours = install.backport_pins().strip().split("\n\n")

    assert "Package: *" in everything
    assert "Pin-Priority: -1" in everything
    assert "docker.io docker-cli docker-buildx containerd" in ours
    assert "runc" not in ours


def test_the_donor_is_the_machines_own_mirror() -> None:
    source = install.backport_source("http://mirror.test/debian/")

    assert "URIs: http://mirror.test/debian/" in source
    assert "Suites: trixie" in source


def test_leftovers_of_a_killed_engine_are_cleared(private: daemon.ManagedDaemon) -> None:
    """A pid file whose number now belongs to another program would keep dockerd from starting."""
    private.run.mkdir(parents=True)
    private.pid_file.write_text(str(os.getpid()))
    private.socket.touch()

    daemon._clear_leftovers(private, lambda _: None)

    assert not private.pid_file.exists()
    assert not private.socket.exists()


def test_a_killed_engine_that_nobody_waited_for_does_not_run(private: daemon.ManagedDaemon) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        private.run.mkdir(parents=True)
        private.pid_file.write_text(str(process.pid))
        assert daemon._runs(private.pid_file, "sleep") == process.pid
        assert daemon._runs(private.pid_file, "dockerd") is None
        process.kill()
        deadline = time.monotonic() + 5
        while daemon._runs(private.pid_file, "sleep") and time.monotonic() < deadline:
            time.sleep(0.01)

        assert daemon._runs(private.pid_file, "sleep") is None


def test_stopping_where_nothing_runs_says_so(private: daemon.ManagedDaemon) -> None:
    assert daemon.stop(private, lambda _: None) is False


def test_purge_removes_what_was_stored(private: daemon.ManagedDaemon) -> None:
    (private.state / "data").mkdir(parents=True)

    daemon.stop(private, lambda _: None, purge=True)

    assert not private.state.exists()
