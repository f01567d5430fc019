from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from buildkit.engine import client
from buildkit.engine.client import Engine
from buildkit.engine.processes import program_of
from buildkit.errors import CommandFailed, EngineTooOld

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.docker_stub import DockerStub

ENGINE = Engine("unix:///engine.sock", "26.1.5", None)


def test_docker_reaches_the_engine_by_its_host(docker_stub: DockerStub) -> None:
    docker_stub.answer("image ls", script='echo "$DOCKER_HOST"')

    assert ENGINE.docker("image", "ls") == "unix:///engine.sock\n"


def test_docker_passes_input_and_environment(docker_stub: DockerStub) -> None:
    docker_stub.answer("exec", script='echo "$NAME $(cat)"')

    assert ENGINE.docker("exec", stdin="text", environment={**os.environ, "NAME": "value"}) == "value text\n"


@pytest.mark.parametrize(
    ("script", "exit_code", "log"),
    [("echo no room >&2; exit 9", 9, "no room"), ("exec sleep 60", 124, "no answer within 0.3 s")],
)
def test_docker_failure_has_exit_code_and_log(docker_stub: DockerStub, script: str, exit_code: int, log: str) -> None:
    docker_stub.answer("pull image", script=script)

    with pytest.raises(CommandFailed) as caught:
        ENGINE.docker("pull", "image", seconds=0.3)

    assert (caught.value.exit_code_of_command, caught.value.log_tail) == (exit_code, log)


def test_missing_docker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(CommandFailed, match="docker is not installed"):
        ENGINE.docker("info")
    with pytest.raises(CommandFailed, match="docker is not installed"):
        ENGINE.stream("info", on_line=print)


def test_stream_gives_lines_of_output_and_errors(docker_stub: DockerStub) -> None:
    docker_stub.answer("push image", output="one", errors="two")
    lines: list[str] = []

    ENGINE.stream("push", "image", on_line=lines.append)

    assert lines == ["one", "two"]


def test_stream_failure_holds_the_last_lines(docker_stub: DockerStub) -> None:
    docker_stub.answer("push image", output="denied", exit_code=1)

    with pytest.raises(CommandFailed, match="denied"):
        ENGINE.stream("push", "image", on_line=lambda _: None)


def test_stream_beyond_its_time_is_ended_with_the_reason(docker_stub: DockerStub) -> None:
    docker_stub.answer("logs container", script="exec sleep 60")

    with pytest.raises(CommandFailed, match=r"exit code 124:\nnot finished within 0\.2 s"):
        ENGINE.stream("logs", "container", on_line=lambda _: None, seconds=0.2)


def test_interrupted_stream_leaves_no_process(docker_stub: DockerStub) -> None:
    docker_stub.answer("push image", script="echo $$; exec sleep 60")
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ENGINE.stream("push", "image", on_line=interrupt)

    assert [program_of(pid) for pid in pids] == [None]


def test_pipe_reads_and_writes_files(docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer("exec container restore", script='tr a-z A-Z; echo "$DOCKER_HOST"')
    (tmp_path / "in").write_text("text ")

    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        ENGINE.pipe("exec", "container", "restore", stdin=source, stdout=sink)

    assert (tmp_path / "out").read_text() == "TEXT unix:///engine.sock\n"


def test_pipe_failure_holds_its_errors(docker_stub: DockerStub) -> None:
    docker_stub.answer("exec container backup", output="printed", errors="no room", exit_code=1)

    with pytest.raises(CommandFailed, match="no room"):
        ENGINE.pipe("exec", "container", "backup")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("26.1.5+dfsg1", (26, 1, 5)), ("0.13.1+ds1", (0, 13, 1)), ("24.0.7-rc.1", (24, 0, 7)), ("dev", (0,))],
)
def test_version_numbers_are_the_leading_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert numbers == client.version_numbers(text)


def test_connect_refuses_a_client_without_engine(docker_stub: DockerStub) -> None:
    docker_stub.answer("info *", output=json.dumps({"ServerErrors": ["connection refused"]}))

    with pytest.raises(CommandFailed, match="connection refused"):
        client.connect("")


@pytest.mark.parametrize(("answer", "shown"), [("", "not installed"), ("github.com/docker/buildx v0.9.1 x", "0.9.1")])
def test_missing_or_old_buildx_is_refused(docker_stub: DockerStub, answer: str, shown: str) -> None:
    docker_stub.answer("version *", output="26.1.5")
    docker_stub.answer("buildx version", output=answer, exit_code=0 if answer else 1)

    with pytest.raises(EngineTooOld, match=shown):
        client.versions(Engine("", "26.1.5", None))


def test_versions_name_the_builder_of_the_engine(docker_stub: DockerStub) -> None:
    docker_stub.answer("version *", output="26.1.6")
    docker_stub.answer("buildx version", output="github.com/docker/buildx v0.13.1 x")
    docker_stub.answer("buildx inspect", output="Name: default\nBuildKit version: v0.12.5+unknown")

    assert client.versions(Engine("", "26.1.5", None)) == {
        "engine": "26.1.5",
        "client": "26.1.6",
        "buildx": "0.13.1",
        "buildkit": "built into Docker Engine 26.1.5",
    }
