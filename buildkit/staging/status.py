"""Reads the state of the stack (replicas, memory, metrics) and formats it with the release history as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from buildkit.errors import CommandFailed
from buildkit.staging.probes import container_exec, metrics
from buildkit.staging.stack.services import SERVICES
from buildkit.text import format_bytes, parse_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit.staging.probes.metrics import Scrape, TrafficMetrics
    from buildkit.staging.release.records import Releases
    from buildkit.staging.stack.services import Replica
    from buildkit.staging.stack.stack import Stack

__all__ = ["StackStatus", "format_status", "read_status"]

_STYLES: Final = {"serving": "green", "replaced": "", "rolled back": "yellow", "failed": "red", "interrupted": "red"}
_FAILED: Final = frozenset({"failed", "rejected"})
"""States of replicas that failed themselves; `orphaned` ones were lost with their node."""


@dataclass(frozen=True, slots=True)
class StackStatus:
    """The state of the stack at one time.

    Attributes:
        desired: service -> number of replicas that it should have; a service that is not deployed is missing.
        replicas: service -> replicas that run or start.
        failed: service -> replicas that failed, as far back as swarm remembers them.
        memory_bytes: container -> memory in use; only containers on this engine.
        scrapes: metrics of the API's replicas; empty if none answered.
        problem: why there are no metrics; "" if there are.
    """

    desired: dict[str, int]
    replicas: dict[str, tuple[Replica, ...]]
    failed: dict[str, tuple[Replica, ...]]
    memory_bytes: dict[str, int]
    scrapes: tuple[Scrape, ...]
    problem: str = ""

    @property
    def running(self) -> dict[str, int]:
        """Service -> number of running replicas."""
        return {service: sum(each.is_running for each in found) for service, found in self.replicas.items()}

    @property
    def is_healthy(self) -> bool:
        """Whether every service runs all its replicas, and the API's metrics can be read."""
        return set(self.desired) == set(SERVICES) and self.running == self.desired and not self.problem

    @property
    def traffic(self) -> TrafficMetrics:
        """The traffic of the present replicas since they started."""
        return metrics.traffic_between((), self.scrapes)


def read_status(stack: Stack) -> StackStatus:
    """Returns the state of the stack now.

    Raises:
        CommandFailed: the engine does not answer.
    """
    services = [service for service in SERVICES if stack.exists(service)]
    replicas = {service: stack.replicas(service) for service in services}
    failed = {
        service: tuple(each for each in stack.replicas(service, include_ended=True) if each.state in _FAILED)
        for service in services
    }
    desired = {service: stack.desired_replicas(service) for service in services}
    scrapes: tuple[Scrape, ...] = ()
    problem = "" if services else "the stack is not running"
    if "api" in services:
        try:
            scrapes = container_exec.scrape(stack)
        except CommandFailed as error:
            problem = error.log_tail or str(error)
    containers = [each.container for found in replicas.values() for each in found if each.container]
    return StackStatus(desired, replicas, failed, _memory_bytes(stack, containers), scrapes, problem)


def _memory_bytes(stack: Stack, containers: Sequence[str]) -> dict[str, int]:
    """Returns the memory in use by each of *containers* that runs on this engine."""
    local = set(stack.docker("ps", "--quiet", "--no-trunc").split())
    measured = [container for container in containers if container in local]
    if not measured:
        return {}
    try:
        lines = stack.docker("stats", "--no-stream", "--no-trunc", "--format", "{{json .}}", *measured).splitlines()
    except CommandFailed:
        return {}  # one of them has ended since
    rows = [json.loads(line) for line in lines]
    return {row["ID"]: parse_bytes(row["MemUsage"].partition("/")[0].strip()) for row in rows}


def format_status(status: StackStatus, history: Releases) -> list[Table]:
    """Returns two tables: the services with their replicas and metrics, and the releases, newest first."""
    return [_services_table(status, history), _releases_table(history)]


def _services_table(status: StackStatus, history: Releases) -> Table:
    table = Table(title="services", title_justify="left", caption_justify="left")
    for column in ("replica", "release", "state", "memory"):
        table.add_column(column, justify="right" if column == "memory" else "left")
    names = {each.digest: each.name for each in history.releases}
    for service, replicas in status.replicas.items():
        for replica in replicas:
            used = status.memory_bytes.get(replica.container)
            table.add_row(
                f"{service}.{replica.slot}",
                names.get(replica.digest, replica.digest[7:19] or replica.image),
                Text(replica.state, style="green" if replica.is_running else "yellow"),
                "" if used is None else format_bytes(used),
            )
        for replica in status.failed.get(service, ()):
            state = Text(f"{replica.state}: {replica.error}", style="red")
            table.add_row(f"{service}.{replica.slot}", replica.digest[7:19], state, "")
    traffic = status.traffic
    route, slowest = max(traffic.p95_seconds.items(), key=lambda item: item[1], default=("no route yet", 0.0))
    table.caption = status.problem or (
        f"{traffic.requests:,} requests since the replicas started, error fraction {traffic.error_fraction:.4f}, "
        f"slowest p95 {slowest:.3f} s ({route})"
    )
    return table


def _releases_table(history: Releases) -> Table:
    # Without lines between the columns: they would leave too little room in 80 columns.
    table = Table(title="releases, newest first", title_justify="left", box=None, pad_edge=False)
    table.add_column("release", no_wrap=True)  # `rollback` takes it as its argument
    for column in ("outcome", "started", "by", "schema", "sent", "p95"):
        table.add_column(column, overflow="fold")
    for release in reversed(history.releases):
        schema = release.migrations.after if release.migrations else None
        p95 = max(release.metrics.p95_seconds.values(), default=0.0) if release.metrics else None
        outcome = f"{release.outcome} at {release.failed_step}" if release.failed_step else release.outcome
        table.add_row(
            release.name,
            Text(outcome, style=_STYLES[release.outcome]),
            release.started[5:16].replace("T", " "),
            release.released_by,
            schema or "",
            "" if release.bytes_sent is None else format_bytes(release.bytes_sent),
            "" if p95 is None else f"{p95:.3f} s",
        )
    return table
