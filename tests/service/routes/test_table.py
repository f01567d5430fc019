"""The routes of the application, with the scope that each needs."""

from __future__ import annotations

import pytest
from litestar import Litestar, get

from service import app
from service.access import Scope
from service.routes.table import routes_of
from service.settings import Settings
from tests.service.conftest import ROUTES

REFERENCE = {
    ("POST", "/api/v1/claims", Scope.WRITE),
    ("GET", "/api/v1/claims", Scope.READ),
    ("GET", "/api/v1/claims/{claim_id}", Scope.READ),
    ("POST", "/api/v1/embed", Scope.READ),
    ("POST", "/api/v1/search", Scope.READ),
    ("POST", "/api/v1/nli", Scope.READ),
    ("POST", "/api/v1/nli/batch", Scope.READ),
    ("POST", "/api/v1/verify", Scope.WRITE),
    ("GET", "/api/v1/verdict/{claim_id}", Scope.READ),
    ("POST", "/api/v1/claims/{claim_id}/verify", Scope.WRITE),
    ("GET", "/api/v1/verdicts/{claim_id}", Scope.READ),
    ("GET", "/api/v1/tasks/{task_id}", Scope.READ),
    ("GET", "/health", Scope.PUBLIC),
    ("GET", "/rate-limit-stats", Scope.READ),
    ("GET", "/", Scope.PUBLIC),
}
"""The operations of the reference."""
ADDED = {
    ("POST", "/api/v1/evidence", Scope.WRITE),
    ("GET", "/api/v1/evidence/{evidence_id}", Scope.READ),
    ("DELETE", "/api/v1/evidence/{evidence_id}", Scope.WRITE),
    ("GET", "/health/detailed", Scope.PUBLIC),
    ("GET", "/livez", Scope.PUBLIC),
    ("GET", "/readyz", Scope.PUBLIC),
    ("GET", "/metrics", Scope.PUBLIC),
    ("GET", "/openapi.json", Scope.PUBLIC),
    ("GET", "/docs", Scope.PUBLIC),
    ("GET", "/docs/openapi.json", Scope.PUBLIC),
    ("GET", "/docs/{path}", Scope.PUBLIC),
    ("POST", "/v1/embeddings", Scope.READ),
    ("GET", "/v1/models", Scope.READ),
    ("POST", "/embed", Scope.READ),
    ("POST", "/predict", Scope.READ),
    ("GET", "/info", Scope.READ),
    ("GET", "/v2/health/live", Scope.PUBLIC),
    ("GET", "/v2/health/ready", Scope.PUBLIC),
    ("GET", "/v2/models/{model}/ready", Scope.PUBLIC),
}
"""All other operations."""


def test_the_routes_and_their_scopes_are_the_expected_ones() -> None:
    assert len(REFERENCE) == 15
    assert {(route.method, route.path, route.scope) for route in ROUTES} == REFERENCE | ADDED


def test_a_route_without_a_scope_is_listed_as_such() -> None:
    @get("/open")
    async def handler() -> None:
        """Does nothing."""

    [route] = routes_of(Litestar([handler], openapi_config=None))
    assert (route.method, route.path, route.scope) == ("GET", "/open", None)


def test_an_application_with_a_route_without_a_scope_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @get("/open")
    async def handler() -> None:
        """Does nothing."""

    monkeypatch.setattr(app, "_HANDLERS", (*app._HANDLERS, handler))
    with pytest.raises(RuntimeError, match="GET /open"):
        app.create_app(Settings())
