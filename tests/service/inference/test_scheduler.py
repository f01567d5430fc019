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
    TextTooLongError,
)
from tests.service.fakes import FakeEmbedder
from tests.support.polling import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
lengths = st.lists(st.integers(1, 512), min_size=1, max_size=60)


@given(lengths, st.data(), st.integers(1, 4096))
def test_a_batch_is_within_its_budget_or_is_the_oldest_row_alone(
    rows: list[int], data: st.DataObject, budget: int
) -> None:
    oldest = data.draw(st.integers(0, len(rows) - 1))
    batch = pack(rows, oldest, budget, 32)
    assert oldest in batch
    assert len(set(batch)) == len(batch)
    assert len(batch) == 1 or max(rows[index] for index in batch) * len(batch) <= budget


@given(lengths, st.integers(1, 4096))
def test_packing_again_and_again_takes_every_row_once(rows: list[int], budget: int) -> None:
    left = list(range(len(rows)))
    taken = []
    while left:
        batch = pack([rows[index] for index in left], 0, budget, 32)
        taken += [left[position] for position in batch]
        left = [index for position, index in enumerate(left) if position not in set(batch)]
    assert sorted(taken) == list(range(len(rows)))


@given(lengths, st.data())
def test_padding_stays_small(rows: list[int], data: st.DataObject) -> None:
    oldest = data.draw(st.integers(0, len(rows) - 1))
    batch = [rows[index] for index in pack(rows, oldest, 16_384, 32)]
    padded = max(batch) * len(batch)
    assert padded - sum(batch) <= max(32, 0.05 * padded)


def test_rows_of_like_length_go_together() -> None:
    batch = pack([10, 200, 11, 190, 9, 210], 0, 4096, 32)
    assert sorted(batch) == [0, 2, 4]


def run(work: Callable[[Scheduler, FakeEmbedder], Awaitable[T]], **options: int) -> T:
    """Run `work` with a scheduler and a fake model that begins once `may_run` is set."""
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


def test_results_come_in_the_order_of_the_inputs() -> None:
    texts = [f"word{number} " * (number % 7 + 1) for number in range(50)]

    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        reply = await scheduler.infer(model, texts, seconds=60)
        assert list(reply.results) == list(model.forward(model.prepare(texts, truncate=False)))
        assert reply.tokens == sum(number % 7 + 2 for number in range(50))

    run(work)


def test_requests_share_batches_while_the_device_is_busy() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        model.may_run.clear()
        first = asyncio.create_task(scheduler.infer(model, ["the first one goes alone"], seconds=60))
        while not model.batches:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(scheduler.infer(model, [f"text {number}"], seconds=60)) for number in range(10)]
        while scheduler.state.queued_tokens < 30:
            await asyncio.sleep(0.01)
        model.may_run.set()
        await asyncio.gather(first, *others)
        return model.batches

    assert run(work) == [1, 10]


def test_lanes_run_side_by_side_and_divide_what_waits() -> None:
    """A request of 400 tokens on two idle workers: each takes half, and both halves run before either is done."""

    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        model.may_run.clear()
        request = asyncio.create_task(scheduler.infer(model, ["word " * 9] * 40, seconds=60))
        while len(model.batches) < 2:
            await asyncio.sleep(0.01)
        model.may_run.set()
        reply = await request
        assert len(reply.results) == 40
        return model.batches

    assert run(work, workers=2) == [20, 20]


def test_little_work_is_not_divided() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        await scheduler.infer(model, ["word " * 9] * 8, seconds=60)
        return model.batches

    assert run(work, workers=2) == [8]


def test_a_device_that_is_lost_on_one_lane_is_lost_on_all() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        with pytest.raises(DeviceLostError):
            await scheduler.infer(model, ["lost"], seconds=60)
        while scheduler.is_running:
            await asyncio.sleep(0.01)
        assert not scheduler.state.is_alive

    run(work, workers=3)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        model.may_run.clear()
        running = asyncio.create_task(scheduler.infer(model, ["a b c"], seconds=60))
        while not model.batches:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(scheduler.infer(model, ["word " * 90], seconds=60))
        while scheduler.state.queued_tokens < 91:
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as caught:
            await scheduler.infer(model, ["word " * 20], seconds=60)
        assert caught.value.retry_after_seconds >= 1
        await scheduler.infer(FakeEmbedder(), [], seconds=60)  # nothing to do needs no room
        model.may_run.set()
        await asyncio.gather(running, waiting)

    run(work, queue_tokens=100)


def test_what_could_not_be_done_in_time_is_refused_at_once() -> None:
    """1,000 tokens wait; at the 5,000 a second assumed at first that is 0.2 s."""

    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        model.may_run.clear()
        running = asyncio.create_task(scheduler.infer(model, ["a"], seconds=60))
        while not model.batches:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(scheduler.infer(model, ["word " * 199] * 5, seconds=60))
        while scheduler.state.queued_tokens < 1000:
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError):
            await scheduler.infer(model, ["hurry"], seconds=0.1)
        model.may_run.set()
        await asyncio.gather(running, waiting)

    run(work)


