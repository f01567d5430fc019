"""Splitting a stream of evidence into lines and batches, with a fake store."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING

from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.ingestor import EvidenceIngestor, parse_line
from service.schemas import IngestReport, NewEvidenceItem
from tests.service.conftest import settings
from tests.service.fakes import FakeEmbedder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from service.inference.types import EmbeddingSpace
    from service.store.evidence import NewEvidence


class FakeStore:
    """Records the sizes of the batches that it stores."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    async def add(
        self, _tenant: str, pieces: Sequence[NewEvidence], _space: EmbeddingSpace
    ) -> list[tuple[object, bool]]:
        self.batches.append(len(pieces))
        return [(uuid.uuid4(), True) for _ in pieces]


def ingest(body: bytes, chunk_bytes: int) -> tuple[IngestReport, list[int]]:
    """Ingests a body in chunks; returns the report and the sizes of the batches."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), chunk_bytes):
            yield body[start : start + chunk_bytes]

    async def run() -> tuple[IngestReport, list[int]]:
        engine = InferenceEngine(settings(), Scheduler(queue_tokens=10_000))
        engine.embedding.fill(FakeEmbedder())
        engine.scheduler.start()
        store = FakeStore()
        try:
            ingestor = EvidenceIngestor(store, engine)  # type: ignore[arg-type] # only `add` is used
            return await ingestor.add_lines("t", chunks()), store.batches
        finally:
            await asyncio.to_thread(engine.stop, 10.0)

    return asyncio.run(run())


def test_lines_are_stored_in_batches_of_64() -> None:
    lines = [json.dumps({"content": f"line {number}"}).encode() for number in range(150)]
    report, batches = ingest(b"\n".join(lines), chunk_bytes=1000)
    assert (report.added, report.failed) == (150, 0)
    assert batches == [64, 64, 22]


def test_a_line_that_is_too_long_is_rejected_and_the_next_one_stored() -> None:
    long = b'{"content": "' + b"x" * 2_000_000 + b'"}'
    report, batches = ingest(long + b'\n{"content": "short"}\n', chunk_bytes=100_000)
    assert (report.added, report.failed, batches) == (1, 1, [1])
    [problem] = report.problems
    assert (problem.line, "longer than" in problem.message) == (1, True)


def test_parse_line_returns_the_piece_or_the_problem() -> None:
    assert parse_line(b'{"content": "text"}') == NewEvidenceItem("text")
    assert isinstance(parse_line(b'{"content": "text", "colour": "red"}'), str)
    assert isinstance(parse_line(b"\xff"), str)
