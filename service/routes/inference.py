"""Routes of the models: embedding, natural language inference (NLI), search."""

import time

from litestar import post
from litestar.di import NamedDependency as Given
from litestar.params import JSONBody

from service.access import Caller, Scope
from service.errors import documented
from service.inference.engine import InferenceEngine
from service.inference.types import Scores
from service.retrieval import Retriever
from service.routes.verification import own_tenant
from service.schemas import (
    EmbedRequest,
    EmbedResponse,
    NliBatchRequest,
    NliBatchResponse,
    NliRequest,
    NliResult,
    SearchRequest,
    SearchResponse,
    SearchResultItem,
)
from service.store.evidence import Filters

__all__ = ["HANDLERS"]

_RESPONSES = documented(400, 401, 403, 413, 422, 429, 500, 503, 504)


@post(
    "/api/v1/embed", scope=Scope.READ, status_code=200, tags=["inference"], summary="Embed texts", responses=_RESPONSES
)
async def embed(data: JSONBody[EmbedRequest], engine: Given[InferenceEngine]) -> EmbedResponse:
    """Returns one vector of unit norm per text. A text over the model's token limit is an error unless `truncate`."""
    began = time.perf_counter()
    reply = await engine.embed(data.texts, truncate=data.truncate)
    return EmbedResponse(
        embeddings=[vector.values() for vector in reply.results],
        count=len(reply.results),
        dimension=reply.results[0].dimension,
        processing_time_ms=_milliseconds(began),
    )


@post(
    "/api/v1/search",
    scope=Scope.READ,
    status_code=200,
    tags=["inference"],
    summary="Search evidence",
    responses=_RESPONSES,
)
async def search(data: JSONBody[SearchRequest], retriever: Given[Retriever], caller: Given[Caller]) -> SearchResponse:
    """Returns evidence of the caller's tenant, best first. The mode keyword needs no model."""
    began = time.perf_counter()
    hits = await retriever.search(
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
        SearchResultItem(hit.evidence_id, hit.content, hit.source_url, hit.similarity, rank)
        for rank, hit in enumerate(hits, start=1)
        if hit.evidence_id is not None
    ]
    return SearchResponse(results, len(results), data.query, data.mode, _milliseconds(began))


@post(
    "/api/v1/nli",
    scope=Scope.READ,
    status_code=200,
    tags=["inference"],
    summary="Classify a pair",
    responses=_RESPONSES,
)
async def nli(data: JSONBody[NliRequest], engine: Given[InferenceEngine]) -> NliResult:
    """Returns whether the premise entails the hypothesis, contradicts it, or neither."""
    began = time.perf_counter()
    reply = await engine.classify([(data.premise, data.hypothesis)], truncate=data.truncate)
    return _nli_result(reply.results[0], _milliseconds(began))


@post(
    "/api/v1/nli/batch",
    scope=Scope.READ,
    status_code=200,
    tags=["inference"],
    summary="Classify pairs",
    responses=_RESPONSES,
)
async def nli_batch(data: JSONBody[NliBatchRequest], engine: Given[InferenceEngine]) -> NliBatchResponse:
    """Returns one result per pair, in order."""
    began = time.perf_counter()
    reply = await engine.classify(data.pairs, truncate=data.truncate)
    milliseconds = _milliseconds(began)
    results = [_nli_result(scores, milliseconds / len(data.pairs)) for scores in reply.results]
    return NliBatchResponse(results, len(results), milliseconds)


def _nli_result(scores: Scores, milliseconds: float) -> NliResult:
    return NliResult(scores.label, scores.confidence, dict(scores.by_label()), milliseconds)


def _milliseconds(began: float) -> float:
    return (time.perf_counter() - began) * 1000


HANDLERS = [embed, search, nli, nli_batch]
