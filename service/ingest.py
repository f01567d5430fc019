"""Taking evidence in from a file: JSON lines or CSV, with progress, resumable, a bad line told by its number."""

import asyncio
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from service.database import Database, DatabaseUnavailableError
from service.evidence import EvidenceIngestor, LineResult
from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.inference.types import InferenceError
from service.schemas import NewEvidenceItem
from service.settings import Settings
from service.store import Store

__all__ = ["ingest", "read_lines"]

_BATCH_LINES: Final = 256
_BAR_CHARACTERS: Final = 30
_LOAD_SECONDS: Final = 300.0


def ingest(settings: Settings, file: Path, *, tenant: str, truncate: bool) -> int:
    """Keep every good line of `file`; 0 if all were good, 1 if some were not, 2 if it could not go on.

    What was done is noted beside the file, as FILE.progress, after each batch. A run that was cut short goes on from
    there, and a complete run removes the note. Sending a line twice is harmless anyhow: content is kept once.
    """
    try:
        result = asyncio.run(_ingest(settings, file, tenant=tenant, truncate=truncate))
    except (DatabaseUnavailableError, InferenceError, OSError) as error:
        sys.stderr.write(f"\n{error}\nRun the same command again to go on.\n")
        return 2
    for problem in result.problems:
        sys.stderr.write(f"line {problem.line}: {problem.message}\n")
    sys.stdout.write(f"{result.added} added, {result.duplicates} duplicates, {result.failed} failed\n")
    return 1 if result.failed else 0


def read_lines(file: Path, skip: int) -> Iterator[tuple[int, NewEvidenceItem | str, float]]:
    """Each line after the first `skip`: its number, the piece or what is wrong with it, and the fraction read so far.

    A CSV file (by its suffix) has a header with the fields' names; its lines are counted as records, header excluded.
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
                    yield number, _piece(json.dumps(fields).encode()), stream.tell() / total_bytes
            return
        read_bytes = 0
        for number, line in enumerate(stream, start=1):
            read_bytes += len(line)
            if number > skip and line.strip():
                yield number, _piece(line), read_bytes / total_bytes


async def _ingest(settings: Settings, file: Path, *, tenant: str, truncate: bool) -> LineResult:
    note = file.with_name(file.name + ".progress")
    done_lines = int(note.read_text(encoding="ascii")) if note.is_file() else 0
    database = Database(settings.database_url, connections=2, timeout_seconds=settings.database_timeout_seconds)
    engine = InferenceEngine(settings, Scheduler(queue_tokens=settings.queue_tokens))
    await database.open()
    engine.start()
    try:
        await asyncio.to_thread(engine.wait_loaded, _LOAD_SECONDS)
        engine.embedding.get()
        intake, result = EvidenceIngestor(Store(database), engine), LineResult()
        batch: list[tuple[int, NewEvidenceItem]] = []
        for number, piece, read_fraction in read_lines(file, done_lines):
            if isinstance(piece, str):
                result.refuse(number, piece)
            else:
                batch.append((number, piece))
            if len(batch) == _BATCH_LINES:
                await intake.add_batch(tenant, batch, result, truncate=truncate)
                batch = []
                note.write_text(str(number), encoding="ascii")
                _show(result, read_fraction)
        await intake.add_batch(tenant, batch, result, truncate=truncate)
        _show(result, 1.0)
        note.unlink(missing_ok=True)
        return result
    finally:
        engine.stop(wait_seconds=1.0)
        await database.close()


def _piece(line: bytes) -> NewEvidenceItem | str:
    try:
        return msgspec.json.decode(line, type=NewEvidenceItem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)


def _show(result: LineResult, read_fraction: float) -> None:
    if sys.stderr.isatty():
        bar = "#" * round(read_fraction * _BAR_CHARACTERS)
        sys.stderr.write(f"\r[{bar:<{_BAR_CHARACTERS}}] {read_fraction:4.0%} {result.added} added ")
        sys.stderr.flush()
