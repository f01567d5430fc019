from __future__ import annotations

import math

import pytest

from buildkit.spec import StagingBudget
from buildkit.staging.probes import metrics
from buildkit.staging.release.records import TrafficMetrics


def exposition(fast: int, slow: int, errors: int = 0) -> str:
    route = "/api/v1/embed"
    return f"""# HELP truthgraph_requests_total Requests answered.
# TYPE truthgraph_requests_total counter
truthgraph_requests_total{{method="POST",route="{route}",status="200"}} {fast + slow - errors}.0
truthgraph_requests_total{{method="POST",route="{route}",status="503"}} {errors}.0
truthgraph_requests_total{{method="GET",route="/metrics",status="200"}} 1e+03
truthgraph_request_seconds_bucket{{le="0.1",route="{route}"}} {fast}.0
truthgraph_request_seconds_bucket{{le="1.0",route="{route}"}} {fast + slow}.0
truthgraph_request_seconds_bucket{{le="+Inf",route="{route}"}} {fast + slow}.0
truthgraph_ready{{part="with \\"quotes\\" and, commas"}} 1.0
"""


def test_a_window_counts_what_happened_in_it_over_all_replicas() -> None:
    before = [metrics.parse(exposition(100, 0), replica="a", at_seconds=1)]
    after = [
        metrics.parse(exposition(190, 10, errors=5), replica="a", at_seconds=11),
        metrics.parse(exposition(100, 0), replica="new", at_seconds=11),
    ]

    window = metrics.window(before, after)

    assert (window.seconds, window.requests, window.error_fraction) == (10.0, 200, 0.025)
    assert window.p95_seconds == {"/api/v1/embed": pytest.approx(0.1)}


def test_a_replica_that_was_restarted_counts_from_zero() -> None:
    """Its counters are lower than before; a difference would be negative."""
    before = [metrics.parse(exposition(100, 0), replica="a", at_seconds=1)]
    after = [metrics.parse(exposition(10, 0), replica="a", at_seconds=2)]

    assert metrics.window(before, after).requests == 10


def test_a_quantile_is_linear_within_its_bucket() -> None:
    assert metrics.quantile({0.1: 90, 1.0: 100, math.inf: 100}, 0.95) == pytest.approx(0.55)


def test_above_the_last_bound_the_histogram_knows_no_more() -> None:
    assert metrics.quantile({0.1: 1, math.inf: 100}, 0.95) == 0.1


def test_what_is_no_exposition_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample"):
        metrics.parse("<html>", replica="a", at_seconds=0)


BUDGET = StagingBudget(p95_seconds=1.0, p95_growth_ratio=2.0, p95_noise_seconds=0.1, error_fraction=0.01)


def window(p95_seconds: float, error_fraction: float = 0.0) -> TrafficMetrics:
    return TrafficMetrics(
        seconds=10, requests=100, error_fraction=error_fraction, p95_seconds={"/api/v1/embed": p95_seconds}
    )


@pytest.mark.parametrize(
    ("now", "before", "shown"),
    [
        (window(1.5), None, "p95 of /api/v1/embed 1.500 s, allowed 1.000 s"),
        (window(0.1, 0.02), None, "error fraction 0.0200, allowed 0.0100"),
        (window(0.9), window(0.3), "3.0 times that of the release before"),
    ],
)
def test_a_broken_budget_is_named(now: TrafficMetrics, before: TrafficMetrics | None, shown: str) -> None:
    [broken] = metrics.judge(now, BUDGET, before)

    assert shown in broken


@pytest.mark.parametrize("before", [None, window(0.05), window(0.03)])
def test_growth_below_the_noise_is_none(before: TrafficMetrics | None) -> None:
    assert metrics.judge(window(0.1, 0.01), BUDGET, before) == ()
