"""Opens the evidence store and the models for a command that runs without the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from service.database import Database
from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.settings import Settings
from service.store.evidence import EvidenceStore

__all__ = ["open_evidence"]

_LOAD_SECONDS: Final = 300.0


@asynccontextmanager
async def open_evidence(
    settings: Settings, *, timeout_seconds: float
) -> AsyncIterator[tuple[EvidenceStore, InferenceEngine]]:
    """Opens the store, with `timeout_seconds` for a statement, and an engine whose embedding model is loaded.

    Raises:
        ModelUnavailableError: the embedding model could not be loaded.
    """
    database = Database(settings.database_url, connections=2, timeout_seconds=timeout_seconds)
    engine = InferenceEngine(settings, Scheduler(queue_tokens=settings.queue_tokens))
    await database.open()
    engine.start()
    try:
        await asyncio.to_thread(engine.wait_loaded, _LOAD_SECONDS)
        engine.embedding.get()
        yield EvidenceStore(database), engine
    finally:
        engine.stop(wait_seconds=1.0)
        await database.close()
