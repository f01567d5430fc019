"""Routes of the service itself: liveness, readiness, health, metrics, links to its documentation."""

import tomllib
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from litestar import MediaType, Response, get
from litestar.di import NamedDependency as Given
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from service.access import Allowance, RateLimiter, Scope
from service.errors import documented
from service.health import Condition, Health, Level
from service.inference.engine import InferenceEngine
from service.schemas import HealthReport, Liveness, PartReport, RateLimitStats, Readiness, ServiceLinks
from service.telemetry import Metrics

__all__ = ["HANDLERS", "service_version"]


def _unavailable(body: type[Struct], description: str) -> dict[int, ResponseSpec]:
    return {503: ResponseSpec(body, generate_examples=False, description=description)}


@cache
def service_version() -> str:
    """Returns the version in the pyproject.toml beside this code, or that of the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return version("truthgraph")


@get(
    "/livez",
    scope=Scope.PUBLIC,
    tags=["system"],
    summary="Liveness of this process",
    responses=_unavailable(Liveness, "The process must be restarted"),
)
async def livez(health: Given[Health]) -> Response[Liveness]:
    """Returns 200 while the process can work, even without its database or models; 503 if it must be restarted."""
    return Response(Liveness(health.is_alive), status_code=200 if health.is_alive else 503)


@get(
    "/readyz",
    scope=Scope.PUBLIC,
    tags=["system"],
    summary="Readiness for requests",
    responses=_unavailable(Readiness, "A part is not ready"),
)
async def readyz(health: Given[Health]) -> Response[Readiness]:
    """Returns 200 if every part is ready, otherwise 503 with the reasons."""
    conditions = await health.conditions()
    reasons = {each.part: each.message for each in conditions if not each.is_ready}
    notes = {each.part: each.message for each in conditions if each.is_ready and each.level is not Level.HEALTHY}
    return Response(Readiness(not reasons, reasons, notes), status_code=503 if reasons else 200)


@get(
    ["/health", "/health/detailed"],
    scope=Scope.PUBLIC,
    tags=["system"],
    summary="Health of each part",
    responses=_unavailable(HealthReport, "A part is unhealthy"),
)
async def health_report(health: Given[Health]) -> Response[HealthReport]:
    """Returns 200 while no part is unhealthy, otherwise 503."""
    conditions = await health.conditions()
    worst = _worst(conditions)
    report = HealthReport(
        status=worst.value,
        timestamp=datetime.now(UTC),
        version=service_version(),
        services={each.part: PartReport(each.level, each.message) for each in conditions},
    )
    return Response(report, status_code=503 if worst is Level.UNHEALTHY else 200)


@get("/metrics", scope=Scope.PUBLIC, tags=["system"], summary="Metrics for Prometheus", media_type=MediaType.TEXT)
async def metrics_page(
    metrics: Given[Metrics], health: Given[Health], engine: Given[InferenceEngine]
) -> Response[bytes]:
    """Returns all metrics of this process; times are in seconds."""
    conditions = await health.conditions()
    metrics.observe_state(engine.scheduler.state, {each.part: each.is_ready for each in conditions})
    return Response(metrics.exposition(), media_type=metrics.content_type)


@get("/", scope=Scope.PUBLIC, tags=["system"], summary="Links to documentation and health")
async def service_links(health: Given[Health]) -> ServiceLinks:
    """Returns links, for people who open this address in a browser."""
    del health
    return ServiceLinks("TruthGraph", service_version(), "/docs", "/openapi.json", "/health")


@get(
    "/rate-limit-stats",
    scope=Scope.READ,
    tags=["system"],
    summary="The caller's rate limit",
    responses=documented(401, 403, 429, 503),
)
async def rate_limit_stats(allowance: Given[Allowance | None], rate_limiter: Given[RateLimiter]) -> RateLimitStats:
    """Returns the caller's limit in tokens, as the RateLimit headers of every response have it."""
    if allowance is None:
        return RateLimitStats(None, None, None, rate_limiter.refused)
    return RateLimitStats(allowance.limit, allowance.remaining, allowance.reset_seconds, rate_limiter.refused)


def _worst(conditions: list[Condition]) -> Level:
    levels = {each.level for each in conditions}
    return next((level for level in (Level.UNHEALTHY, Level.DEGRADED) if level in levels), Level.HEALTHY)


HANDLERS = [livez, readyz, health_report, metrics_page, service_links, rate_limit_stats]
