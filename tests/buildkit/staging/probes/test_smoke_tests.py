"""Runs the smoke tests against the real service with fake models, through a client that may falsify responses.

The fake embedding model counts words and knows no meaning. So the search check fails on a correct service, too; the
tests marked `staging` run the suite against an image with the real model.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from buildkit.staging.probes import smoke_tests
from buildkit.staging.probes.client import Client, Response
from service.access import ApiKeyRepository
from service.database import Database
from tests.service.conftest import postgres, served, settings  # noqa: F401 - postgres is a fixture
from tests.service.fakes import FakeModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildkit.staging.probes.smoke_tests import SmokeTestReport
    from tests.service.conftest import Postgres

SEARCH = "each search mode finds a claim's own sentences first"


@dataclass
class FalsifyingClient(Client):
    """Replaces the JSON of each response by the result of *change* for method, path and JSON."""

    change: Callable[[str, str, Any], Any] = lambda _method, _path, body: body

    def send_once(self, method: str, path: str, *body: Any, **options: Any) -> Response:  # noqa: ANN401
        response = Client.send_once(self, method, path, *body, **options)
        if "json" not in response.headers.get("content-type", ""):
            return response
        return replace(response, body=json.dumps(self.change(method, path, response.json())).encode())


@pytest.fixture(scope="module")
def server(postgres: Postgres) -> Iterator[tuple[str, str]]:  # noqa: F811 - the fixture
    """URL of the service with fake models, and an API key."""
    url = postgres.fresh()

    async def add_key() -> str:
        database = Database(url, connections=1, timeout_seconds=20)
        await database.open()
        try:
            return await ApiKeyRepository(database).add("smoke", ["write"], "smoke", 10**9)
        finally:
            await database.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeModel, "run", lambda _self, _rows: None)  # some words of the sentences make it fail
        with served(settings(url)) as running:
            yield running.url, asyncio.run(add_key())


def run(
    server: tuple[str, str],
    change: Callable[[str, str, Any], Any],
    *,
    baseline: dict[str, list[float]] | None = None,
) -> SmokeTestReport:
    url, key = server
    with closing(FalsifyingClient(url, key, retry_seconds=5, change=change)) as client:
        return smoke_tests.run(client, baseline=baseline)


def unchanged(_method: str, _path: str, body: Any) -> Any:  # noqa: ANN401
    return body


def test_correct_service_fails_only_for_its_meaningless_model(server: tuple[str, str]) -> None:
    report = run(server, unchanged)

    assert [failure.partition(":")[0] for failure in report.failures] == [SEARCH]
    assert report.checks.keys() == report.seconds.keys()
    assert report.requests > 60
    assert len(report.vectors) == 13


def test_embeddings_are_compared_with_the_baseline(server: tuple[str, str]) -> None:
    vectors = run(server, unchanged).vectors
    text = next(iter(vectors))

    same = run(server, unchanged, baseline=vectors)
    reversed_one = run(server, unchanged, baseline={text: vectors[text][::-1]})
    shorter = run(server, unchanged, baseline={text: vectors[text][:2]})

    name = "embeddings equal those of the baseline"
    assert same.checks[name] == ""
    assert "changed: cosine" in reversed_one.checks[name]
    assert "384 dimensions, 2 in the baseline" in shorter.checks[name]


def not_ready(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    return {**body, "is_ready": False, "reasons": ["sick"]} if path == "/readyz" else body


def two_versions(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    return {**body, "version": "9"} if path == "/health/detailed" else body


def unknown_route(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    return {**body, "paths": {**body["paths"], "/new": {"get": {}}}} if path == "/openapi.json" else body


def changes_in_batches(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    if path != "/api/v1/embed" or len(body.get("embeddings", [])) < 2:
        return body
    return {**body, "embeddings": [vector[::-1] for vector in body["embeddings"]]}


def foreign_content(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    if path != "/api/v1/search" or "results" not in body:
        return body
    return {**body, "results": [{**item, "content": "another tenant's"} for item in body["results"]]}


def wrong_scores(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    return {**body, "scores": dict.fromkeys(body["scores"], 1.0)} if path == "/api/v1/nli" else body


def other_text(method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    return {**body, "text": "x"} if method == "GET" and path.startswith("/api/v1/claims/") else body


def broken_shape(_method: str, path: str, body: Any) -> Any:  # noqa: ANN401
    return {} if path == "/info" else body


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (not_ready, "the service is alive, ready and healthy", "not ready: ['sick']"),
        (two_versions, "the service is alive, ready and healthy", "two versions are reported"),
        (unknown_route, "every documented route was requested", "not requested: [('GET', '/new')]"),
        (
            changes_in_batches,
            "embeddings have unit norm, keep their order and agree in three protocols",
            "embedding changes with batch composition",
        ),
        (foreign_content, SEARCH, "found content that this tenant did not store"),
        (wrong_scores, "pairs are scored, or refused without an entailment model", "the scores sum to 3.0"),
        (other_text, "a claim is stored, read and listed", "the text is 'x'"),
        (broken_shape, "models and rate limits are reported", "KeyError: 'model_id'"),
    ],
)
def test_wrong_response_fails_its_check_with_a_reason(
    server: tuple[str, str], change: Callable[[str, str, Any], Any], name: str, reason: str
) -> None:
    assert reason in run(server, change).checks[name]


def test_service_that_is_gone_fails_every_check_but_does_not_raise() -> None:
    report = smoke_tests.run(Client("http://127.0.0.1:1", "key", retry_seconds=0))

    assert "ConnectionRefusedError" in report.checks["the service is alive, ready and healthy"]
    assert report.checks["embeddings equal those of the baseline"] == ""
