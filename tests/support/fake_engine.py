"""Fakes a container engine: answers docker commands from a table and records them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from buildkit.engine.client import Engine
from buildkit.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Answer", "FakeEngine"]

Answer: TypeAlias = "str | BaseException"


@dataclass(frozen=True, slots=True)
class FakeEngine(Engine):
    """An engine that runs nothing.

    Attributes:
        answers: start of a command line -> its output, an error, or a list of these for successive calls, of which the
            last repeats. The longest start that fits wins; a command without one prints nothing.
        calls: the command lines so far.
        inputs: the standard inputs so far.
        environments: the environments that were given explicitly so far.
    """

    host: str = ""
    version: str = "26.1.5"
    root: Path | None = None
    answers: dict[str, Answer | list[Answer]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    environments: list[Mapping[str, str]] = field(default_factory=list)

    def docker(
        self,
        *arguments: str,
        seconds: float = 0.0,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Returns the answer of the table."""
        del seconds
        self.calls.append(" ".join(arguments))
        self.inputs.append(stdin or "")
        if environment is not None:
            self.environments.append(environment)
        fitting = [start for start in self.answers if self.calls[-1].startswith(start)]
        answer = self.answers[max(fitting, key=len)] if fitting else ""
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stream(self, *arguments: str, on_line: Callable[[str], None], seconds: float | None = None) -> None:
        """Calls *on_line* with each line of the answer, even of a failed command."""
        del seconds
        try:
            lines = self.docker(*arguments)
        except CommandFailed as error:
            for line in error.log_tail.splitlines():
                on_line(line)
            raise
        for line in lines.splitlines():
            on_line(line)

    def called(self, start: str) -> list[str]:
        """Returns the command lines that start with *start*."""
        return [call for call in self.calls if call.startswith(start)]
