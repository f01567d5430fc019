"""Load that checks every answer: vectors stay what they were, what was accepted is there at the end, tasks end.

A wrong answer is one that contradicts an earlier one or the API's own promise. A claim is lost if it was acknowledged
and cannot be read back; a task if it was accepted and comes to no end. What was sent and not acknowledged is the
client's to send again, which it does, and counts.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from buildkit.staging.probes.client import Answer, Client, RequestTimedOut
from buildkit.staging.probes.fixtures import CLAIMS, LONG_TEXT, SENTENCES, SOURCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

__all__ = ["Load", "Operation", "Report", "cosine", "settle_sample"]

_SAME_COSINE = 0.9999
"""Vectors of one text in other company (batches are padded) differ by some 1e-7; another model's by much more."""
_TASK_SECONDS = 300.0
"""A task whose worker died waits for its lease, `TRUTHGRAPH_TASK_SECONDS` (120), and is done by another."""
_SHOWN = 5
_OK, _CREATED, _ACCEPTED = 200, 201, 202


@dataclass(frozen=True, slots=True)
class Operation:
    """All requests of one kind: how many, and the seconds of the answered attempts."""

    count: int
    p50_seconds: float
    p95_seconds: float
    max_seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a load found.

    Attributes:
        requests: that were answered or given up.
        retried: of these, the ones that had to be sent more than once.
        resent: attempts beyond the first of all of them.
        unanswered: given up after the client's patience.
        wrong: how many answers were wrong; `examples` shows the first.
        claims, claims_lost: acknowledged, and of these not there at the end.
        tasks, tasks_completed, tasks_lost: accepted, ended with a verdict, and without any end in time.
        longest_gap_seconds: the longest time in which no request at all was answered.
    """

    seconds: float
    requests: int
    retried: int
    resent: int
    unanswered: int
    wrong: int
    claims: int
    claims_lost: int
    tasks: int
    tasks_completed: int
    tasks_lost: int
    longest_gap_seconds: float
    operations: dict[str, Operation] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    @property
    def retried_fraction(self) -> float:
        """Requests that had to be sent again, of all."""
        return self.retried / self.requests if self.requests else 0.0

    @property
    def faults(self) -> tuple[str, ...]:
        """What must never be, in words; empty where nothing was lost and nothing was wrong."""
        counted = {
            "wrong answers": self.wrong,
            "requests without an answer": self.unanswered,
            "lost claims": self.claims_lost,
            "tasks without an end": self.tasks_lost,
        }
        return (*(f"{count} {what}" for what, count in counted.items() if count), *self.examples)

    def counts(self) -> dict[str, float]:
        """The figures alone, for a record."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}


def cosine(left: list[float], right: list[float]) -> float:
    """The cosine of two vectors."""
    dot = math.fsum(a * b for a, b in zip(left, right, strict=True))
    norms = math.sqrt(math.fsum(a * a for a in left)) * math.sqrt(math.fsum(b * b for b in right))
    return dot / norms if norms else 0.0


def settle_sample(client: Client) -> None:
    """Has the sample's sentences as evidence in the caller's tenant.

    Raises:
        RequestTimedOut: the API did not take one.
    """
    for number, sentence in enumerate(SENTENCES):
        piece = {"content": sentence, "source_url": f"{SOURCE}{number}", "source_type": "sample"}
        answer = client.send("POST", "/api/v1/evidence", piece)
        if answer.status not in {_OK, _CREATED}:
            raise RequestTimedOut("POST /api/v1/evidence", f"{answer.status} {answer.body[:200]!r}", answer.resent)


