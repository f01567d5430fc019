"""Ingests evidence from a file of JSON lines or CSV: shows progress, reports bad lines by number, can be resumed."""

import asyncio
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.database import DatabaseUnavailableError
from service.inference.types import InferenceError
from service.ingestor import EvidenceIngestor, IngestCounts, parse_line
from service.schemas import NewEvidenceItem
from service.settings import Settings
from service.standalone import open_evidence

__all__ = ["ingest", "read_lines"]

_BATCH_LINES: Final = 256
_BAR_CHARACTERS: Final = 30


def ingest(settings: Settings, file: Path, *, tenant: str, truncate: bool) -> int:
    """Stores every valid line of `file`.

    After each batch it writes the number of finished lines to FILE.progress. A run that was interrupted continues from
    there; a complete run removes the file. A line may be sent twice, because the same content is stored once.

    Returns:
        The exit code: 0 if every line was stored, 1 if some were rejected, 2 if it had to stop.
    """
    try:
        counts = asyncio.run(_ingest(settings, file, tenant=tenant, truncate=truncate))
    except (DatabaseUnavailableError, InferenceError, OSError) as error:
        sys.stderr.write(f"\n{error}\nRun the same command again to continue.\n")
        return 2
    for problem in counts.problems:
        sys.stderr.write(f"line {problem.line}: {problem.message}\n")
    sys.stdout.write(f"{counts.added} added, {counts.duplicates} duplicates, {counts.failed} failed\n")
    return 1 if counts.failed else 0


def read_lines(file: Path, skip: int) -> Iterator[tuple[int, NewEvidenceItem | str, float]]:
    """Yields each line after the first `skip`: its number, the piece or its problem, and the fraction read so far.

    A file with the suffix .csv has a header with the field names; its records are numbered from 1 without the header.
    """
    total_bytes = file.stat().st_size or 1
    with file.open("rb") as stream:
        if file.suffix.lower() == ".csv":
            reader = csv.DictReader(line.decode("utf-8", "replace") for line in stream)
            for number, row in enumerate(reader, start=1):
                if number > skip:
                    fields = {
                        name: value for name, value in row.items() if value not in {"", None} and name is not None
                    }
                    yield number, parse_line(json.dumps(fields).encode()), stream.tell() / total_bytes
            return
        read_bytes = 0
        for number, line in enumerate(stream, start=1):
            read_bytes += len(line)
            if number > skip and line.strip():
                yield number, parse_line(line), read_bytes / total_bytes


async def _ingest(settings: Settings, file: Path, *, tenant: str, truncate: bool) -> IngestCounts:
    progress = file.with_name(file.name + ".progress")
    done_lines = int(progress.read_text(encoding="ascii")) if progress.is_file() else 0
    async with open_evidence(settings, timeout_seconds=settings.database_timeout_seconds) as (evidence, engine):
        ingestor, counts = EvidenceIngestor(evidence, engine), IngestCounts()
        batch: list[tuple[int, NewEvidenceItem]] = []
        for number, piece, read_fraction in read_lines(file, done_lines):
            if isinstance(piece, str):
                counts.reject(number, piece)
            else:
                batch.append((number, piece))
            if len(batch) == _BATCH_LINES:
                await ingestor.add_batch(tenant, batch, counts, truncate=truncate)
                batch = []
                progress.write_text(str(number), encoding="ascii")
                _show(counts, read_fraction)
        await ingestor.add_batch(tenant, batch, counts, truncate=truncate)
        _show(counts, 1.0)
        progress.unlink(missing_ok=True)
        return counts


def _show(counts: IngestCounts, read_fraction: float) -> None:
    if sys.stderr.isatty():
        bar = "#" * round(read_fraction * _BAR_CHARACTERS)
        sys.stderr.write(f"\r[{bar:<{_BAR_CHARACTERS}}] {read_fraction:4.0%} {counts.added} added ")
        sys.stderr.flush()
