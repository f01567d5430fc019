"""Fixtures for the tests of the stack: the docker client, and the images, built from this checkout."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from rich.console import Console

from buildkit import spec as specs
from buildkit.build import base as bases
from buildkit.build import build as builds
from buildkit.build.display import BuildDisplay
from buildkit.engine import daemon
from tests.support.polling import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit.build.events import Events

PROJECT = Path(__file__).parents[2]
STACK = PROJECT / "docker" / "stack.yaml"
FAST_HEALTH = "--health-start-interval=200ms"
"""Option of `docker run` (25 or newer): checks a starting container every 0.2 s, not every 2 s as its image says."""


@dataclass(frozen=True, slots=True)
class Docker:
    """The client of the engine; `name` is a unique prefix for the containers, volumes and networks of one test."""

    command: tuple[str, ...]
    name: str

    def run(
        self, *arguments: str, code: int | None = 0, stdin: bytes = b"", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs `docker` with *arguments*; fails unless it exits with *code* (None: any exit code)."""
        done = subprocess.run(
            [*self.command, *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            env={**os.environ, **(environment or {})},
            timeout=WAIT_SECONDS * 3,
        )
        assert code is None or done.returncode == code, (done.stdout + done.stderr).decode()
        return done

    def text(self, *arguments: str) -> str:
        """Runs `docker` with *arguments* and returns its output."""
        return self.run(*arguments).stdout.decode().strip()

    def logs(self, container: str) -> str:
        """Returns the log of a container."""
        done = self.run("logs", container)
        return (done.stdout + done.stderr).decode()

    def is_healthy(self, container: str) -> bool:
        """Whether a container's health check passes."""
        return self.text("inspect", "--format", "{{.State.Health.Status}}", container) == "healthy"


@contextlib.contextmanager
def temporary_objects(docker: Sequence[str]) -> Iterator[Docker]:
    """Yields a docker client, and removes the containers, volumes and networks with its name at the end."""
    made = Docker(tuple(docker), f"tgtest-{uuid.uuid4().hex[:8]}")
    yield made
    containers = made.text("ps", "--all", "--quiet", "--filter", f"name={made.name}").split()
    if containers:
        made.run("rm", "--force", "--volumes", *containers)
    for kind in ("volume", "network"):
        if names := made.text(kind, "ls", "--quiet", "--filter", f"name={made.name}").split():
            made.run(kind, "rm", *names)


@pytest.fixture
def engine(docker: Sequence[str]) -> Iterator[Docker]:
    """The docker client; the containers, volumes and networks of the test are removed at its end."""
    with temporary_objects(docker) as made:
        yield made


@contextlib.contextmanager
def built(docker: Sequence[str], folder: Path, *names: str) -> Iterator[dict[str, str]]:
    """Builds the targets *names* from this checkout; yields target -> image name, and removes the images at the end."""
    spec = msgspec.structs.replace(specs.load(PROJECT), name="truthgraph-test-stack")
    found = daemon.find(os.environ, daemon.ManagedDaemon())
    base = bases.ensure_base_image(
        found,
        reference=spec.base,
        python=spec.python,
        origin="auto",
        cache=PROJECT / "build" / "cache",
        log=lambda _line: None,
    )
    console = Console(file=io.StringIO(), width=100)

    def show(events: Events) -> BuildDisplay:
        return BuildDisplay(console, events, title="stack")

    made = {}
    for name in names:
        record = builds.build(
            spec,
            spec.target(name),
            engine=found,
            base=base,
            environment=os.environ,
            folder=folder,
            show=show,
        )
        made[name] = record.tags[0]
    try:
        yield made
    finally:
        subprocess.run([*docker, "image", "rm", *made.values()], capture_output=True, check=False)


@pytest.fixture(scope="session")
def images(docker: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The images `postgres` and `proxy`, by target."""
    with built(docker, tmp_path_factory.mktemp("build"), "postgres", "proxy") as made:
        yield made
