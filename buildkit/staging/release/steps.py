"""Runs the steps of a release in order, records how each went, and undoes them in reverse order after a failure."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from buildkit.errors import BuildkitError, ReleaseFailed
from buildkit.staging.release.records import StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from buildkit.staging.release.records import StepOutcome

__all__ = ["Step", "StepRunner"]

_S = TypeVar("_S")


def _always(_state: object) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Step(Generic[_S]):
    """One step of a release.

    Attributes:
        name: for releases.json, the progress lines and errors.
        run: does the step on the state of the release and returns a line for the record.
        undo: undoes the step, even if it stopped halfway, and returns a line; "" if there was nothing to do.
        when: whether the step is needed; otherwise it is skipped and not recorded.
    """

    name: str
    run: Callable[[_S], str]
    undo: Callable[[_S], str] | None = None
    when: Callable[[_S], bool] = _always


class StepRunner(Generic[_S]):
    """Runs steps on *state* and keeps their records. *log* gets a line at each start and end.

    Attributes:
        records: how each step and each undo went, in order.
        current: name of the step that runs or ran last.
    """

    def __init__(self, state: _S, log: Callable[[str], None]) -> None:
        self._state = state
        self._log = log
        self._started: list[Step[_S]] = []
        self.records: list[StepRecord] = []
        self.current = ""

    def run(self, steps: Iterable[Step[_S]]) -> None:
        """Runs *steps* up to the first failure.

        Raises:
            ReleaseFailed: a step raised a `BuildkitError`; the message names the step.
            BaseException: anything else, an interrupt included, with a note that names the step.
        """
        for step in steps:
            if step.when(self._state):
                self._run(step)

    def undo(self) -> list[str]:
        """Undoes the steps, the last one first, and returns what each did. A failed undo does not stop the others."""
        lines: list[str] = []
        while self._started:
            step = self._started.pop()
            began = time.monotonic()
            outcome: StepOutcome = "undone"
            try:
                line = step.undo(self._state) if step.undo is not None else ""
            except Exception as error:  # noqa: BLE001 - the other steps must be undone too; it is recorded
                outcome, line = "undo failed", f"{step.name} could not be undone: {_message(error)}"
            except BaseException as error:
                self._record(step.name, "undo failed", began, _message(error))
                raise
            if line:
                lines.append(line)
                self._record(step.name, outcome, began, line)
        return lines

    @property
    def is_undone(self) -> bool:
        """Whether no undo failed."""
        return all(record.outcome != "undo failed" for record in self.records)

    def _run(self, step: Step[_S]) -> None:
        self.current = step.name
        began = time.monotonic()
        try:
            if step.undo is not None:
                self._started.append(step)
            self._log(f"{step.name}: …")
            detail = step.run(self._state)
        except BuildkitError as error:
            self._record(step.name, "failed", began, _message(error))
            raise ReleaseFailed(str(error), step.name, exit_code=error.exit_code) from error
        except BaseException as error:
            self._record(step.name, "failed" if isinstance(error, Exception) else "interrupted", began, _message(error))
            error.add_note(f"in the release step {step.name!r}")
            raise
        self._record(step.name, "done", began, detail)

    def _record(self, name: str, outcome: StepOutcome, began: float, detail: str) -> None:
        seconds = round(time.monotonic() - began, 3)
        self.records.append(StepRecord(name=name, outcome=outcome, seconds=seconds, detail=detail))
        self._log(f"{name} {outcome} in {seconds:.1f} s" + (f": {detail}" if detail else ""))


def _message(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
