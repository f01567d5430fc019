"""Observes requests: ids, JSON logs, stage times, Prometheus metrics. Records no request text and no secret.

The log formatter is 15 lines; python-json-logger would be one more package in the image for them.
"""

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.current_request import CurrentRequest, request_context, request_id
from service.inference.scheduler import BatchRecord, SchedulerState
from service.tracing import Tracer

__all__ = [
    "Metrics",
    "SlowBodyError",
    "TelemetryMiddleware",
    "configure_logging",
]

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LATENCY_SECONDS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_FILL_FRACTIONS: Final = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES: Final = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Requested every few seconds, so logged at DEBUG only; `service.health` logs each change of readiness."""
_ACCESS = logging.getLogger("service.access_log")


class SlowBodyError(Exception):
    """The body of a request did not arrive in time."""


class Metrics:
    """The metrics of the process. Times are in seconds."""

    content_type: Final = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "truthgraph_"
        self.requests = Counter(
            name + "requests",
            "Requests by method, route and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            name + "request_seconds",
            "Seconds from the start of a request to the end of its response.",
            ("route",),
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            name + "stage_seconds",
            "Seconds of each stage of a request: prepare, queue, forward, database.",
            ("stage",),
            buckets=_LATENCY_SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            name + "batch_rows",
            "Rows in one forward pass.",
            ("model",),
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=self.registry,
        )
        self.batch_fill_fraction = Histogram(
            name + "batch_fill_fraction",
            "Tokens divided by padded tokens of one forward pass.",
            ("model",),
            buckets=_FILL_FRACTIONS,
            registry=self.registry,
        )
        self.tokens = Counter(
            name + "tokens", "Tokens processed by a model, without padding.", ("model",), registry=self.registry
        )
        self.forward_seconds = Counter(
            name + "forward_seconds", "Seconds spent in forward passes.", ("model",), registry=self.registry
        )
        self.queue_tokens = Gauge(name + "queue_tokens", "Tokens that wait for the device.", registry=self.registry)
        self.ready = Gauge(name + "ready", "Whether a part is ready: 1 or 0.", ("part",), registry=self.registry)

    def observe_request(
        self, method: str, route: str, status: int, seconds: float, stages: Mapping[str, float]
    ) -> None:
        """Records one request, with the seconds of its stages."""
        self.requests.labels(method, route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        for stage, stage_seconds in stages.items():
            self.stage_seconds.labels(stage).observe(stage_seconds)

    def observe_batch(self, record: BatchRecord) -> None:
        """Records one forward pass."""
        self.batch_rows.labels(record.model).observe(record.rows)
        self.batch_fill_fraction.labels(record.model).observe(record.tokens / record.padded_tokens)
        self.tokens.labels(record.model).inc(record.tokens)
        self.forward_seconds.labels(record.model).inc(record.seconds)

    def observe_state(self, state: SchedulerState, ready: Mapping[str, bool]) -> None:
        """Sets the gauges, whose values are read at the time of the scrape."""
        self.queue_tokens.set(state.queued_tokens)
        for part, is_ready in ready.items():
            self.ready.labels(part).set(is_ready)

    def exposition(self) -> bytes:
        """Returns the page that Prometheus scrapes."""
        return generate_latest(self.registry)


class TelemetryMiddleware:
    """The outermost ASGI layer: gives requests an id, times, counts and logs them, cancels them if the client left."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, receive_seconds: float, tracer: Tracer | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracer = tracer
        self._receive_seconds = receive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        with request_context(given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex) as request:
            await self._handle(request, scope, receive, send)

    async def _handle(self, request: CurrentRequest, scope: HTTPScope, receive: Receive, send: Send) -> None:
        # A label must not take values that clients choose.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        began = time.perf_counter()
        status = 499  # as proxies log a client that closed the connection early

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *request.response_headers(time.perf_counter() - began)]
            await send(message)

        try:
            if self._tracer is None:
                await _call_until_disconnect(self._app, scope, receive, send_with_headers, self._receive_seconds)
            else:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                with self._tracer.request(method, headers) as span:
                    await _call_until_disconnect(self._app, scope, receive, send_with_headers, self._receive_seconds)
                    span.update_name(f"{method} {scope.get('path_template', 'unknown')}")
                    span.set_attribute("http.response.status_code", status)
                    span.set_attribute("truthgraph.request_id", request.request_id)
                    for stage, stage_seconds in request.stages.items():
                        span.set_attribute(f"truthgraph.{stage}_seconds", stage_seconds)
        finally:
            seconds = time.perf_counter() - began
            route = str(scope.get("path_template") or "unknown")
            self._metrics.observe_request(method, route, status, seconds, request.stages)
            _ACCESS.log(
                logging.DEBUG if route in _PROBES else logging.INFO,
                "request",
                extra={"method": method, "route": route, "status": status, "seconds": round(seconds, 6)},
            )


async def _call_until_disconnect(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, receive_seconds: float
) -> None:
    """Calls `app`, and cancels it if the client disconnects; its rows are then dropped from the queue.

    After the end of the body the only message that a server sends is the disconnect, so a task waits for that message.
    Each part of the body must arrive within `receive_seconds`, or reading it raises `SlowBodyError`.
    """
    handler = asyncio.current_task()
    watcher: asyncio.Task[None] | None = None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        message = await receive()
        is_gone = message["type"] == "http.disconnect"
        if is_gone and handler is not None:
            handler.cancel()

    async def receive_watched() -> HTTPReceiveMessage:
        nonlocal watcher
        if watcher is not None:  # the app reads again after the end of the body: wait for the disconnect
            await asyncio.shield(watcher)
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(receive_seconds):
                message = cast("HTTPReceiveMessage", await receive())  # the connection is HTTP
        except TimeoutError as error:
            raise SlowBodyError(f"no part of the body arrived within {receive_seconds:g} s") from error
        if message["type"] == "http.request" and not message.get("more_body", False):
            watcher = asyncio.create_task(watch())
        return message

    try:
        await app(scope, receive_watched, send)
    except asyncio.CancelledError:
        if not is_gone:  # the server itself is stopping
            raise
        if handler is not None:
            handler.uncancel()
    finally:
        if watcher is not None:
            watcher.cancel()


class _JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, level, logger, message, request id, and the fields of `extra`."""

    _STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line; an exception becomes the field `exception` with its traceback."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identifier := request_id():
            entry["request_id"] = identifier
        entry |= {name: value for name, value in vars(record).items() if name not in self._STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure_logging(level: str) -> None:
    """Sends all log records of the process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True  # ours has the request id and the route
