"""What a command shows: its progress on stderr, its report on stdout or in a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FOLDER", "make_console", "say", "write"]

FOLDER: Final = Path("build")
"""Where commands keep what they make, below the project."""


def say(line: str) -> None:
    """Tell how far a command is."""
    sys.stderr.write(f"· {line}\n")
    sys.stderr.flush()


def write(text: str, path: Path | None) -> None:
    """Write a report into the file at *path*, whose folders are made, or to stdout where there is none."""
    if path is None:
        sys.stdout.write(f"{text}\n")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    say(f"wrote {path}")


def make_console(*, stderr: bool = False) -> Console:
    """A terminal to print tables on: plain where it is none, without colours where NO_COLOR is set."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms that a command without tables need not wait for

    return Console(stderr=stderr, no_color=bool(os.environ.get("NO_COLOR")) or None)
