"""The API over HTTP, with fake models and a real database."""

from __future__ import annotations

import base64
import json
import uuid
from typing import TYPE_CHECKING

import msgspec
import pytest

from service.routes.table import ROUTES, registered
from service.schemas import EXAMPLES
from tests.service.conftest import EMBEDDING, Served, served, settings, until

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE = {
    ("POST", "/api/v1/claims"),
    ("GET", "/api/v1/claims"),
    ("GET", "/api/v1/claims/{claim_id}"),
    ("POST", "/api/v1/embed"),
    ("POST", "/api/v1/search"),
    ("POST", "/api/v1/nli"),
    ("POST", "/api/v1/nli/batch"),
    ("POST", "/api/v1/verify"),
    ("GET", "/api/v1/verdict/{claim_id}"),
    ("POST", "/api/v1/claims/{claim_id}/verify"),
    ("GET", "/api/v1/verdicts/{claim_id}"),
    ("GET", "/api/v1/tasks/{task_id}"),
    ("GET", "/health"),
    ("GET", "/rate-limit-stats"),
    ("GET", "/"),
}
EVIDENCE = (
    "Arctic sea ice shrinks in every decade",
    "Arctic sea ice does not shrink in every decade",
    "Bananas are rich in potassium and vitamins",
    "The tower in Paris was finished in 1889",
)


@pytest.fixture(scope="module", autouse=True)
def evidence(api: Served) -> list[str]:
    """Four pieces of evidence, by id."""
    identifiers = []
    for number, content in enumerate(EVIDENCE):
        piece = {"content": content, "source_url": f"https://s{number}.example/x", "published_on": f"202{number}-01-01"}
        reply = api.client.post("/api/v1/evidence", json=piece)
        assert reply.status_code == 201
        identifiers.append(reply.json()["id"])
    return identifiers


@pytest.fixture
def bare() -> Iterator[Served]:
    """The service with neither database nor models."""
    with served(settings(), real_models=True) as running:
        yield running


def found(api: Served, **request: object) -> list[str]:
    reply = api.client.post("/api/v1/search", json=request)
    assert reply.status_code == 200, reply.text
    return [each["content"] for each in reply.json()["results"]]


def test_the_fifteen_operations_of_the_reference_are_there(api: Served) -> None:
    assert len(REFERENCE) == 15
    assert registered(api.application.litestar) >= REFERENCE


def test_registered_routes_are_the_declared_ones(api: Served) -> None:
    assert registered(api.application.litestar) == {(route.method, route.path) for route in ROUTES}


def test_a_claim_is_kept_listed_and_found(api: Served) -> None:
    first = api.client.post("/api/v1/claims", json={"text": "One claim", "source_url": "https://a.example"}).json()
    second = api.client.post("/api/v1/claims", json={"text": "Another claim"}).json()
    page = api.client.get("/api/v1/claims", params={"limit": 2}).json()
    assert [item["id"] for item in page["items"]] == [second["id"], first["id"]]
    assert page["total"] >= 2
    assert api.client.get(f"/api/v1/claims/{first['id']}").json() == first


