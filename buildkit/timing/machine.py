"""Describes the machine of a benchmark, and samples the bytes that its builder writes."""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.timing.record import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit.timing.builder import BenchmarkBuilder

__all__ = ["this_machine", "written_samples"]

_SAMPLE_SECONDS: Final = 0.05
"""The time between two samples of the written bytes."""


@contextmanager
def written_samples(builder: BenchmarkBuilder) -> Iterator[list[tuple[float, int]]]:
    """Collects samples inside the block: seconds since the epoch, and the bytes that the engine had written by then."""
    samples: list[tuple[float, int]] = []
    is_over = threading.Event()

    def sample() -> None:
        count = builder.written_bytes()
        if count is not None:
            samples.append((time.time(), count))

    def watch() -> None:
        while not is_over.wait(_SAMPLE_SECONDS):
            sample()

    sample()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()
        sample()


def this_machine() -> Machine:
    """Describes this machine, even if the engine is on another."""
    facts = platform.freedesktop_os_release()
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return Machine(
        system=f"{facts.get('PRETTY_NAME', 'unknown')}, Linux {platform.release()}",
        processor=processor,
        cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
