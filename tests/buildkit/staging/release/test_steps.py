from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from buildkit.errors import ReleaseFailed
from buildkit.staging.release.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable


def fail() -> NoReturn:
    raise ReleaseFailed("second", "no")


def noting(order: list[str], name: str, said: str = "") -> Callable[[], str]:
    def undo() -> str:
        order.append(name)
        return said

    return undo


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def test_steps_are_recorded_with_what_they_say() -> None:
    said: list[str] = []
    steps = Steps(said.append)

    assert steps.run("first", lambda: 41, detail=lambda number: f"{number} done") == 41

    assert [(record.name, record.outcome, record.detail) for record in steps.records] == [("first", "done", "41 done")]
    assert said[0] == "first: …"


def test_a_failure_is_taken_back_in_reverse_the_failed_step_too() -> None:
    order: list[str] = []
    steps = Steps(lambda _: None)
    steps.run("first", lambda: None, undo=noting(order, "first", "first is back"))
    with pytest.raises(ReleaseFailed):
        steps.run("second", fail, undo=noting(order, "second"))

    assert steps.undo() == ["first is back"]

    assert order == ["second", "first"]
    assert [(record.name, record.outcome) for record in steps.records] == [
        ("first", "done"),
        ("second", "failed"),
        ("first", "undone"),
    ]
    assert steps.undo() == []


def test_what_cannot_be_taken_back_does_not_keep_the_rest_from_it() -> None:
    order: list[str] = []
    steps = Steps(lambda _: None)
    steps.run("first", lambda: None, undo=noting(order, "first"))
    steps.run("second", lambda: None, undo=fail)

    [said] = steps.undo()

    assert "second could not be taken back" in said
    assert order == ["first"]


def test_an_interruption_is_no_failure() -> None:
    steps = Steps(lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        steps.run("first", interrupt)

    assert steps.records[0].outcome == "interrupted"
    assert steps.current == "first"
