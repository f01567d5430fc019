"""Authorizes each request before its body is read: API key, scope, origin, rate limit."""

from collections.abc import Mapping
from dataclasses import dataclass

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler

from service.access import Allowance, Authenticator, Caller, ForbiddenError, RateLimiter, Scope, client_address
from service.current_request import note_header
from service.routes.table import scope_of
from service.settings import Settings

__all__ = ["PROVIDERS", "RequestGuard"]


@dataclass(frozen=True, slots=True)
class RequestGuard:
    """Authorizes requests. Stores the caller and its rate limit for the handlers, see `PROVIDERS`."""

    authenticator: Authenticator
    rate_limiter: RateLimiter
    settings: Settings

    async def authorize(
        self, connection: ASGIConnection[object, object, object, State], handler: BaseRouteHandler
    ) -> None:
        """Raises `UnauthorizedError`, `ForbiddenError` or `RateLimitedError` for a request that is not allowed."""
        if connection.scope.get("method") == "OPTIONS":  # only lists the methods of a path
            return
        needed = scope_of(handler)
        if needed is Scope.PUBLIC:
            return
        caller = await self._authenticate(connection)
        if needed not in caller.scopes:
            raise ForbiddenError(f"the API key lacks the scope {needed}")
        connection.state["caller"] = caller
        allowance = await self._charge(caller, connection.headers) if self.settings.rate_limits else None
        if allowance is not None:
            note_header("ratelimit-limit", str(allowance.limit))
            note_header("ratelimit-remaining", str(allowance.remaining))
            note_header("ratelimit-reset", str(allowance.reset_seconds))
        connection.state["allowance"] = allowance

    async def _authenticate(self, connection: ASGIConnection[object, object, object, State]) -> Caller:
        headers = connection.headers
        peer = connection.client.host if connection.client else None
        address = client_address(peer, headers, self.settings.trusted_proxies)
        caller = await self.authenticator.caller(_api_key(headers), address)
        origin = headers.get("origin")
        if not caller.subject and origin is not None and origin not in self.settings.allowed_origins:
            # A web page in a browser on this machine can reach the service, but does not act for its user.
            raise ForbiddenError(
                "requests from web pages need an API key, or their origin in TRUTHGRAPH_ALLOWED_ORIGINS"
            )
        return caller

    async def _charge(self, caller: Caller, headers: Mapping[str, str]) -> Allowance | None:
        length = headers.get("content-length", "")
        # The length of a streamed body is unknown: it is charged as the longest body.
        unknown_bytes = self.settings.body_bytes if "transfer-encoding" in headers else 0
        return await self.rate_limiter.take(caller, int(length) if length.isdigit() else unknown_bytes)


def _api_key(headers: Mapping[str, str]) -> str | None:
    """Returns the API key of a request: a bearer token, or the header X-API-Key."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else headers.get("x-api-key") or None


def _caller(request: Request[object, object, State]) -> Caller:
    caller: Caller = request.state["caller"]
    return caller


def _allowance(request: Request[object, object, State]) -> Allowance | None:
    allowance: Allowance | None = request.state["allowance"]
    return allowance


PROVIDERS = {
    "caller": Provide(_caller, sync_to_thread=False),
    "allowance": Provide(_allowance, sync_to_thread=False),
}
"""Dependencies of handlers that the guard determines."""