def test_an_unknown_claim_is_a_404_problem(api: Served) -> None:
    reply = api.client.get(f"/api/v1/claims/{uuid.uuid4()}")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/claims", {"text": ""}),
        ("/api/v1/claims", {"text": "two words", "colour": "red"}),
        ("/api/v1/claims", {"text": "a \x00 b"}),
        ("/api/v1/claims", {}),
        ("/api/v1/embed", {"texts": []}),
        ("/api/v1/embed", {"texts": [""]}),
        ("/api/v1/embed", {"texts": ["a"] * 101}),
        ("/api/v1/embed", {"texts": ["a"], "batch_size": 129}),
        ("/api/v1/search", {"query": "q", "limit": 101}),
        ("/api/v1/search", {"query": "q" * 1001}),
        ("/api/v1/search", {"query": "q", "mode": "fuzzy"}),
        ("/api/v1/search", {"query": "q", "min_similarity": 1.1}),
        ("/api/v1/nli", {"premise": "p" * 2001, "hypothesis": "h"}),
        ("/api/v1/nli/batch", {"pairs": [["a", "b"]] * 51}),
        ("/api/v1/nli/batch", {"pairs": [["a", "b", "c"]]}),
        ("/api/v1/verify", {"claim": "c", "max_evidence": 51}),
        ("/api/v1/evidence", {"content": ""}),
    ],
)
def test_a_field_out_of_its_limits_is_a_422_that_names_it(api: Served, path: str, body: dict[str, object]) -> None:
    reply = api.client.post(path, json=body)
    assert reply.status_code == 422, reply.text
    assert reply.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"texts": [NaN]}', b'{"texts": ["\xff"]}', b'{"texts": ["\\ud800"]}', b"[" * 100_000, b""],
    ids=["cut", "NaN", "not UTF-8", "lone surrogate", "deep", "empty"],
)
def test_what_is_not_json_is_a_client_error(api: Served, body: bytes) -> None:
    for path in ("/api/v1/embed", "/api/v1/evidence", "/v1/embeddings", "/embed"):
        reply = api.client.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code in {400, 422}, (path, reply.text)