def test_an_empty_queue_takes_a_request_larger_than_itself() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> int:
        return len((await scheduler.infer(model, ["word " * 200] * 3, seconds=60)).results)

    assert run(work, queue_tokens=100) == 3


def test_a_deadline_is_kept_even_when_the_device_hangs() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        model.may_run.clear()
        with pytest.raises(DeadlineExceededError):
            await scheduler.infer(model, ["a b"], seconds=0.05)

    run(work)


def test_a_caller_who_left_is_dropped_before_the_forward_pass() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        model.may_run.clear()
        running = asyncio.create_task(scheduler.infer(model, ["a"], seconds=60))
        while not model.batches:
            await asyncio.sleep(0.01)
        leaver = asyncio.create_task(scheduler.infer(model, ["b"] * 5, seconds=60))
        stayer = asyncio.create_task(scheduler.infer(model, ["c"] * 3, seconds=60))
        while scheduler.state.queued_tokens < 16:
            await asyncio.sleep(0.01)
        leaver.cancel()
        await asyncio.wait({leaver})
        model.may_run.set()
        await asyncio.gather(running, stayer)
        return model.batches

    assert run(work) == [1, 3]


def test_a_poisoned_text_fails_alone() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        model.may_run.clear()
        texts = ["fine one", "poison here", "fine two", "fine three"]
        tasks = [asyncio.create_task(scheduler.infer(model, ["first"], seconds=60))]
        while not model.batches:
            await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(scheduler.infer(model, [text], seconds=60)) for text in texts]
        while scheduler.state.queued_tokens < 12:
            await asyncio.sleep(0.01)
        model.may_run.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(each, InferenceFailedError) for each in outcomes] == [False, False, True, False, False]

    run(work)


def test_a_shortage_of_memory_halves_the_batch_and_goes_on() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> list[int]:
        await scheduler.infer(model, ["hungry"] * 4, seconds=60)
        first = list(model.batches)
        await scheduler.infer(model, ["small"] * 4, seconds=60)
        return first

    assert run(work) == [4, 2, 1, 1, 2, 1, 1]


def test_a_lost_device_fails_everyone_and_is_told() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        with pytest.raises(DeviceLostError):
            await scheduler.infer(model, ["lost"], seconds=60)
        while scheduler.is_running:
            await asyncio.sleep(0.01)
        assert not scheduler.state.is_alive
        with pytest.raises(DeviceLostError):
            await scheduler.infer(model, ["a"], seconds=60)

    run(work)


def test_a_text_over_the_limit_is_refused_with_its_tokens_or_cut_when_asked() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> None:
        with pytest.raises(TextTooLongError) as caught:
            await scheduler.infer(model, ["short", "word " * 300], seconds=60)
        assert (caught.value.index, caught.value.tokens, caught.value.limit_tokens) == (1, 301, 256)
        assert (await scheduler.infer(model, ["word " * 300], seconds=60, truncate=True)).tokens == 256

    run(work)


def test_two_models_share_the_device_without_mixing() -> None:
    async def work(scheduler: Scheduler, model: FakeEmbedder) -> tuple[list[int], list[int]]:
        other = FakeEmbedder("other")
        model.may_run.clear()
        tasks = [asyncio.create_task(scheduler.infer(model, ["first"], seconds=60))]
        while not model.batches:
            await asyncio.sleep(0.01)
        for _ in range(3):
            tasks += [asyncio.create_task(scheduler.infer(each, ["a b"], seconds=60)) for each in (model, other)]
        while scheduler.state.queued_tokens < 18:
            await asyncio.sleep(0.01)
        model.may_run.set()
        await asyncio.gather(*tasks)
        return model.batches, other.batches

    assert run(work) == ([1, 3], [3])


def test_every_pass_is_observed_with_its_padding() -> None:
    records: list[BatchRecord] = []

    async def work() -> None:
        scheduler = Scheduler(queue_tokens=1000, observe=records.append)
        scheduler.start()
        await scheduler.infer(FakeEmbedder("m"), ["a", "a b c"], seconds=60)
        await asyncio.to_thread(scheduler.stop, 10.0)

    asyncio.run(work())
    assert [(each.model, each.rows, each.tokens, each.padded_tokens) for each in records] == [("m", 2, 6, 8)]


def test_stopping_refuses_what_waits_and_ends_the_thread() -> None:
    async def work() -> None:
        model = FakeEmbedder()
        model.may_run.clear()
        scheduler = Scheduler(queue_tokens=1000)
        scheduler.start()
        running = asyncio.create_task(scheduler.infer(model, ["a"], seconds=60))
        while not model.batches:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(scheduler.infer(model, ["b"], seconds=60))
        while not scheduler.state.queued_tokens:
            await asyncio.sleep(0.01)
        threading.Timer(0.1, model.may_run.set).start()
        assert await asyncio.to_thread(scheduler.stop, 10.0)
        await running
        with pytest.raises(OverloadedError):
            await waiting

    asyncio.run(work())
