"""Routes of embedding, NLI and search, with fake models and a real database."""

from __future__ import annotations

import pytest

from tests.service.conftest import EVIDENCE, Served

pytestmark = pytest.mark.usefixtures("evidence")


def found(api: Served, **request: object) -> list[str]:
    reply = api.client.post("/api/v1/search", json=request)
    assert reply.status_code == 200, reply.text
    return [each["content"] for each in reply.json()["results"]]


def test_embeddings_have_unit_norm_and_the_order_of_the_texts(api: Served) -> None:
    body = api.client.post("/api/v1/embed", json={"texts": ["red apple", "blue sky"]}).json()
    assert (body["count"], body["dimension"]) == (2, 384)
    alone = api.client.post("/api/v1/embed", json={"texts": ["blue sky"]}).json()
    assert body["embeddings"][1] == alone["embeddings"][0]
    assert sum(value * value for value in body["embeddings"][0]) == pytest.approx(1, abs=1e-5)


def test_a_long_text_is_a_422_unless_truncate_is_set(api: Served) -> None:
    reply = api.client.post("/api/v1/embed", json={"texts": ["ok", "word " * 300]})
    assert reply.status_code == 422
    assert "301 tokens" in reply.json()["detail"]
    assert api.client.post("/api/v1/embed", json={"texts": ["word " * 300], "truncate": True}).status_code == 200


def test_a_long_query_or_claim_is_a_422(api: Served) -> None:
    for path, body in (("search", {"query": "w " * 400}), ("verify", {"claim": "w " * 400})):
        reply = api.client.post(f"/api/v1/{path}", json=body)
        assert (reply.status_code, "tokens" in reply.json()["detail"]) == (422, True)


def test_a_text_that_breaks_the_model_fails_its_request_only(api: Served) -> None:
    assert api.client.post("/api/v1/embed", json={"texts": ["poison"]}).status_code == 500
    assert api.client.post("/api/v1/embed", json={"texts": ["fine"]}).status_code == 200


def test_nli_labels_and_scores_agree(api: Served) -> None:
    pair = {"premise": "ice melts", "hypothesis": "ice melts not"}
    body = api.client.post("/api/v1/nli", json=pair).json()
    assert body["label"] == "contradiction"
    assert body["scores"]["contradiction"] == body["confidence"] == max(body["scores"].values())
    batch = api.client.post("/api/v1/nli/batch", json={"pairs": [["a b", "a b"], ["a b", "c d"]]}).json()
    assert [each["label"] for each in batch["results"]] == ["entailment", "neutral"]


def test_vector_search_returns_the_most_similar_first(api: Served) -> None:
    assert found(api, query="arctic sea ice", mode="vector", limit=2) == [EVIDENCE[0], EVIDENCE[1]]


def test_keyword_search_matches_any_word_stem(api: Served) -> None:
    assert found(api, query="potassium in vitamin pills", mode="keyword") == [EVIDENCE[2]]
    assert found(api, query="the of and", mode="keyword") == []


def test_operators_and_quotes_in_a_query_are_ignored(api: Served) -> None:
    assert found(api, query="bananas' & | ! <-> :* \\ ''", mode="keyword") == [EVIDENCE[2]]


def test_hybrid_search_combines_vector_and_keyword(api: Served) -> None:
    results = found(api, query="tower paris", mode="hybrid")
    assert results[0] == EVIDENCE[3]
    assert len(results) == len(EVIDENCE)


def test_similarity_is_the_cosine_of_the_embeddings(api: Served) -> None:
    query = "arctic sea"
    [top] = api.client.post("/api/v1/search", json={"query": query, "mode": "vector", "limit": 1}).json()["results"]
    vectors = api.client.post("/api/v1/embed", json={"texts": [query, top["content"]]}).json()["embeddings"]
    assert top["similarity"] == pytest.approx(sum(a * b for a, b in zip(*vectors, strict=True)), abs=1e-5)


def test_filters_apply_in_every_search_mode(api: Served) -> None:
    for mode in ("vector", "keyword", "hybrid"):
        request = {"query": "arctic sea ice bananas tower", "mode": mode}
        assert found(api, **request, source_filter="https://s2.example/") == [EVIDENCE[2]]
        assert found(api, **request, published_from="2022-01-01", published_to="2022-12-31") == [EVIDENCE[2]]
        assert found(api, **request, min_similarity=1.0) == []
