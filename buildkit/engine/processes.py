"""Checks whether processes run, and ends them. Linux only: it reads /proc.

psutil is not used: it would be one more compiled dependency of every command, and only the name, the state and the
children of a process are needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

__all__ = ["end", "end_children", "program_of"]

_POLL_SECONDS: Final = 0.05
_KILLED_SECONDS: Final = 5.0


def program_of(pid: int) -> str | None:
    """Returns the name of the program that process *pid* runs; None if it has ended, reaped or not."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    return None if tail.split()[0] == "Z" else head.partition("(")[2]


def end(pids: list[int], *, ask: signal.Signals, patience_seconds: float) -> None:
    """Sends *ask* to the processes, waits up to *patience_seconds*, and kills those that still run."""
    for number, seconds in ((ask, patience_seconds), (signal.SIGKILL, _KILLED_SECONDS)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while any(map(program_of, pids)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if not any(map(program_of, pids)):
            return


def end_children(patience_seconds: float = 20.0) -> None:
    """Sends SIGINT to the child processes of this process, as Ctrl-C does, and waits until they have ended."""
    children: list[int] = []
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += [int(pid) for pid in listed.read_text().split()]
    end([pid for pid in children if program_of(pid)], ask=signal.SIGINT, patience_seconds=patience_seconds)
