"""Routes of liveness, readiness, health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.service.conftest import Served, served, settings
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def bare() -> Iterator[Served]:
    """The service with neither database nor models."""
    with served(settings(), real_models=True) as running:
        yield running


def test_a_request_id_is_returned_if_safe_and_replaced_otherwise(api: Served) -> None:
    assert api.client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert api.client.get("/livez", headers={"x-request-id": 'a"\\b'}).headers["x-request-id"] != 'a"\\b'


def test_server_timing_lists_the_stages(api: Served) -> None:
    timing = api.client.post("/api/v1/search", json={"query": "ice"}).headers["server-timing"]
    stages = [part.split(";")[0] for part in timing.split(", ")]
    assert sorted(stages) == ["database", "forward", "prepare", "queue", "total"]
    assert stages[-1] == "total"


def test_metrics_are_valid_prometheus_text(api: Served) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(api.client.get("/metrics").text)}
    assert families["truthgraph_requests"].type == "counter"
    ready = {sample.labels["part"]: sample.value for sample in families["truthgraph_ready"].samples}
    assert ready["database"] == ready["embedding"] == 1


def test_readyz_with_all_parts_ready_is_200(api: Served) -> None:
    reply = api.client.get("/readyz")
    assert (reply.status_code, reply.json()["reasons"]) == (200, {})
    assert api.client.get("/health").json()["status"] == "healthy"


def test_readyz_without_database_and_models_lists_the_reasons(bare: Served) -> None:
    until(lambda: not bare.application.engine.embedding.is_loading, "loading is over")
    assert bare.client.get("/livez").status_code == 200
    assert bare.client.get("/health").json()["status"] == "degraded"
    ready = bare.client.get("/readyz")
    assert ready.status_code == 503
    assert "TRUTHGRAPH_DATABASE_URL" in ready.json()["reasons"]["database"]
    message = {**ready.json()["notes"], **ready.json()["reasons"]}["embedding"]
    assert "models add" in message or "torch is not installed" in message
    for path, body in (("/api/v1/embed", {"texts": ["a"]}), ("/api/v1/claims", {"text": "a b"})):
        assert bare.client.post(path, json=body).status_code == 503


def test_a_lost_device_makes_livez_and_health_503() -> None:
    with served(settings()) as running:
        assert running.client.post("/api/v1/embed", json={"texts": ["lost"]}).status_code == 503
        until(lambda: running.client.get("/livez").status_code == 503, "livez tells")
        assert running.client.get("/health").status_code == 503


def test_draining_makes_readyz_false_and_livez_stays_200(bare: Served) -> None:
    bare.application.health.is_draining = True
    assert "process" in bare.client.get("/readyz").json()["reasons"]
    assert bare.client.get("/livez").status_code == 200
