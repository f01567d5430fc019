"""Routes of evidence, with fake models and a real database."""

from __future__ import annotations

import json

from tests.service.conftest import EVIDENCE, Served


def test_the_same_content_is_stored_once(api: Served, evidence: list[str]) -> None:
    reply = api.client.post("/api/v1/evidence", json={"content": EVIDENCE[0]})
    assert (reply.status_code, reply.json()) == (200, {"id": evidence[0], "is_new": False})


def test_deleted_evidence_stays_in_verdicts_as_text(api: Served) -> None:
    added = api.client.post("/api/v1/evidence", json={"content": "Zebras have stripes on coats", "source_type": "book"})
    path = f"/api/v1/evidence/{added.json()['id']}"
    assert api.client.get(path).json()["source_type"] == "book"
    verdict = api.client.post("/api/v1/verify", json={"claim": "Zebras have stripes", "max_evidence": 1}).json()
    assert api.client.delete(path).status_code == 204
    assert api.client.get(path).status_code == 404
    assert api.client.delete(path).status_code == 404
    evidence = api.client.get(f"/api/v1/verdicts/{verdict['claim_id']}").json()["evidence"]
    assert [(each["id"], each["text"]) for each in evidence] == [(None, "Zebras have stripes on coats")]


def test_a_stream_of_lines_rejects_only_invalid_ones(api: Served) -> None:
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
