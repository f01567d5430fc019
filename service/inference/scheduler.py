"""Schedules inference: one queue of rows from all requests, packed into batches by token budget, run by workers.

A worker is a thread that runs one forward pass at a time. A GPU has one, a CPU one for each core (see `torch_models`).
A request is refused at once if the queue has no room or its deadline cannot be met. A free worker never waits for a
batch to fill: batches form only while all workers are busy.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from service.inference.types import (
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
_WASTE_FRACTION: Final = 0.05
"""Accepted padding of a batch, as a fraction (the best of 0 to 0.3 in a simulation of mixed lengths)."""
_SHARE_TOKENS: Final = 128
"""Less work than this is not split between workers: another pass costs more than it saves (measured on MiniLM)."""
_WINDOW_ROWS: Final = 1_024
"""How many rows of the queue are considered for a batch."""
_INLINE_CHARACTERS: Final = 4_000
"""Inputs up to this length are tokenized on the event loop (0.2 ms, measured), longer ones on a thread."""
_CHARACTERS_PER_TOKEN: Final = 4
"""Estimate for a text that is not tokenized yet (English). Its exact tokens replace the estimate."""
_RATE_MEMORY: Final = 0.9
"""Decay of the sums of tokens and seconds with each pass. Their quotient is the rate, so large passes count most."""
_RATE_START_TOKENS: Final = 5_000.0
"""Tokens per second of one worker until the first pass is measured: about MiniLM's rate on one core in float32."""


def pack(lengths_tokens: Sequence[int], oldest: int, budget_tokens: int, pass_tokens: int) -> list[int]:
    """Returns the rows of the next batch, as indices into `lengths_tokens`; the row `oldest` is always one of them.

    A batch costs the length of its longest row times its number of rows, plus `pass_tokens`. Rows are sorted by length.
    Starting from the oldest row, the neighbor that adds the least padding joins, as long as the batch stays within
    `budget_tokens` and its padding within the larger of `pass_tokens` (the cost of another pass) and a twentieth of the
    batch. A single row may exceed the budget. Because the oldest row is always taken, every row is served eventually.
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
            if padded <= budget_tokens and padded - joined <= max(pass_tokens, _WASTE_FRACTION * padded):
                choices.append((padded - joined, start, end, joined))
        if not choices:
            return order[first : last + 1]
        _, first, last, tokens = min(choices)


@dataclass(eq=False, slots=True)
class _Call:
    """A request in the queue: its results so far, and the future that its caller awaits."""

    model: Model[object]
    future: asyncio.Future[None]
    deadline: float
    results: list[object]
    missing: int
    started: float | None = None
    forward_seconds: float = 0.0
    is_abandoned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One row of a request in the queue."""

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
    """A snapshot for health checks and metrics. `busy_seconds` is the time of the longest pass that is running."""

    is_alive: bool
    queued_tokens: int
    queue_tokens: int
    busy_seconds: float
    tokens_per_second: float


