"""Inference as such: embeddings."""

import time

from litestar import post

from service.engine import Engine
from service.errors import documented
from service.schemas import Embedded, ToEmbed
from service.telemetry import note_stages

__all__ = ["HANDLERS"]


@post(
    "/api/v1/embed",
    status_code=200,
    tags=["inference"],
    summary="Embed texts",
    responses=documented(400, 413, 422, 429, 500, 503, 504),
)
async def embed(data: ToEmbed, engine: Engine) -> Embedded:
    """One vector of unit norm per text. A text over the model's limit is refused unless `truncate`."""
    began = time.perf_counter()
    reply = await engine.embed(data.texts, truncate=data.truncate)
    note_stages(reply.seconds)
    return Embedded(
        embeddings=[vector.values() for vector in reply.results],
        count=len(reply.results),
        dimension=reply.results[0].dimension,
        processing_time_ms=(time.perf_counter() - began) * 1000,
    )


HANDLERS = [embed]
