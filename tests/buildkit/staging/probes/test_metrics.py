from __future__ import annotations

import math

import pytest

from buildkit.spec import StagingBudget
from buildkit.staging.probes import metrics
from buildkit.staging.probes.metrics import TrafficMetrics

ROUTE = "/api/v1/embed"
BUDGET = StagingBudget(p95_seconds=1.0, p95_growth_ratio=2.0, p95_noise_seconds=0.1, error_fraction=0.01)


def page(fast: int, slow: int, errors: int = 0) -> str:
    """A metrics page after *fast* responses below 0.1 s and *slow* ones below 1 s."""
    return f"""# HELP truthgraph_requests_total Requests answered.
# TYPE truthgraph_requests_total counter
truthgraph_requests_total{{method="POST",route="{ROUTE}",status="200"}} {fast + slow - errors}.0
truthgraph_requests_total{{method="POST",route="{ROUTE}",status="503"}} {errors}.0
truthgraph_requests_total{{method="GET",route="/metrics",status="200"}} 1e+03
# TYPE truthgraph_request_seconds histogram
truthgraph_request_seconds_bucket{{le="0.1",route="{ROUTE}"}} {fast}.0
truthgraph_request_seconds_bucket{{le="1.0",route="{ROUTE}"}} {fast + slow}.0
truthgraph_request_seconds_bucket{{le="+Inf",route="{ROUTE}"}} {fast + slow}.0
truthgraph_request_seconds_bucket{{le="+Inf",route="/metrics"}} 1e+03
truthgraph_ready{{part="with \\"quotes\\" and, commas"}} 1.0
"""


def test_traffic_adds_up_all_replicas() -> None:
    before = [metrics.parse(page(100, 0), replica="a", at_seconds=1)]
    after = [
        metrics.parse(page(190, 10, errors=5), replica="a", at_seconds=11),
        metrics.parse(page(100, 0), replica="new", at_seconds=11),
    ]

    traffic = metrics.traffic_between(before, after)

    assert (traffic.seconds, traffic.requests, traffic.error_fraction) == (10.0, 200, 0.025)
    assert traffic.p95_seconds == {ROUTE: pytest.approx(0.1)}


def test_restarted_replica_counts_from_zero() -> None:
    """Its counters are lower than before, so a difference would be negative."""
    before = [metrics.parse(page(100, 0), replica="a", at_seconds=1)]
    after = [metrics.parse(page(10, 0), replica="a", at_seconds=2)]

    assert metrics.traffic_between(before, after).requests == 10


def test_quantile_is_linear_within_its_bucket() -> None:
    assert metrics.quantile({0.1: 90, 1.0: 100, math.inf: 100}, 0.95) == pytest.approx(0.55)


def test_quantile_above_the_last_bound_is_that_bound() -> None:
    assert metrics.quantile({0.1: 1, math.inf: 100}, 0.95) == 0.1


def test_page_in_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid metric name"):
        metrics.parse("<html>", replica="a", at_seconds=0)


def traffic(p95_seconds: float, error_fraction: float = 0.0) -> TrafficMetrics:
    return TrafficMetrics(seconds=10, requests=100, error_fraction=error_fraction, p95_seconds={ROUTE: p95_seconds})


@pytest.mark.parametrize(
    ("current", "baseline", "message"),
    [
        (traffic(1.5), None, "p95 of /api/v1/embed 1.500 s, allowed 1.000 s"),
        (traffic(0.1, 0.02), None, "error fraction 0.0200, allowed 0.0100"),
        (traffic(0.9), traffic(0.3), "3.0 times the baseline"),
    ],
)
def test_violation_names_the_limit(current: TrafficMetrics, baseline: TrafficMetrics | None, message: str) -> None:
    [violation] = metrics.violations(current, BUDGET, baseline)

    assert message in violation


@pytest.mark.parametrize("baseline", [None, traffic(0.05), traffic(0.03)])
def test_growth_below_the_noise_is_no_violation(baseline: TrafficMetrics | None) -> None:
    assert metrics.violations(traffic(0.1, 0.01), BUDGET, baseline) == ()
