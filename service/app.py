"""Assembles the application from settings: creates its parts, registers the routes, opens and closes what they own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp

from service.access import ApiKeyRepository, Authenticator, RateLimiter, Scope
from service.database import Database
from service.errors import on_error
from service.guard import PROVIDERS, RequestGuard
from service.health import Health
from service.inference.engine import InferenceEngine
from service.inference.scheduler import Scheduler
from service.ingestor import EvidenceIngestor
from service.retrieval import Retriever
from service.routes import claims, compatible, documentation, evidence, inference, system, verification
from service.routes.table import routes_of
from service.settings import Settings
from service.store.claims import ClaimStore
from service.store.evidence import EvidenceStore
from service.store.verdicts import VerdictStore
from service.tasks import TaskQueue, TaskWorker
from service.telemetry import Metrics, TelemetryMiddleware
from service.tracing import otlp_tracer
from service.verification import Verifier

__all__ = ["Application", "build", "create_app"]

_HANDLERS: Final = (
    *claims.HANDLERS,
    *evidence.HANDLERS,
    *inference.HANDLERS,
    *verification.HANDLERS,
    *system.HANDLERS,
    *compatible.HANDLERS,
    *documentation.HANDLERS,
)


@dataclass(frozen=True, slots=True)
class Application:
    """The application: `asgi` for a server to call, the rest for the process that runs it and for tests."""

    asgi: ASGIApp
    litestar: Litestar
    health: Health
    engine: InferenceEngine


class _Parts:
    """The parts that handlers and tasks share, each created once."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = Metrics()
        self.database = Database(
            settings.database_url,
            connections=settings.database_pool_connections,
            timeout_seconds=settings.database_timeout_seconds,
        )
        self.claims = ClaimStore(self.database)
        self.evidence = EvidenceStore(self.database)
        self.verdicts = VerdictStore(self.database)
        scheduler = Scheduler(queue_tokens=settings.queue_tokens, observe=self.metrics.observe_batch)
        self.engine = InferenceEngine(settings, scheduler)
        self.health = Health(self.database, self.engine, stall_seconds=settings.stall_seconds)
        self.ingestor = EvidenceIngestor(self.evidence, self.engine)
        self.retriever = Retriever(self.evidence, self.engine)
        self.verifier = Verifier(self.retriever, self.engine)
        self.queue = TaskQueue(self.database, lease_seconds=settings.task_seconds, attempts=settings.task_attempts)
        self.rate_limiter = RateLimiter(self.database)

    def providers(self) -> dict[str, Provide]:
        """Returns the dependencies of handlers, by the names of their parameters."""
        parts = {
            "claims": self.claims,
            "engine": self.engine,
            "evidence": self.evidence,
            "health": self.health,
            "ingestor": self.ingestor,
            "metrics": self.metrics,
            "queue": self.queue,
            "rate_limiter": self.rate_limiter,
            "retriever": self.retriever,
            "verdicts": self.verdicts,
            "verifier": self.verifier,
        }
        return {name: _provide(part) for name, part in parts.items()}


def create_app(settings: Settings) -> Application:
    """Builds the application; raises `RuntimeError` if a route declares no scope."""
    application = build(settings)
    if undeclared := [f"{route.method} {route.path}" for route in routes_of(application.litestar) if not route.scope]:
        raise RuntimeError(f"routes without a scope: {', '.join(undeclared)}")
    return application


def build(settings: Settings) -> Application:
    """Builds the application. Connects to nothing and loads nothing until its lifespan begins."""
    parts = _Parts(settings)
    authenticator = Authenticator(
        ApiKeyRepository(parts.database),
        has_database=settings.database_url is not None,
        allow_anonymous=settings.allow_anonymous,
    )
    litestar = Litestar(
        route_handlers=_HANDLERS,
        dependencies={**parts.providers(), **PROVIDERS},
        guards=[RequestGuard(authenticator, parts.rate_limiter, settings).authorize],
        exception_handlers={Exception: on_error},
        lifespan=[_lifespan(parts, settings)],
        request_max_body_size=settings.body_bytes,
        cors_config=CORSConfig(allow_origins=list(settings.allowed_origins)) if settings.allowed_origins else None,
        logging_config=None,
        openapi_config=_openapi(),
    )
    middleware = TelemetryMiddleware(
        litestar,
        parts.metrics,
        receive_seconds=settings.request_seconds,
        tracer=otlp_tracer() if settings.opentelemetry else None,
    )
    return Application(middleware, litestar, parts.health, parts.engine)


def _lifespan(parts: _Parts, settings: Settings) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    """Returns a lifespan that opens the database, loads the models and runs the task workers, and ends them all."""

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        await parts.database.open()
        parts.engine.start()
        workers = [
            TaskWorker(parts.queue, parts.verifier, parts.engine, expiry_days=settings.task_expiry_days)
            for _ in range(settings.task_workers if settings.database_url else 0)
        ]
        for worker in workers:
            worker.start()
        try:
            yield
        finally:
            for worker in workers:
                await worker.stop(settings.drain_seconds / 2)
            parts.engine.stop(wait_seconds=1.0)
            await parts.database.close()

    return lifespan


def _provide(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False, use_cache=True)


def _openapi() -> OpenAPIConfig:
    bearer = SecurityScheme(type="http", scheme="bearer", description="An API key, from `python -m service keys add`.")
    return OpenAPIConfig(
        title="TruthGraph",
        version=system.service_version(),
        description="Verifies claims with stored evidence, by embeddings and natural language inference.",
        openapi_router=Router("/docs", route_handlers=[], include_in_schema=False, opt={"scope": Scope.PUBLIC}),
        render_plugins=[documentation.DocumentationPage(), JsonRenderPlugin()],
        use_handler_docstrings=True,
        components=Components(security_schemes={"key": bearer}),
        security=[{"key": []}, {}],
    )
