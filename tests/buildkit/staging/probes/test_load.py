"""The load finds each fault that it is for: a server of our own makes them, one at a time."""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from buildkit.staging.probes import load as loads
from buildkit.staging.probes.client import Client, RequestTimedOut
from buildkit.staging.probes.load import Load, Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Reply = tuple[int, Any]


class Api:
    """As much of the API as the load asks for; *spoil* may change any reply."""

    def __init__(self, spoil: Callable[[str, str, int, Reply], Reply]) -> None:
        self.spoil = spoil
        self.claims: dict[str, str] = {}
        self.evidence: list[str] = []
        self.asked = 0
        self.lock = threading.Lock()

    def reply(self, method: str, path: str, body: Any) -> Reply:  # noqa: ANN401
        with self.lock:
            self.asked += 1
            return self.spoil(method, path, self.asked, self.honest(method, path, body))

    def honest(self, method: str, path: str, body: Any) -> Reply:  # noqa: ANN401, PLR0911 - one per route
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


@contextmanager
def served(api: Api) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # header and body are two writes: the second would wait for 40 ms

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            self.answer(json.loads(body))

        def do_GET(self) -> None:
            self.answer(None)

        def answer(self, body: Any) -> None:  # noqa: ANN401
            status, reply = api.reply(self.command, self.path, body)
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def run(spoil: Callable[[str, str, int, Reply], Reply], monkeypatch: pytest.MonkeyPatch) -> Report:
    """The report of some 60 requests."""
    monkeypatch.setattr(loads, "_TASK_SECONDS", 0.5)
    api = Api(spoil)
    with served(api) as base:
        load = Load(lambda: Client(base, patience_seconds=2.0), workers=2, tasks=True)
        load.prepare()
        with load:
            until = threading.Event()
            while load.answered < 60:
                until.wait(0.01)
        return load.report()


def honest(_method: str, _path: str, _number: int, reply: Reply) -> Reply:
    return reply


def test_an_honest_server_has_no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(honest, monkeypatch)

    assert report.faults == ()
    assert report.retried == 0
    assert report.claims > 0
    assert report.tasks_completed == report.tasks > 0
    assert {"embed", "search", "claim", "read claim", "task"} <= report.operations.keys()


def test_a_passing_503_is_sent_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(_method: str, _path: str, number: int, reply: Reply) -> Reply:
        return (503, {}) if number % 50 == 0 else reply

    report = run(spoil, monkeypatch)

    assert report.faults == ()
    assert report.retried > 0
    assert report.retried_fraction == report.retried / report.requests


def test_another_vector_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(_method: str, path: str, number: int, reply: Reply) -> Reply:
        if path == "/api/v1/embed" and number > 60:
            return 200, {"embeddings": [list(reversed(vector)) for vector in reply[1]["embeddings"]]}
        return reply

    report = run(spoil, monkeypatch)

    assert report.wrong > 0
    assert any("another vector than before" in fault for fault in report.faults)


def test_another_first_result_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(_method: str, path: str, number: int, reply: Reply) -> Reply:
        return (200, {"results": []}) if path == "/api/v1/search" and number > 60 else reply

    assert run(spoil, monkeypatch).wrong > 0


def test_an_answer_without_what_it_promises_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(_method: str, path: str, number: int, reply: Reply) -> Reply:
        return (200, {}) if path == "/api/v1/embed" and number > 60 else reply

    assert run(spoil, monkeypatch).wrong > 0


def test_an_acknowledged_claim_that_is_gone_at_the_end_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def spoil(method: str, path: str, _number: int, reply: Reply) -> Reply:
        if method == "GET" and path.startswith("/api/v1/claims/"):
            if path in seen:  # read back by the worker already: this is the end
                return 404, {}
            seen.add(path)
        return reply

    report = run(spoil, monkeypatch)

    assert report.wrong == 0
    assert report.claims_lost > 0


@pytest.mark.parametrize("reply", [(200, {"status": "processing"}), (404, {}), (200, {"status": "failed"})])
def test_a_task_without_a_verdict_is_lost(monkeypatch: pytest.MonkeyPatch, reply: Reply) -> None:
    def spoil(_method: str, path: str, _number: int, honest: Reply) -> Reply:
        return reply if path.startswith("/api/v1/tasks/") else honest

    report = run(spoil, monkeypatch)

    assert report.tasks_lost == report.tasks > 0


def test_a_request_is_given_up_after_its_patience() -> None:
    def away(_method: str, _path: str, _number: int, _reply: Reply) -> Reply:
        return 503, {"why": "away"}

    api = Api(away)
    with (
        served(api) as base,
        closing(Client(base, patience_seconds=0.3)) as client,
        pytest.raises(RequestTimedOut, match="away"),
    ):
        client.send("GET", "/api/v1/claims/x")

    assert api.asked > 1


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(Client("http://127.0.0.1:1", "secret"))
