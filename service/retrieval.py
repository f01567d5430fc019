"""Finds evidence for a text: by meaning (vector), by words (keyword), or by both (hybrid)."""

from dataclasses import dataclass
from typing import Final

from service.inference.engine import InferenceEngine
from service.store.evidence import EvidenceStore, Filters, SearchHit, SearchMode

__all__ = ["Retriever"]

_CANDIDATES_FACTOR: Final = 3
_CANDIDATES_MINIMUM: Final = 50
"""Candidates from each side of a hybrid search: rank fusion needs more than the search returns."""


@dataclass(frozen=True, slots=True)
class Retriever:
    """Searches one tenant's evidence.

    `similarity` of a hit is from 0 to 1. In the modes vector and hybrid it is the cosine of query and evidence, or 0 if
    that is negative. In the mode keyword it is r / (r + 1) for PostgreSQL's ts_rank r, normalized by text length.
    (On CLIMATE-FEVER ts_rank has an nDCG@10 of 0.35, and the cover density rank ts_rank_cd one of 0.25.)
    """

    evidence: EvidenceStore
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
        """Returns up to `limit` hits, best first: by similarity, in the mode hybrid by reciprocal rank fusion.

        The mode keyword needs no model. Raises what `InferenceEngine.embed` raises; a query over the model's token
        limit is refused, not truncated.
        """
        vector = space = None
        if mode != "keyword":
            reply = await self.engine.embed([query])
            vector, space = reply.results[0], self.engine.space()
        hits = await self.evidence.search(
            tenant,
            query,
            vector,
            mode=mode,
            candidates=max(_CANDIDATES_FACTOR * limit, _CANDIDATES_MINIMUM) if mode == "hybrid" else limit,
            # The limit is on the cosine, which may be negative: a limit of 0 must not exclude those hits.
            min_similarity=min_similarity if min_similarity > 0 else -1.0,
            filters=filters or Filters(),
            space=space,
        )
        return hits[:limit]
