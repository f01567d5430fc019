"""Shows the progress of a build: running steps on a terminal, and a line for each finished step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console, RenderableType

    from buildkit.build.events import Events, Step

__all__ = ["BuildDisplay"]

_SHOWN_SECONDS: Final = 0.5
"""Shorter steps get no line: BuildKit has dozens that take a millisecond."""


class BuildDisplay:
    """The display of one build; a context manager that wraps it.

    Each finished step is a line. A terminal also shows the running steps below the lines, redrawn four times a second.
    """

    def __init__(self, console: Console, events: Events, *, title: str) -> None:
        self._console = console
        self._events = events
        self._title = title
        self._cached = 0
        self._live = Live(
            get_renderable=self._running_steps,
            console=console,
            refresh_per_second=4,
            transient=True,
            auto_refresh=console.is_terminal,
        )

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
        if self._cached:
            self._console.print(Text(f"  cached steps: {self._cached}", style="dim"))

    def add(self, step: Step) -> None:
        """Prints the line of a finished step."""
        if step.cached:
            self._cached += step.stage not in ("internal", "context")
            return
        if step.error:
            if "context canceled" not in step.error:
                self._console.print(_line(step, "✗", "bold red"), no_wrap=True, overflow="ellipsis")
            return
        if step.seconds >= _SHOWN_SECONDS:
            self._console.print(_line(step, "✓", "green"), no_wrap=True, overflow="ellipsis")
            for part in step.parts:
                if step.stage == "export" and part.seconds >= _SHOWN_SECONDS:
                    self._console.print(
                        Text(f"    {part.seconds:6.1f} s  {part.name.split(' sha256')[0]}", style="dim")
                    )

    def _running_steps(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for step, seconds, detail in self._events.running:
            table.add_row(
                Text("●", style="yellow"),
                Text(step.stage, style="bold"),
                Text(f"{seconds:6.1f} s"),
                Text((detail or step.instruction)[: max(20, self._console.width - 40)], style="dim", no_wrap=True),
            )
        return Group(Text(self._title, style="bold"), table)


def _line(step: Step, mark: str, style: str) -> Text:
    return Text.assemble(
        (f"{mark} ", style), (f"{step.stage:<12} ", "bold"), f"{step.seconds:6.1f} s  ", (step.instruction, "dim")
    )
