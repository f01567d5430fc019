"""Watches the stack for hours: reads its status every few seconds, checks it against the budget, and records it.

One bad observation may be noise, so the watch fails only if the budget was exceeded without a pause for
`WatchOptions.tolerated_minutes`.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
from rich.live import Live
from rich.table import Table
from rich.text import Text

from buildkit.errors import CommandFailed
from buildkit.staging import status as statuses
from buildkit.staging.probes import metrics
from buildkit.staging.probes.metrics import TrafficMetrics  # noqa: TC001 - msgspec reads the annotations at run time
from buildkit.staging.release import records
from buildkit.staging.stack.services import SERVICES
from buildkit.text import format_bytes, format_count

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from buildkit.spec import StagingBudget
    from buildkit.staging.stack.stack import Stack
    from buildkit.staging.status import StackStatus

__all__ = ["Observation", "WatchOptions", "watch"]

SCHEMA_VERSION: Final = 2
_HOUR_SECONDS: Final = 3600.0
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """The options of a watch: stack, budget and times.

    Attributes:
        duration_seconds: of the whole watch.
        interval_seconds: between two observations.
        tolerated_minutes: how long the budget may be exceeded without a pause; 0 allows not even one observation.
        history: file that gets a JSON line for each observation.
    """

    stack: Stack
    budget: StagingBudget
    duration_seconds: float
    interval_seconds: float
    tolerated_minutes: float
    history: Path


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One observation; one line of the history.

    Attributes:
        at: RFC 3339, UTC.
        running: service -> running replicas.
        desired: service -> replicas that should run.
        failures: replicas that failed within the last hour of the watch.
        memory_bytes: of the replica that uses most.
        traffic: since the previous observation with metrics; None without one.
        violations: a sentence for each exceeded limit.
        violation_seconds: how long the budget has been exceeded without a pause.
    """

    schema_version: int = SCHEMA_VERSION
    at: str
    running: dict[str, int]
    desired: dict[str, int]
    failures: int
    memory_bytes: int
    traffic: TrafficMetrics | None
    violations: tuple[str, ...]
    violation_seconds: float


@dataclass(slots=True)
class _Watcher:
    """The state of one watch between observations."""

    options: WatchOptions
    _previous: StackStatus | None = None
    _known_failures: set[str] | None = None
    _failures: deque[float] = field(default_factory=deque)
    _violated_since: float | None = None

    def observe(self, now: float) -> Observation:
        """Reads the status and returns it with the budget's violations; *now* is on a monotonic clock."""
        status, reason = self._read_status()
        if status is not None:
            self._count_failures(status, now)
        while self._failures and now - self._failures[0] > _HOUR_SECONDS:
            self._failures.popleft()
        traffic = metrics.traffic_between(self._previous.scrapes, status.scrapes) if status and self._previous else None
        if status is None:
            violations: tuple[str, ...] = (f"the engine does not answer: {reason}",)
        else:
            violations = _violations(self.options.budget, status, traffic, len(self._failures))
            self._previous = status if status.scrapes else self._previous
        if not violations:
            self._violated_since = None
        elif self._violated_since is None:
            self._violated_since = now
        lasted = 0.0 if self._violated_since is None else now - self._violated_since
        return Observation(
            at=records.timestamp(),
            running=status.running if status else {},
            desired=status.desired if status else {},
            failures=len(self._failures),
            memory_bytes=max(status.memory_bytes.values(), default=0) if status else 0,
            traffic=traffic,
            violations=violations,
            violation_seconds=round(lasted, 1),
        )

    def _read_status(self) -> tuple[StackStatus | None, str]:
        try:
            return statuses.read_status(self.options.stack), ""
        except CommandFailed as error:
            return None, error.log_tail.splitlines()[0] if error.log_tail else str(error)

    def _count_failures(self, status: StackStatus, now: float) -> None:
        """Counts the replicas that have failed since the previous observation; those before the first do not count."""
        failed = {replica.task for found in status.failed.values() for replica in found}
        known = failed if self._known_failures is None else self._known_failures
        self._failures.extend(now for _ in failed - known)
        self._known_failures = failed | known


def watch(options: WatchOptions, console: Console) -> tuple[str, ...]:
    """Watches until the time is over, or until the budget was exceeded for too long.

    Returns:
        The last violations of the budget if it was exceeded for too long, otherwise nothing.
    """
    options.history.parent.mkdir(parents=True, exist_ok=True)
    watcher = _Watcher(options)
    recent: deque[Observation] = deque(maxlen=_SHOWN)
    began = time.monotonic()
    with Live(console=console, auto_refresh=False, transient=False) as live, options.history.open("ab") as file:
        while True:
            now = time.monotonic()
            observation = watcher.observe(now)
            file.write(msgspec.json.encode(observation) + b"\n")
            file.flush()
            recent.append(observation)
            if console.is_terminal:
                live.update(_table(options, recent, now - began), refresh=True)
            elif observation.violations or len(recent) == 1:
                console.print(f"{observation.at} {'; '.join(observation.violations) or 'ok'}", soft_wrap=True)
            if observation.violations and observation.violation_seconds >= options.tolerated_minutes * 60:
                return observation.violations
            if now - began + options.interval_seconds > options.duration_seconds:
                return ()
            time.sleep(max(0.0, now + options.interval_seconds - time.monotonic()))


def _violations(
    budget: StagingBudget, status: StackStatus, traffic: TrafficMetrics | None, failures: int
) -> tuple[str, ...]:
    found: list[str] = []
    if status.problem:
        found.append(status.problem)
    for service in SERVICES:
        running, desired = status.running.get(service, 0), status.desired.get(service, 1)
        if running < desired:
            found.append(f"{running} of {desired} replicas of {service} run")
    largest = max(status.memory_bytes.values(), default=0)
    if largest > budget.memory_bytes:
        found.append(f"a replica uses {format_bytes(largest)} of memory, allowed {format_bytes(budget.memory_bytes)}")
    if failures > budget.restarts:
        found.append(f"{format_count(failures, 'replica')} failed within an hour, allowed {budget.restarts}")
    if traffic is not None and traffic.requests:
        found += metrics.violations(traffic, budget)
    return tuple(found)


def _table(options: WatchOptions, recent: deque[Observation], elapsed_seconds: float) -> Table:
    elapsed_hours, hours = elapsed_seconds / _HOUR_SECONDS, options.duration_seconds / _HOUR_SECONDS
    table = Table(
        title=f"{options.stack.name}: {elapsed_hours:.2f} of {hours:.2f} hours",
        caption=f"all observations: {options.history}",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("time", "replicas", "requests", "errors", "p95", "memory", "failed", "budget"):
        table.add_column(column, justify="left" if column in {"time", "replicas", "budget"} else "right")
    for each in recent:
        traffic = each.traffic
        slowest = max(traffic.p95_seconds.values(), default=0.0) if traffic else 0.0
        table.add_row(
            each.at[11:19],
            f"{sum(each.running.values())} of {sum(each.desired.values())}",
            f"{traffic.requests:,}" if traffic else "",
            f"{traffic.error_fraction:.2%}" if traffic else "",
            f"{slowest:.3f} s" if traffic else "",
            format_bytes(each.memory_bytes),
            str(each.failures),
            Text("; ".join(each.violations), style="red") if each.violations else Text("ok", style="green"),
        )
    return table
