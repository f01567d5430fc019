"""Loads shared objects, each in a process of its own, and prints which ones do not load.

    python3 -I - '{"/opt/venv/lib/python3.13/site-packages/torch/lib/libtorch_nvshmem.so": [".../libtorch_cuda.so"]}' \
        < libraries.py

The argument gives each object the objects that need it. A child is forked from a process that has loaded nothing but
the standard library, so nothing is found because something else came before. RTLD_NOW binds every function. An object
that does not load by itself gets a second chance as part of the first that needs it: some libraries are halves.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys

__all__: list[str] = []

PROCESSES = len(os.sched_getaffinity(0))


def load(path: str, wholes: list[str], report: int) -> None:
    """Loads *path* and leaves the process at once, with the loader's message on *report* if it failed."""
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        for whole in wholes:
            with contextlib.suppress(OSError):
                ctypes.CDLL(whole, mode=os.RTLD_NOW | os.RTLD_GLOBAL)
                ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
                os._exit(0)
        os.write(report, str(error).encode()[:4096])
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Prints `{path: why it does not load}`."""
    wholes: dict[str, list[str]] = json.loads(sys.argv[1])
    waiting = list(wholes)[::-1]
    running: dict[int, tuple[str, int]] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            path = waiting.pop()
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                load(path, wholes[path], write)
            os.close(write)
            running[child] = (path, read)
        child, status = os.wait()
        path, read = running.pop(child)
        message = os.read(read, 4096).decode("utf-8", "replace")
        os.close(read)
        if os.WIFSIGNALED(status):
            failed[path] = f"the process died of {signal.Signals(os.WTERMSIG(status)).name} while loading it"
        elif status:
            failed[path] = message
    json.dump(failed, sys.stdout)


main()
