"""Writes progress to stderr and reports to stdout or a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FOLDER", "log", "make_console", "write"]

FOLDER: Final = Path("build")
"""The folder for build records and reports, below the project."""


def log(line: str) -> None:
    """Writes one line of progress to stderr."""
    sys.stderr.write(f"· {line}\n")
    sys.stderr.flush()


def write(text: str, path: Path | None) -> None:
    """Writes a report to the file at *path*, making its folders, or to stdout if *path* is None."""
    if path is None:
        sys.stdout.write(f"{text}\n")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    log(f"wrote {path}")


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console for tables: plain text outside a terminal, and no colours if NO_COLOR is set."""
    from rich.console import Console  # noqa: PLC0415 - importing it takes 60 ms, which a command without tables saves

    return Console(stderr=stderr, no_color=bool(os.environ.get("NO_COLOR")) or None)
