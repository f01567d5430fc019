"""Runs commands in the service's containers: API keys, migration plans, metrics, and a tunnel to the canary.

A single replica cannot be reached from outside, and only containers know the database's address. All commands are those
of `python -m service`, which every image carries. Secrets are never passed as arguments, which every process on the
machine can read.
"""

from __future__ import annotations

import json
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from buildkit.errors import CommandFailed, ReleaseFailed
from buildkit.staging.probes import metrics
from buildkit.staging.probes.client import Client
from buildkit.staging.probes.tunnel import open_tunnels

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from buildkit.staging.probes.metrics import Scrape
    from buildkit.staging.stack.orchestrator import Orchestrator

__all__ = ["ApiKey", "MigrationPlan", "canary_client", "plan_migration", "scrape", "temporary_key"]

_SERVICE: Final = ("python", "-m", "service")
_TOKENS_PER_MINUTE: Final = 1_000_000_000
"""The rate limit of temporary keys: above any load that a release generates."""
_CANARY_URL: Final = "http://127.0.0.1:8000"
"""The service's address inside its container."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A temporary API key. Its tenant has the same name and no other key."""

    name: str
    secret: str


class MigrationPlan(msgspec.Struct, frozen=True):
    """The output of `python -m service migrate --plan`, see `service.schema.MigrationPlan`."""

    current: str | None
    target: str
    direction: str
    revisions: tuple[str, ...]
    is_compatible: bool
    data_loss: tuple[str, ...]


@contextmanager
def temporary_key(stack: Orchestrator, service: str = "api") -> Iterator[ApiKey]:
    """Makes an API key in a container of *service*; afterwards deletes it with everything stored under it.

    If no replica is left to delete it, the key remains, but its secret is lost.

    Raises:
        CommandFailed: no healthy container of *service*, or no database.
    """
    name = f"checks-{uuid.uuid4().hex[:12]}"
    options = ("--scope", "write", "--tenant", name, "--tokens-per-minute", str(_TOKENS_PER_MINUTE))
    made = stack.execute(stack.container(service), *_SERVICE, "keys", "add", name, *options)
    try:
        yield ApiKey(name, made.strip())
    finally:
        with suppress(CommandFailed):
            stack.execute(stack.container(), *_SERVICE, "keys", "purge", name)


def plan_migration(stack: Orchestrator, container: str, target: str = "head") -> MigrationPlan:
    """Returns the migrations that the code in *container* would run to reach *target*; changes nothing.

    Raises:
        ReleaseFailed: that code does not know the current revision or the target.
    """
    try:
        output = stack.execute(container, *_SERVICE, "migrate", "--plan", "--to", target)
    except CommandFailed as error:
        raise ReleaseFailed(error.log_tail.splitlines()[-1] if error.log_tail else str(error)) from error
    return msgspec.json.decode(output, type=MigrationPlan)


def scrape(stack: Orchestrator) -> tuple[Scrape, ...]:
    """Returns the metrics of every replica that answers, read over the stack's own network by one of them.

    Raises:
        CommandFailed: no replica runs on this engine, or none answered.
    """
    pages: dict[str, str] = json.loads(stack.execute(stack.container(), *_SERVICE, "scrape", "api", seconds=60))
    now = time.monotonic()
    return tuple(metrics.parse(page, replica=address, at_seconds=now) for address, page in pages.items())


@contextmanager
def canary_client(stack: Orchestrator, container: str, key: ApiKey) -> Iterator[Client]:
    """Yields a client of the service in *container*, to which the proxy sends no requests.

    Each connection is a `docker exec` of `python -m service forward`, so nothing is published and nothing is installed.
    """

    def start(descriptor: int) -> subprocess.Popen[bytes]:
        return stack.start(container, *_SERVICE, "forward", descriptor=descriptor)

    with open_tunnels(start) as connect:
        client = Client(_CANARY_URL, key.secret, connect=connect)
        try:
            yield client
        finally:
            client.close()
