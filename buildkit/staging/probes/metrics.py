"""What replicas say of themselves in Prometheus' text format, as windows between two looks, and their judgement."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.staging.release.records import TrafficMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildkit.spec import StagingBudget

__all__ = ["Scrape", "judge", "parse", "window"]

_SAMPLE: Final = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$")
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_PROBES: Final = frozenset({"/livez", "/readyz", "/health", "/health/detailed", "/metrics", "unknown"})
"""Routes that say nothing of how callers are served."""
_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Scrape:
    """One replica at one time.

    Attributes:
        replica: which process; counters of another process do not continue its.
        at_seconds: on a clock that all scrapes of a window share.
        requests: (route, status) -> answers since the process started.
        buckets: route -> upper bound in seconds -> answers at most that slow.
    """

    replica: str
    at_seconds: float
    requests: Mapping[tuple[str, str], float]
    buckets: Mapping[str, Mapping[float, float]]


def parse(text: str, *, replica: str, at_seconds: float) -> Scrape:
    """Reads an exposition (Prometheus' text format 0.0.4).

    Raises:
        ValueError: a line is none of that format.
    """
    requests: dict[tuple[str, str], float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if match is None:
            raise ValueError(f"no sample of Prometheus' text format: {line!r}")
        name, labels, value = match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])
        if name == "truthgraph_requests_total":
            key = (labels["route"], labels["status"])
            requests[key] = requests.get(key, 0.0) + value
        elif name == "truthgraph_request_seconds_bucket":
            buckets.setdefault(labels["route"], {})[float(labels["le"])] = value
    return Scrape(replica, at_seconds, requests, buckets)


def window(before: Iterable[Scrape], after: Iterable[Scrape]) -> TrafficMetrics:
    """What happened between *before* and *after*, over all replicas that are in *after*.

    One that is new counts from zero, and so does one whose counters fell: another process has its address.
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
            if key[0] in _PROBES:
                continue
            count = value - (origin.requests.get(key, 0.0) if origin else 0.0)
            requests += count
            errors += count if int(key[1]) >= _SERVER_ERROR else 0.0
        for route, bounds in scrape.buckets.items():
            if route in _PROBES:
                continue
            total = buckets.setdefault(route, {})
            for bound, value in bounds.items():
                less = origin.buckets.get(route, {}).get(bound, 0.0) if origin else 0.0
                total[bound] = total.get(bound, 0.0) + value - less
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
    """The *fraction* quantile of cumulative *bounds*, linear within its bucket, as Prometheus' histogram_quantile.

    Above the last finite bound it is that bound: the histogram knows no more.
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


def judge(now: TrafficMetrics, budget: StagingBudget, before: TrafficMetrics | None = None) -> tuple[str, ...]:
    """What of *now* breaks *budget*, also against the window of the release *before*; empty where nothing does."""
    broken: list[str] = []
    if now.error_fraction > budget.error_fraction:
        broken.append(f"error fraction {now.error_fraction:.4f}, allowed {budget.error_fraction:.4f}")
    for route, seconds in now.p95_seconds.items():
        if seconds > budget.p95_seconds:
            broken.append(f"p95 of {route} {seconds:.3f} s, allowed {budget.p95_seconds:.3f} s")
        earlier = before.p95_seconds.get(route) if before else None
        if earlier is None:
            continue
        if seconds > earlier * budget.p95_growth_ratio and seconds - earlier > budget.p95_noise_seconds:
            broken.append(
                f"p95 of {route} {seconds:.3f} s, {seconds / max(earlier, 1e-9):.1f} times that of the release before"
            )
    return tuple(broken)
