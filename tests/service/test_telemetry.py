from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from service.current_request import note_header, note_stage, request_context, request_id
from service.telemetry import (
    Metrics,
    TelemetryMiddleware,
    _JsonFormatter,
)
from service.tracing import Tracer

if TYPE_CHECKING:
    from litestar.types import HTTPReceiveMessage, Message, Receive, Scope, Send


def responses(middleware: TelemetryMiddleware, headers: list[tuple[bytes, bytes]] | None = None) -> list[Message]:
    """Sends one request to the middleware and returns its messages."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> HTTPReceiveMessage:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": headers or [], "path_template": "/x/{y}"}
    asyncio.run(middleware(scope, receive, send))  # type: ignore[arg-type] # as much of a scope as is read
    return sent


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    note_stage("queue", 0.5)
    note_stage("queue", 0.25)
    note_header("x-extra", request_id())
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_stages_and_id_reach_the_response_and_the_metrics() -> None:
    metrics = Metrics()
    start = responses(TelemetryMiddleware(app, metrics, receive_seconds=1), [(b"x-request-id", b"mine")])[0]
    headers = dict(start["headers"])  # type: ignore[typeddict-item] # the first message is the start
    assert headers[b"x-request-id"] == headers[b"x-extra"] == b"mine"
    assert headers[b"server-timing"].startswith(b"queue;dur=750.00, total;dur=")
    text = metrics.exposition().decode()
    assert 'truthgraph_requests_total{method="GET",route="/x/{y}",status="200"} 1.0' in text
    assert 'truthgraph_stage_seconds_sum{stage="queue"} 0.75' in text


def test_a_span_has_its_parent_route_status_and_stages() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    middleware = TelemetryMiddleware(app, Metrics(), receive_seconds=1, tracer=Tracer(provider.get_tracer("test")))
    responses(middleware, [(b"traceparent", parent)])
    [span] = exporter.get_finished_spans()
    assert span.name == "GET /x/{y}"
    assert f"{span.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
    assert (span.attributes["http.response.status_code"], span.attributes["truthgraph.queue_seconds"]) == (200, 0.75)


def test_a_log_line_has_the_request_id_and_the_traceback() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter())
    logger = logging.getLogger("tests.json")
    logger.addHandler(handler)
    with request_context("abc"):
        logger.error("failed", extra={"part": "x"}, exc_info=ValueError("two\nlines"))
    logger.removeHandler(handler)
    [line] = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"], entry["request_id"], entry["part"]) == ("ERROR", "failed", "abc", "x")
    assert "two\nlines" in entry["exception"]
