"""Traces requests with OpenTelemetry, if configured: one span each, with its route, status, id and stage times."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from service.settings import PREFIX, SettingsError

__all__ = ["Span", "Tracer", "otlp_tracer"]


class Span(Protocol):
    """The part of OpenTelemetry's span that is used here."""

    def set_attribute(self, key: str, value: str | float) -> None:
        """Sets one attribute."""

    def update_name(self, name: str) -> None:
        """Renames the span, once the route is known."""


class Tracer:
    """Makes spans with an OpenTelemetry tracer, as children of the caller's span if it sent a traceparent header."""

    def __init__(self, tracer: "_OpenTelemetryTracer") -> None:
        self._tracer = tracer

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """Opens a span of kind server for a request."""
        from opentelemetry.propagate import extract  # noqa: PLC0415 - in the extra `otel`
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        with self._tracer.start_as_current_span(method, context=extract(headers), kind=SpanKind.SERVER) as span:
            yield span


def otlp_tracer() -> Tracer:
    """Returns a tracer that exports over OTLP/HTTP, configured by the standard OTEL_ variables."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError(
            PREFIX + "OPENTELEMETRY", "true", "false, or install the exporter: pip install 'truthgraph[otel]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "truthgraph"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider.get_tracer("truthgraph"))


class _OpenTelemetryTracer(Protocol):
    def start_as_current_span(self, name: str, *, context: object, kind: object) -> "_SpanContext":
        """Opens a span that is the current one meanwhile."""


class _SpanContext(Protocol):
    def __enter__(self) -> Span: ...

    def __exit__(self, *raised: object) -> bool | None: ...
