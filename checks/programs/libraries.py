"""Loads shared objects, each in a separate process, and prints those that do not load. Standard library only.

    python3 -I - '{"/opt/venv/lib/python3.13/site-packages/torch/lib/libtorch_nvshmem.so": [".../libtorch_cuda.so"]}' \
        < libraries.py

The argument maps each object to the objects that depend on it. Each child is forked from a process that has loaded
only the standard library, so that no object depends on one that was loaded before. RTLD_NOW binds every function.
An object that does not load alone is tried again after one of its dependents: some libraries need each other.
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


def load(path: str, dependents: list[str], report: int) -> None:
    """Loads *path* and exits; writes the loader's message to the file descriptor *report* if that failed."""
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:
        for dependent in dependents:
            with contextlib.suppress(OSError):
                ctypes.CDLL(dependent, mode=os.RTLD_NOW | os.RTLD_GLOBAL)
                ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL)
                os._exit(0)
        os.write(report, str(error).encode()[:4096])
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Prints `{path: error}` of the objects that do not load."""
    dependents: dict[str, list[str]] = json.loads(sys.argv[1])
    waiting = list(dependents)[::-1]
    running: dict[int, tuple[str, int]] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            path = waiting.pop()
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                load(path, dependents[path], write)
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
