from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.docker_stub import DockerStub


def run(*arguments: str) -> tuple[int, str, str]:
    ended = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_call_gets_its_answer_and_is_recorded(docker_stub: DockerStub) -> None:
    docker_stub.answer("image inspect a:1", output='{"a": "it\'s"}')
    docker_stub.answer("pull *", errors="denied", exit_code=3)

    assert run("image", "inspect", "a:1") == (0, '{"a": "it\'s"}\n', "")
    assert run("pull", "b") == (3, "", "denied\n")
    assert docker_stub.calls == ["image inspect a:1", "pull b"]


def test_call_without_answer_fails(docker_stub: DockerStub) -> None:
    docker_stub.answer("image inspect a.1")

    assert run("image", "inspect", "aX1")[0] == 1


def test_latest_answer_that_fits_is_given(docker_stub: DockerStub) -> None:
    docker_stub.answer("*", output="any")
    docker_stub.answer("info", script="cat /dev/null", output="one")

    assert (run("info")[1], run("version")[1]) == ("one\n", "any\n")
