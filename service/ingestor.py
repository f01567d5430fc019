"""Embeds evidence and stores it: one piece, or a stream of JSON lines in batches."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import msgspec

from service.inference.engine import InferenceEngine
from service.inference.types import ModelUnavailableError, TextTooLongError
from service.schemas import IngestReport, LineProblem, NewEvidenceItem
from service.store.evidence import EvidenceStore, NewEvidence

__all__ = ["EvidenceIngestor", "IngestCounts", "parse_line"]

_BATCH_LINES: Final = 64
_LINE_BYTES: Final = 1_000_000
_LISTED: Final = 100


@dataclass(slots=True)
class IngestCounts:
    """Counts of an ingestion so far, and its first hundred problems."""

    added: int = 0
    duplicates: int = 0
    failed: int = 0
    problems: list[LineProblem] = field(default_factory=list)

    def reject(self, line: int, message: str) -> None:
        """Counts a line that is not stored."""
        self.failed += 1
        if len(self.problems) < _LISTED:
            self.problems.append(LineProblem(line, message))


@dataclass(frozen=True, slots=True)
class EvidenceIngestor:
    """Embeds and stores evidence."""

    evidence: EvidenceStore
    engine: InferenceEngine

    async def add(
        self, tenant: str, pieces: Sequence[NewEvidenceItem], *, truncate: bool = False
    ) -> list[tuple[UUID, bool]]:
        """Stores `pieces`, all or none; returns for each its id and whether it is new."""
        reply = await self.engine.embed([piece.content for piece in pieces], truncate=truncate)
        space = self.engine.space()
        if space is None:
            raise ModelUnavailableError("embedding", "it was unloaded during the request")
        new = [
            NewEvidence(
                content=piece.content,
                source_url=piece.source_url,
                source_type=piece.source_type,
                published_on=piece.published_on,
                vector=vector,
            )
            for piece, vector in zip(pieces, reply.results, strict=True)
        ]
        return await self.evidence.add(tenant, new, space)

    async def add_lines(self, tenant: str, chunks: AsyncIterator[bytes], *, truncate: bool = False) -> IngestReport:
        """Stores one piece per JSON line; holds at most one batch in memory.

        If the database or the model fails, the error is raised and the batches stored before stay. Sending the whole
        stream again is safe, because the same content is stored once.
        """
        counts = IngestCounts()
        batch: list[tuple[int, NewEvidenceItem]] = []
        async for number, line in _lines(chunks, counts):
            piece = parse_line(line)
            if isinstance(piece, str):
                counts.reject(number, piece)
            else:
                batch.append((number, piece))
            if len(batch) == _BATCH_LINES:
                await self.add_batch(tenant, batch, counts, truncate=truncate)
                batch = []
        await self.add_batch(tenant, batch, counts, truncate=truncate)
        problems = sorted(counts.problems, key=lambda problem: problem.line)
        return IngestReport(counts.added, counts.duplicates, counts.failed, problems)

    async def add_batch(
        self, tenant: str, batch: Sequence[tuple[int, NewEvidenceItem]], counts: IngestCounts, *, truncate: bool
    ) -> None:
        """Stores numbered pieces and counts them; rejects those over the model's token limit."""
        left = list(batch)
        while left:
            try:
                added = await self.add(tenant, [piece for _, piece in left], truncate=truncate)
            except TextTooLongError as error:
                number, _ = left.pop(error.index)
                counts.reject(number, f"{error.tokens} tokens, more than the model's limit of {error.limit_tokens}")
                continue
            new = sum(is_new for _, is_new in added)
            counts.added += new
            counts.duplicates += len(added) - new
            return


def parse_line(line: bytes) -> NewEvidenceItem | str:
    """Parses a piece of evidence from JSON; returns the problem as text if it is not one."""
    try:
        return msgspec.json.decode(line, type=NewEvidenceItem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)


async def _lines(chunks: AsyncIterator[bytes], counts: IngestCounts) -> AsyncIterator[tuple[int, bytes]]:
    """Yields the numbered lines that are not blank; rejects one that is too long without buffering it."""
    number, buffered, is_skipping = 1, b"", False
    async for chunk in chunks:
        *complete, rest = (buffered + chunk).split(b"\n")
        buffered = b""
        for line in complete:
            if not is_skipping and line.strip():
                yield number, line
            is_skipping = False
            number += 1
        if is_skipping:
            continue
        if len(rest) > _LINE_BYTES:
            counts.reject(number, f"the line is longer than {_LINE_BYTES} bytes")
            is_skipping = True
        else:
            buffered = rest
    if buffered.strip() and not is_skipping:
        yield number, buffered
