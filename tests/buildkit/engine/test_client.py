from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from buildkit.engine.client import Engine
from buildkit.engine.processes import program_of
from buildkit.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENGINE = Engine("unix:///engine.sock", "26.1.5", None)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a `docker` in front of PATH that runs the shell script it is given."""
    docker = tmp_path / "docker"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(script: str) -> None:
        docker.write_text(f"#!/bin/sh\n{script}\n")
        docker.chmod(0o755)

    return write


def test_docker_reaches_the_engine_by_its_host(program: Callable[[str], None]) -> None:
    program('echo "$DOCKER_HOST $*"')

    assert ENGINE.docker("image", "ls") == "unix:///engine.sock image ls\n"


def test_docker_passes_input_and_environment(program: Callable[[str], None]) -> None:
    program('echo "$NAME $(cat)"')

    assert ENGINE.docker("exec", given="text", environment={**os.environ, "NAME": "value"}) == "value text\n"


@pytest.mark.parametrize(
    ("script", "exit_code", "log"),
    [("echo no room >&2; exit 9", 9, "no room"), ("exec sleep 60", 124, "no answer within 0 s")],
)
def test_docker_failure_has_exit_code_and_log(
    program: Callable[[str], None], script: str, exit_code: int, log: str
) -> None:
    program(script)

    with pytest.raises(CommandFailed) as caught:
        ENGINE.docker("pull", "image", seconds=0.3)

    assert (caught.value.exit_code_of_command, caught.value.log_tail) == (exit_code, log)


def test_missing_docker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(CommandFailed, match="docker is not installed"):
        ENGINE.docker("info")
    with pytest.raises(CommandFailed, match="docker is not installed"):
        ENGINE.stream("info", on_line=print)


def test_stream_gives_lines_of_output_and_errors(program: Callable[[str], None]) -> None:
    program("echo one; echo two >&2")
    lines: list[str] = []

    ENGINE.stream("push", "image", on_line=lines.append)

    assert lines == ["one", "two"]


def test_stream_failure_holds_the_last_lines(program: Callable[[str], None]) -> None:
    program("echo denied; exit 1")

    with pytest.raises(CommandFailed, match="denied"):
        ENGINE.stream("push", "image", on_line=lambda _: None)


def test_stream_ends_after_its_time(program: Callable[[str], None]) -> None:
    program("exec sleep 60")

    with pytest.raises(CommandFailed):
        ENGINE.stream("logs", "container", on_line=lambda _: None, seconds=0.2)


def test_interrupted_stream_leaves_no_process(program: Callable[[str], None]) -> None:
    program("echo $$; exec sleep 60")
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ENGINE.stream("push", "image", on_line=interrupt)

    assert [program_of(pid) for pid in pids] == [None]


def test_pipe_reads_and_writes_files(program: Callable[[str], None], tmp_path: Path) -> None:
    program('tr a-z A-Z; echo "$DOCKER_HOST"')
    (tmp_path / "in").write_text("text ")

    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as sink:
        ENGINE.pipe("exec", "container", "restore", stdin=source, stdout=sink)

    assert (tmp_path / "out").read_text() == "TEXT unix:///engine.sock\n"


def test_pipe_failure_holds_its_errors(program: Callable[[str], None]) -> None:
    program("echo printed; echo no room >&2; exit 1")

    with pytest.raises(CommandFailed, match="no room"):
        ENGINE.pipe("exec", "container", "backup")
