"""Health of the parts, with a scheduler in a chosen state and a database that answers or fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from service.health import Condition, Health, Level
from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler, SchedulerState
from tests.service.conftest import settings
from tests.service.fakes import FakeEmbedder, FakeEntailment

if TYPE_CHECKING:
    from service.inference.types import EmbeddingSpace

IDLE = SchedulerState(is_alive=True, queued_tokens=0, queue_tokens=100, busy_seconds=0.0, tokens_per_second=1000.0)


class FakeScheduler(Scheduler):
    """A scheduler in a given state."""

    def __init__(self, state: SchedulerState) -> None:
        super().__init__(queue_tokens=state.queue_tokens)
        self._state = state

    @property
    def state(self) -> SchedulerState:
        return self._state


class FakeDatabase:
    """A database with a given problem; counts its checks."""

    def __init__(self, problem: str | None) -> None:
        self._problem = problem
        self.checks = 0

    async def problem(self, _space: EmbeddingSpace | None) -> str | None:
        self.checks += 1
        return self._problem


def health(state: SchedulerState = IDLE, problem: str | None = None) -> Health:
    engine = InferenceEngine(settings(), FakeScheduler(state))
    engine.embedding.fill(FakeEmbedder())
    engine.entailment.fill(FakeEntailment())
    return Health(FakeDatabase(problem), engine, stall_seconds=60.0)  # type: ignore[arg-type] # only `problem` is used


def condition(checked: Health, part: str) -> Condition:
    return {each.part: each for each in asyncio.run(checked.conditions())}[part]


def test_all_parts_are_healthy_and_ready() -> None:
    conditions = asyncio.run(health().conditions())
    assert [each.part for each in conditions] == ["process", "database", "device", "embedding", "entailment"]
    assert {(each.level, each.is_ready) for each in conditions} == {(Level.HEALTHY, True)}


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (replace(IDLE, is_alive=False), Level.UNHEALTHY),
        (replace(IDLE, busy_seconds=61.0), Level.UNHEALTHY),
        (replace(IDLE, queued_tokens=91), Level.DEGRADED),
    ],
    ids=["lost", "stalled", "full"],
)
def test_a_device_that_cannot_take_requests_is_not_ready(state: SchedulerState, level: Level) -> None:
    device = condition(health(state), "device")
    assert (device.level, device.is_ready) == (level, False)


def test_a_database_with_a_problem_is_not_ready_and_says_why() -> None:
    database = condition(health(problem="it is down"), "database")
    assert (database.level, database.is_ready, database.message) == (Level.DEGRADED, False, "it is down")


def test_a_missing_optional_model_is_degraded_and_ready() -> None:
    checked = health()
    checked._engine.entailment.omit("not configured")
    checked._engine.embedding.fail("broken")
    omitted, failed = condition(checked, "entailment"), condition(checked, "embedding")
    assert (omitted.level, omitted.is_ready) == (Level.DEGRADED, True)
    assert (failed.level, failed.is_ready) == (Level.DEGRADED, False)


def test_draining_makes_the_process_not_ready_and_keeps_it_alive() -> None:
    checked = health()
    checked.is_draining = True
    assert not condition(checked, "process").is_ready
    assert checked.is_alive


def test_the_database_is_checked_once_for_many_probes() -> None:
    checked = health()

    async def probe() -> None:
        await asyncio.gather(*(checked.conditions() for _ in range(5)))

    asyncio.run(probe())
    assert checked._database.checks == 1  # type: ignore[attr-defined] # the fake
