"""The commands `engine`, `build` and `lock`, with a fake docker."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from buildkit.build import locks
from buildkit.build.record import load_record
from buildkit.cli.main import main
from buildkit.engine import daemon
from buildkit.errors import CommandFailed
from buildkit.timing import builder
from tests.support.projects import PROJECT, images_toml, make_project

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from buildkit.spec import ImageSpec
    from tests.support.docker_stub import DockerStub

DIGEST = "sha256:" + "a" * 64
LOCKED = ["docker/lock/torch.txt", "docker/lock/inputs.sha256"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", images_toml("demo", "api", "dev"), "FROM scratch AS runtime\n")


@pytest.fixture
def docker(docker_stub: DockerStub, tmp_path: Path) -> DockerStub:
    """A fake docker with an engine that has the base image and builds every image at once."""
    docker_stub.answer("*")
    docker_stub.answer("info *", output=json.dumps({"ServerVersion": "26.1.5", "DockerRootDir": str(tmp_path / "no")}))
    docker_stub.answer("version *", output="26.1.6")
    docker_stub.answer("buildx version", output="github.com/docker/buildx v0.13.1 x")
    docker_stub.answer("image inspect truthgraph-base:*", exit_code=1)
    image = {"Id": DIGEST, "RootFS": {"Layers": ["a"]}}
    docker_stub.answer("image inspect python:*", output=json.dumps([image]))
    metadata = json.dumps({"containerimage.digest": DIGEST})
    script = f"for word; do case $word in --metadata-file=*) echo '{metadata}' >\"${{word#*=}}\";; esac; done"
    docker_stub.answer("buildx build *", script=script)
    return docker_stub


def build_options(docker: DockerStub) -> str:
    [call] = [call for call in docker.calls if call.startswith("buildx build")]
    return call


def test_build_prints_the_digest_and_writes_the_record(
    docker: DockerStub, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--project", str(project), "build", "--no-cache"]) == 0

    assert capsys.readouterr().out == f"{DIGEST}\n"
    assert load_record(project / "build" / "image.json").tags == ("demo:latest",)
    options = build_options(docker)
    assert "--target=runtime" in options
    assert "--no-cache" in options
    assert "--output=type=image,name=demo:latest,compression=uncompressed" in options


@pytest.mark.parametrize("words", [["--include-dev"], []])
def test_include_dev_builds_the_dev_target(
    docker: DockerStub, project: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    if not words:
        monkeypatch.setenv("INCLUDE_DEV", "1")

    assert main(["build", "--project", str(project), *words]) == 0
    assert "name=demo:dev," in build_options(docker)


def test_failed_docker_is_one_message(docker: DockerStub, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docker.answer("buildx build *", errors="ERROR: no builder", exit_code=1)

    assert main(["build", "--project", str(project)]) == CommandFailed.exit_code
    assert capsys.readouterr().err.splitlines()[-1] == "ERROR: no builder"
    assert not (project / "build" / "image.json").exists()


@pytest.mark.usefixtures("docker")
def test_engine_prints_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["engine    26.1.5", "client    26.1.6"]


def test_engine_clean_removes_the_images_of_the_project(docker: DockerStub, project: Path) -> None:
    assert main(["engine", "clean", "--project", str(project)]) == 0
    assert [call.split()[-1] for call in docker.calls if call.startswith("image ls")] == ["demo", "truthgraph-base"]


def test_engine_stop_also_stops_a_killed_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    purged: list[bool] = []
    absent = daemon.ManagedDaemon(tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(daemon, "ManagedDaemon", lambda: absent)
    monkeypatch.setattr(builder, "remove_own_builder", lambda _log, *, purge: purged.append(purge))

    assert main(["engine", "stop", "--purge"]) == 0
    assert purged == [True]
    assert "no engine of this toolkit was running" in capsys.readouterr().err


def test_lock_check_of_a_stale_lock_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(PROJECT / "docker", tmp_path / "docker")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    assert main(["lock", "--check", "--project", str(tmp_path)]) == 0

    (tmp_path / "docker" / "lock" / "inputs.sha256").write_text("stale\n")

    assert main(["lock", "--check", "--project", str(tmp_path)]) == 2
    assert "run `nox -s lock`" in capsys.readouterr().err


def test_lock_prints_the_files_that_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_locks(spec: ImageSpec, *, upgrade: bool) -> Sequence[Path]:
        assert upgrade
        return [spec.project / name for name in LOCKED]

    monkeypatch.setattr(locks, "write_locks", write_locks)

    assert main(["lock", "--upgrade", "--project", str(PROJECT)]) == 0
    assert capsys.readouterr().out.splitlines() == LOCKED