class Scheduler:
    """Runs the worker threads. `infer` is called on one event loop; the threads share the queue under one lock."""

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
        self._busy_since: dict[int, float] = {}
        self._is_stopping = False
        self._lost: InferenceError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="tokenizer")
        self._workers: list[threading.Thread] = []

    def start(self) -> None:
        """Starts the first worker. Call it on the event loop that will call `infer`."""
        self._loop = asyncio.get_running_loop()
        self.set_workers(1)

    def set_workers(self, workers: int) -> None:
        """Adds workers until there are `workers`; removes none. May be called on any thread."""
        with self._ready:
            for worker in range(len(self._workers), 0 if self._is_stopping else workers):
                self._workers.append(
                    threading.Thread(target=self._run, args=[worker], name=f"device-{worker}", daemon=True)
                )
                self._workers[-1].start()

    def stop(self, wait_seconds: float) -> bool:
        """Refuses the queued requests and ends the threads; returns False if one still runs after `wait_seconds`."""
        with self._ready:
            self._is_stopping = True
            self._ready.notify_all()
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + wait_seconds
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        return not self.is_running

    @property
    def is_running(self) -> bool:
        """Whether a worker thread is alive."""
        return any(worker.is_alive() for worker in self._workers)

    @property
    def state(self) -> SchedulerState:
        """Returns a snapshot of the queue and the workers."""
        busy_since = min(self._busy_since.copy().values(), default=None)
        return SchedulerState(
            is_alive=self.is_running and self._lost is None,
            queued_tokens=self._queued_tokens,
            queue_tokens=self._queue_tokens,
            busy_seconds=0.0 if busy_since is None else time.monotonic() - busy_since,
            tokens_per_second=self._tokens_per_second,
        )

    @property
    def _tokens_per_second(self) -> float:
        return len(self._workers) * self._recent_tokens / self._recent_seconds

    async def infer(
        self, model: Model[ResultT], inputs: Sequence[Input], *, seconds: float, truncate: bool = False
    ) -> Reply[ResultT]:
        """Tokenizes, queues and runs `inputs`; returns the results of all of them.

        If the caller is cancelled, its queued rows are dropped.

        Raises:
            OverloadedError: at once, if the queue has no room or the work cannot be done within `seconds`.
            DeadlineExceededError: after `seconds`.
            TextTooLongError: an input is over the model's limit, unless `truncate`.
            InferenceFailedError: the model failed on one of these inputs.
            DeviceLostError: the device failed for good.
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
            results=[None] * len(rows),
            missing=len(rows),
        )
        with self._ready:
            self._admit(tokens, seconds)
            self._entries += [_Entry(call, index, row) for index, row in enumerate(rows)]
            self._queued_tokens += tokens
            self._ready.notify(len(rows))  # wake at most one worker for each row
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + call.deadline - time.monotonic()):
                await call.future
        except TimeoutError as error:
            raise DeadlineExceededError(seconds) from error
        finally:
            call.is_abandoned = True  # no effect on a finished call
        started = call.started if call.started is not None else prepared
        return Reply(
            # The results come from `model.forward`, so they have its type.
            cast("Sequence[ResultT]", call.results),
            tokens,
            StageSeconds(prepare=prepared - began, queue=started - prepared, forward=call.forward_seconds),
        )

    def _admit(self, tokens: int, seconds: float) -> None:
        """Raises unless `tokens` more fit. An empty queue accepts one request of any size."""
        if self._lost is not None:
            raise DeviceLostError(str(self._lost))
        waiting = self._queued_tokens + self._preparing_tokens
        wait_seconds = waiting / self._tokens_per_second
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

    def _run(self, worker: int) -> None:
        """Runs in a worker thread: takes and runs batches until the scheduler stops or the device is lost."""
        try:
            while batch := self._next_batch(worker):
                self._execute(batch)
        except DeviceLostError as error:
            _LOGGER.critical("device lost: %s", error)
            self._lost = error
        except Exception:  # the outermost frame of the thread: the waiting callers must get an error
            _LOGGER.exception("a worker thread failed")
            self._lost = DeviceLostError("a worker thread failed")
        with self._ready:
            left, self._entries, self._queued_tokens = self._entries, [], 0
            self._ready.notify_all()
        self._fail(left, self._lost or OverloadedError(1.0))

    def _next_batch(self, worker: int) -> list[_Entry]:
        """Waits for rows and returns a batch of the oldest row's model; returns an empty list to end the thread."""
        with self._ready:
            self._busy_since.pop(worker, None)
            while not self._is_stopping and self._lost is None:
                self._drop_abandoned()
                if self._entries:
                    batch = self._take()
                    self._busy_since[worker] = time.monotonic()
                    return batch
                self._ready.wait()
        return []

    def _drop_abandoned(self) -> None:
        now = time.monotonic()
        wanted = [each for each in self._entries if not each.call.is_abandoned and each.call.deadline > now]
        if len(wanted) != len(self._entries):
            self._entries = wanted
            self._queued_tokens = sum(each.row.length_tokens for each in wanted)

    def _take(self) -> list[_Entry]:
        model = self._entries[0].call.model
        window = [each for each in self._entries if each.call.model is model][:_WINDOW_ROWS]
        lengths = [each.row.length_tokens for each in window]
        share = sum(lengths) // (len(self._workers) - len(self._busy_since))  # tokens for each idle worker
        budget = min(self._budgets_tokens.get(model.name, model.batch_tokens), max(share, _SHARE_TOKENS))
        batch = [window[index] for index in pack(lengths, 0, budget, model.pass_tokens)]
        taken = set(map(id, batch))
        self._entries = [each for each in self._entries if id(each) not in taken]
        self._queued_tokens -= sum(each.row.length_tokens for each in batch)
        return batch

    def _execute(self, batch: list[_Entry]) -> None:
        """Runs `batch`; if it fails, in halves, so that a bad row fails alone. Raises `DeviceLostError`."""
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
            except Exception as error:  # noqa: BLE001 - a model may raise anything; the caller gets an error
                if isinstance(error, DeviceMemoryError):
                    with self._ready:
                        budget = self._budgets_tokens.get(model.name, model.batch_tokens)
                        self._budgets_tokens[model.name] = max(budget // 2, 1)
                    _LOGGER.warning("out of device memory at %s; halving the batch", error)
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
        with self._ready:
            self._recent_tokens = _RATE_MEMORY * self._recent_tokens + tokens
            self._recent_seconds = _RATE_MEMORY * self._recent_seconds + seconds
            if model.name in self._budgets_tokens:  # after an out-of-memory error the budget grows back slowly
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
