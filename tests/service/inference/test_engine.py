from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.inference.types import DeadlineExceededError, ModelUnavailableError, SlotState
from tests.service.conftest import settings
from tests.service.fakes import FakeEntailment
from tests.support.polling import until

if TYPE_CHECKING:
    from pathlib import Path

PAIR = [("ice melts", "ice melts")]


def test_two_inferences_of_a_request_share_its_deadline() -> None:
    async def work() -> None:
        engine = InferenceEngine(settings(request_seconds=60.0), Scheduler(queue_tokens=1000))
        engine.entailment.fill(FakeEntailment())
        engine.scheduler.start()
        try:
            assert len((await engine.classify(PAIR, spent_seconds=1.0)).results) == 1
            with pytest.raises(DeadlineExceededError):
                await engine.classify(PAIR, spent_seconds=60.0)
        finally:
            await asyncio.to_thread(engine.stop, 10.0)

    asyncio.run(work())


def test_a_model_that_fails_to_load_has_a_reason_and_the_other_loads(models_directory: Path) -> None:
    async def work() -> InferenceEngine:
        engine = InferenceEngine(
            settings(models=models_directory, entailment_model="missing"), Scheduler(queue_tokens=1000)
        )
        engine.start()
        await asyncio.to_thread(engine.wait_loaded, 120.0)
        await asyncio.to_thread(engine.stop, 10.0)
        return engine

    engine = asyncio.run(work())
    assert engine.embedding.state is SlotState.READY
    assert engine.entailment.state is SlotState.FAILED
    with pytest.raises(ModelUnavailableError, match="models add missing --from"):
        engine.entailment.get()
    until(lambda: not engine.is_busy, "its threads have ended")


def test_an_unconfigured_entailment_model_is_omitted(models_directory: Path) -> None:
    engine = InferenceEngine(settings(models=models_directory, entailment_model=None), Scheduler(queue_tokens=1000))
    assert engine.entailment.state is SlotState.OMITTED
    assert engine.embedding.state is SlotState.LOADING
