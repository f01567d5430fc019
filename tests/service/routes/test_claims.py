"""Routes of claims, with a real database."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.service.conftest import Served


def test_a_stored_claim_is_listed_first_and_returned(api: Served) -> None:
    first = api.client.post("/api/v1/claims", json={"text": "One claim", "source_url": "https://a.example"}).json()
    second = api.client.post("/api/v1/claims", json={"text": "Another claim"}).json()
    page = api.client.get("/api/v1/claims", params={"limit": 2}).json()
    assert [item["id"] for item in page["items"]] == [second["id"], first["id"]]
    assert page["total"] >= 2
    assert api.client.get(f"/api/v1/claims/{first['id']}").json() == first


def test_an_unknown_claim_is_a_404_with_problem_details(api: Served) -> None:
    reply = api.client.get(f"/api/v1/claims/{uuid.uuid4()}")
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
