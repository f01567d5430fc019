from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import CommandFailed, RegistryFailed
from buildkit.staging.stack.registry import LocalRegistry, Registry
from tests.support.docker_stub import write_program
from tests.support.http_server import Reply, Request, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
"""The registry is meant to outlive the object that started it."""

PROGRAM = f"""#!{sys.executable}
import json, pathlib, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
configuration = json.load(open(sys.argv[-1]))
if sys.argv[1] == "garbage-collect":
    (pathlib.Path(configuration["storage"]["filesystem"]["rootdirectory"]) / "unused").unlink()
    sys.exit(0)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
host, port = configuration["http"]["addr"].split(":")
HTTPServer((host, int(port)), Handler).serve_forever()
"""
"""A program with the part of docker-registry that staging uses."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[LocalRegistry]:
    """A local registry whose program is unpacked; it is stopped at the end."""
    found = LocalRegistry(tmp_path / "registry", free_port())
    found.program.parent.mkdir(parents=True)
    found.program.write_text(PROGRAM)
    found.program.chmod(0o755)
    yield found
    found.stop(lambda _: None)


@pytest.mark.parametrize(("status", "existed"), [(202, True), (404, False)])
def test_delete_returns_whether_the_manifest_existed(status: int, *, existed: bool) -> None:
    paths: list[str] = []

    def respond(request: Request) -> Reply:
        paths.append(f"{request.method} {request.path}")
        return Reply(status)

    with serve(respond) as url:
        assert Registry(url.removeprefix("http://")).delete("truthgraph-api", "sha256:a") is existed

    assert paths == ["DELETE /v2/truthgraph-api/manifests/sha256:a"]


def test_delete_that_is_not_allowed_is_an_error() -> None:
    with (
        serve(lambda _: Reply(405)) as url,
        pytest.raises(RegistryFailed, match="answered 405 to the deletion of api@sha256:a"),
    ):
        Registry(url.removeprefix("http://")).delete("api", "sha256:a")


@pytest.mark.parametrize(("status", "is_registry"), [(200, True), (401, True), (404, False)])
def test_answers_only_for_a_registry(status: int, *, is_registry: bool) -> None:
    with serve(lambda _: Reply(status)) as url:
        assert Registry(url.removeprefix("http://")).answers() is is_registry


def test_closed_port_is_no_registry() -> None:
    registry = Registry(f"127.0.0.1:{free_port()}")

    assert not registry.answers()
    with pytest.raises(RegistryFailed, match="does not answer"):
        registry.delete("api", "sha256:a")


def test_local_registry_starts_once_and_stops(registry: LocalRegistry) -> None:
    lines: list[str] = []

    registry.ensure(lines.append)
    pid = registry.pid()
    registry.ensure(lines.append)

    assert registry.pid() == pid is not None
    assert len(lines) == 1
    assert registry.stop(lines.append)
    assert registry.pid() is None


def test_local_registry_collects_garbage_and_runs_on(registry: LocalRegistry) -> None:
    registry.ensure(lambda _: None)
    (registry.folder / "images").mkdir()
    (registry.folder / "images" / "unused").write_bytes(b"x" * 1000)

    assert registry.collect_garbage(lambda _: None) == 1000
    assert registry.pid() is not None


def test_failed_garbage_collection_is_an_error(registry: LocalRegistry) -> None:
    registry.ensure(lambda _: None)

    with pytest.raises(CommandFailed, match="garbage-collect"):
        registry.collect_garbage(lambda _: None)

    assert registry.pid() is not None


def test_purge_removes_the_folder(registry: LocalRegistry) -> None:
    assert registry.stop(lambda _: None, purge=True) is False
    assert not registry.folder.exists()


def test_foreign_registry_on_the_port_is_refused(tmp_path: Path) -> None:
    with serve(lambda _: b"") as url:
        registry = LocalRegistry(tmp_path, int(url.rpartition(":")[2]))
        with pytest.raises(RegistryFailed, match="not started by this project"):
            registry.ensure(lambda _: None)


def test_stale_pid_file_counts_as_not_running(tmp_path: Path) -> None:
    """Another program may have its number by now: this test, for example."""
    (tmp_path / "registry.pid").write_text(f"{os.getpid()}\n")

    assert LocalRegistry(tmp_path).pid() is None


def test_local_registry_listens_on_loopback_only(tmp_path: Path) -> None:
    assert LocalRegistry(tmp_path, 5099).configuration()["http"] == {"addr": "127.0.0.1:5099"}


def test_local_registry_that_does_not_start_says_why(tmp_path: Path) -> None:
    registry = LocalRegistry(tmp_path, free_port())
    write_program(registry.program, "echo no room >&2\nexit 1")

    with pytest.raises(RegistryFailed, match=r"did not start(?s:.*)no room") as caught:
        registry.ensure(lambda _: None)

    assert caught.value.exit_code == 3
    assert registry.pid() is None


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH with an apt-get that has a package, and a dpkg-deb that unpacks it."""
    folder = tmp_path / "apt"
    write_program(folder / "apt-get", 'case "$*" in download*) touch docker-registry_1_amd64.deb;; esac')
    unpacked = "echo '#!/bin/sh' >$3/usr/bin/docker-registry; chmod 755 $3/usr/bin/docker-registry"
    write_program(folder / "dpkg-deb", f"mkdir -p $3/usr/bin; {unpacked}")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_package_is_unpacked_before_the_first_start(apt: Path, tmp_path: Path) -> None:
    del apt
    registry = LocalRegistry(tmp_path / "registry", free_port())

    with pytest.raises(RegistryFailed, match="did not start"):  # the unpacked program does nothing
        registry.ensure(lambda _: None)

    assert registry.program.exists()
    assert not (registry.folder / "fetched").exists()


def test_package_lists_are_updated_if_they_lack_the_package(apt: Path, tmp_path: Path) -> None:
    write_program(apt / "apt-get", "exit 100")
    lines: list[str] = []

    with pytest.raises(CommandFailed):
        LocalRegistry(tmp_path / "registry", free_port()).ensure(lines.append)

    assert lines[-1] == "running apt-get update: the package lists do not have it"


def test_machine_without_apt_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(CommandFailed, match="is a Debian package and needs apt"):
        LocalRegistry(tmp_path / "registry", free_port()).ensure(lambda _: None)
