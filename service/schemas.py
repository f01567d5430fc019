"""What comes in and goes out over HTTP: fields and limits. Struct names are the names in the OpenAPI document."""

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["Embedded", "HealthReport", "Liveness", "PartReport", "Readiness", "ServiceMap", "ToEmbed"]

Text = Annotated[str, Meta(min_length=1, max_length=100_000)]


class PartReport(Struct, frozen=True):
    """One part of the service."""

    status: str
    message: str


class HealthReport(Struct, frozen=True):
    """How the service is: `status` is healthy, degraded or unhealthy, by its worst part."""

    status: str
    timestamp: str
    version: str
    services: dict[str, PartReport]


class Liveness(Struct, frozen=True):
    """Whether this process can still work."""

    is_alive: bool


class Readiness(Struct, frozen=True):
    """Whether requests should be sent here now, and for each part that is against it, why."""

    is_ready: bool
    reasons: dict[str, str]
    notes: dict[str, str]


class ServiceMap(Struct, frozen=True):
    """Where things are."""

    name: str
    version: str
    documentation: str
    openapi: str
    health: str


class ToEmbed(Struct, frozen=True, forbid_unknown_fields=True):
    """Texts to embed. `batch_size` is accepted for compatibility; batches form across requests by tokens."""

    texts: Annotated[list[Text], Meta(min_length=1, max_length=100)]
    batch_size: Annotated[int, Meta(ge=1, le=128)] = 32
    truncate: bool = False


class Embedded(Struct, frozen=True):
    """One vector of unit norm per text, in the order given."""

    embeddings: list[list[float]]
    count: int
    dimension: int
    processing_time_ms: float
