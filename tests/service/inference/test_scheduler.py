from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.scheduler import BatchRecord, Scheduler, pack
from service.inference.types import (
    DeadlineExceededError,
    DeviceLostError,
    InferenceFailedError,
    OverloadedError,
    Reply,
    TextTooLongError,
    Vector,
)
from tests.service.fakes import FakeEmbedder
from tests.support.polling import WAIT_SECONDS, until_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
lengths = st.lists(st.integers(1, 512), min_size=1, max_size=60)


@given(lengths, st.data(), st.integers(1, 4096))
def test_a_batch_is_within_the_budget_or_a_single_row(rows: list[int], data: st.DataObject, budget: int) -> None:
    oldest = data.draw(st.integers(0, len(rows) - 1))
    batch = pack(rows, oldest, budget, 32)
    assert oldest in batch
    assert len(set(batch)) == len(batch)
    assert len(batch) == 1 or max(rows[index] for index in batch) * len(batch) <= budget


@given(lengths, st.integers(1, 4096))
def test_repeated_packing_takes_every_row_once(rows: list[int], budget: int) -> None:
    left = list(range(len(rows)))
    taken = []
    while left:
        batch = pack([rows[index] for index in left], 0, budget, 32)
        taken += [left[position] for position in batch]
        left = [index for position, index in enumerate(left) if position not in set(batch)]
    assert sorted(taken) == list(range(len(rows)))


@given(lengths, st.data())
def test_padding_is_within_its_limit(rows: list[int], data: st.DataObject) -> None:
    oldest = data.draw(st.integers(0, len(rows) - 1))
    batch = [rows[index] for index in pack(rows, oldest, 16_384, 32)]
    padded = max(batch) * len(batch)
    assert padded - sum(batch) <= max(32, 0.05 * padded)


def test_rows_of_similar_length_are_batched() -> None:
    batch = pack([10, 200, 11, 190, 9, 210], 0, 4096, 32)
    assert sorted(batch) == [0, 2, 4]


def run(work: Callable[[Scheduler, FakeEmbedder], Awaitable[T]], **options: int) -> T:
    """Runs `work` with a scheduler and a fake model."""
    model = FakeEmbedder()

    async def within() -> T:
        scheduler = Scheduler(queue_tokens=options.get("queue_tokens", 10_000))
        scheduler.start()
        scheduler.set_workers(options.get("workers", 1))
        try:
            return await work(scheduler, model)
        finally:
            model.may_run.set()
            await asyncio.to_thread(scheduler.stop, 10.0)

    return asyncio.run(asyncio.wait_for(within(), WAIT_SECONDS))


async def keep_busy(scheduler: Scheduler, model: FakeEmbedder, texts: list[str]) -> asyncio.Task[Reply[Vector]]:
    """Sends a request that occupies a worker until `model.may_run` is set."""
    model.may_run.clear()
    request = asyncio.create_task(scheduler.infer(model, texts, seconds=60))
    await until_async(lambda: model.batches)
    return request


def test_results_come_in_the_order_of_the_inputs() -> None:
    texts = [f"word{number} " * (number % 7 + 1) for number in range(50)]

    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        reply = await scheduler.infer(model, texts, seconds=60)
        assert list(reply.results) == list(model.forward(model.prepare(texts, truncate=False)))
        assert reply.tokens == sum(number % 7 + 2 for number in range(50))

    run(work)


def test_requests_share_batches_while_the_device_is_busy() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        first = await keep_busy(scheduler, model, ["the first one goes alone"])
        others = [asyncio.create_task(scheduler.infer(model, [f"text {number}"], seconds=60)) for number in range(10)]
        await until_async(lambda: scheduler.state.queued_tokens >= 30)
        model.may_run.set()
        await asyncio.gather(first, *others)
        return model.batches

    assert run(work) == [1, 10]


def test_idle_workers_share_a_large_request() -> None:
    """A request of 400 tokens on two idle workers: each takes half, and both run at the same time."""

    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        model.may_run.clear()
        request = asyncio.create_task(scheduler.infer(model, ["word " * 9] * 40, seconds=60))
        await until_async(lambda: len(model.batches) >= 2)
        model.may_run.set()
        reply = await request
        assert len(reply.results) == 40
        return model.batches

    assert run(work, workers=2) == [20, 20]


def test_a_small_request_is_not_split() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        await scheduler.infer(model, ["word " * 9] * 8, seconds=60)
        return model.batches

    assert run(work, workers=2) == [8]


def test_a_device_lost_by_one_worker_stops_all() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        with pytest.raises(DeviceLostError):
            await scheduler.infer(model, ["lost"], seconds=60)
        await until_async(lambda: not scheduler.is_running)
        assert not scheduler.state.is_alive

    run(work, workers=3)


def test_a_full_queue_refuses_at_once_with_a_retry_time() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        running = await keep_busy(scheduler, model, ["a b c"])
        waiting = asyncio.create_task(scheduler.infer(model, ["word " * 90], seconds=60))
        await until_async(lambda: scheduler.state.queued_tokens >= 91)
        with pytest.raises(OverloadedError) as caught:
            await scheduler.infer(model, ["word " * 20], seconds=60)
        assert caught.value.retry_after_seconds >= 1
        await scheduler.infer(FakeEmbedder(), [], seconds=60)  # a request without texts needs no room
        model.may_run.set()
        await asyncio.gather(running, waiting)

    run(work, queue_tokens=100)


