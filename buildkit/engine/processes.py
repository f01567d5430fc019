"""Other processes: whether they run, and how they are ended so that none is left behind. Linux only (/proc)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

__all__ = ["end", "end_children", "program_of"]

_POLL_SECONDS = 0.05
_KILLED_SECONDS = 5.0


def program_of(pid: int) -> str | None:
    """The name of the program that process *pid* runs; None where it ended (a zombie has ended too)."""
    try:
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    return None if tail.split()[0] == "Z" else head.partition("(")[2]


def end(pids: list[int], *, ask: signal.Signals, patience_seconds: float) -> None:
    """Sends *ask* to the processes and waits; those that still run after *patience_seconds* are killed."""
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
    """Asks every child of this process to end, as Ctrl-C would, and waits for them."""
    children: list[int] = []
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += [int(pid) for pid in listed.read_text().split()]
    end([pid for pid in children if program_of(pid)], ask=signal.SIGINT, patience_seconds=patience_seconds)
