"""Checks each part of the service: whether the process is alive, whether it is ready, and why not."""

import asyncio
import logging
import time
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from service.database import Database
from service.inference.engine import InferenceEngine
from service.inference.types import ModelSlot, Scores, SlotState, Vector

__all__ = ["Condition", "Health", "Level"]

_LOGGER = logging.getLogger(__name__)
_DATABASE_SECONDS: Final = 1.0
"""How long a check of the database is cached: several probes check every few seconds."""
_HIGH_WATER_FRACTION: Final = 0.9
"""A fuller queue makes a replica not ready, so that a load balancer uses another one. It is still healthy."""


class Level(StrEnum):
    """Health of a part."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Condition:
    """State of one part: `level` is for operators; `is_ready` says whether requests should be sent here."""

    part: str
    level: Level
    is_ready: bool
    message: str


class Health:
    """Checks the parts. `is_draining` is set once, when the process receives a signal to stop."""

    def __init__(self, database: Database, engine: InferenceEngine, *, stall_seconds: float) -> None:
        self.is_draining = False
        self.started = time.monotonic()
        self._database = database
        self._engine = engine
        self._stall_seconds = stall_seconds
        self._database_check: tuple[float, str | None] | None = None
        self._checking = asyncio.Lock()
        self._logged: AbstractSet[str] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether this process can still work; if not, it must be restarted."""
        return self._engine.scheduler.state.is_alive

    async def conditions(self) -> list[Condition]:
        """Returns the state of every part, and logs a change of readiness."""
        conditions = [
            self._process(),
            await self._database_condition(),
            self._device(),
            _model(self._engine.embedding),
            _model(self._engine.entailment),
        ]
        reasons = {each.part: each.message for each in conditions if not each.is_ready}
        if reasons.keys() != self._logged:
            self._logged = reasons.keys()
            _LOGGER.log(
                logging.WARNING if reasons else logging.INFO,
                "not ready" if reasons else "ready",
                extra={"reasons": reasons},
            )
        return conditions

    def _process(self) -> Condition:
        if self.is_draining:
            return Condition("process", Level.DEGRADED, is_ready=False, message="stopping: finishing accepted requests")
        return Condition("process", Level.HEALTHY, is_ready=True, message="running")

    def _device(self) -> Condition:
        state = self._engine.scheduler.state
        if not state.is_alive:
            return Condition(
                "device", Level.UNHEALTHY, is_ready=False, message="the worker thread has ended: restart the process"
            )
        if state.busy_seconds > self._stall_seconds:
            message = f"a forward pass has been running for {state.busy_seconds:.0f} s"
            return Condition("device", Level.UNHEALTHY, is_ready=False, message=message)
        message = f"{state.queued_tokens} of at most {state.queue_tokens} tokens are queued"
        is_full = state.queued_tokens > _HIGH_WATER_FRACTION * state.queue_tokens
        return Condition("device", Level.DEGRADED if is_full else Level.HEALTHY, is_ready=not is_full, message=message)

    async def _database_condition(self) -> Condition:
        async with self._checking:
            if self._database_check is None or time.monotonic() - self._database_check[0] > _DATABASE_SECONDS:
                problem = await self._database.problem(self._engine.space())
                self._database_check = (time.monotonic(), problem)
            problem = self._database_check[1]
        if problem is not None:
            return Condition("database", Level.DEGRADED, is_ready=False, message=problem)
        return Condition("database", Level.HEALTHY, is_ready=True, message="the database answers and its schema fits")


def _model(slot: ModelSlot[Vector] | ModelSlot[Scores]) -> Condition:
    match slot.state:
        case SlotState.READY:
            return Condition(slot.role, Level.HEALTHY, is_ready=True, message=f"{slot.name} is loaded")
        case SlotState.OMITTED:
            return Condition(slot.role, Level.DEGRADED, is_ready=True, message=slot.reason)
        case SlotState.LOADING | SlotState.FAILED:
            return Condition(slot.role, Level.DEGRADED, is_ready=False, message=slot.reason)
