from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

from buildkit.engine.client import Engine
from buildkit.timing import machine
from buildkit.timing.builder import BenchmarkBuilder
from tests.support.polling import until

if TYPE_CHECKING:
    import pytest

BUILDER = BenchmarkBuilder(Engine("", "26.1.5", None), "", "", None)


def test_this_machine_has_processors_and_memory() -> None:
    found = machine.this_machine()

    assert found.cpus == os.cpu_count()
    assert found.memory_bytes > 100_000_000
    assert "Linux" in found.system


def test_samples_cover_the_block_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = itertools.count(0, 100)
    monkeypatch.setattr(BenchmarkBuilder, "written_bytes", lambda _: next(counts))
    before = time.time()

    with machine.written_samples(BUILDER) as samples:
        until(lambda: len(samples) > 2, "a few samples")

    assert before <= samples[0][0] <= samples[-1][0] <= time.time()
    assert [count for _, count in samples] == [100 * index for index in range(len(samples))]


def test_builder_of_the_user_has_no_samples() -> None:
    with machine.written_samples(BUILDER) as samples:
        pass

    assert samples == []
