"""Waits for a condition with a deadline: polls, and fails with a message if the condition never holds."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["START_SECONDS", "WAIT_SECONDS", "until", "until_async"]

WAIT_SECONDS = 120.0
"""The usual deadline: far above any normal duration, so that only a hang reaches it."""
START_SECONDS = 240.0
"""How long a server may take to start. One that starts in 4 s on an idle machine was seen to take 70 s at load 20."""


def until(
    condition: Callable[[], object], what: str = "", *, seconds: float = WAIT_SECONDS, every: float = 0.05
) -> None:
    """Waits until *condition* returns a true value, and fails the test after *seconds*.

    Args:
        condition: is called at least once.
        what: the awaited state, for the message ("the server answers"); if empty, the message shows the condition.
        seconds: the deadline. Choose it far above the usual time: only a hang should reach it.
        every: the pause between two calls, in seconds.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(_message(condition, seconds, what))
        time.sleep(every)


async def until_async(
    condition: Callable[[], object], what: str = "", *, seconds: float = WAIT_SECONDS, every: float = 0.01
) -> None:
    """Does what `until` does, and lets the event loop run between two calls of *condition*."""
    __tracebackhide__ = True
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(_message(condition, seconds, what))
        await asyncio.sleep(every)


def _message(condition: Callable[[], object], seconds: float, what: str) -> str:
    if not what:
        try:
            what = inspect.getsource(condition).strip()
        except (OSError, TypeError):
            what = repr(condition)
    return f"not within {seconds:g} s: {what}"
