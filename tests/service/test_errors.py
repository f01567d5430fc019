"""Errors over HTTP: invalid fields, bodies, paths and methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.service.conftest import Served


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
def test_a_field_outside_its_limits_is_a_422(api: Served, path: str, body: dict[str, object]) -> None:
    reply = api.client.post(path, json=body)
    assert reply.status_code == 422, reply.text
    assert reply.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"texts": [NaN]}', b'{"texts": ["\xff"]}', b'{"texts": ["\\ud800"]}', b"[" * 100_000, b""],
    ids=["cut", "NaN", "not UTF-8", "lone surrogate", "deep", "empty"],
)
def test_a_malformed_body_is_a_client_error(api: Served, body: bytes) -> None:
    for path in ("/api/v1/embed", "/api/v1/evidence", "/v1/embeddings", "/embed"):
        reply = api.client.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code in {400, 422}, (path, reply.text)


def test_a_body_over_the_limit_is_a_413(api: Served) -> None:
    reply = api.client.post("/api/v1/embed", content=b"x" * 50_000_000, headers={"content-type": "application/json"})
    assert reply.status_code == 413
    assert reply.headers["content-type"] == "application/problem+json"


def test_an_unknown_path_or_method_has_problem_details(api: Served) -> None:
    assert api.client.get("/nowhere").json()["status"] == 404
    assert api.client.delete("/api/v1/embed").json()["status"] == 405
