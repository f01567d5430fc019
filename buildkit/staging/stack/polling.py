"""Polls the orchestrator: repeats a query until it succeeds or time is up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["polls"]

_INTERVAL_SECONDS: Final = 0.5


def polls(seconds: float) -> Iterator[None]:
    """Yields at once, then after every half second until *seconds* are over."""
    deadline = time.monotonic() + seconds
    yield
    while time.monotonic() < deadline:
        time.sleep(_INTERVAL_SECONDS)
        yield
