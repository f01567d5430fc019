"""Finding the evidence that bears on a text: by meaning, by words, or by both."""

from dataclasses import dataclass
from typing import Final

from service.inference.engine import InferenceEngine
from service.store import Filters, SearchHit, SearchMode, Store
from service.telemetry import note_stages

__all__ = ["Retriever"]

_CANDIDATES_FACTOR: Final = 3
_CANDIDATES_MINIMUM: Final = 50
"""How many candidates each side of a hybrid search brings: fusion needs more than it returns."""


@dataclass(frozen=True, slots=True)
class Retriever:
    """Searches one tenant's evidence.

    `similarity` of a result is from 0 to 1: in the modes vector and hybrid the cosine between query and evidence
    (0 if negative), in the mode keyword PostgreSQL's ts_rank r, damped by the text's length, as r / (r + 1).
    (Its cover density rank finds less on CLIMATE-FEVER: nDCG@10 0.25 against 0.35.)
    """

    store: Store
    engine: InferenceEngine

    async def search(
        self,
        tenant: str,
        query: str,
        *,
        mode: SearchMode,
        limit: int,
        min_similarity: float = 0.0,
        filters: Filters | None = None,
    ) -> list[SearchHit]:
        """Up to `limit` pieces of evidence, best first. A query longer than the model takes is refused, not cut.

        The order is that of the similarity, and in the mode hybrid that of reciprocal rank fusion over both.
        The mode keyword needs no model.
        """
        vector = space = None
        if mode != "keyword":
            reply = await self.engine.embed([query])
            note_stages(reply.seconds)
            vector, space = reply.results[0], self.engine.space()
        found = await self.store.search(
            tenant,
            query,
            vector,
            mode=mode,
            candidates=max(_CANDIDATES_FACTOR * limit, _CANDIDATES_MINIMUM) if mode == "hybrid" else limit,
            # The bound is on the cosine, which may be negative: 0 is no bound at all.
            min_similarity=min_similarity if min_similarity > 0 else -1.0,
            filters=filters or Filters(),
            space=space,
        )
        return found[:limit]
