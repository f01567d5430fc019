from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from buildkit.errors import CommandFailed, ReleaseFailed, StackFailed, UsageError
from buildkit.staging.probes.client import RequestTimedOut
from buildkit.staging.release.steps import Step, StepRunner

if TYPE_CHECKING:
    from collections.abc import Callable

State = list[str]


def do(name: str) -> Callable[[State], str]:
    """Returns a function that adds *name* to the state and returns a line with it."""

    def run(state: State) -> str:
        state.append(name)
        return f"{name} said"

    return run


def fail(error: BaseException) -> Callable[[State], str]:
    def run(state: State) -> NoReturn:
        del state
        raise error

    return run


def outcomes(runner: StepRunner[State]) -> list[tuple[str, str]]:
    return [(record.name, record.outcome) for record in runner.records]


def test_steps_run_in_order_and_are_recorded() -> None:
    state: State = []
    lines: list[str] = []
    runner = StepRunner(state, lines.append)

    runner.run([Step("one", do("a")), Step("two", do("b"))])

    assert state == ["a", "b"]
    assert [(each.name, each.outcome, each.detail) for each in runner.records] == [
        ("one", "done", "a said"),
        ("two", "done", "b said"),
    ]
    assert lines[0] == "one: …"
    assert lines[1].startswith("one done in 0.0 s: a said")


def test_step_that_is_not_needed_is_skipped() -> None:
    state: State = []
    runner = StepRunner(state, lambda _: None)

    runner.run([Step("one", do("a"), when=lambda _: False), Step("two", do("b"))])

    assert outcomes(runner) == [("two", "done")]


@pytest.mark.parametrize(
    ("error", "exit_code", "reason"),
    [
        (ReleaseFailed("no"), 1, "no"),
        (StackFailed("not ready"), 1, "not ready"),
        (CommandFailed(["docker"], 9, "broken"), 3, "`docker` failed with exit code 9:\nbroken"),
        (UsageError("release", "x", "expected y"), 2, "release = 'x': expected y"),
        (RequestTimedOut("GET /", "503", 4), 1, "GET /: 503"),
    ],
)
def test_failure_names_its_step_and_keeps_its_exit_code(error: Exception, exit_code: int, reason: str) -> None:
    runner: StepRunner[State] = StepRunner([], lambda _: None)

    with pytest.raises(ReleaseFailed) as caught:
        runner.run([Step("one", do("a")), Step("two", fail(error)), Step("three", do("c"))])

    assert str(caught.value) == f"stopped at two: {reason}"
    assert caught.value.exit_code == exit_code
    assert outcomes(runner) == [("one", "done"), ("two", "failed")]


@pytest.mark.parametrize(("error", "outcome"), [(KeyboardInterrupt(), "interrupted"), (KeyError("bug"), "failed")])
def test_other_errors_pass_with_a_note_of_the_step(error: BaseException, outcome: str) -> None:
    runner: StepRunner[State] = StepRunner([], lambda _: None)

    with pytest.raises(type(error)) as caught:
        runner.run([Step("one", fail(error))])

    assert caught.value.__notes__ == ["in the release step 'one'"]
    assert outcomes(runner) == [("one", outcome)]
    assert runner.current == "one"


def test_undo_goes_backwards_and_includes_the_failed_step() -> None:
    state: State = []
    runner = StepRunner(state, lambda _: None)
    steps = [
        Step("one", do("a"), undo=do("-a")),
        Step("no undo", do("b")),
        Step("two", fail(StackFailed("no")), undo=do("-c")),
    ]
    with pytest.raises(ReleaseFailed):
        runner.run(steps)

    assert runner.undo() == ["-c said", "-a said"]

    assert state == ["a", "b", "-c", "-a"]
    assert outcomes(runner)[-2:] == [("two", "undone"), ("one", "undone")]
    assert runner.undo() == []


def test_undo_with_nothing_to_do_is_not_recorded() -> None:
    runner: StepRunner[State] = StepRunner([], lambda _: None)
    runner.run([Step("one", do("a"), undo=lambda _: "")])

    assert runner.undo() == []
    assert outcomes(runner) == [("one", "done")]


@pytest.mark.parametrize("error", [StackFailed("no"), KeyError("bug")])
def test_failed_undo_is_recorded_and_the_others_run(error: Exception) -> None:
    state: State = []
    runner = StepRunner(state, lambda _: None)
    runner.run([Step("one", do("a"), undo=do("-a")), Step("two", do("b"), undo=fail(error))])

    lines = runner.undo()

    assert lines == [f"two could not be undone: {error}", "-a said"]
    assert outcomes(runner)[-2:] == [("two", "undo failed"), ("one", "undone")]
    assert not runner.is_undone


def test_interrupted_undo_is_recorded_and_passes() -> None:
    runner: StepRunner[State] = StepRunner([], lambda _: None)
    runner.run([Step("one", do("a"), undo=fail(KeyboardInterrupt()))])

    with pytest.raises(KeyboardInterrupt):
        runner.undo()

    assert outcomes(runner)[-1] == ("one", "undo failed")