def test_a_large_body_is_a_413_before_it_is_read(api: Served) -> None:
    reply = api.client.post("/api/v1/embed", content=b"x" * 50_000_000, headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert reply.headers["content-type"] == "application/problem+json"


def test_an_unknown_path_and_a_wrong_method_are_problems(api: Served) -> None:
    assert api.client.get("/nowhere").json()["status"] == 404
    assert api.client.delete("/api/v1/embed").json()["status"] == 405


def test_embeddings_have_unit_norm_and_the_order_of_the_texts(api: Served) -> None:
    body = api.client.post("/api/v1/embed", json={"texts": ["red apple", "blue sky"]}).json()
    assert (body["count"], body["dimension"]) == (2, 384)
    alone = api.client.post("/api/v1/embed", json={"texts": ["blue sky"]}).json()
    assert body["embeddings"][1] == alone["embeddings"][0]
    assert sum(value * value for value in body["embeddings"][0]) == pytest.approx(1, abs=1e-5)


def test_a_long_text_is_refused_with_its_tokens_unless_asked(api: Served) -> None:
    reply = api.client.post("/api/v1/embed", json={"texts": ["ok", "word " * 300]})
    assert reply.status_code == 422
    assert "301 tokens" in reply.json()["detail"]
    assert api.client.post("/api/v1/embed", json={"texts": ["word " * 300], "truncate": True}).status_code == 200


def test_a_query_or_claim_is_never_cut_silently(api: Served) -> None:
    for path, body in (("search", {"query": "w " * 400}), ("verify", {"claim": "w " * 400})):
        reply = api.client.post(f"/api/v1/{path}", json=body)
        assert (reply.status_code, "tokens" in reply.json()["detail"]) == (422, True)


def test_a_poisoned_text_fails_only_its_own_request(api: Served) -> None:
    assert api.client.post("/api/v1/embed", json={"texts": ["poison"]}).status_code == 500
    assert api.client.post("/api/v1/embed", json={"texts": ["fine"]}).status_code == 200


def test_nli_labels_and_scores_agree(api: Served) -> None:
    pair = {"premise": "ice melts", "hypothesis": "ice melts not"}
    body = api.client.post("/api/v1/nli", json=pair).json()
    assert body["label"] == "contradiction"
    assert body["scores"]["contradiction"] == body["confidence"] == max(body["scores"].values())
    batch = api.client.post("/api/v1/nli/batch", json={"pairs": [["a b", "a b"], ["a b", "c d"]]}).json()
    assert [each["label"] for each in batch["results"]] == ["entailment", "neutral"]


def test_vector_search_finds_by_likeness(api: Served) -> None:
    assert found(api, query="arctic sea ice", mode="vector", limit=2) == [EVIDENCE[0], EVIDENCE[1]]


def test_keyword_search_finds_by_any_stem(api: Served) -> None:
    assert found(api, query="potassium in vitamin pills", mode="keyword") == [EVIDENCE[2]]
    assert found(api, query="the of and", mode="keyword") == []


def test_a_query_with_operators_and_quotes_is_only_words(api: Served) -> None:
    assert found(api, query="bananas' & | ! <-> :* \\ ''", mode="keyword") == [EVIDENCE[2]]


def test_hybrid_search_fuses_both_sides(api: Served) -> None:
    results = found(api, query="tower paris", mode="hybrid")
    assert results[0] == EVIDENCE[3]
    assert len(results) == len(EVIDENCE)


def test_similarity_is_the_cosine(api: Served) -> None:
    query = "arctic sea"
    [top] = api.client.post("/api/v1/search", json={"query": query, "mode": "vector", "limit": 1}).json()["results"]
    vectors = api.client.post("/api/v1/embed", json={"texts": [query, top["content"]]}).json()["embeddings"]
    assert top["similarity"] == pytest.approx(sum(a * b for a, b in zip(*vectors, strict=True)), abs=1e-5)


def test_filters_hold_in_every_mode(api: Served) -> None:
    for mode in ("vector", "keyword", "hybrid"):
        request = {"query": "arctic sea ice bananas tower", "mode": mode}
        assert found(api, **request, source_filter="https://s2.example/") == [EVIDENCE[2]]
        assert found(api, **request, published_from="2022-01-01", published_to="2022-12-31") == [EVIDENCE[2]]
        assert found(api, **request, min_similarity=1.0) == []


def test_verification_decides_explains_and_keeps(api: Served) -> None:
    body = api.client.post("/api/v1/verify", json={"claim": "Bananas are rich in potassium", "max_evidence": 3}).json()
    assert body["verdict"] == "SUPPORTED"
    [judged] = [each for each in body["evidence"] if each["nli_label"] == "entailment"]
    assert judged["content"] == EVIDENCE[2]
    short = api.client.get(f"/api/v1/verdict/{body['claim_id']}").json()
    full = api.client.get(f"/api/v1/verdicts/{body['claim_id']}").json()
    assert short["verdict"] == full["verdict"] == "SUPPORTED"
    assert short["confidence"] == full["confidence"] == body["confidence"]
    assert short["evidence_count"] == len(full["evidence"]) == len(body["evidence"])
    claim = api.client.get(f"/api/v1/claims/{body['claim_id']}").json()
    assert claim["verdict"]["verdict"] == "SUPPORTED"


def test_evidence_both_ways_is_a_conflict(api: Served) -> None:
    body = api.client.post("/api/v1/verify", json={"claim": "Arctic sea ice shrinks in every decade"}).json()
    assert (body["verdict"], body["has_conflict"]) == ("NOT_ENOUGH_INFO", True)


def test_a_text_that_is_no_claim_is_a_400_with_a_code(api: Served) -> None:
    for path, body in (("/api/v1/verify", {"claim": "word"}), ("/api/v1/claims", {"text": "word"})):
        reply = api.client.post(path, json=body)
        assert reply.status_code == 400
        assert reply.json()["errors"] == [{"field": "text", "message": "SINGLE_WORD"}]


def test_a_claim_in_chinese_is_verified(api: Served) -> None:
    assert api.client.post("/api/v1/verify", json={"claim": "地球是圆的"}).status_code == 200


def test_the_same_evidence_is_kept_once(api: Served, evidence: list[str]) -> None:
    reply = api.client.post("/api/v1/evidence", json={"content": EVIDENCE[0]})
    assert (reply.status_code, reply.json()) == (200, {"id": evidence[0], "is_new": False})


def test_evidence_can_be_read_and_forgotten_and_verdicts_keep_its_text(api: Served) -> None:
    added = api.client.post("/api/v1/evidence", json={"content": "Zebras have stripes on coats", "source_type": "book"})
    path = f"/api/v1/evidence/{added.json()['id']}"
    assert api.client.get(path).json()["source_type"] == "book"
    verdict = api.client.post("/api/v1/verify", json={"claim": "Zebras have stripes", "max_evidence": 1}).json()
    assert api.client.delete(path).status_code == 204
    assert api.client.get(path).status_code == 404
    assert api.client.delete(path).status_code == 404
    kept = api.client.get(f"/api/v1/verdicts/{verdict['claim_id']}").json()["evidence"]
    assert [(each["id"], each["text"]) for each in kept] == [(None, "Zebras have stripes on coats")]


def test_a_stream_of_lines_loses_only_its_bad_ones(api: Served) -> None:
    lines = [json.dumps({"content": f"streamed line {number}"}).encode() for number in range(150)]
    lines[10] = b"{broken"
    lines[20] = json.dumps({"content": "word " * 300}).encode()
    lines[30] = lines[31]
    lines[40] = b""
    lines[50] = b'{"content": "\xff"}'
    body = b"\n".join(lines)
    reply = api.client.post(
        "/api/v1/evidence",
        content=(body[start : start + 1000] for start in range(0, len(body), 1000)),
        headers={"content-type": "application/x-ndjson"},
    )
    assert reply.status_code == 200, reply.text
    result = reply.json()
    assert (result["added"], result["duplicates"], result["failed"]) == (145, 1, 3)
    assert [problem["line"] for problem in result["problems"]] == [11, 21, 51]


def test_the_openapi_document_is_3_1_and_names_every_route(api: Served) -> None:
    document = api.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    hidden = {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/docs/openapi.json"), ("GET", "/docs/{path}")}
    assert described == {(route.method, route.path) for route in ROUTES} - hidden


def test_every_request_under_api_v1_has_an_example_that_is_accepted(api: Served) -> None:
    import jsonschema

    components = api.client.get("/openapi.json").json()["components"]
    assert len(EXAMPLES) == 8
    for example in EXAMPLES:
        schema = components["schemas"][type(example).__name__]
        [described] = schema["examples"]
        jsonschema.validate(described, {**schema, "components": components})
        assert msgspec.convert(described, type(example), strict=False) == example


def test_the_documentation_page_loads_nothing(api: Served) -> None:
    page = api.client.get("/docs").text
    assert "/api/v1/verify" in page
    assert not any(word in page for word in ("<script", "<link", "src=", "@import", "url("))


def test_a_request_id_is_kept_if_harmless_and_made_otherwise(api: Served) -> None:
    assert api.client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert api.client.get("/livez", headers={"x-request-id": 'a"\\b'}).headers["x-request-id"] != 'a"\\b'


def test_server_timing_names_the_stages(api: Served) -> None:
    timing = api.client.post("/api/v1/search", json={"query": "ice"}).headers["server-timing"]
    assert [part.split(";")[0] for part in timing.split(", ")] == ["prepare", "queue", "forward", "database", "total"]


def test_metrics_are_a_valid_exposition(api: Served) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(api.client.get("/metrics").text)}
    assert families["truthgraph_requests"].type == "counter"
    ready = {sample.labels["part"]: sample.value for sample in families["truthgraph_ready"].samples}
    assert ready["database"] == ready["embedding"] == 1


def test_ready_with_all_parts(api: Served) -> None:
    reply = api.client.get("/readyz")
    assert (reply.status_code, reply.json()["reasons"]) == (200, {})
    assert api.client.get("/health").json()["status"] == "healthy"


def test_without_database_and_models_it_lives_and_says_what_is_missing(bare: Served) -> None:
    until(lambda: not bare.application.engine.embedding.is_loading, "loading is over")
    assert bare.client.get("/livez").status_code == 200
    assert bare.client.get("/health").json()["status"] == "degraded"
    ready = bare.client.get("/readyz")
    assert ready.status_code == 503
    assert "TRUTHGRAPH_DATABASE_URL" in ready.json()["reasons"]["database"]
    told = {**ready.json()["notes"], **ready.json()["reasons"]}["embedding"]
    assert "models add" in told or "torch is not installed" in told
    for path, body in (("/api/v1/embed", {"texts": ["a"]}), ("/api/v1/claims", {"text": "a b"})):
        assert bare.client.post(path, json=body).status_code == 503


def test_a_lost_device_makes_the_service_unhealthy() -> None:
    with served(settings()) as running:
        assert running.client.post("/api/v1/embed", json={"texts": ["lost"]}).status_code == 503
        until(lambda: running.client.get("/livez").status_code == 503, "livez tells")
        assert running.client.get("/health").status_code == 503


def test_draining_makes_readiness_false(bare: Served) -> None:
    bare.application.health.is_draining = True
    assert "process" in bare.client.get("/readyz").json()["reasons"]
    assert bare.client.get("/livez").status_code == 200


def test_openai_vectors_equal_ours_in_both_encodings(api: Served) -> None:
    ours = api.client.post("/api/v1/embed", json={"texts": ["a b"]}).json()["embeddings"][0]
    request = {"input": "a b", "model": EMBEDDING}
    plain = api.client.post("/v1/embeddings", json=request).json()
    assert plain["data"][0]["embedding"] == ours
    assert plain["usage"]["prompt_tokens"] == 3
    packed = api.client.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).json()
    assert len(base64.b64decode(packed["data"][0]["embedding"])) == 4 * 384


