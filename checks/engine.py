"""Calls the container engine: inspects and saves images, starts containers and removes them again.

buildkit/engine is not used here: checks/ imports neither buildkit nor service, so that it can check any image.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks.facts import Configuration

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LABEL", "DockerClient", "EngineFailed", "ImageUnknown", "Process"]

LABEL = "io.truthgraph.checks"
PROGRAMS = Path(__file__).parent / "programs"
HARDENING = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
STORES = (
    "{root}/containerd/daemon/io.containerd.content.v1.content/blobs",
    "/var/lib/containerd/io.containerd.content.v1.content/blobs",
)


class EngineFailed(Exception):
    """The engine failed to run `command`; `message` is the end of its error output."""

    def __init__(self, command: Sequence[str], message: str) -> None:
        super().__init__(f"`{' '.join(command[:8])}` failed: {message}")
        self.command = tuple(command)
        self.message = message


class ImageUnknown(EngineFailed):
    """The engine has no image with that name or digest."""


@dataclass(frozen=True, slots=True)
class Process:
    """A program that has ended in a container.

    Attributes:
        output: its standard output.
        errors: its standard error.
    """

    exit_code: int
    output: str
    errors: str


@dataclass(slots=True)
class DockerClient:
    """The engine that `docker` talks to; DOCKER_HOST chooses it, as for other tools.

    `started` has the names of all containers that were started; `close` removes them.
    """

    started: list[str] = field(default_factory=list)

    def run(self, *arguments: str) -> str:
        """Runs `docker` with *arguments* and returns its output; raises EngineFailed if it fails."""
        ended = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
        if ended.returncode:
            message = ended.stderr.strip()[-2000:]
            kind = ImageUnknown if "No such image" in message else EngineFailed
            raise kind(["docker", *arguments], message)
        return ended.stdout

    def inspect(self, image: str) -> tuple[str, Configuration]:
        """Returns the digest of *image* and its configuration."""
        document = json.loads(self.run("image", "inspect", image))[0]
        return document["Id"], configuration(document)

    def blob_folder(self, digest: str) -> Path | None:
        """Returns the engine's own folder with the blob *digest*, or None if this process may not read it."""
        root = self.run("info", "--format", "{{.DockerRootDir}}").strip()
        algorithm, _, value = digest.partition(":")
        for template in STORES:
            folder = Path(template.format(root=root))
            try:
                if os.access(folder / algorithm / value, os.R_OK):
                    return folder
            except OSError:
                continue
        return None

    def save(self, image: str) -> subprocess.Popen[bytes]:
        """Starts `docker save`, which writes the image to its standard output."""
        return subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE, bufsize=1 << 20)

    def start(self, image: str, *options: str, command: Sequence[str] = ()) -> str:
        """Starts a container without privileges in the background and returns its name."""
        name = self._new_name()
        self.run("run", "--detach", "--name", name, "--label", LABEL, *HARDENING, *options, image, *command)
        return name

    def run_program(self, image: str, program: str, argument: object, *options: str) -> Process:
        """Runs one of `programs/` in a new container, with the first Python on the image's PATH."""
        name = self._new_name()
        command = ["run", "--rm", "--interactive", "--name", name, "--label", LABEL, *HARDENING, *options]
        return self._run_with_input(
            [*command, "--entrypoint", "python3", image, "-I", "-", json.dumps(argument)], program
        )

    def exec_program(self, container: str, program: str, argument: object) -> Process:
        """Runs one of `programs/` in a running container, with its environment."""
        return self._run_with_input(["exec", "--interactive", container, "python3", "-", json.dumps(argument)], program)

    def exec(self, container: str, *command: str) -> Process:
        """Runs *command* in a running container."""
        ended = subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True, check=False)
        return Process(ended.returncode, ended.stdout, ended.stderr)

    def _new_name(self) -> str:
        name = f"truthgraph-checks-{uuid.uuid4().hex[:12]}"
        self.started.append(name)
        return name

    def _run_with_input(self, arguments: Sequence[str], program: str) -> Process:
        with (PROGRAMS / program).open("rb") as source:
            ended = subprocess.run(["docker", *arguments], stdin=source, capture_output=True, check=False)
        return Process(ended.returncode, ended.stdout.decode(), ended.stderr.decode("utf-8", "replace"))

    def open_session(self, container: str, image: str, argument: object) -> subprocess.Popen[str]:
        """Starts programs/client.py in a second container, which shares the network of *container* and outlives it."""
        name = self._new_name()
        text = (PROGRAMS / "client.py").read_text()
        options = ["--rm", "--name", name, "--label", LABEL, "--network", f"container:{container}", "--read-only"]
        command = ["docker", "run", *options, "--entrypoint", "python3", image, "-I", "-c", text, json.dumps(argument)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def state(self, container: str) -> Any:  # noqa: ANN401 - any JSON
        """Returns the state of *container*: whether it runs, and its exit code."""
        return json.loads(self.run("container", "inspect", "--format", "{{json .State}}", container))

    def logs(self, container: str) -> str:
        """Returns the last 30 lines of the log of *container*."""
        ended = subprocess.run(
            ["docker", "logs", "--tail", "30", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return ended.stdout.decode("utf-8", "replace")

    def close(self) -> None:
        """Removes all containers that were started, with their volumes."""
        if self.started:
            command = ["docker", "rm", "--force", "--volumes", *self.started]
            subprocess.run(command, capture_output=True, check=False)
            self.started.clear()


def configuration(document: Any) -> Configuration:  # noqa: ANN401 - any JSON
    """Returns the configuration in the output of `docker image inspect`."""
    config = document.get("Config") or {}
    return Configuration(
        user=config.get("User") or "",
        command=tuple(config.get("Cmd") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        working_directory=config.get("WorkingDir") or "",
        stop_signal=config.get("StopSignal") or "",
        environment=dict(item.partition("=")[::2] for item in config.get("Env") or ()),
        labels=config.get("Labels") or {},
        ports=tuple(config.get("ExposedPorts") or ()),
        volumes=tuple(config.get("Volumes") or ()),
        healthcheck=tuple((config.get("Healthcheck") or {}).get("Test") or ()),
        architecture=document.get("Architecture", "amd64"),
        shell=tuple(config.get("Shell") or ()),
    )
