"""Describes one command of the command line and formats its help."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["PROJECT_HELP", "Command", "CommandHelpFormatter"]

PROJECT_HELP: Final = "the project's folder, which contains docker/ (default: .)"


class CommandHelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help: adds the default of each argument that has one, and leaves the example's lines as they are."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        has_default = action.default not in (None, False, "", argparse.SUPPRESS) and action.default != []
        return f"{text} (default: %(default)s)" if has_default and "(default: " not in text else text


@dataclass(frozen=True, slots=True)
class Command:
    """One command. The modules of its functions are imported only if it is the command that runs.

    Attributes:
        name: the word on the command line.
        summary: its purpose in one line.
        run: "module:function" that takes the parsed arguments and returns the exit code.
        add_arguments: "module:function" that adds the command's arguments to a parser. If it is empty, the command has
            its own parser, and `run` takes the words after its name.
        example: a command line, shown at the end of its help, without `python -m buildkit`.
        interrupted: the state that Ctrl-C leaves, for the message.
    """

    name: str
    summary: str
    run: str
    add_arguments: str = ""
    example: str = ""
    interrupted: str = ""

    def __call__(self, arguments: argparse.Namespace | Sequence[str]) -> int:
        """Runs the command and returns its exit code."""
        function: Callable[[argparse.Namespace | Sequence[str]], int] = resolve_name(self.run)
        return function(arguments)

    def add_parser(self, commands: argparse._SubParsersAction[argparse.ArgumentParser], *, is_chosen: bool) -> None:
        """Adds the command to *commands*, with its arguments only if it *is_chosen*: they need its module."""
        parser = commands.add_parser(
            self.name,
            help=self.summary,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            epilog=f"example:\n  python -m buildkit {self.example}",
            formatter_class=CommandHelpFormatter,
        )
        if is_chosen and self.add_arguments:
            parser.add_argument("--project", metavar="FOLDER", type=Path, default=argparse.SUPPRESS, help=PROJECT_HELP)
            resolve_name(self.add_arguments)(parser)
