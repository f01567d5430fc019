"""Watches a release for hours: one look every few seconds, judged by the budget, kept as JSON lines, shown as it goes.

The budget is broken while a window breaks it, a replica that should run does not, too much memory is used, or replicas
ended more often than allowed. Only a break that lasts ends the watch: one bad window is noise.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from rich.live import Live
from rich.table import Table
from rich.text import Text

from buildkit.errors import CommandFailed
from buildkit.staging import status
from buildkit.staging.probes import metrics
from buildkit.staging.release import records
from buildkit.staging.release.records import TrafficMetrics  # noqa: TC001 # msgspec reads the annotations of Observation at run time

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from buildkit.spec import StagingBudget
    from buildkit.staging.stack.stack import Stack
    from buildkit.staging.status import StackStatus

__all__ = ["Observation", "WatchOptions", "watch"]

SCHEMA_VERSION: Final = 1
_HOUR_SECONDS: Final = 3600.0
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """How to watch.

    Attributes:
        seconds: how long.
        every_seconds: between two looks.
        minutes: a break that lasts as long ends the watch; 0: the first one does.
        record: gets a JSON line for each look.
    """

    stack: Stack
    budget: StagingBudget
    seconds: float
    every_seconds: float
    minutes: float
    record: Path


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the record. `broken` says what breaks the budget; `broken_seconds`, for how long without a pause."""

    schema_version: int = SCHEMA_VERSION
    at: str
    running: dict[str, int]
    wanted: dict[str, int]
    ended: int
    memory_bytes: int
    window: TrafficMetrics | None
    broken: tuple[str, ...]
    broken_seconds: float


def watch(plan: WatchOptions, console: Console) -> tuple[str, ...]:
    """Watches until the time is over or the budget was broken for too long; what broke it then, else nothing."""
    plan.record.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    recent: deque[Observation] = deque(maxlen=_SHOWN)
    before: StackStatus | None = None
    ended: deque[tuple[float, str]] = deque()
    known_ended: set[str] | None = None
    broken_since: float | None = None
    with Live(console=console, auto_refresh=False, transient=False) as live, plan.record.open("ab") as file:
        while True:
            now = time.monotonic()
            try:
                seen: StackStatus | None = status.look(plan.stack)
                trouble = ""
            except CommandFailed as error:
                seen, trouble = None, error.log_tail.splitlines()[0] if error.log_tail else str(error)
            if seen is not None:
                failed = {each.task for found in seen.ended.values() for each in found}
                ended.extend((now, task) for task in failed - (failed if known_ended is None else known_ended))
                known_ended = failed | (known_ended or set())
            while ended and now - ended[0][0] > _HOUR_SECONDS:
                ended.popleft()
            window = metrics.traffic_between(before.scrapes, seen.scrapes) if seen and before else None
            broken = _broken(plan.budget, seen, window, len(ended), trouble)
            broken_since = (now if broken_since is None else broken_since) if broken else None
            lasted = 0.0 if broken_since is None else now - broken_since
            look = _look(seen, window, len(ended), broken, lasted)
            file.write(msgspec.json.encode(look) + b"\n")
            file.flush()
            recent.append(look)
            if console.is_terminal:
                live.update(_view(plan, recent, now - began), refresh=True)
            elif broken or len(recent) < 2:  # noqa: PLR2004 - the first look, and every bad one
                console.print(f"{look.at} {'; '.join(broken) or 'fine'}", soft_wrap=True)
            if broken and lasted >= plan.minutes * 60:
                return broken
            if seen is not None and seen.scrapes:
                before = seen
            if now - began + plan.every_seconds > plan.seconds:
                return ()
            time.sleep(max(0.0, now + plan.every_seconds - time.monotonic()))


def _broken(
    budget: StagingBudget, seen: StackStatus | None, window: TrafficMetrics | None, ended: int, trouble: str
) -> tuple[str, ...]:
    if seen is None:
        return (f"the engine does not answer: {trouble}",)
    broken: list[str] = []
    if seen.problem:
        broken.append(seen.problem)
    for part in status.PARTS:
        running = sum(each.is_running for each in seen.replicas.get(part, ()))
        wanted = seen.wanted.get(part, 1)
        if running < wanted:
            broken.append(f"{running} of {wanted} replicas of {part} run")
    largest = max(seen.memory_bytes.values(), default=0)
    if largest > budget.memory_bytes:
        broken.append(f"a replica uses {largest / 1e6:,.0f} MB, allowed {budget.memory_bytes / 1e6:,.0f} MB")
    if ended > budget.restarts:
        broken.append(f"{ended} replicas ended within an hour, allowed {budget.restarts}")
    if window is not None and window.requests:
        broken += metrics.violations(window, budget)
    return tuple(broken)


def _look(
    seen: StackStatus | None, window: TrafficMetrics | None, ended: int, broken: tuple[str, ...], lasted: float
) -> Observation:
    replicas = seen.replicas if seen else {}
    return Observation(
        at=records.timestamp(),
        running={part: sum(each.is_running for each in found) for part, found in replicas.items()},
        wanted=seen.wanted if seen else {},
        ended=ended,
        memory_bytes=max(seen.memory_bytes.values(), default=0) if seen else 0,
        window=window,
        broken=broken,
        broken_seconds=round(lasted, 1),
    )


def _view(plan: WatchOptions, recent: deque[Observation], elapsed_seconds: float) -> Table:
    table = Table(
        title=f"{plan.stack.name}: {elapsed_seconds / 3600:.2f} of {plan.seconds / 3600:.2f} hours",
        caption=f"every look is in {plan.record}",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("when", "replicas", "requests", "errors", "p95", "memory", "ended", "budget"):
        table.add_column(column, justify="left" if column in {"when", "replicas", "budget"} else "right")
    for look in recent:
        window = look.window
        slowest = max(window.p95_seconds.values(), default=0.0) if window else 0.0
        table.add_row(
            look.at[11:19],
            f"{sum(look.running.values())} of {sum(look.wanted.values())}",
            f"{window.requests:,}" if window else "",
            f"{window.error_fraction:.2%}" if window else "",
            f"{slowest:.3f} s" if window else "",
            f"{look.memory_bytes / 1e6:,.0f} MB",
            str(look.ended),
            Text("; ".join(look.broken), style="red") if look.broken else Text("fine", style="green"),
        )
    return table
