"""Generates load on the API, checks every response, and counts wrong responses and lost claims and tasks.

A response is wrong if it contradicts an earlier one or the API's documentation. A claim is lost if it was acknowledged
and cannot be read at the end. A task is lost if it was accepted and does not complete. Requests that fail without an
acknowledgement are retried by the client and counted as retries.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from buildkit.staging.probes.client import Client, RequestTimedOut, Response
from buildkit.staging.probes.fixtures import CLAIMS, LONG_TEXT, SAME_COSINE, cosine, store_sentences
from buildkit.text import format_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

__all__ = ["Load", "LoadReport"]

_TASK_SECONDS = 300.0
"""Deadline of the tasks. A task whose worker died waits until its lease ends: `TRUTHGRAPH_TASK_SECONDS`, 120 s."""
_MAX_EXAMPLES = 5
_OK, _CREATED, _ACCEPTED = 200, 201, 202


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of one load.

    Attributes:
        seconds: from start to stop.
        requests: sent, whether they got a response or timed out.
        retried: requests that needed more than one attempt.
        retries: attempts beyond the first, of all requests.
        timed_out: requests without a response within the client's time.
        wrong: wrong responses; `examples` holds the first of them.
        claims: acknowledged.
        claims_lost: acknowledged, but missing at the end.
        tasks: accepted.
        tasks_completed: with a verdict.
        tasks_lost: failed, missing, or still open at their deadline.
        longest_gap_seconds: the longest time without a response to any request.
        examples: sentences about the first problems.
    """

    seconds: float
    requests: int
    retried: int
    retries: int
    timed_out: int
    wrong: int
    claims: int
    claims_lost: int
    tasks: int
    tasks_completed: int
    tasks_lost: int
    longest_gap_seconds: float
    examples: tuple[str, ...] = ()

    @property
    def retried_fraction(self) -> float:
        """The share of requests that needed more than one attempt, 0 to 1."""
        return self.retried / self.requests if self.requests else 0.0

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences about wrong and lost responses; empty if there were none."""
        counted = {
            "wrong response": self.wrong,
            "unanswered request": self.timed_out,
            "lost claim": self.claims_lost,
            "lost task": self.tasks_lost,
        }
        return (*(format_count(count, name) for name, count in counted.items() if count), *self.examples)

    def counts(self) -> dict[str, float]:
        """Returns the numbers by name, for the release record."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, int | float)}


