"""A fake `docker` program for tests: records its calls and answers from a table.

    docker = DockerStub(tmp_path)            # or take the fixture `docker_stub`, which is first on PATH
    docker.answer("image inspect known", output='[{"Id": "sha256:..."}]')
    docker.answer("pull *", errors="denied", exit_code=1)
    docker.answer("save known", script=f"cat {archive}")
    ...
    assert docker.calls == ["image inspect known"]

A call without an answer exits with 1.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

__all__ = ["DockerStub", "write_program"]


def write_program(path: Path, script: str) -> Path:
    """Writes *script* as an executable shell program, making its folder; returns *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


class DockerStub:
    """The fake program `docker` in *folder*, and its table of answers."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "docker"
        self._log = folder / "docker.calls"
        self._cases: list[str] = []
        self._write()

    @property
    def calls(self) -> list[str]:
        """The arguments of each call, joined by spaces, in order."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def answer(
        self, arguments: str, output: str = "", *, errors: str = "", exit_code: int = 0, script: str = ""
    ) -> None:
        """Adds an answer; if several fit a call, the latest is given.

        Args:
            arguments: the call's arguments joined by spaces; `*` and `?` match as in a shell pattern.
            output: printed to standard output.
            errors: printed to standard error.
            exit_code: of the program.
            script: shell commands to run before all that, for instance `cat FILE` or `sleep 30`.
        """
        pattern = re.sub(r"[^\w*?]", r"\\\g<0>", arguments)
        steps = [script] if script else []
        steps += [f"printf '%s\\n' {shlex.quote(output)}"] if output else []
        steps += [f"printf '%s\\n' {shlex.quote(errors)} >&2"] if errors else []
        self._cases.insert(0, "\n".join([f"{pattern})", *steps, f"exit {exit_code};;"]))
        self._write()

    def first_on_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes `docker` mean this program until the test ends."""
        monkeypatch.setenv("PATH", f"{self.program.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("DOCKER_HOST", raising=False)

    def _write(self) -> None:
        log = shlex.quote(str(self._log))
        write_program(self.program, "\n".join([f'echo "$*" >>{log}', 'case "$*" in', *self._cases, "esac", "exit 1"]))
