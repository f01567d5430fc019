"""One look at the stack: its replicas, what they use, what they say of themselves, and which releases are kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from buildkit.errors import CommandFailed
from buildkit.staging.probes import container_exec, metrics
from buildkit.text import parse_bytes

if TYPE_CHECKING:
    from buildkit.staging.probes.metrics import Scrape
    from buildkit.staging.release.records import Releases, TrafficMetrics
    from buildkit.staging.stack.stack import Replica, Stack

__all__ = ["PARTS", "StackStatus", "look", "memory", "tables"]

PARTS: Final = ("api", "database", "proxy")
_STYLES: Final = {"serving": "green", "replaced": "", "rolled back": "yellow", "failed": "red", "interrupted": "red"}


@dataclass(frozen=True, slots=True)
class StackStatus:
    """What one look found.

    Attributes:
        wanted: replicas that each part shall have; a part that is not there is missing here.
        replicas: those that run or shall run, by part.
        ended: replicas of the last hours that ended although they should not have, by part.
        memory_bytes: of containers on this engine, by container.
        scrapes: of the API's replicas; empty where none answered.
        problem: why there are no metrics.
    """

    wanted: dict[str, int]
    replicas: dict[str, tuple[Replica, ...]]
    ended: dict[str, tuple[Replica, ...]]
    memory_bytes: dict[str, int]
    scrapes: tuple[Scrape, ...]
    problem: str = ""

    @property
    def is_fine(self) -> bool:
        """Whether every part is there with all its replicas, and the API told its metrics."""
        running = {part: sum(each.is_running for each in found) for part, found in self.replicas.items()}
        return set(self.wanted) == set(PARTS) and running == self.wanted and not self.problem

    @property
    def restarts(self) -> int:
        """Replicas that ended although they should not have."""
        return sum(len(found) for found in self.ended.values())

    @property
    def total(self) -> TrafficMetrics:
        """All that the present replicas answered since they started."""
        return metrics.traffic_between((), self.scrapes)


def look(stack: Stack) -> StackStatus:
    """Looks once.

    Raises:
        CommandFailed: the engine does not answer.
    """
    parts = [part for part in PARTS if stack.exists(part)]
    replicas = {part: stack.replicas(part) for part in parts}
    ended = {
        part: tuple(each for each in stack.replicas(part, include_ended=True) if each.state in {"failed", "rejected"})
        for part in parts
    }
    wanted = {part: stack.desired_replicas(part) for part in parts}
    scrapes: tuple[Scrape, ...] = ()
    problem = "" if parts else "the stack does not run"
    if "api" in parts:
        try:
            scrapes = container_exec.scrape(stack)
        except CommandFailed as error:
            problem = error.log_tail or str(error)
    containers = [each.container for found in replicas.values() for each in found if each.container]
    return StackStatus(wanted, replicas, ended, memory(stack, containers), scrapes, problem)


def memory(stack: Stack, containers: list[str]) -> dict[str, int]:
    """Bytes that each of *containers* uses, of those that run on this engine (others are left out)."""
    here = set(stack.docker("ps", "--quiet", "--no-trunc").split())
    mine = [container for container in containers if container in here]
    if not mine:
        return {}
    try:
        lines = stack.docker("stats", "--no-stream", "--no-trunc", "--format", "{{json .}}", *mine).splitlines()
    except CommandFailed:
        return {}  # one of them ended while it was asked
    rows = [json.loads(line) for line in lines]
    return {row["ID"]: parse_bytes(row["MemUsage"].partition("/")[0].strip()) for row in rows}


def tables(seen: StackStatus, known: Releases) -> list[Table]:
    """Parts, metrics and releases."""
    parts = Table(title="parts", title_justify="left")
    for column in ("part", "image", "state", "memory"):
        parts.add_column(column, justify="right" if column == "memory" else "left")
    names = {each.digest: each.name for each in known.releases}
    for part, found in seen.replicas.items():
        for replica in found:
            used = seen.memory_bytes.get(replica.container)
            parts.add_row(
                f"{part}.{replica.slot}",
                names.get(replica.digest, replica.digest[7:19] or replica.image),
                Text(replica.state, style="green" if replica.is_running else "yellow"),
                "" if used is None else f"{used / 1e6:,.0f} MB",
            )
        for replica in seen.ended[part]:
            parts.add_row(
                f"{part}.{replica.slot}", replica.digest[7:19], Text(f"ended: {replica.error}", style="red"), ""
            )
    total = seen.total
    slowest = max(total.p95_seconds.items(), key=lambda item: item[1], default=("", 0.0))
    parts.caption = seen.problem or (
        f"{total.requests:,} requests since they started, error fraction {total.error_fraction:.4f}, "
        f"p95 {slowest[1]:.3f} s ({slowest[0] or 'no route yet'})"
    )
    parts.caption_justify = "left"
    history = Table(title="releases, newest first", title_justify="left")
    history.add_column("release", no_wrap=True)  # a rollback is told it
    for column in ("outcome", "when", "who", "schema", "sent", "p95"):
        history.add_column(column, overflow="fold")
    for release in reversed(known.releases):
        schema = release.migrations.after if release.migrations else None
        p95 = max(release.metrics.p95_seconds.values(), default=0.0) if release.metrics else None
        why = f"{release.outcome} at {release.failed_step}" if release.failed_step else release.outcome
        history.add_row(
            release.name,
            Text(why, style=_STYLES[release.outcome]),
            release.started[5:16].replace("T", " "),
            release.released_by,
            schema or "",
            "" if release.bytes_sent is None else f"{release.bytes_sent / 1e6:,.0f} MB",
            "" if p95 is None else f"{p95:.3f} s",
        )
    return [parts, history]