class Load:
    """Sends requests from several threads until it is stopped.

    Use it as `load.prepare()`, `with load: ...`, `load.report()`.
    """

    def __init__(
        self, connect: Callable[[], Client], *, workers: int = 4, has_tasks: bool = False, pause_seconds: float = 0.0
    ) -> None:
        """Prepares the threads.

        Args:
            connect: makes the client of one thread.
            workers: number of threads.
            has_tasks: also requests verifications, which need an entailment model.
            pause_seconds: between two operations of a thread.
        """
        self._connect = connect
        self._workers = workers
        self._has_tasks = has_tasks
        self._pause_seconds = pause_seconds
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._vectors: dict[str, list[float]] = {}
        self._first_hits: dict[str, str] = {}
        self._claims: dict[str, str] = {}
        self._tasks: list[str] = []
        self._response_times: list[float] = []
        self._examples: list[str] = []
        self._requests = self._retried = self._retries = self._timed_out = self._wrong = 0
        self._began = self._ended = 0.0
        self._threads: list[threading.Thread] = []

    @property
    def responses(self) -> int:
        """The number of responses so far."""
        return len(self._response_times)

    def prepare(self) -> None:
        """Stores the sentences, and records the embeddings and search results that later responses must repeat.

        Raises:
            RequestTimedOut: the API does not respond.
        """
        client = self._connect()
        try:
            store_sentences(client)
            for text in (*CLAIMS, LONG_TEXT):
                self._vectors[text] = _first(client, "/api/v1/embed", {"texts": [text]}, "embeddings")
            for claim in CLAIMS:
                hit = _first(client, "/api/v1/search", {"query": claim, "limit": 3}, "results")
                self._first_hits[claim] = hit["evidence_id"]
        finally:
            client.close()

    def vectors(self) -> dict[str, list[float]]:
        """Returns the embeddings that `prepare` recorded, by text."""
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
        """Stops each thread after its current request."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._ended = time.monotonic()

    def __enter__(self) -> Self:
        """Starts the load."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the load."""
        self.stop()

    def report(self) -> LoadReport:
        """Reads every claim back, waits for every task, and returns the counts."""
        client = self._connect()
        claims_lost = sum(not self._has_claim(client, identifier, text) for identifier, text in self._claims.items())
        completed, tasks_lost = self._wait_for_tasks(client)
        client.close()
        times = [self._began, *sorted(self._response_times), self._ended]
        return LoadReport(
            seconds=round(self._ended - self._began, 3),
            requests=self._requests,
            retried=self._retried,
            retries=self._retries,
            timed_out=self._timed_out,
            wrong=self._wrong,
            claims=len(self._claims),
            claims_lost=claims_lost,
            tasks=len(self._tasks),
            tasks_completed=completed,
            tasks_lost=tasks_lost,
            longest_gap_seconds=round(max(after - before for before, after in itertools.pairwise(times)), 3),
            examples=tuple(self._examples),
        )

    def _work(self, number: int) -> None:
        client = self._connect()
        chance = random.Random(number)  # noqa: S311 - the same load each time
        kinds = [self._embed, self._embed, self._search, self._claim, *([self._task] if self._has_tasks else [])]
        while not self._stopped.is_set():
            try:
                for response in chance.choice(kinds)(client, chance):
                    self._count(response.retries)
            except RequestTimedOut as error:
                self._count(error.retries, timed_out=str(error))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                self._count_wrong(f"a response differs from the API's documentation: {type(error).__name__}: {error}")
            self._stopped.wait(self._pause_seconds)
        client.close()

    def _embed(self, client: Client, chance: random.Random) -> Iterator[Response]:
        texts = chance.sample(sorted(self._vectors), chance.randint(1, 4))
        response = self._send(client, "POST", "/api/v1/embed", {"texts": texts})
        yield response
        if response.status != _OK:
            self._count_wrong(f"embed: {response.status} {response.body[:200]!r}")
            return
        vectors = response.json()["embeddings"]
        if len(vectors) != len(texts):
            self._count_wrong(f"embed: {len(vectors)} embeddings for {len(texts)} texts")
        for text, vector in zip(texts, vectors, strict=False):
            expected = self._vectors[text]
            if len(vector) != len(expected) or cosine(vector, expected) < SAME_COSINE:
                self._count_wrong(f"embed: the embedding of {text[:40]!r} changed")

    def _search(self, client: Client, chance: random.Random) -> Iterator[Response]:
        claim = chance.choice(sorted(self._first_hits))
        response = self._send(client, "POST", "/api/v1/search", {"query": claim, "limit": 3})
        yield response
        hits = [hit["evidence_id"] for hit in response.json()["results"]] if response.status == _OK else []
        if hits[:1] != [self._first_hits[claim]]:
            expected = self._first_hits[claim]
            self._count_wrong(f"search for {claim[:40]!r}: {response.status}, first hit {hits[:1]}, not {expected}")

    def _claim(self, client: Client, chance: random.Random) -> Iterator[Response]:
        text = f"{chance.choice(sorted(CLAIMS))} ({uuid.uuid4().hex})"
        response = self._send(client, "POST", "/api/v1/claims", {"text": text})
        yield response
        if response.status != _CREATED or response.json()["text"] != text:
            self._count_wrong(f"store claim: {response.status} {response.body[:200]!r}")
            return
        identifier = response.json()["id"]
        with self._lock:
            self._claims[identifier] = text
        read = self._send(client, "GET", f"/api/v1/claims/{identifier}")
        yield read
        if read.status != _OK or read.json()["text"] != text:
            self._count_wrong(f"read claim: {read.status} {read.body[:200]!r}")

    def _task(self, client: Client, chance: random.Random) -> Iterator[Response]:
        for response in self._claim(client, chance):
            yield response
            if response.status != _CREATED:
                continue
            path = f"/api/v1/claims/{response.json()['id']}/verify"
            key = {"Idempotency-Key": uuid.uuid4().hex}
            options = {"options": {"max_evidence_items": 2}}
            accepted = self._send(client, "POST", path, options, headers=key)
            yield accepted
            if accepted.status != _ACCEPTED:
                self._count_wrong(f"request verification: {accepted.status} {accepted.body[:200]!r}")
                return
            with self._lock:
                self._tasks.append(accepted.json()["task_id"])

    def _send(
        self,
        client: Client,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Response:
        response = client.send(method, path, body, headers=headers)
        with self._lock:
            self._response_times.append(time.monotonic())
        return response

    def _count(self, retries: int, *, timed_out: str = "") -> None:
        with self._lock:
            self._requests += 1
            self._retried += retries > 0
            self._retries += retries
            if timed_out:
                self._timed_out += 1
                self._add_example(timed_out)

    def _count_wrong(self, example: str) -> None:
        with self._lock:
            self._wrong += 1
            self._add_example(example)

    def _add_example(self, example: str) -> None:
        if len(self._examples) < _MAX_EXAMPLES:
            self._examples.append(example)

    def _has_claim(self, client: Client, identifier: str, text: str) -> bool:
        response = client.send("GET", f"/api/v1/claims/{identifier}")
        return response.status == _OK and bool(response.json()["text"] == text)

    def _wait_for_tasks(self, client: Client) -> tuple[int, int]:
        """Returns the numbers of completed and of lost tasks; waits for open ones until their deadline."""
        deadline = time.monotonic() + _TASK_SECONDS
        waiting, completed, lost = list(self._tasks), 0, 0
        while waiting:
            still_open: list[str] = []
            for identifier in waiting:
                response = client.send("GET", f"/api/v1/tasks/{identifier}")
                task: dict[str, Any] = response.json() if response.status == _OK else {}
                if task.get("status") == "completed" and task.get("result"):
                    completed += 1
                elif task.get("status") in {"pending", "processing"}:
                    still_open.append(identifier)
                else:
                    lost += 1
                    self._add_example(f"task {identifier}: {response.status} {response.body[:300]!r}")
            waiting = still_open
            if waiting and time.monotonic() > deadline:
                return completed, lost + len(waiting)
            if waiting:
                time.sleep(0.5)
        return completed, lost


def _first(client: Client, path: str, body: dict[str, object], name: str) -> Any:  # noqa: ANN401 - a part of JSON
    """Returns the first item of the list *name* in the response.

    Raises:
        RequestTimedOut: there is no such response.
    """
    response = client.send("POST", path, body)
    try:
        return response.json()[name][0]
    except (LookupError, TypeError, ValueError) as error:
        reason = f"{response.status} {response.body[:200]!r}"
        raise RequestTimedOut(f"POST {path}", reason, response.retries) from error
