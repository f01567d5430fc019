"""Watches with made-up statuses and clock; the watch, its history file and its output are real."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from buildkit.engine.client import Engine
from buildkit.errors import CommandFailed
from buildkit.spec import StagingBudget
from buildkit.staging import status, watch
from buildkit.staging.probes import metrics
from buildkit.staging.stack.services import Replica
from buildkit.staging.stack.stack import Stack
from buildkit.staging.status import StackStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

BUDGET = StagingBudget(p95_seconds=1.0, error_fraction=0.0, memory_bytes=1_000, restarts=0)
ROUTE = "/api/v1/embed"


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


def replica(slot: int, state: str = "running") -> Replica:
    return Replica(f"task{slot}{state}", slot, "api@sha256:a", state, "running", "", f"container{slot}")


def healthy(requests: float = 0, *, errors: float = 0, memory_bytes: int = 500) -> StackStatus:
    scrape = metrics.Scrape(
        "10.0.0.1",
        requests,
        {(ROUTE, "200"): requests, (ROUTE, "503"): errors},
        {ROUTE: {0.1: requests, float("inf"): requests}},
    )
    return StackStatus(
        desired={"api": 2, "database": 1, "proxy": 1},
        replicas={"api": (replica(1), replica(2)), "database": (replica(1),), "proxy": (replica(1),)},
        failed={},
        memory_bytes={"container1": memory_bytes},
        scrapes=(scrape,),
    )


def run(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    statuses: Iterable[StackStatus | CommandFailed],
    *,
    minutes: float = 0,
    console: Console | None = None,
) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    """Makes five observations at most, one a second; returns the violations and the history."""
    coming = iter(statuses)

    def read_status(_stack: Stack) -> StackStatus:
        current = next(coming)
        if isinstance(current, CommandFailed):
            raise current
        return current

    monkeypatch.setattr(status, "read_status", read_status)
    monkeypatch.setattr(watch, "time", Clock())
    options = watch.WatchOptions(
        stack=Stack(engine=Engine("", "26", None), name="s", file=Path("stack.yaml")),
        budget=BUDGET,
        duration_seconds=4,
        interval_seconds=1,
        tolerated_minutes=minutes,
        history=folder / "watch.jsonl",
    )
    violations = watch.watch(options, console or Console(file=StringIO()))
    return violations, [json.loads(line) for line in options.history.read_text().splitlines()]


def test_healthy_release_is_recorded_without_violations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    violations, history = run(monkeypatch, tmp_path, (healthy(100 * n) for n in itertools.count()))

    assert violations == ()
    assert len(history) == 5
    assert {line["schema_version"] for line in history} == {2}
    assert history[0]["traffic"] is None
    assert history[1]["traffic"]["requests"] == 100  # type: ignore[index] # JSON


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(healthy(), replicas={**healthy().replicas, "api": (replica(1),)}), "1 of 2 replicas of api run"),
        (replace(healthy(), desired={}, replicas={}), "0 of 1 replicas of database run"),
        (replace(healthy(), problem="the stack is not running"), "the stack is not running"),
        (healthy(memory_bytes=2_000_000), "a replica uses 2.0 MB of memory, allowed 1.0 kB"),
        (healthy(50, errors=10), "error fraction"),
        (replace(healthy(), failed={"api": (replica(1, "failed"),)}), "1 replica failed within an hour, allowed 0"),
        (CommandFailed(["docker"], 1, "no engine"), "the engine does not answer: no engine"),
        (CommandFailed(["docker", "ps"], 124), "the engine does not answer: `docker ps` failed"),
    ],
)
def test_violation_is_named_and_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: StackStatus | CommandFailed, message: str
) -> None:
    violations, history = run(monkeypatch, tmp_path, [healthy(), bad])

    assert message in "; ".join(violations)
    assert history[-1]["violations"] == list(violations)


def test_replica_that_failed_before_the_watch_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = replace(healthy(), failed={"api": (replica(1, "failed"),)})

    violations, _ = run(monkeypatch, tmp_path, itertools.repeat(before))

    assert violations == ()


def test_violation_without_a_pause_ends_the_watch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = replace(healthy(), problem="the stack is not running")

    violations, history = run(monkeypatch, tmp_path, itertools.repeat(missing), minutes=2 / 60)

    assert "the stack is not running" in violations
    assert [line["violation_seconds"] for line in history] == [0, 1, 2]


def test_failure_counts_for_an_hour(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(watch, "_HOUR_SECONDS", 1.5)
    failed = replace(healthy(), failed={"api": (replica(1, "failed"),)})

    violations, history = run(monkeypatch, tmp_path, itertools.chain([healthy()], itertools.repeat(failed)), minutes=1)

    assert violations == ()
    assert [line["failures"] for line in history] == [0, 1, 1, 0, 0]


def test_short_violation_is_tolerated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = replace(healthy(), replicas={**healthy().replicas, "api": (replica(1),)})
    statuses = itertools.chain([healthy(), lost], itertools.repeat(healthy()))

    violations, history = run(monkeypatch, tmp_path, statuses, minutes=1)

    assert violations == ()
    assert any(line["violations"] for line in history)
    assert history[-1]["violation_seconds"] == 0


def test_plain_output_has_the_first_and_each_bad_observation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = StringIO()
    missing = replace(healthy(), problem="the stack is not running")

    run(monkeypatch, tmp_path, [healthy(), healthy(), missing], console=Console(file=output))

    lines = [line.partition(" ")[2] for line in output.getvalue().splitlines() if line.strip()]
    assert lines == ["ok", "the stack is not running"]


def test_terminal_shows_a_table_of_observations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=160, height=40)

    run(monkeypatch, tmp_path, [healthy(), healthy(50), CommandFailed(["docker"], 1, "no engine")], console=console)

    assert "4 of 4" in output.getvalue()
    assert "0.095 s" in output.getvalue()
    assert "the engine does not answer: no engine" in output.getvalue()
