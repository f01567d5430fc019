"""The only place where parts meet: builds the application from settings, opens and closes what it owns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp

from service.engine import Engine
from service.errors import on_error
from service.health import Health
from service.routes import inference, system
from service.routes.documentation import DocumentationPage
from service.routes.table import ROUTES, registered
from service.scheduler import Scheduler
from service.settings import Settings
from service.store import Store
from service.telemetry import Metrics, Observed

__all__ = ["Application", "build", "create_app"]


@dataclass(frozen=True, slots=True)
class Application:
    """The parts that a server or a test needs: `asgi` to call, `litestar` to look into, `health` to tell of an end."""

    asgi: ASGIApp
    litestar: Litestar
    health: Health
    engine: Engine


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
    store = Store(
        settings.database_url,
        connections=settings.database_pool_connections,
        timeout_seconds=settings.database_timeout_seconds,
    )
    scheduler = Scheduler(queue_tokens=settings.queue_tokens, observe=metrics.observe_batch)
    engine = Engine(settings, scheduler)
    health = Health(store, engine, stall_seconds=settings.stall_seconds)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        await store.open()
        engine.start()
        try:
            yield
        finally:
            engine.stop(wait_seconds=1.0)
            await store.close()

    parts = {"health": health, "metrics": metrics, "engine": engine, "store": store}
    litestar = Litestar(
        route_handlers=[*system.HANDLERS, *inference.HANDLERS],
        dependencies={name: _provide(part) for name, part in parts.items()},
        exception_handlers={Exception: on_error},
        lifespan=[lifespan],
        request_max_body_size=settings.body_bytes,
        cors_config=CORSConfig(allow_origins=list(settings.allowed_origins)) if settings.allowed_origins else None,
        logging_config=None,
        openapi_config=OpenAPIConfig(
            title="TruthGraph",
            version=system.service_version(),
            description="Claims, the evidence for and against them, and the models that tell the two apart.",
            path="/docs",
            render_plugins=[DocumentationPage(), JsonRenderPlugin()],
            use_handler_docstrings=True,
        ),
    )
    return Application(Observed(litestar, metrics), litestar, health, engine)


def _provide(part: object) -> Provide:
    return Provide(lambda: part, sync_to_thread=False, use_cache=True)
