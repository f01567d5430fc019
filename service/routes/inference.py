"""The models as such: embeddings, entailment, and search by them."""

import time

from litestar import post
from litestar.di import NamedDependency as Given
from litestar.params import JSONBody

from service.access import Caller
from service.errors import documented
from service.inference.engine import InferenceEngine
from service.inference.types import Scores
from service.retrieval import Retriever
from service.routes.verification import own_tenant
from service.schemas import (
    Embedded,
    FoundItem,
    NliBatch,
    NliBatchResult,
    NliPair,
    NliResult,
    SearchResult,
    ToEmbed,
    ToSearch,
)
from service.store import Filters
from service.telemetry import note_stages

__all__ = ["HANDLERS"]

_RESPONSES = documented(400, 401, 403, 413, 422, 429, 500, 503, 504)


@post("/api/v1/embed", status_code=200, tags=["inference"], summary="Embed texts", responses=_RESPONSES)
async def embed(data: JSONBody[ToEmbed], engine: Given[InferenceEngine]) -> Embedded:
    """One vector of unit norm per text. A text over the model's limit is refused unless `truncate`."""
    began = time.perf_counter()
    reply = await engine.embed(data.texts, truncate=data.truncate)
    note_stages(reply.seconds)
    return Embedded(
        embeddings=[vector.values() for vector in reply.results],
        count=len(reply.results),
        dimension=reply.results[0].dimension,
        processing_time_ms=_milliseconds(began),
    )


@post("/api/v1/search", status_code=200, tags=["inference"], summary="Find evidence", responses=_RESPONSES)
async def search(data: JSONBody[ToSearch], retriever: Given[Retriever], caller: Given[Caller]) -> SearchResult:
    """Evidence of the caller's tenant, best first. The mode keyword needs no model."""
    began = time.perf_counter()
    found = await retriever.search(
        own_tenant(caller, data.tenant_id),
        data.query,
        mode=data.mode,
        limit=data.limit,
        min_similarity=data.min_similarity,
        filters=Filters(
            source_prefix=data.source_filter, published_from=data.published_from, published_to=data.published_to
        ),
    )
    results = [
        FoundItem(each.evidence_id, each.content, each.source_url, each.similarity, rank)
        for rank, each in enumerate(found, start=1)
        if each.evidence_id is not None
    ]
    return SearchResult(results, len(results), data.query, data.mode, _milliseconds(began))


@post("/api/v1/nli", status_code=200, tags=["inference"], summary="Judge one pair", responses=_RESPONSES)
async def nli(data: JSONBody[NliPair], engine: Given[InferenceEngine]) -> NliResult:
    """Whether the premise entails the hypothesis, contradicts it, or neither."""
    began = time.perf_counter()
    reply = await engine.classify([(data.premise, data.hypothesis)], truncate=data.truncate)
    note_stages(reply.seconds)
    return _nli_result(reply.results[0], _milliseconds(began))


@post("/api/v1/nli/batch", status_code=200, tags=["inference"], summary="Judge many pairs", responses=_RESPONSES)
async def nli_batch(data: JSONBody[NliBatch], engine: Given[InferenceEngine]) -> NliBatchResult:
    """One result per pair, in order."""
    began = time.perf_counter()
    reply = await engine.classify(data.pairs, truncate=data.truncate)
    note_stages(reply.seconds)
    milliseconds = _milliseconds(began)
    results = [_nli_result(scores, milliseconds / len(data.pairs)) for scores in reply.results]
    return NliBatchResult(results, len(results), milliseconds)


def _nli_result(scores: Scores, milliseconds: float) -> NliResult:
    return NliResult(scores.label, scores.confidence, dict(scores.by_label()), milliseconds)


def _milliseconds(began: float) -> float:
    return (time.perf_counter() - began) * 1000


HANDLERS = [embed, search, nli, nli_batch]
