"""Calls the container engine through the docker command line, and checks that its version is supported."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from buildkit.errors import CommandFailed, EngineTooOld

__all__ = ["Engine", "connect", "docker", "version_numbers", "versions"]

LEAST_ENGINE = (23, 0)
"""Docker 23: the first whose default builder is BuildKit through buildx (release notes 23.0)."""
LEAST_BUILDX = (0, 13)
"""buildx 0.13: the first with `--progress=rawjson` (release notes 0.13.0), which the build record is made from."""
_ANSWER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answered.

    Attributes:
        host: what DOCKER_HOST must be to reach it; "" where `docker` finds it without.
        version: the engine's, as it says it.
        root: the folder that its images take room in; None where it is on another machine.
    """

    host: str
    version: str
    root: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to reach this engine."""
        return {"DOCKER_HOST": self.host} if self.host else {}

    def docker(self, *arguments: str, seconds: float = _ANSWER_SECONDS) -> str:
        """Runs `docker *arguments*` against this engine and returns its output.

        Raises:
            CommandFailed: it failed, or took longer than *seconds*.
        """
        return docker(self.host, *arguments, seconds=seconds)


def docker(host: str, *arguments: str, seconds: float = _ANSWER_SECONDS) -> str:
    """What `docker *arguments*` prints.

    Raises:
        CommandFailed: it failed, or did not answer in time.
    """
    command = ["docker", *arguments]
    environment = os.environ | ({"DOCKER_HOST": host} if host else {})
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise CommandFailed(command, 127, "docker is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(command, 124, f"no answer within {seconds:.0f} s") from error
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr.strip()[-2000:])
    return done.stdout


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of *version*: `26.1.5+dfsg1` is (26, 1, 5). A version without any is (0,)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split("[+-]", version, maxsplit=1)[0])) or (0,)


def connect(host: str) -> Engine:
    """The engine at *host*.

    Raises:
        CommandFailed: none answers there.
        EngineTooOld: it is older than `LEAST_ENGINE`.
    """
    info = json.loads(docker(host, "info", "--format", "{{json .}}"))
    version = str(info.get("ServerVersion") or "")
    if not version:
        raise CommandFailed(["docker", "info"], 1, "; ".join(info.get("ServerErrors") or ["no engine answered"]))
    if version_numbers(version) < LEAST_ENGINE:
        least = ".".join(map(str, LEAST_ENGINE))
        raise EngineTooOld("Docker Engine", version, least, "Upgrade it, or point DOCKER_HOST to another one.")
    root = Path(str(info["DockerRootDir"]))
    return Engine(host, version, root if root.is_dir() else None)


def versions(engine: Engine) -> dict[str, str]:
    """Versions of engine, client, buildx and BuildKit, by those names.

    Raises:
        EngineTooOld: buildx is missing or too old.
    """
    client = docker(engine.host, "version", "--format", "{{.Client.Version}}").strip()
    least = ".".join(map(str, LEAST_BUILDX))
    advice = "Install your distribution's docker-buildx or docker-buildx-plugin package."
    try:
        match = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", docker(engine.host, "buildx", "version"))
    except CommandFailed as error:
        raise EngineTooOld("docker buildx", "(not installed)", least, advice) from error
    buildx = match[1] if match else "0"
    if version_numbers(buildx) < LEAST_BUILDX:
        raise EngineTooOld("docker buildx", buildx, least, advice)
    inspected = docker(engine.host, "buildx", "inspect", seconds=30)
    found = re.search(r"^\s*BuildKit(?: version)?:\s*(\S+)", inspected, re.MULTILINE)
    buildkit = found[1] if found else "unknown"
    if buildkit.endswith("+unknown"):
        buildkit = f"built into Docker Engine {engine.version}"  # Debian's build does not carry the number
    return {"engine": engine.version, "client": client, "buildx": buildx, "buildkit": buildkit}
