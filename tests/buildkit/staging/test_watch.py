"""What breaks a watch's budget, and that only a break that lasts ends it. The looks are made up, the rest is real."""

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
from buildkit.staging.stack.stack import Replica, Stack
from buildkit.staging.status import StackStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

BUDGET = StagingBudget(p95_seconds=1.0, error_fraction=0.0, memory_bytes=1_000, restarts=0)
ROUTE = "/api/v1/embed"


def replica(slot: int, state: str = "running") -> Replica:
    return Replica(f"task{slot}{state}", slot, "api@sha256:a", state, "running", "", "node", f"container{slot}")


def seen(requests: float = 0, *, errors: float = 0, memory_bytes: int = 500) -> StackStatus:
    scrape = metrics.Scrape(
        "10.0.0.1",
        requests,
        {(ROUTE, "200"): requests, (ROUTE, "503"): errors},
        {ROUTE: {0.1: requests, float("inf"): requests}},
    )
    return StackStatus(
        wanted={"api": 2, "database": 1, "proxy": 1},
        replicas={"api": (replica(1), replica(2)), "database": (replica(1),), "proxy": (replica(1),)},
        ended={},
        memory_bytes={"container1": memory_bytes},
        scrapes=(scrape,),
    )


def run(
    monkeypatch: pytest.MonkeyPatch, path: Path, looks: Iterable[StackStatus | CommandFailed], *, minutes: float = 0
) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    """What broke the watch, and its record."""
    coming = iter(looks)

    def look(_stack: Stack) -> StackStatus:
        found = next(coming)
        if isinstance(found, CommandFailed):
            raise found
        return found

    monkeypatch.setattr(status, "look", look)
    plan = watch.WatchOptions(
        stack=Stack(engine=Engine("", "26", None), name="s", file=Path("stack.yaml")),
        budget=BUDGET,
        seconds=0.05,
        every_seconds=0.01,
        minutes=minutes,
        record=path / "watch.jsonl",
    )
    broken = watch.watch(plan, Console(file=StringIO()))
    return broken, [json.loads(line) for line in plan.record.read_text().splitlines()]


def test_a_quiet_release_breaks_nothing_and_every_look_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken, record = run(monkeypatch, tmp_path, (seen(100 * n) for n in itertools.count()))

    assert broken == ()
    assert len(record) > 1
    assert {line["schema_version"] for line in record} == {1}
    assert record[0]["window"] is None
    assert record[1]["window"]["requests"] == 100  # type: ignore[index] # JSON


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (replace(seen(), replicas={**seen().replicas, "api": (replica(1),)}), "1 of 2 replicas of api run"),
        (replace(seen(), problem="the stack does not run"), "the stack does not run"),
        (seen(memory_bytes=2_000_000), "a replica uses 2 MB"),
        (seen(50, errors=10), "error fraction"),
        (replace(seen(), ended={"api": (replica(1, "failed"),)}), "1 replicas ended within an hour, allowed 0"),
        (CommandFailed(["docker"], 1, "no engine"), "the engine does not answer: no engine"),
    ],
)
def test_each_break_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: StackStatus | CommandFailed, shown: str
) -> None:
    broken, record = run(monkeypatch, tmp_path, [seen(), bad])

    assert shown in "; ".join(broken)
    assert record[-1]["broken"] == list(broken)


def test_what_ended_before_the_watch_is_not_its_business(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = replace(seen(), ended={"api": (replica(1, "failed"),)})

    broken, _ = run(monkeypatch, tmp_path, itertools.repeat(before))

    assert broken == ()


def test_a_short_break_is_noise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = replace(seen(), replicas={**seen().replicas, "api": (replica(1),)})

    broken, record = run(monkeypatch, tmp_path, itertools.chain([seen(), lost], itertools.repeat(seen())), minutes=1)

    assert broken == ()
    assert any(line["broken"] for line in record)
