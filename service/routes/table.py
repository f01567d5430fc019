"""Lists the application's routes with the scope that each needs.

A handler declares its scope beside its path: `@get("/api/v1/claims", scope=Scope.READ)`. `service.guard` enforces it,
and `service.app.create_app` refuses an application with a route that declares none.
"""

from dataclasses import dataclass
from typing import Final

from litestar import Litestar
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from service.access import Scope

__all__ = ["Route", "routes_of", "scope_of"]

_IMPLICIT_METHODS: Final = frozenset({"HEAD", "OPTIONS"})
"""Methods that Litestar adds to each path by itself."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `path` is as in the OpenAPI document; `scope` is None if the handler declares none."""

    method: str
    path: str
    scope: Scope | None


def routes_of(app: Litestar) -> tuple[Route, ...]:
    """Returns every route that `app` answers, sorted by path and method."""
    routes = [
        Route(method, route.path_format, scope_of(handler))
        for route in app.routes
        if isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items()
        if method not in _IMPLICIT_METHODS
    ]
    return tuple(sorted(routes, key=lambda route: (route.path, route.method)))


def scope_of(handler: BaseRouteHandler | HTTPRouteHandler) -> Scope | None:
    """Returns the scope that a handler declares, or None."""
    scope: Scope | None = handler.opt.get("scope")
    return scope
