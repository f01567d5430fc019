"""Checks that a changed library still loads, in a new process and without the loader's cache.

With the cache, a CUDA toolkit installed on the same machine could replace a library that the tree no longer has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.library import Library

__all__ = ["check_loads", "load_error"]

_PT_INTERP: Final = 3  # gabi, "Program Header"
_LOAD: Final = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
# For hangs only: loading libtorch_cuda.so and all libraries that it needs takes 2 s on two busy cores.
_DEADLINE_SECONDS: Final = 120


def check_loads(original: Library, changed: Library) -> None:
    """Checks that a changed library loads if its original does.

    Raises:
        UnsupportedBinary: `load-failed`, with the loader's message.
    """
    error = load_error(changed)
    if error is not None and load_error(original) is None:
        raise UnsupportedBinary("load-failed", error)


def load_error(library: Library) -> str | None:
    """Loads a shared object, or has the loader verify an executable; returns the error message, or None."""
    path = str(library.path.absolute())
    command = [_loader(), "--inhibit-cache", os.path.realpath(sys.executable), "-I", "-c", _LOAD, path]
    if _interpreter(library) is not None:
        command = [_loader(), "--inhibit-cache", "--verify", path]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"did not load within {_DEADLINE_SECONDS} s"
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"


def _interpreter(library: Library) -> str | None:
    """Returns the dynamic loader that an executable names; None for a shared object."""
    for segment in library.elf.segments:
        if segment.type == _PT_INTERP:
            end = segment.file_offset + segment.file_bytes
            return bytes(library.content[segment.file_offset : end]).rstrip(b"\0").decode()
    return None


@cache
def _loader() -> str:
    """Returns the dynamic loader of the running Python."""
    loader = _interpreter(Library.open(Path(os.path.realpath(sys.executable))))
    if loader is None:
        raise UnsupportedBinary("load-no-loader", sys.executable)
    return loader
