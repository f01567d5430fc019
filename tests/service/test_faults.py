"""Overload, disconnected clients, stalled devices, missed deadlines, slow bodies."""

from __future__ import annotations

import concurrent.futures
import json
import socket
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.service.conftest import Served, served, settings
from tests.support.polling import WAIT_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def small() -> Iterator[Served]:
    """The service with a queue of 200 tokens and no database."""
    with served(settings(queue_tokens=200, stall_seconds=0.2)) as running:
        yield running


def post(running: Served, text: str) -> httpx.Response:
    return httpx.post(f"{running.url}/api/v1/embed", json={"texts": [text]}, timeout=WAIT_SECONDS)


def send(running: Served, body: bytes) -> socket.socket:
    """Sends a request on a new connection and does not read the response."""
    connection = socket.create_connection((running.client.base_url.host, running.client.base_url.port or 0))
    head = f"POST /api/v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def queued_tokens(running: Served) -> int:
    return running.application.engine.scheduler.state.queued_tokens


def test_overload_is_a_429_and_accepted_requests_are_answered(small: Served) -> None:
    """100 requests of 21 tokens are ten times what the queue holds."""
    small.embedder.may_run.clear()
    with concurrent.futures.ThreadPoolExecutor(100) as callers:
        calls = [callers.submit(post, small, f"{number} " + "word " * 19) for number in range(100)]
        until(lambda: sum(call.done() for call in calls) >= 85, "most requests are refused while the device is busy")
        assert small.client.get("/livez").status_code == 200
        small.embedder.may_run.set()
        replies = [call.result(WAIT_SECONDS) for call in calls]
    assert {reply.status_code for reply in replies} == {200, 429}
    refused = [reply for reply in replies if reply.status_code == 429]
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert len(replies) - len(refused) >= 9
    assert post(small, "a text after the overload").status_code == 200


def test_overload_is_the_same_for_a_text_and_a_list(small: Served) -> None:
    small.embedder.may_run.clear()
    with send(small, json.dumps({"texts": ["busy"]}).encode()):
        until(lambda: len(small.embedder.batches) == 1, "the device is busy")
        waiting = send(small, json.dumps({"texts": ["word " * 150]}).encode())
        until(lambda: queued_tokens(small) > 100, "the queue is full")
        for body in ({"inputs": "word " * 100}, {"inputs": ["word " * 100]}):
            reply = small.client.post("/embed", json=body)
            assert (reply.status_code, reply.json()["error_type"]) == (429, "Overloaded")
        waiting.close()


def test_a_disconnected_client_costs_no_forward_pass(small: Served) -> None:
    small.embedder.may_run.clear()
    running = send(small, json.dumps({"texts": ["first"]}).encode())
    until(lambda: len(small.embedder.batches) == 1, "the device is busy")
    leaving = send(small, json.dumps({"texts": ["leaves", "before", "its", "turn"]}).encode())
    until(lambda: queued_tokens(small) == 8, "its tokens are queued")
    leaving.close()
    until(lambda: '"/api/v1/embed",status="499"' in small.client.get("/metrics").text, "its request has ended")
    small.embedder.may_run.set()
    assert post(small, "last").status_code == 200
    assert small.embedder.batches == [1, 1]
    running.close()


def test_a_stalled_forward_pass_makes_health_503_until_it_ends(small: Served) -> None:
    small.embedder.may_run.clear()
    with send(small, json.dumps({"texts": ["stuck"]}).encode()):
        until(lambda: "device" in small.client.get("/readyz").json()["reasons"], "readiness is false")
        assert small.client.get("/health").status_code == 503
        small.embedder.may_run.set()
        until(lambda: small.client.get("/health").status_code == 200, "it recovers")


def test_a_missed_deadline_is_a_504() -> None:
    with served(settings(request_seconds=0.1)) as running:
        running.embedder.may_run.clear()
        assert post(running, "too slow").status_code == 504


def test_half_a_request_does_not_block_others(small: Served) -> None:
    with socket.create_connection((small.client.base_url.host, small.client.base_url.port or 0)) as slow:
        slow.sendall(b"POST /api/v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        assert post(small, "meanwhile").status_code == 200


def test_a_body_that_never_arrives_is_a_408() -> None:
    with served(settings(request_seconds=0.3)) as running:
        port = running.client.base_url.port or 0
        with socket.create_connection((running.client.base_url.host, port), timeout=WAIT_SECONDS) as slow:
            slow.sendall(b"POST /api/v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
