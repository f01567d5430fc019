"""Holds the id, stage times and extra response headers of the current request, for any module to read or add to.

`service.telemetry` opens the context of a request and publishes what was noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["CurrentRequest", "note_header", "note_stage", "request_context", "request_id"]


@dataclass(slots=True)
class CurrentRequest:
    """A request while it is handled: its id, the seconds of its stages so far, headers to add to its response."""

    request_id: str
    stages: dict[str, float] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def response_headers(self, total_seconds: float) -> list[tuple[bytes, bytes]]:
        """Returns the headers to add to the response: id, Server-Timing, and those of `note_header`."""
        stages = {**self.stages, "total": total_seconds}
        timing = ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())
        headers = {"x-request-id": self.request_id, "server-timing": timing, **self.headers}
        return [(name.encode(), value.encode()) for name, value in headers.items()]


_CURRENT: ContextVar[CurrentRequest | None] = ContextVar("current_request", default=None)


@contextmanager
def request_context(identifier: str) -> Iterator[CurrentRequest]:
    """Makes a request with the id `identifier` the current one meanwhile.

    A task worker uses it to log under the id of the request that added the task.
    """
    request = CurrentRequest(identifier)
    token = _CURRENT.set(request)
    try:
        yield request
    finally:
        _CURRENT.reset(token)


def request_id() -> str:
    """Returns the id of the current request; empty outside of one."""
    request = _CURRENT.get()
    return request.request_id if request else ""


def note_header(name: str, value: str) -> None:
    """Adds a header to the response to the current request, also if it fails."""
    if (request := _CURRENT.get()) is not None:
        request.headers[name] = value


def note_stage(name: str, seconds: float) -> None:
    """Adds to the time of a stage of the current request, for the Server-Timing header and the metrics."""
    if (request := _CURRENT.get()) is not None:
        request.stages[name] = request.stages.get(name, 0.0) + seconds
