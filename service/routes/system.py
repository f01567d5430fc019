"""The service about itself: liveness, readiness, health, metrics, and where its documentation is."""

import tomllib
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from litestar import MediaType, Response, get
from litestar.di import NamedDependency as Given
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct

from service.access import Allowance, RateLimiter
from service.errors import documented
from service.health import Condition, Health, Level
from service.inference.engine import InferenceEngine
from service.schemas import HealthReport, Liveness, PartReport, RateLimitStats, Readiness, ServiceMap
from service.telemetry import Metrics

__all__ = ["HANDLERS", "service_version"]


def _not_well(body: type[Struct]) -> dict[int, ResponseSpec]:
    return {503: ResponseSpec(body, generate_examples=False, description="Not so")}


@cache
def service_version() -> str:
    """The version in the pyproject.toml beside this code, or that of the installed package."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return version("truthgraph")


@get("/livez", tags=["system"], summary="Whether this process can still work", responses=_not_well(Liveness))
async def livez(health: Given[Health]) -> Response[Liveness]:
    """200 as long as the process can work, whatever its database and models do; otherwise 503: restart it."""
    return Response(Liveness(health.is_alive), status_code=200 if health.is_alive else 503)


@get("/readyz", tags=["system"], summary="Whether requests should be sent here now", responses=_not_well(Readiness))
async def readyz(health: Given[Health]) -> Response[Readiness]:
    """200 when every part is ready, otherwise 503 with the reasons."""
    conditions = await health.conditions()
    reasons = {each.part: each.message for each in conditions if not each.is_ready}
    notes = {each.part: each.message for each in conditions if each.is_ready and each.level is not Level.HEALTHY}
    return Response(Readiness(not reasons, reasons, notes), status_code=503 if reasons else 200)


@get(["/health", "/health/detailed"], tags=["system"], summary="How each part is", responses=_not_well(HealthReport))
async def health_report(health: Given[Health]) -> Response[HealthReport]:
    """200 while the process can serve at least something, 503 when it cannot serve at all."""
    conditions = await health.conditions()
    worst = _worst(conditions)
    report = HealthReport(
        status=worst.value,
        timestamp=datetime.now(UTC),
        version=service_version(),
        services={each.part: PartReport(each.level, each.message) for each in conditions},
    )
    return Response(report, status_code=503 if worst is Level.UNHEALTHY else 200)


@get("/metrics", tags=["system"], summary="Prometheus exposition", media_type=MediaType.TEXT)
async def metrics_page(
    metrics: Given[Metrics], health: Given[Health], engine: Given[InferenceEngine]
) -> Response[bytes]:
    """All metrics of this process, times in seconds."""
    conditions = await health.conditions()
    metrics.observe_state(engine.scheduler.state, {each.part: each.is_ready for each in conditions})
    return Response(metrics.exposition(), media_type=metrics.content_type)


@get("/", tags=["system"], summary="Where things are")
async def service_map(health: Given[Health]) -> ServiceMap:
    """A map for people who open the address in a browser."""
    del health
    return ServiceMap("TruthGraph", service_version(), "/docs", "/openapi.json", "/health")


@get("/rate-limit-stats", tags=["system"], summary="The caller's bucket", responses=documented(401, 403, 429, 503))
async def rate_limit_stats(allowance: Given[Allowance | None], limiter: Given[RateLimiter]) -> RateLimitStats:
    """In tokens, as also told by the RateLimit headers of every answer."""
    if allowance is None:
        return RateLimitStats(None, None, None, limiter.refused)
    return RateLimitStats(allowance.limit, allowance.remaining, allowance.reset_seconds, limiter.refused)


def _worst(conditions: list[Condition]) -> Level:
    levels = {each.level for each in conditions}
    return next((level for level in (Level.UNHEALTHY, Level.DEGRADED) if level in levels), Level.HEALTHY)


HANDLERS = [livez, readyz, health_report, metrics_page, service_map, rate_limit_stats]
