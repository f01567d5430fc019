"""Whether a changed library still loads, tried in a process of its own with the loader's cache off.

With the cache on, a CUDA toolkit installed on the same machine may stand in for a library that the tree lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import UnsupportedBinary

__all__ = ["check_loads", "load_error"]

_PT_INTERP: Final = 3  # gabi, "Program Header"
_LOAD: Final = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
# Loading libtorch_cuda.so and all that it needs takes 2 s on two busy cores; a hang is what this catches.
_DEADLINE_SECONDS: Final = 120


def check_loads(original: Path, changed: Path) -> None:
    """Refuses a changed file that does not load where its original does.

    Raises:
        UnsupportedBinary: `load-failed`, with the loader's words.
    """
    error = load_error(changed)
    if error is not None and load_error(original) is None:
        raise UnsupportedBinary("load-failed", error)


def load_error(path: Path) -> str | None:
    """Loads a shared object, or has the loader check an executable; returns what it says, or None if it loads."""
    loader = _loader()
    command = [loader, "--inhibit-cache", os.path.realpath(sys.executable), "-I", "-c", _LOAD, str(path.absolute())]
    if _is_program(path):
        command = [loader, "--inhibit-cache", "--verify", str(path.absolute())]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {_DEADLINE_SECONDS} s"
    if result.returncode == 0:
        return None
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {result.returncode}"


def _is_program(path: Path) -> bool:
    """Whether a file names an interpreter, as executables do."""
    elf = elf_format.parse(elf_format.map_file(path))
    return any(segment.type == _PT_INTERP for segment in elf.segments)


@cache
def _loader() -> str:
    """The dynamic loader that this very interpreter names."""
    content = elf_format.map_file(Path(os.path.realpath(sys.executable)))
    elf = elf_format.parse(content)
    for segment in elf.segments:
        if segment.type == _PT_INTERP:
            return content[segment.file_offset : segment.file_offset + segment.file_bytes].rstrip(b"\0").decode()
    raise UnsupportedBinary("load-no-loader", sys.executable)
