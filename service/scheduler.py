"""The one queue before the device: packs rows of many requests into batches by token budget, on one thread.

Admission comes first: a request that finds no room, or could not be done by its deadline, is refused at once. The
device is never idle while there is work and nothing waits for company: batches form only while the device is busy.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from service.inference import (
    DeadlineExceededError,
    DeviceLostError,
    DeviceMemoryError,
    InferenceError,
    InferenceFailedError,
    Input,
    Model,
    OverloadedError,
    Reply,
    StageSeconds,
    TokenRow,
)

__all__ = ["BatchRecord", "Scheduler", "SchedulerState", "pack"]

ResultT = TypeVar("ResultT")
_LOGGER = logging.getLogger(__name__)
_WASTE_FRACTION: Final = 0.2
_WASTE_TOKENS: Final = 256
"""Padding that a batch may carry to take one more row: a pass has a fixed cost, worth some padding. Both guesses."""
_WINDOW_ROWS: Final = 1_024
"""How far down the queue a batch looks for rows of like length."""
_INLINE_CHARACTERS: Final = 4_000
"""Inputs shorter than this are tokenised on the event loop (0.2 ms, measured), longer ones on a thread."""
_CHARACTERS_PER_TOKEN: Final = 4
"""What a text is assumed to weigh until it is tokenised (English; others are counted right a moment later)."""
_RATE_MEMORY: Final = 0.9
"""What each pass leaves of the tokens and seconds before it; their quotient is the rate, so large passes count most."""
_RATE_START_TOKENS: Final = 5_000.0
"""Tokens per second assumed before anything was measured: MiniLM on two cores in float32."""


def pack(lengths_tokens: Sequence[int], oldest: int, budget_tokens: int) -> list[int]:
    """Choose the rows of the next batch: indices into `lengths_tokens`, the row `oldest` always among them.

    A batch costs its longest row's length times its rows. Starting from the oldest row, the neighbour by length that
    costs least padding joins as long as the cost stays within the budget and padding within a fifth of it (or within
    256 tokens). Only a single row may exceed the budget. As the oldest is always taken, none waits for ever.
    """
    order = sorted(range(len(lengths_tokens)), key=lengths_tokens.__getitem__)
    first = last = order.index(oldest)
    tokens = lengths_tokens[oldest]

    def cost(first: int, last: int) -> int:
        return lengths_tokens[order[last]] * (last - first + 1)

    while True:
        grown = [(first - 1, last)] if first > 0 else []
        grown += [(first, last + 1)] if last + 1 < len(order) else []
        choices = []
        for start, end in grown:
            joined = tokens + lengths_tokens[order[start if start < first else end]]
            padded = cost(start, end)
            if padded <= budget_tokens and padded - joined <= max(_WASTE_TOKENS, _WASTE_FRACTION * padded):
                choices.append((padded - joined, start, end, joined))
        if not choices:
            return order[first : last + 1]
        _, first, last, tokens = min(choices)


@dataclass(eq=False, slots=True)
class _Call:
    """One request in the queue: its results so far, and the future that its caller waits for."""

    model: Model[object]
    future: asyncio.Future[None]
    deadline: float
    enqueued: float
    results: list[object]
    missing: int
    started: float | None = None
    forward_seconds: float = 0.0
    is_abandoned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    call: _Call
    index: int
    row: TokenRow


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One forward pass, for the metrics."""

    model: str
    rows: int
    tokens: int
    padded_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """What health and metrics read, a moment old."""

    is_alive: bool
    queued_tokens: int
    queue_tokens: int
    busy_seconds: float
    tokens_per_second: float


