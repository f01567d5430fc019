"""Routes of verification, with fake models and a real database."""

from __future__ import annotations

import pytest

from tests.service.conftest import EVIDENCE, Served

pytestmark = pytest.mark.usefixtures("evidence")


def test_verify_returns_and_stores_the_verdict(api: Served) -> None:
    body = api.client.post("/api/v1/verify", json={"claim": "Bananas are rich in potassium", "max_evidence": 3}).json()
    assert body["verdict"] == "SUPPORTED"
    [supporting] = [each for each in body["evidence"] if each["nli_label"] == "entailment"]
    assert supporting["content"] == EVIDENCE[2]
    short = api.client.get(f"/api/v1/verdict/{body['claim_id']}").json()
    full = api.client.get(f"/api/v1/verdicts/{body['claim_id']}").json()
    assert short["verdict"] == full["verdict"] == "SUPPORTED"
    assert short["confidence"] == full["confidence"] == body["confidence"]
    assert short["evidence_count"] == len(full["evidence"]) == len(body["evidence"])
    claim = api.client.get(f"/api/v1/claims/{body['claim_id']}").json()
    assert claim["verdict"]["verdict"] == "SUPPORTED"


def test_evidence_on_both_sides_is_a_conflict(api: Served) -> None:
    body = api.client.post("/api/v1/verify", json={"claim": "Arctic sea ice shrinks in every decade"}).json()
    assert (body["verdict"], body["has_conflict"]) == ("NOT_ENOUGH_INFO", True)


def test_an_invalid_claim_is_a_400_with_a_code(api: Served) -> None:
    for path, body in (("/api/v1/verify", {"claim": "word"}), ("/api/v1/claims", {"text": "word"})):
        reply = api.client.post(path, json=body)
        assert reply.status_code == 400
        assert reply.json()["errors"] == [{"field": "text", "message": "SINGLE_WORD"}]


def test_a_claim_in_chinese_is_verified(api: Served) -> None:
    assert api.client.post("/api/v1/verify", json={"claim": "地球是圆的"}).status_code == 200
