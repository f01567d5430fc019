"""Runs the load against a small server that makes one fault at a time."""

from __future__ import annotations

import json
import threading
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from buildkit.staging.probes import load as loads
from buildkit.staging.probes.client import Client, RequestTimedOut
from buildkit.staging.probes.load import Load, LoadReport
from buildkit.text import format_count
from tests.support.http_server import Reply, Request, serve
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = tuple[int, Any]
"""The status and the JSON body of a response."""


class Api:
    """The routes of the API that the load uses; *change* may change any response."""

    def __init__(self, change: Callable[[str, str, int, Answer], Answer]) -> None:
        self.change = change
        self.claims: dict[str, str] = {}
        self.evidence: list[str] = []
        self.requests = 0
        self.lock = threading.Lock()

    def respond(self, request: Request) -> Reply:
        with self.lock:
            self.requests += 1
            body = json.loads(request.body or b"null")
            correct = self.correct(request.method, request.path, body)
            status, changed = self.change(request.method, request.path, self.requests, correct)
            return Reply(status, json.dumps(changed).encode())

    def correct(self, method: str, path: str, body: Any) -> Answer:  # noqa: ANN401, PLR0911 - one per route
        if path == "/api/v1/embed":
            return 200, {"embeddings": [[float(len(text)), 1.0, 2.0] for text in body["texts"]]}
        if path == "/api/v1/search":
            return 200, {"results": [{"evidence_id": body["query"]}]}
        if path == "/api/v1/evidence":
            self.evidence.append(body["content"])
            return 201, {"id": str(uuid.uuid4())}
        if path.startswith("/api/v1/tasks/"):
            return 200, {"status": "completed", "result": {"verdict": "SUPPORTED"}}
        if path.endswith("/verify"):
            return 202, {"task_id": str(uuid.uuid4())}
        if method == "POST":
            identifier = str(uuid.uuid4())
            self.claims[identifier] = body["text"]
            return 201, {"id": identifier, "text": body["text"]}
        text = self.claims.get(path.rpartition("/")[2])
        return (404, {}) if text is None else (200, {"text": text})


def run(
    change: Callable[[str, str, int, Answer], Answer], monkeypatch: pytest.MonkeyPatch, *, retry_seconds: float = 2.0
) -> LoadReport:
    """Returns the report of some 60 requests."""
    monkeypatch.setattr(loads, "_TASK_SECONDS", 0.5)
    with serve(Api(change).respond) as base:
        load = Load(lambda: Client(base, retry_seconds=retry_seconds), workers=2, has_tasks=True)
        load.prepare()
        with load:
            until(lambda: load.responses >= 60, "60 responses")
        return load.report()


def unchanged(_method: str, _path: str, _number: int, reply: Answer) -> Answer:
    return reply


def test_correct_server_has_no_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(unchanged, monkeypatch)

    assert report.problems == ()
    assert report.retried == 0
    assert report.claims > 0
    assert report.tasks_completed == report.tasks > 0


def test_single_503_is_retried_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_method: str, _path: str, number: int, reply: Answer) -> Answer:
        return (503, {}) if number % 50 == 0 else reply

    report = run(change, monkeypatch)

    assert report.problems == ()
    assert report.retried > 0
    assert report.retried_fraction == report.retried / report.requests


def test_changed_embedding_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_method: str, path: str, number: int, reply: Answer) -> Answer:
        if path == "/api/v1/embed" and number > 60:
            return 200, {"embeddings": [list(reversed(vector)) for vector in reply[1]["embeddings"]]}
        return reply

    report = run(change, monkeypatch)

    assert report.wrong > 0
    assert any("changed" in problem for problem in report.problems)


def test_changed_first_hit_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_method: str, path: str, number: int, reply: Answer) -> Answer:
        return (200, {"results": []}) if path == "/api/v1/search" and number > 60 else reply

    assert run(change, monkeypatch).wrong > 0


def test_response_without_a_promised_field_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_method: str, path: str, number: int, reply: Answer) -> Answer:
        return (200, {}) if path == "/api/v1/embed" and number > 60 else reply

    assert run(change, monkeypatch).wrong > 0


def test_acknowledged_claim_missing_at_the_end_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def change(method: str, path: str, _number: int, reply: Answer) -> Answer:
        if method == "GET" and path.startswith("/api/v1/claims/"):
            if path in seen:  # the worker has read it: this request is the report's
                return 404, {}
            seen.add(path)
        return reply

    report = run(change, monkeypatch)

    assert report.wrong == 0
    assert report.claims_lost > 0


@pytest.mark.parametrize("reply", [(200, {"status": "processing"}), (404, {}), (200, {"status": "failed"})])
def test_task_without_a_verdict_is_lost(monkeypatch: pytest.MonkeyPatch, reply: Answer) -> None:
    def change(_method: str, path: str, _number: int, correct: Answer) -> Answer:
        return reply if path.startswith("/api/v1/tasks/") else correct

    report = run(change, monkeypatch)

    assert report.tasks_lost == report.tasks > 0
    assert 1 <= len(report.examples) <= 5 or reply[1] == {"status": "processing"}


def test_request_without_a_response_is_counted_as_timed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_method: str, path: str, number: int, reply: Answer) -> Answer:
        return (503, {"why": "away"}) if path == "/api/v1/search" and number > 60 else reply

    report = run(change, monkeypatch, retry_seconds=0.1)

    assert report.timed_out > 0
    assert format_count(report.timed_out, "unanswered request") in report.problems
    assert report.counts()["timed_out"] == report.timed_out


@pytest.mark.parametrize("body", [{}, {"embeddings": []}, []])
def test_prepare_without_an_embedding_fails(body: object) -> None:
    def change(_method: str, path: str, _number: int, reply: Answer) -> Answer:
        return (200, body) if path == "/api/v1/embed" else reply

    with serve(Api(change).respond) as base, pytest.raises(RequestTimedOut, match="POST /api/v1/embed: 200"):
        Load(lambda: Client(base)).prepare()
