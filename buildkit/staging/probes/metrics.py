"""Reads the replicas' metrics, computes the traffic between two scrapes, and compares it with the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildkit.spec import StagingBudget

__all__ = ["Scrape", "TrafficMetrics", "parse", "quantile", "traffic_between", "violations"]

_NOT_TRAFFIC: Final = frozenset({"/livez", "/readyz", "/health", "/health/detailed", "/metrics", "unknown"})
"""Routes of health checks and scrapes, and the label of unknown paths: none of them is a caller's request."""
_SERVER_ERROR: Final = 500


class TrafficMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of all replicas over one window of time.

    Attributes:
        seconds: length of the window.
        requests: answered requests, without health probes and scrapes.
        error_fraction: share of answers with a 5xx status, 0 to 1.
        p95_seconds: 95th percentile by route, interpolated within the histogram's buckets as Prometheus does.
    """

    seconds: float
    requests: int
    error_fraction: float
    p95_seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The request counters of one replica at one time.

    Attributes:
        replica: its address; a new process may get the address of an old one.
        at_seconds: time of the scrape, on a clock that all scrapes share.
        requests: (route, status) -> responses since the process started.
        buckets: route -> upper bound in seconds -> responses that took at most that long.
    """

    replica: str
    at_seconds: float
    requests: Mapping[tuple[str, str], float]
    buckets: Mapping[str, Mapping[float, float]]


def parse(text: str, *, replica: str, at_seconds: float) -> Scrape:
    """Reads a metrics page in Prometheus' text format 0.0.4.

    Raises:
        ValueError: the page is not in that format.
    """
    requests: dict[tuple[str, str], float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "truthgraph_requests_total":
                key = (sample.labels["route"], sample.labels["status"])
                requests[key] = requests.get(key, 0.0) + sample.value
            elif sample.name == "truthgraph_request_seconds_bucket":
                buckets.setdefault(sample.labels["route"], {})[float(sample.labels["le"])] = sample.value
    return Scrape(replica, at_seconds, requests, buckets)


def traffic_between(before: Iterable[Scrape], after: Iterable[Scrape]) -> TrafficMetrics:
    """Returns the traffic of all replicas in *after* since *before*.

    A new replica counts from zero. So does one whose counters fell: another process has its address.
    """
    earlier = {scrape.replica: scrape for scrape in before}
    later = list(after)
    requests = errors = 0.0
    buckets: dict[str, dict[float, float]] = {}
    for scrape in later:
        origin = earlier.get(scrape.replica)
        if origin and any(scrape.requests.get(key, 0.0) < count for key, count in origin.requests.items()):
            origin = None
        for key, value in scrape.requests.items():
            if key[0] in _NOT_TRAFFIC:
                continue
            count = value - (origin.requests.get(key, 0.0) if origin else 0.0)
            requests += count
            errors += count if int(key[1]) >= _SERVER_ERROR else 0.0
        for route, bounds in scrape.buckets.items():
            if route in _NOT_TRAFFIC:
                continue
            total = buckets.setdefault(route, {})
            for bound, value in bounds.items():
                previous = origin.buckets.get(route, {}).get(bound, 0.0) if origin else 0.0
                total[bound] = total.get(bound, 0.0) + value - previous
    times = [scrape.at_seconds for scrape in earlier.values()]
    seconds = max((scrape.at_seconds for scrape in later), default=0.0) - min(times, default=0.0)
    return TrafficMetrics(
        seconds=round(seconds, 3),
        requests=round(requests),
        error_fraction=round(errors / requests, 6) if requests else 0.0,
        p95_seconds={
            route: round(quantile(bounds, 0.95), 6)
            for route, bounds in sorted(buckets.items())
            if bounds.get(math.inf, 0.0) > 0
        },
    )


def quantile(bounds: Mapping[float, float], fraction: float) -> float:
    """Returns the *fraction* quantile of cumulative *bounds*, linear within its bucket.

    This is Prometheus' histogram_quantile. Above the last finite bound the result is that bound.
    """
    ordered = sorted(bounds.items())
    rank = fraction * ordered[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in ordered:
        if count >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below) if count > below else bound
        lower, below = bound, count
    return lower


def violations(
    traffic: TrafficMetrics, budget: StagingBudget, baseline: TrafficMetrics | None = None
) -> tuple[str, ...]:
    """Returns a sentence for each limit of *budget* that *traffic* exceeds; *baseline* is the previous release's."""
    found: list[str] = []
    if traffic.error_fraction > budget.error_fraction:
        found.append(f"error fraction {traffic.error_fraction:.4f}, allowed {budget.error_fraction:.4f}")
    for route, seconds in traffic.p95_seconds.items():
        if seconds > budget.p95_seconds:
            found.append(f"p95 of {route} {seconds:.3f} s, allowed {budget.p95_seconds:.3f} s")
        earlier = baseline.p95_seconds.get(route) if baseline else None
        if earlier is None:
            continue
        if seconds > earlier * budget.p95_growth_ratio and seconds - earlier > budget.p95_noise_seconds:
            ratio = seconds / max(earlier, 1e-9)
            found.append(f"p95 of {route} {seconds:.3f} s, {ratio:.1f} times the baseline")
    return tuple(found)