def test_openai_dimensions_shorten_and_rescale(api: Served) -> None:
    request = {"input": ["apple pie with cream", "b c"], "model": EMBEDDING, "dimensions": 300}
    data = api.client.post("/v1/embeddings", json=request).json()["data"]
    assert [len(each["embedding"]) for each in data] == [300, 300]
    assert sum(value * value for value in data[0]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert api.client.post("/v1/embeddings", json={**request, "dimensions": 385}).status_code == 400


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "other"}, 404),
        ({"input": []}, 400),
        ({"input": ""}, 400),
        ({"input": ["a", 1]}, 400),
        ({"input": "word " * 300}, 400),
        ({"encoding_format": "hex"}, 400),
    ],
)
def test_openai_errors_have_openais_format(api: Served, changes: dict[str, object], status: int) -> None:
    reply = api.client.post("/v1/embeddings", json={"input": "a", "model": EMBEDDING, **changes})
    assert reply.status_code == status, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_the_official_openai_client_works(api: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [EMBEDDING, "tiny-nli"]
    reply = client.embeddings.create(input=["a b", "c"], model=EMBEDDING)
    ours = api.client.post("/api/v1/embed", json={"texts": ["a b", "c"]}).json()["embeddings"]
    for item, expected in zip(reply.data, ours, strict=True):
        assert item.embedding == pytest.approx(expected, abs=1e-6)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(input="a", model="other")


def test_tei_routes_speak_teis_formats(api: Served) -> None:
    ours = api.client.post("/api/v1/embed", json={"texts": ["a b"]}).json()["embeddings"]
    assert api.client.post("/embed", json={"inputs": "a b"}).json() == ours
    assert api.client.post("/embed", json={"inputs": ["a b"]}).json() == ours
    one = api.client.post("/predict", json={"inputs": ["a b", "a b"]}).json()
    assert one[0]["label"] == "entailment"
    many = api.client.post("/predict", json={"inputs": [["a b", "a b"], ["a b", "c"]]}).json()
    assert [each[0]["label"] for each in many] == ["entailment", "neutral"]
    assert api.client.get("/info").json()["max_input_length"] == 256
    error = api.client.post("/embed", json={"inputs": "word " * 300})
    assert (error.status_code, error.json()["error_type"]) == (422, "Validation")
    assert api.client.post("/embed", json={"inputs": "poison"}).status_code == 424


def test_kserve_health(api: Served) -> None:
    assert api.client.get("/v2/health/live").json() == {"live": True}
    assert api.client.get("/v2/health/ready").json() == {"ready": True}
    assert api.client.get(f"/v2/models/{EMBEDDING}/ready").json() == {"name": EMBEDDING, "ready": True}
    assert api.client.get("/v2/models/other/ready").status_code == 404
