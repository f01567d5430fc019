"""Calls the container engine through the docker command line, and checks that its version is supported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.engine.processes import end
from buildkit.errors import CommandFailed, EngineTooOld

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO

__all__ = ["Engine", "connect", "docker", "start_docker", "version_numbers", "versions"]

MINIMUM_ENGINE: Final = (23, 0)
"""Docker 23: the first version that builds with BuildKit and buildx by default (release notes 23.0)."""
MINIMUM_BUILDX: Final = (0, 13)
"""buildx 0.13: the first version with `--progress=rawjson` (release notes 0.13.0), which the build record needs."""
_ANSWER_SECONDS: Final = 10.0
_TIMED_OUT: Final = 124
"""The exit code of `timeout` (coreutils) for a program that it stopped."""
_END_SECONDS: Final = 20.0
"""The time that `docker` gets after SIGINT before it is killed."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A container engine that answered.

    Attributes:
        host: the value of DOCKER_HOST for it; "" if `docker` finds it by itself.
        version: the version of the engine.
        root: the folder of its images on this machine; None if the engine is on another machine.
    """

    host: str
    version: str
    root: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that point a program to this engine."""
        return {"DOCKER_HOST": self.host} if self.host else {}

    def docker(
        self,
        *arguments: str,
        seconds: float = _ANSWER_SECONDS,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Runs `docker *arguments` against this engine and returns its output; see `docker`."""
        return docker(self.host, *arguments, seconds=seconds, stdin=stdin, environment=environment)

    def stream(self, *arguments: str, on_line: Callable[[str], None], seconds: float | None = None) -> None:
        """Runs `docker *arguments` and calls *on_line* with each line of its output and its errors as it appears.

        If *on_line* raises or the user interrupts, docker gets SIGINT, and this waits until it has ended.

        Raises:
            CommandFailed: it failed, or ran for longer than *seconds*.
        """
        command = ["docker", *arguments]
        tail: deque[str] = deque(maxlen=40)
        running = start_docker(self.host, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            running.kill()

        timer = threading.Timer(seconds or 0.0, kill)
        with running:
            if seconds is not None:
                timer.start()
            try:
                for printed in running.stdout or ():
                    line = printed.decode(errors="replace").rstrip()
                    tail.append(line)
                    on_line(line)
            except BaseException:
                end([running.pid], ask=signal.SIGINT, patience_seconds=_END_SECONDS)
                raise
            finally:
                timer.cancel()
        if running.returncode != 0 and is_late.is_set():
            raise CommandFailed(command, _TIMED_OUT, "\n".join([*tail, f"not finished within {seconds:g} s"]))
        if running.returncode != 0:
            raise CommandFailed(command, running.returncode, "\n".join(tail))

    def pipe(self, *arguments: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None) -> None:
        """Runs `docker *arguments` with files as its standard input and output; without a file, with /dev/null.

        Raises:
            CommandFailed: it failed.
        """
        nowhere = subprocess.DEVNULL
        with start_docker(
            self.host, *arguments, stdin=stdin or nowhere, stdout=stdout or nowhere, stderr=subprocess.PIPE
        ) as running:
            errors = running.communicate()[1].decode(errors="replace")
        if running.returncode != 0:
            raise CommandFailed(["docker", *arguments], running.returncode, errors.strip()[-2000:])


def docker(
    host: str,
    *arguments: str,
    seconds: float = _ANSWER_SECONDS,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs `docker *arguments` against the engine at *host* and returns its output.

    Args:
        host: the value of DOCKER_HOST; "" for the one that `docker` finds itself.
        arguments: the command and its arguments.
        seconds: the time limit.
        stdin: the text for its standard input.
        environment: the environment to use instead of that of this process.

    Raises:
        CommandFailed: it failed, or took longer than *seconds*.
    """
    command = ["docker", *arguments]
    try:
        done = subprocess.run(
            command,
            env=_environment(host, os.environ if environment is None else environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(command, 127, "docker is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(command, _TIMED_OUT, f"no answer within {seconds:g} s") from error
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, (done.stderr or done.stdout).strip()[-2000:])
    return done.stdout


def start_docker(
    host: str,
    *arguments: str,
    stdin: IO[bytes] | int | None = None,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
) -> subprocess.Popen[bytes]:
    """Starts `docker *arguments` against the engine at *host*; the caller reads its pipes and waits for it.

    Raises:
        CommandFailed: docker is not installed.
    """
    command = ["docker", *arguments]
    try:
        return subprocess.Popen(command, env=_environment(host, os.environ), stdin=stdin, stdout=stdout, stderr=stderr)
    except FileNotFoundError as error:
        raise CommandFailed(command, 127, "docker is not installed") from error


def _environment(host: str, environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, **({"DOCKER_HOST": host} if host else {})}


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns the leading numbers of *version*: (26, 1, 5) for `26.1.5+dfsg1`, and (0,) if it has none."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split("[+-]", version, maxsplit=1)[0])) or (0,)


def connect(host: str) -> Engine:
    """Returns the engine at *host*.

    Raises:
        CommandFailed: no engine answers there.
        EngineTooOld: it is older than `MINIMUM_ENGINE`.
    """
    info = json.loads(docker(host, "info", "--format", "{{json .}}"))
    version = str(info.get("ServerVersion") or "")
    if not version:
        raise CommandFailed(["docker", "info"], 1, "; ".join(info.get("ServerErrors") or ["no engine answered"]))
    if version_numbers(version) < MINIMUM_ENGINE:
        minimum = ".".join(map(str, MINIMUM_ENGINE))
        raise EngineTooOld("Docker Engine", version, minimum, "Upgrade it, or point DOCKER_HOST to another one.")
    root = Path(str(info["DockerRootDir"]))
    return Engine(host, version, root if root.is_dir() else None)


def versions(engine: Engine) -> dict[str, str]:
    """Returns the versions by the names "engine", "client", "buildx" and "buildkit".

    Raises:
        EngineTooOld: buildx is missing or too old.
    """
    client = docker(engine.host, "version", "--format", "{{.Client.Version}}").strip()
    minimum = ".".join(map(str, MINIMUM_BUILDX))
    advice = "Install your distribution's docker-buildx or docker-buildx-plugin package."
    try:
        match = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", docker(engine.host, "buildx", "version"))
    except CommandFailed as error:
        raise EngineTooOld("docker buildx", "(not installed)", minimum, advice) from error
    buildx = match[1] if match else "0"
    if version_numbers(buildx) < MINIMUM_BUILDX:
        raise EngineTooOld("docker buildx", buildx, minimum, advice)
    inspected = docker(engine.host, "buildx", "inspect", seconds=30)
    found = re.search(r"^\s*BuildKit(?: version)?:\s*(\S+)", inspected, re.MULTILINE)
    buildkit = found[1] if found else "unknown"
    if buildkit.endswith("+unknown"):
        buildkit = f"built into Docker Engine {engine.version}"  # Debian's build does not report the number
    return {"engine": engine.version, "client": client, "buildx": buildx, "buildkit": buildkit}
