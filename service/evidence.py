"""Taking evidence in: one piece, or lines without end, embedded in batches and kept batch by batch."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import msgspec

from service.inference.engine import InferenceEngine
from service.inference.types import ModelUnavailableError, TextTooLongError
from service.schemas import EvidenceLines, LineProblem, NewEvidenceItem
from service.store import NewEvidence, Store
from service.telemetry import note_stages

__all__ = ["EvidenceIngestor", "LineResult"]

_BATCH_LINES: Final = 64
_LINE_BYTES: Final = 1_000_000
_LISTED: Final = 100


@dataclass(slots=True)
class LineResult:
    """Counts so far, and the first problems."""

    added: int = 0
    duplicates: int = 0
    failed: int = 0
    problems: list[LineProblem] = field(default_factory=list)

    def refuse(self, line: int, message: str) -> None:
        """Count a line that is not kept."""
        self.failed += 1
        if len(self.problems) < _LISTED:
            self.problems.append(LineProblem(line, message))


@dataclass(frozen=True, slots=True)
class EvidenceIngestor:
    """Embeds evidence and keeps it."""

    store: Store
    engine: InferenceEngine

    async def add(
        self, tenant: str, pieces: Sequence[NewEvidenceItem], *, truncate: bool = False
    ) -> list[tuple[UUID, bool]]:
        """Keep `pieces`, all or none: for each its id and whether it is new."""
        reply = await self.engine.embed([piece.content for piece in pieces], truncate=truncate)
        note_stages(reply.seconds)
        space = self.engine.space()
        if space is None:
            raise ModelUnavailableError("embedding", "it went while it was used")
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
        return await self.store.add_evidence(tenant, new, space)

    async def add_lines(self, tenant: str, chunks: AsyncIterator[bytes], *, truncate: bool = False) -> EvidenceLines:
        """Keep one piece per JSON line, holding no more than a batch in memory.

        What was kept before a failure of the database or the model stays, and that failure is raised; sending the
        whole again is safe, because the same content is kept once.
        """
        result = LineResult()
        batch: list[tuple[int, NewEvidenceItem]] = []
        async for number, line in _lines(chunks, result):
            try:
                batch.append((number, msgspec.json.decode(line, type=NewEvidenceItem)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                result.refuse(number, str(error))
            if len(batch) == _BATCH_LINES:
                await self.add_batch(tenant, batch, result, truncate=truncate)
                batch = []
        await self.add_batch(tenant, batch, result, truncate=truncate)
        problems = sorted(result.problems, key=lambda problem: problem.line)
        return EvidenceLines(result.added, result.duplicates, result.failed, problems)

    async def add_batch(
        self, tenant: str, batch: Sequence[tuple[int, NewEvidenceItem]], result: LineResult, *, truncate: bool
    ) -> None:
        """Keep numbered pieces, leaving out those whose content is too long, and count in `result`."""
        left = list(batch)
        while left:
            try:
                added = await self.add(tenant, [piece for _, piece in left], truncate=truncate)
            except TextTooLongError as error:
                number, _ = left.pop(error.index)
                result.refuse(number, f"{error.tokens} tokens, the model takes {error.limit_tokens}")
                continue
            new = sum(is_new for _, is_new in added)
            result.added += new
            result.duplicates += len(added) - new
            return


async def _lines(chunks: AsyncIterator[bytes], result: LineResult) -> AsyncIterator[tuple[int, bytes]]:
    """Numbered lines that are not blank; one that is too long is refused without being held."""
    number, held, is_skipping = 1, b"", False
    async for chunk in chunks:
        *complete, rest = (held + chunk).split(b"\n")
        held = b""
        for line in complete:
            if not is_skipping and line.strip():
                yield number, line
            is_skipping = False
            number += 1
        if is_skipping:
            continue
        if len(rest) > _LINE_BYTES:
            result.refuse(number, f"longer than {_LINE_BYTES} bytes")
            is_skipping = True
        else:
            held = rest
    if held.strip() and not is_skipping:
        yield number, held