def test_work_that_cannot_meet_its_deadline_is_refused() -> None:
    """1,000 queued tokens take 0.2 s at the initial rate of 5,000 a second."""

    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        running = await keep_busy(scheduler, model, ["a"])
        waiting = asyncio.create_task(scheduler.infer(model, ["word " * 199] * 5, seconds=60))
        await until_async(lambda: scheduler.state.queued_tokens >= 1000)
        with pytest.raises(OverloadedError):
            await scheduler.infer(model, ["hurry"], seconds=0.1)
        model.may_run.set()
        await asyncio.gather(running, waiting)

    run(work)


def test_an_empty_queue_accepts_a_request_of_any_size() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> int:
        return len((await scheduler.infer(model, ["word " * 200] * 3, seconds=60)).results)

    assert run(work, queue_tokens=100) == 3


def test_a_deadline_holds_if_the_device_hangs() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        model.may_run.clear()
        with pytest.raises(DeadlineExceededError):
            await scheduler.infer(model, ["a b"], seconds=0.05)

    run(work)


def test_rows_of_a_cancelled_caller_are_dropped() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        running = await keep_busy(scheduler, model, ["a"])
        leaver = asyncio.create_task(scheduler.infer(model, ["b"] * 5, seconds=60))
        stayer = asyncio.create_task(scheduler.infer(model, ["c"] * 3, seconds=60))
        await until_async(lambda: scheduler.state.queued_tokens >= 16)
        leaver.cancel()
        await asyncio.wait({leaver})
        model.may_run.set()
        await asyncio.gather(running, stayer)
        return model.batches

    assert run(work) == [1, 3]


def test_a_text_that_breaks_the_model_fails_alone() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        model.may_run.clear()
        texts = ["fine one", "poison here", "fine two", "fine three"]
        tasks = [asyncio.create_task(scheduler.infer(model, ["first"], seconds=60))]
        await until_async(lambda: model.batches)
        tasks += [asyncio.create_task(scheduler.infer(model, [text], seconds=60)) for text in texts]
        await until_async(lambda: scheduler.state.queued_tokens >= 12)
        model.may_run.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(each, InferenceFailedError) for each in outcomes] == [False, False, True, False, False]

    run(work)


def test_out_of_memory_halves_the_batch() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        await scheduler.infer(model, ["hungry"] * 4, seconds=60)
        first = list(model.batches)
        await scheduler.infer(model, ["small"] * 4, seconds=60)
        return first

    assert run(work) == [4, 2, 1, 1, 2, 1, 1]


def test_a_lost_device_fails_all_requests() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        with pytest.raises(DeviceLostError):
            await scheduler.infer(model, ["lost"], seconds=60)
        await until_async(lambda: not scheduler.is_running)
        assert not scheduler.state.is_alive
        with pytest.raises(DeviceLostError):
            await scheduler.infer(model, ["a"], seconds=60)

    run(work)


def test_a_text_over_the_limit_is_refused_or_truncated() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        with pytest.raises(TextTooLongError) as caught:
            await scheduler.infer(model, ["short", "word " * 300], seconds=60)
        assert (caught.value.index, caught.value.tokens, caught.value.limit_tokens) == (1, 301, 256)
        assert (await scheduler.infer(model, ["word " * 300], seconds=60, truncate=True)).tokens == 256

    run(work)


def test_a_batch_has_rows_of_one_model_only() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> tuple[list[int], list[int]]:
        other = FakeEmbedder("other")
        tasks = [await keep_busy(scheduler, model, ["first"])]
        for _ in range(3):
            tasks += [asyncio.create_task(scheduler.infer(each, ["a b"], seconds=60)) for each in (model, other)]
        await until_async(lambda: scheduler.state.queued_tokens >= 18)
        model.may_run.set()
        await asyncio.gather(*tasks)
        return model.batches, other.batches

    assert run(work) == ([1, 3], [3])


def test_every_pass_is_recorded_with_its_padding() -> None:
    records: list[BatchRecord] = []

    async def work() -> None:
        scheduler = Scheduler(queue_tokens=1000, observe=records.append)
        scheduler.start()
        await scheduler.infer(FakeEmbedder("m"), ["a", "a b c"], seconds=60)
        await asyncio.to_thread(scheduler.stop, 10.0)

    asyncio.run(work())
    assert [(each.model, each.rows, each.tokens, each.padded_tokens) for each in records] == [("m", 2, 6, 8)]


def test_stop_refuses_queued_requests_and_ends_the_thread() -> None:
    async def work() -> None:
        model = FakeEmbedder()
        model.may_run.clear()
        scheduler = Scheduler(queue_tokens=1000)
        scheduler.start()
        running = asyncio.create_task(scheduler.infer(model, ["a"], seconds=60))
        await until_async(lambda: model.batches)
        waiting = asyncio.create_task(scheduler.infer(model, ["b"], seconds=60))
        await until_async(lambda: scheduler.state.queued_tokens > 0)
        threading.Timer(0.1, model.may_run.set).start()
        assert await asyncio.to_thread(scheduler.stop, 10.0)
        await running
        with pytest.raises(OverloadedError):
            await waiting

    asyncio.run(work())
