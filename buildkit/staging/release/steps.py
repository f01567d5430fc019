"""Steps that run in order, are recorded with their times, and are taken back in reverse where a later one fails."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from buildkit.errors import BuildkitError, ReleaseFailed
from buildkit.staging.probes.client import RequestTimedOut
from buildkit.staging.release.records import StepRecord

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Steps"]

_T = TypeVar("_T")


class Steps:
    """Runs steps and keeps their records; whoever catches a failure calls `undo` once.

    *tell* gets a line at each begin and end, and whatever a step says of itself.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._tell = log
        self._undo: list[tuple[str, Callable[[], str]]] = []
        self.records: list[StepRecord] = []
        self.current = ""

    def run(
        self,
        name: str,
        work: Callable[[], _T],
        *,
        detail: Callable[[_T], str] = lambda _: "",
        undo: Callable[[], str] | None = None,
    ) -> _T:
        """Does *work*; *undo* takes it back, also where it stopped half way, and says what it did."""
        self.current = name
        self._tell(f"{name}: …")
        began = time.monotonic()
        if undo is not None:
            self._undo.append((name, undo))
        try:
            result = self._answered(name, work)
        except BaseException as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            is_failed = isinstance(error, Exception)
            self._keep(
                StepRecord(
                    name=name, outcome="failed" if is_failed else "interrupted", seconds=_since(began), detail=said
                )
            )
            raise
        self._keep(StepRecord(name=name, outcome="done", seconds=_since(began), detail=detail(result)))
        return result

    def undo(self) -> list[str]:
        """Takes back what was done, the last first; what each said. One that fails does not keep the others from it."""
        said: list[str] = []
        for name, back in reversed(self._undo):
            began = time.monotonic()
            try:
                line = back()
            except BuildkitError as error:
                line = f"{name} could not be taken back: {error}"
            if line:
                said.append(line)
                self._keep(StepRecord(name=name, outcome="undone", seconds=_since(began), detail=line))
        self._undo.clear()
        return said

    @staticmethod
    def _answered(name: str, work: Callable[[], _T]) -> _T:
        """What *work* gives; that the service did not answer is a reason to stop, too."""
        try:
            return work()
        except RequestTimedOut as error:
            raise ReleaseFailed(name, str(error)) from error

    def _keep(self, record: StepRecord) -> None:
        self.records.append(record)
        detail = f": {record.detail}" if record.detail else ""
        self._tell(f"{record.name} {record.outcome} in {record.seconds:.1f} s{detail}")


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
