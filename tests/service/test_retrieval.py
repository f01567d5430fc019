"""Retrieval: what each mode asks of the model and of the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.inference.types import ModelUnavailableError
from service.retrieval import Retriever
from service.store.evidence import SearchHit, SearchMode
from tests.service.conftest import settings
from tests.service.fakes import FakeEmbedder

if TYPE_CHECKING:
    from collections.abc import Mapping


class FakeStore:
    """Records a search and returns 200 hits."""

    def __init__(self) -> None:
        self.call: Mapping[str, Any] = {}

    async def search(self, tenant: str, query: str, vector: object, **options: object) -> list[SearchHit]:
        self.call = {"tenant": tenant, "query": query, "vector": vector, **options}
        return [
            SearchHit(evidence_id=None, content=str(number), source_url=None, published_on=None, similarity=0.5)
            for number in range(200)
        ]


def search(
    mode: SearchMode, *, has_model: bool = True, min_similarity: float = 0.0
) -> tuple[list[SearchHit], Mapping[str, Any]]:
    """Searches for one query and returns the hits and the call of the store."""

    async def run() -> tuple[list[SearchHit], Mapping[str, Any]]:
        engine = InferenceEngine(settings(), Scheduler(queue_tokens=1000))
        if has_model:
            engine.embedding.fill(FakeEmbedder())
        engine.scheduler.start()
        store = FakeStore()
        try:
            retriever = Retriever(store, engine)  # type: ignore[arg-type] # only `search` is used
            hits = await retriever.search("t", "some query", mode=mode, limit=20, min_similarity=min_similarity)
        finally:
            await asyncio.to_thread(engine.stop, 10.0)
        return hits, store.call

    return asyncio.run(run())


def test_keyword_search_needs_no_model() -> None:
    hits, call = search("keyword", has_model=False)
    assert len(hits) == 20
    assert (call["vector"], call["space"]) == (None, None)


def test_vector_search_without_a_model_is_refused() -> None:
    with pytest.raises(ModelUnavailableError):
        search("vector", has_model=False)


@pytest.mark.parametrize(("mode", "candidates"), [("vector", 20), ("hybrid", 60)])
def test_hybrid_search_takes_three_times_the_candidates(mode: SearchMode, candidates: int) -> None:
    hits, call = search(mode)
    assert call["candidates"] == candidates
    assert call["vector"].dimension == call["space"].dimension == 384
    assert [hit.content for hit in hits] == [str(number) for number in range(20)]


def test_no_minimum_similarity_includes_negative_cosines() -> None:
    assert search("vector")[1]["min_similarity"] == -1.0
    assert search("vector", min_similarity=0.3)[1]["min_similarity"] == 0.3
