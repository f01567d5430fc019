"""The only place where parts meet: builds the application from settings, opens and closes what it owns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from litestar import Litestar, Request
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp, Guard

from service.access import (
    Allowance,
    ApiKeyRepository,
    Authenticator,
    Caller,
    ForbiddenError,
    RateLimiter,
    Scope,
    client_address,
)
from service.database import Database
from service.errors import on_error
from service.evidence import EvidenceIngestor
from service.health import Health
from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.retrieval import Retriever
from service.routes import claims, compatible, documentation, inference, system, verification
from service.routes.table import ROUTES, SCOPES, registered
from service.settings import Settings
from service.store import Store
from service.tasks import Queue, Worker
from service.telemetry import Metrics, TelemetryMiddleware, note_header
from service.tracing import otlp_tracer
from service.verification import Verifier

__all__ = ["Application", "build", "create_app"]


@dataclass(frozen=True, slots=True)
class Application:
    """The parts that a server or a test needs: `asgi` to call, `litestar` to look into, `health` to tell of an end."""

    asgi: ASGIApp
    litestar: Litestar
    health: Health
    engine: InferenceEngine


def create_app(settings: Settings) -> Application:
    """Build the application, and refuse one whose routes are not exactly the declared ones."""
    application = build(settings)
    declared = {(route.method, route.path) for route in ROUTES}
    if difference := declared ^ registered(application.litestar):
        raise RuntimeError(f"routes declared and registered differ: {sorted(difference)}")
    return application


def build(settings: Settings) -> Application:
    """Put the parts together. Connects to nothing and loads nothing until the application's lifespan begins."""
    metrics = Metrics()
    database = Database(
        settings.database_url,
        connections=settings.database_pool_connections,
        timeout_seconds=settings.database_timeout_seconds,
    )
    store = Store(database)
    engine = InferenceEngine(settings, Scheduler(queue_tokens=settings.queue_tokens, observe=metrics.observe_batch))
    health = Health(database, engine, stall_seconds=settings.stall_seconds)
    retriever = Retriever(store, engine)
    verifier = Verifier(retriever, engine)
    queue = Queue(database, lease_seconds=settings.task_seconds, attempts=settings.task_attempts)
    limiter = RateLimiter(database)
    gate = Authenticator(
        ApiKeyRepository(database),
        has_database=settings.database_url is not None,
        allow_anonymous=settings.allow_anonymous,
    )

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        await database.open()
        engine.start()
        workers = [
            Worker(queue, verifier, engine, expiry_days=settings.task_expiry_days)
            for _ in range(settings.task_workers if settings.database_url else 0)
        ]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            for worker in workers:
                await worker.stop(settings.drain_seconds / 2)
            engine.stop(wait_seconds=1.0)
            await database.close()

    parts = {
        "engine": engine,
        "health": health,
        "intake": EvidenceIngestor(store, engine),
        "limiter": limiter,
        "metrics": metrics,
        "queue": queue,
        "retriever": retriever,
        "store": store,
        "verifier": verifier,
    }
    litestar = Litestar(
        route_handlers=[
            *claims.HANDLERS,
            *inference.HANDLERS,
            *verification.HANDLERS,
            *system.HANDLERS,
            *compatible.HANDLERS,
            *documentation.HANDLERS,
        ],
        dependencies={
            **{name: _provide(part) for name, part in parts.items()},
            "caller": Provide(_caller, sync_to_thread=False),
            "allowance": Provide(_allowance, sync_to_thread=False),
        },
        guards=[_guard(gate, limiter, settings)],
        exception_handlers={Exception: on_error},
        lifespan=[lifespan],
        request_max_body_size=settings.body_bytes,
        cors_config=CORSConfig(allow_origins=list(settings.allowed_origins)) if settings.allowed_origins else None,
        logging_config=None,
        openapi_config=_openapi(),
    )
    observed = TelemetryMiddleware(
        litestar,
        metrics,
        receive_seconds=settings.request_seconds,
        tracer=otlp_tracer() if settings.opentelemetry else None,
    )
    return Application(observed, litestar, health, engine)


def _guard(gate: Authenticator, limiter: RateLimiter, settings: Settings) -> Guard:
    """What every request passes before its body is read: who is it, may it, and has it tokens left."""

    async def guard(connection: ASGIConnection[object, object, object, State], _handler: BaseRouteHandler) -> None:
        scope = connection.scope
        method = str(scope.get("method"))
        if method == "OPTIONS":  # says which methods there are, nothing else
            return
        needed = SCOPES[method, scope["path_template"]]
        if needed is Scope.PUBLIC:
            return
        headers = connection.headers
        address = client_address(
            connection.client.host if connection.client else None, headers, settings.trusted_proxies
        )
        caller = await gate.caller(_key(headers.get("authorization"), headers.get("x-api-key")), address)
        origin = headers.get("origin")
        if not caller.subject and origin is not None and origin not in settings.allowed_origins:
            # A page in this machine's browser may reach us, but it does not speak for its user.
            raise ForbiddenError("requests of web pages need a key, or their origin in TRUTHGRAPH_ALLOWED_ORIGINS")
        if needed not in caller.scopes:
            raise ForbiddenError(f"the key has not the scope {needed}")
        connection.state["caller"] = caller
        allowance = None
        if settings.rate_limits:
            length = headers.get("content-length", "")
            # A stream does not say how long it will be: it is charged as the longest body.
            unsaid_bytes = settings.body_bytes if "transfer-encoding" in headers else 0
            allowance = await limiter.take(caller, int(length) if length.isdigit() else unsaid_bytes)
        if allowance is not None:
            note_header("ratelimit-limit", str(allowance.limit))
            note_header("ratelimit-remaining", str(allowance.remaining))
            note_header("ratelimit-reset", str(allowance.reset_seconds))
        connection.state["allowance"] = allowance

    return guard


def _key(authorization: str | None, header: str | None) -> str | None:
    """The key of a request: a bearer token, or the header X-API-Key."""
    kind, _, token = (authorization or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else header or None


def _caller(request: Request[object, object, State]) -> Caller:
    caller: Caller = request.state["caller"]
    return caller


def _allowance(request: Request[object, object, State]) -> Allowance | None:
    allowance: Allowance | None = request.state["allowance"]
    return allowance


def _provide(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False, use_cache=True)


def _openapi() -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", description="A key made by `python -m service keys add`.")
    return OpenAPIConfig(
        title="TruthGraph",
        version=system.service_version(),
        description="Claims, the evidence for and against them, and the models that tell the two apart.",
        path="/docs",
        render_plugins=[documentation.DocumentationPage(), JsonRenderPlugin()],
        use_handler_docstrings=True,
        components=Components(security_schemes={"key": bearer}),
        security=[{"key": []}, {}],
    )
