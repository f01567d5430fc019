from __future__ import annotations

import asyncio

import pytest

from tests.support.polling import until, until_async


def test_until_returns_once_the_condition_holds() -> None:
    answers = iter([False, False, True])
    until(lambda: next(answers), every=0)
    assert next(answers, None) is None


def test_until_fails_with_the_awaited_state() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not within 0 s: the moon is full"):
        until(lambda: False, seconds=0, every=0, what="the moon is full")


def test_until_without_words_shows_the_condition() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"lambda: len\(\[\]\)"):
        until(lambda: len([]), seconds=0, every=0)


def test_until_async_lets_the_loop_run() -> None:
    async def run() -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(0.02, event.set)
        await until_async(event.is_set)

    asyncio.run(run())
