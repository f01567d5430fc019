"""Every route of the service, declared in one place: method, path, and what a caller must hold to use it.

A route that is registered and not declared here, or the other way round, stops `create_app`.
"""

from dataclasses import dataclass
from typing import Final

from litestar import Litestar

__all__ = ["ROUTES", "Route", "registered"]


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """One operation. `path` is written as Litestar's `path_format`."""

    method: str
    path: str


ROUTES: Final = (
    Route("GET", "/"),
    Route("GET", "/health"),
    Route("GET", "/health/detailed"),
    Route("GET", "/livez"),
    Route("GET", "/readyz"),
    Route("GET", "/metrics"),
    Route("GET", "/openapi.json"),
    Route("GET", "/docs"),
    Route("GET", "/docs/openapi.json"),
    Route("GET", "/docs/{path}"),
    Route("POST", "/api/v1/embed"),
)


def registered(app: Litestar) -> set[tuple[str, str]]:
    """What `app` really answers to: (method, path), without the HEAD and OPTIONS that come for free."""
    return {
        (method, route.path_format)
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in {"HEAD", "OPTIONS"}
    }
