"""Routes for clients of OpenAI, text-embeddings-inference and KServe."""

from __future__ import annotations

import base64

import pytest

from tests.service.conftest import EMBEDDING, Served


def test_openai_vectors_equal_ours_in_both_encodings(api: Served) -> None:
    ours = api.client.post("/api/v1/embed", json={"texts": ["a b"]}).json()["embeddings"][0]
    request = {"input": "a b", "model": EMBEDDING}
    plain = api.client.post("/v1/embeddings", json=request).json()
    assert plain["data"][0]["embedding"] == ours
    assert plain["usage"]["prompt_tokens"] == 3
    packed = api.client.post("/v1/embeddings", json={**request, "encoding_format": "base64"}).json()
    assert len(base64.b64decode(packed["data"][0]["embedding"])) == 4 * 384


def test_openai_dimensions_shorten_and_normalize(api: Served) -> None:
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


def test_tei_routes_have_teis_formats(api: Served) -> None:
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


def test_kserve_health_and_model_readiness(api: Served) -> None:
    assert api.client.get("/v2/health/live").json() == {"live": True}
    assert api.client.get("/v2/health/ready").json() == {"ready": True}
    assert api.client.get(f"/v2/models/{EMBEDDING}/ready").json() == {"name": EMBEDDING, "ready": True}
    assert api.client.get("/v2/models/other/ready").status_code == 404