class Scheduler:
    """Owns the device's thread. `infer` is called on one event loop; everything else is private to the thread."""

    def __init__(self, *, queue_tokens: int, observe: Callable[[BatchRecord], None] = lambda _record: None) -> None:
        self._queue_tokens = queue_tokens
        self._observe = observe
        self._ready = threading.Condition()
        self._entries: list[_Entry] = []
        self._queued_tokens = 0
        self._preparing_tokens = 0
        self._recent_tokens = _RATE_START_TOKENS
        self._recent_seconds = 1.0
        self._budgets_tokens: dict[str, int] = {}
        self._busy_since: float | None = None
        self._is_stopping = False
        self._lost: InferenceError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="tokenizer")
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Start the device's thread; called on the event loop that will call `infer`."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, wait_seconds: float) -> bool:
        """Refuse what is still queued and end the thread; False if it is stuck in a pass after `wait_seconds`."""
        with self._ready:
            self._is_stopping = True
            self._ready.notify()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
        if self.is_running:
            self._thread.join(wait_seconds)
        return not self.is_running

    @property
    def is_running(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def state(self) -> SchedulerState:
        """How full, how fast, how long in the present pass."""
        busy_since = self._busy_since
        return SchedulerState(
            is_alive=self.is_running and self._lost is None,
            queued_tokens=self._queued_tokens,
            queue_tokens=self._queue_tokens,
            busy_seconds=0.0 if busy_since is None else time.monotonic() - busy_since,
            tokens_per_second=self._recent_tokens / self._recent_seconds,
        )

    async def infer(
        self, model: Model[ResultT], inputs: Sequence[Input], *, seconds: float, truncate: bool = False
    ) -> Reply[ResultT]:
        """Prepare, queue and run `inputs`; the reply is whole or there is none.

        A cancelled caller's rows are dropped before their forward pass.

        Raises:
            OverloadedError: at once, when the queue has no room or the work could not be done within `seconds`.
            DeadlineExceededError: after `seconds`.
            TextTooLongError: for an input over the model's limit, unless `truncate`.
            InferenceFailedError: when the model raises on one of these inputs.
            DeviceLostError: when the device is gone for good.
        """
        began = time.monotonic()
        self._admit(0, seconds)
        rows = await self._prepare(model, inputs, truncate=truncate)
        prepared = time.monotonic()
        if not rows:
            return Reply((), 0, StageSeconds(prepare=prepared - began))
        tokens = sum(row.length_tokens for row in rows)
        call = _Call(
            model=model,
            future=asyncio.get_running_loop().create_future(),
            deadline=began + seconds,
            enqueued=prepared,
            results=[None] * len(rows),
            missing=len(rows),
        )
        with self._ready:
            self._admit(tokens, seconds)
            self._entries += [_Entry(call, index, row) for index, row in enumerate(rows)]
            self._queued_tokens += tokens
            self._ready.notify()
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + call.deadline - time.monotonic()):
                await call.future
        except TimeoutError as error:
            raise DeadlineExceededError(seconds) from error
        finally:
            call.is_abandoned = True  # harmless once it is done
        started = call.started if call.started is not None else prepared
        return Reply(
            # The thread filled every place with what this very model's forward returned.
            cast("Sequence[ResultT]", call.results),
            tokens,
            StageSeconds(prepare=prepared - began, queue=started - prepared, forward=call.forward_seconds),
        )

    def _admit(self, tokens: int, seconds: float) -> None:
        """Raise unless `tokens` more have room. An empty queue takes any one request, or some could never be served."""
        if self._lost is not None:
            raise DeviceLostError(str(self._lost))
        waiting = self._queued_tokens + self._preparing_tokens
        wait_seconds = waiting * self._recent_seconds / self._recent_tokens
        if waiting and (waiting + tokens > self._queue_tokens or wait_seconds > seconds):
            raise OverloadedError(max(1.0, wait_seconds / 2))

    async def _prepare(self, model: Model[ResultT], inputs: Sequence[Input], *, truncate: bool) -> list[TokenRow]:
        characters = sum(
            len(each) if isinstance(each, str) else sum(len(str(part)) for part in each) for each in inputs
        )
        if characters <= _INLINE_CHARACTERS:
            return model.prepare(inputs, truncate=truncate)
        estimate_tokens = characters // _CHARACTERS_PER_TOKEN
        self._preparing_tokens += estimate_tokens
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._tokenizers, lambda: model.prepare(inputs, truncate=truncate)
            )
        finally:
            self._preparing_tokens -= estimate_tokens

    def _run(self) -> None:
        """The device's thread: until stopped or lost, take a batch, run it, deliver it."""
        try:
            while batch := self._next_batch():
                self._busy_since = time.monotonic()
                self._execute(batch)
                self._busy_since = None
        except DeviceLostError as error:
            _LOGGER.critical("the device is lost: %s", error)
            self._lost = error
        except Exception:  # the thread's edge: whoever waits must hear of it
            _LOGGER.exception("the device's thread failed")
            self._lost = DeviceLostError("the device's thread failed")
        with self._ready:
            left, self._entries, self._queued_tokens = self._entries, [], 0
        self._fail(left, self._lost or OverloadedError(1.0))

    def _next_batch(self) -> list[_Entry]:
        """Wait for work and take some: rows of the oldest entry's model. Nothing means stop."""
        with self._ready:
            while not self._is_stopping:
                self._drop_unwanted()
                if self._entries:
                    return self._take()
                self._ready.wait()
        return []

    def _drop_unwanted(self) -> None:
        now = time.monotonic()
        wanted = [each for each in self._entries if not each.call.is_abandoned and each.call.deadline > now]
        if len(wanted) != len(self._entries):
            self._entries = wanted
            self._queued_tokens = sum(each.row.length_tokens for each in wanted)

    def _take(self) -> list[_Entry]:
        model = self._entries[0].call.model
        window = [each for each in self._entries if each.call.model is model][:_WINDOW_ROWS]
        budget = self._budgets_tokens.get(model.name, model.batch_tokens)
        batch = [window[index] for index in pack([each.row.length_tokens for each in window], 0, budget)]
        taken = set(map(id, batch))
        self._entries = [each for each in self._entries if id(each) not in taken]
        self._queued_tokens -= sum(each.row.length_tokens for each in batch)
        return batch

    def _execute(self, batch: list[_Entry]) -> None:
        """Run `batch`, in halves when it fails, so that one bad row fails alone. `DeviceLostError` goes through."""
        model = batch[0].call.model
        parts = [batch]
        while parts:
            part = parts.pop()
            began = time.monotonic()
            try:
                results = model.forward([each.row for each in part])
            except DeviceLostError as error:
                self._fail([each for rest in [part, *parts] for each in rest], error)
                raise
            except Exception as error:  # noqa: BLE001 - a model may raise anything; the caller gets it
                if isinstance(error, DeviceMemoryError):
                    budget = self._budgets_tokens.get(model.name, model.batch_tokens)
                    self._budgets_tokens[model.name] = max(budget // 2, 1)
                    _LOGGER.warning("out of device memory at %s, halving the batch", error)
                if len(part) > 1:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
                else:
                    _LOGGER.error("model %s failed on one input: %s", model.name, type(error).__name__)  # noqa: TRY400
                    self._fail(part, InferenceFailedError(f"model {model.name} failed on this input"))
                continue
            self._account(part, model, time.monotonic() - began)
            self._deliver(part, results, began, time.monotonic() - began)

    def _account(self, part: list[_Entry], model: Model[object], seconds: float) -> None:
        tokens = sum(each.row.length_tokens for each in part)
        padded_tokens = max(each.row.length_tokens for each in part) * len(part)
        self._recent_tokens = _RATE_MEMORY * self._recent_tokens + tokens
        self._recent_seconds = _RATE_MEMORY * self._recent_seconds + seconds
        if model.name in self._budgets_tokens:  # after a shortage of memory the budget grows back slowly
            budget = self._budgets_tokens[model.name]
            self._budgets_tokens[model.name] = min(model.batch_tokens, budget + budget // 64 + 1)
        self._observe(BatchRecord(model.name, len(part), tokens, padded_tokens, seconds))

    def _deliver(self, part: list[_Entry], results: Sequence[object], began: float, seconds: float) -> None:
        def on_loop() -> None:
            seen: set[int] = set()
            for each, result in zip(part, results, strict=True):
                call = each.call
                call.results[each.index] = result
                call.missing -= 1
                call.started = began if call.started is None else call.started
                if id(call) not in seen:
                    seen.add(id(call))
                    call.forward_seconds += seconds
                if call.missing == 0 and not call.future.done():
                    call.future.set_result(None)

        self._on_loop(on_loop)

    def _fail(self, entries: Iterable[_Entry], error: InferenceError) -> None:
        calls = {id(each.call): each.call for each in entries}

        def on_loop() -> None:
            for call in calls.values():
                if not call.future.done():
                    call.future.set_exception(error)

        for call in calls.values():
            call.is_abandoned = True
        self._on_loop(on_loop)

    def _on_loop(self, function: Callable[[], None]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)