class Load:
    """Sends requests from several threads until told to stop, then looks whether everything is there.

    Used as `with load.running(): ...`, then `load.report()`.
    """

    def __init__(
        self, connect: Callable[[], Client], *, workers: int = 4, tasks: bool = False, pause_seconds: float = 0.0
    ) -> None:
        """*connect* makes a client for a thread; *tasks*: verify claims too, which needs an entailment model."""
        self._connect = connect
        self._workers = workers
        self._has_tasks = tasks
        self._pause_seconds = pause_seconds
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._vectors: dict[str, list[float]] = {}
        self._found: dict[str, str] = {}
        self._claims: dict[str, str] = {}
        self._tasks: list[str] = []
        self._seconds: dict[str, list[float]] = {}
        self._answered_at: list[float] = []
        self._examples: list[str] = []
        self._requests = self._retried = self._resent = self._unanswered = self._wrong = 0
        self._began = self._ended = 0.0
        self._threads: list[threading.Thread] = []

    @property
    def answered(self) -> int:
        """Answers so far."""
        return len(self._answered_at)

    def prepare(self) -> None:
        """Takes the vectors that every later answer is held against, and stores what searches must find.

        Raises:
            RequestTimedOut: the API does not answer.
        """
        client = self._connect()
        try:
            settle_sample(client)
            for text in (*CLAIMS, LONG_TEXT):
                got = _first(client, "/api/v1/embed", {"texts": [text]}, "embeddings")
                self._vectors[text] = got
            for claim in CLAIMS:
                found = _first(client, "/api/v1/search", {"query": claim, "limit": 3}, "results")
                self._found[claim] = found["evidence_id"]
        finally:
            client.close()

    def vectors(self) -> dict[str, list[float]]:
        """The vectors by text, as `prepare` took them."""
        return dict(self._vectors)

    def start(self) -> None:
        """Starts the threads."""
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"load {number}", daemon=True)
            for number in range(self._workers)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets each thread end its request."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._ended = time.monotonic()

    def __enter__(self) -> Self:
        """Starts it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    def report(self) -> Report:
        """Reads back every claim, waits for every task, and says what the load found."""
        client = self._connect()
        lost = sum(not self._is_there(client, identifier, text) for identifier, text in self._claims.items())
        completed, tasks_lost = self._wait_for_tasks(client)
        client.close()
        times = [self._began, *sorted(self._answered_at), self._ended]
        return Report(
            seconds=round(self._ended - self._began, 3),
            requests=self._requests,
            retried=self._retried,
            resent=self._resent,
            unanswered=self._unanswered,
            wrong=self._wrong,
            claims=len(self._claims),
            claims_lost=lost,
            tasks=len(self._tasks),
            tasks_completed=completed,
            tasks_lost=tasks_lost,
            longest_gap_seconds=round(max(after - before for before, after in itertools.pairwise(times)), 3),
            operations={name: _operation(seconds) for name, seconds in sorted(self._seconds.items())},
            examples=tuple(self._examples),
        )

    # ---- the threads ------------------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        client = self._connect()
        chance = random.Random(number)  # noqa: S311 - the same load each time
        kinds = [self._embed, self._embed, self._search, self._claim, *([self._task] if self._has_tasks else [])]
        while not self._stopped.is_set():
            try:
                for answer in chance.choice(kinds)(client, chance):
                    self._count(answer.resent)
            except RequestTimedOut as error:
                self._count(error.resent, unanswered=str(error))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                self._is_wrong(f"an answer without what it promises: {type(error).__name__}: {error}")
            self._stopped.wait(self._pause_seconds)
        client.close()

    def _embed(self, client: Client, chance: random.Random) -> Iterator[Answer]:
        texts = chance.sample(sorted(self._vectors), chance.randint(1, 4))
        answer = self._ask(client, "embed", "POST", "/api/v1/embed", {"texts": texts})
        yield answer
        if answer.status != _OK:
            self._is_wrong(f"embed: {answer.status} {answer.body[:200]!r}")
            return
        vectors = answer.json()["embeddings"]
        if len(vectors) != len(texts):
            self._is_wrong(f"embed: {len(vectors)} vectors for {len(texts)} texts")
        for text, vector in zip(texts, vectors, strict=False):
            expected = self._vectors[text]
            if len(vector) != len(expected) or cosine(vector, expected) < _SAME_COSINE:
                self._is_wrong(f"embed: another vector than before for {text[:40]!r}")

    def _search(self, client: Client, chance: random.Random) -> Iterator[Answer]:
        claim = chance.choice(sorted(self._found))
        answer = self._ask(client, "search", "POST", "/api/v1/search", {"query": claim, "limit": 3})
        yield answer
        found = [item["evidence_id"] for item in answer.json()["results"]] if answer.status == _OK else []
        if found[:1] != [self._found[claim]]:
            self._is_wrong(
                f"search: {answer.status}, first {found[:1]}, before {self._found[claim]} for {claim[:40]!r}"
            )

    def _claim(self, client: Client, chance: random.Random) -> Iterator[Answer]:
        text = f"{chance.choice(sorted(CLAIMS))} ({uuid.uuid4().hex})"
        answer = self._ask(client, "claim", "POST", "/api/v1/claims", {"text": text})
        yield answer
        if answer.status != _CREATED or answer.json()["text"] != text:
            self._is_wrong(f"claim: {answer.status} {answer.body[:200]!r}")
            return
        identifier = answer.json()["id"]
        with self._lock:
            self._claims[identifier] = text
        read = self._ask(client, "read claim", "GET", f"/api/v1/claims/{identifier}")
        yield read
        if read.status != _OK or read.json()["text"] != text:
            self._is_wrong(f"read claim: {read.status} {read.body[:200]!r}")

    def _task(self, client: Client, chance: random.Random) -> Iterator[Answer]:
        for answer in self._claim(client, chance):
            yield answer
            if answer.status != _CREATED:
                continue
            path = f"/api/v1/claims/{answer.json()['id']}/verify"
            key = {"Idempotency-Key": uuid.uuid4().hex}
            asked = self._ask(client, "task", "POST", path, {"options": {"max_evidence_items": 2}}, headers=key)
            yield asked
            if asked.status != _ACCEPTED:
                self._is_wrong(f"task: {asked.status} {asked.body[:200]!r}")
                return
            with self._lock:
                self._tasks.append(asked.json()["task_id"])

    def _ask(
        self,
        client: Client,
        name: str,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        answer = client.send(method, path, body, headers=headers)
        with self._lock:
            self._seconds.setdefault(name, []).append(answer.seconds)
            self._answered_at.append(time.monotonic())
        return answer

    def _count(self, resent: int, *, unanswered: str = "") -> None:
        with self._lock:
            self._requests += 1
            self._retried += resent > 0
            self._resent += resent
            if unanswered:
                self._unanswered += 1
                if len(self._examples) < _SHOWN:
                    self._examples.append(unanswered)

    def _is_wrong(self, example: str) -> None:
        with self._lock:
            self._wrong += 1
            if len(self._examples) < _SHOWN:
                self._examples.append(example)

    # ---- afterwards -------------------------------------------------------------------------------------------------

    def _is_there(self, client: Client, identifier: str, text: str) -> bool:
        answer = client.send("GET", f"/api/v1/claims/{identifier}")
        return answer.status == _OK and bool(answer.json()["text"] == text)

    def _wait_for_tasks(self, client: Client) -> tuple[int, int]:
        """How many tasks were completed, and how many came to no end in time (one that failed has ended)."""
        deadline = time.monotonic() + _TASK_SECONDS
        waiting, completed, lost = list(self._tasks), 0, 0
        while waiting:
            open_tasks: list[str] = []
            for identifier in waiting:
                answer = client.send("GET", f"/api/v1/tasks/{identifier}")
                status: dict[str, Any] = answer.json() if answer.status == _OK else {}
                if status.get("status") == "completed" and status.get("result"):
                    completed += 1
                elif status.get("status") in {"pending", "processing"}:
                    open_tasks.append(identifier)
                else:
                    lost += 1
                    self._examples.append(f"task {identifier}: {answer.status} {answer.body[:300]!r}")
            waiting = open_tasks
            if waiting and time.monotonic() > deadline:
                return completed, lost + len(waiting)
            if waiting:
                time.sleep(0.5)
        return completed, lost


def _first(client: Client, path: str, body: dict[str, object], name: str) -> Any:  # noqa: ANN401 - a part of JSON
    """The first of the list *name* in the answer.

    Raises:
        RequestTimedOut: there is no such answer.
    """
    answer = client.send("POST", path, body)
    try:
        return answer.json()[name][0]
    except (LookupError, TypeError, ValueError) as error:
        raise RequestTimedOut(f"POST {path}", f"{answer.status} {answer.body[:200]!r}", answer.resent) from error


def _operation(seconds: list[float]) -> Operation:
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, math.ceil(fraction * len(ordered)) - 1)] for fraction in (0.5, 0.95)]
    return Operation(len(ordered), round(at[0], 6), round(at[1], 6), round(ordered[-1], 6))
