"""Every route of the service, declared in one place: method, path, and the scope that a caller needs.

A route that is registered and not declared here, or the other way round, stops `create_app`.
"""

from dataclasses import dataclass
from typing import Final

from litestar import Litestar

from service.access import Scope

__all__ = ["ROUTES", "SCOPES", "Route", "registered"]


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One operation. `path` is written as in the OpenAPI document."""

    method: str
    path: str
    scope: Scope


ROUTES: Final = (
    # What the reference declares: claims, inference, verification, and the service about itself.
    Route("POST", "/api/v1/claims", Scope.WRITE),
    Route("GET", "/api/v1/claims", Scope.READ),
    Route("GET", "/api/v1/claims/{claim_id}", Scope.READ),
    Route("POST", "/api/v1/embed", Scope.READ),
    Route("POST", "/api/v1/search", Scope.READ),
    Route("POST", "/api/v1/nli", Scope.READ),
    Route("POST", "/api/v1/nli/batch", Scope.READ),
    Route("POST", "/api/v1/verify", Scope.WRITE),
    Route("GET", "/api/v1/verdict/{claim_id}", Scope.READ),
    Route("POST", "/api/v1/claims/{claim_id}/verify", Scope.WRITE),
    Route("GET", "/api/v1/verdicts/{claim_id}", Scope.READ),
    Route("GET", "/api/v1/tasks/{task_id}", Scope.READ),
    Route("GET", "/health", Scope.PUBLIC),
    Route("GET", "/rate-limit-stats", Scope.READ),
    Route("GET", "/", Scope.PUBLIC),
    # Evidence, which the reference has no way in for.
    Route("POST", "/api/v1/evidence", Scope.WRITE),
    Route("GET", "/api/v1/evidence/{evidence_id}", Scope.READ),
    Route("DELETE", "/api/v1/evidence/{evidence_id}", Scope.WRITE),
    # For operators.
    Route("GET", "/health/detailed", Scope.PUBLIC),
    Route("GET", "/livez", Scope.PUBLIC),
    Route("GET", "/readyz", Scope.PUBLIC),
    Route("GET", "/metrics", Scope.PUBLIC),
    # Documentation.
    Route("GET", "/openapi.json", Scope.PUBLIC),
    Route("GET", "/docs", Scope.PUBLIC),
    Route("GET", "/docs/openapi.json", Scope.PUBLIC),
    Route("GET", "/docs/{path}", Scope.PUBLIC),
    # As other servers speak: OpenAI, text-embeddings-inference, KServe.
    Route("POST", "/v1/embeddings", Scope.READ),
    Route("GET", "/v1/models", Scope.READ),
    Route("POST", "/embed", Scope.READ),
    Route("POST", "/predict", Scope.READ),
    Route("GET", "/info", Scope.READ),
    Route("GET", "/v2/health/live", Scope.PUBLIC),
    Route("GET", "/v2/health/ready", Scope.PUBLIC),
    Route("GET", "/v2/models/{model}/ready", Scope.PUBLIC),
)
SCOPES: Final = {(route.method, route.path): route.scope for route in ROUTES}


def registered(app: Litestar) -> set[tuple[str, str]]:
    """What `app` really answers to: (method, path), without the HEAD and OPTIONS that come for free."""
    return {
        (method, route.path_format)
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in {"HEAD", "OPTIONS"}
    }
