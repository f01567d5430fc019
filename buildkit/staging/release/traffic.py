"""Steps that send requests to the service: baseline, canary, smoke test, measure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from msgspec import structs

from buildkit.errors import ReleaseFailed
from buildkit.staging.probes import metrics
from buildkit.staging.release.run import Baseline

if TYPE_CHECKING:
    from buildkit.staging.probes.load import LoadReport
    from buildkit.staging.probes.metrics import TrafficMetrics
    from buildkit.staging.probes.smoke_tests import SmokeTestReport
    from buildkit.staging.release.run import ReleaseRun
    from buildkit.staging.stack.orchestrator import Orchestrator

__all__ = ["measure", "measure_baseline", "smoke_test", "smoke_test_canary"]

_ROLLOUT_WORKERS: Final = 2
_ROLLOUT_PAUSE_SECONDS: Final = 0.05
"""The load during a rollout is small: it looks for lost requests, and must not slow the rollout down."""


def measure_baseline(run: ReleaseRun) -> str:
    """Records reference answers of the serving release, and measures it under load."""
    old = run.deployed()
    load = run.context.probes.load(
        old, run.api_key(old), workers=_ROLLOUT_WORKERS, pause_seconds=_ROLLOUT_PAUSE_SECONDS
    )
    load.prepare()
    window, _ = _measure_under_load(run, old)
    run.baseline = Baseline(load, window)
    return _summary(window)


def smoke_test_canary(run: ReleaseRun) -> str:
    """Runs the smoke tests inside the canary while the previous release has all traffic, then stops the canary."""
    run.new.wait_for_canary(seconds=run.context.spec.staging.update_seconds)
    key = run.api_key(run.new, "canary")
    report = run.context.probes.smoke_test_inside(run.new, run.new.container("canary"), key, _vectors(run))
    run.new.stop_canary()
    return _passed(report)


def smoke_test(run: ReleaseRun) -> str:
    """Runs the smoke tests through the proxy."""
    report = run.context.probes.smoke_test(run.new, run.api_key(run.new), _vectors(run))
    _count(run, {"checks": len(report.checks), "checks_failed": len(report.failures), "requests": report.requests})
    return _passed(report)


def measure(run: ReleaseRun) -> str:
    """Measures the release under load and compares p95 and errors with the budget and the baseline."""
    window, report = _measure_under_load(run, run.new)
    _count(run, {f"load_{name}": value for name, value in report.counts().items()})
    run.record = structs.replace(run.record, metrics=window)
    baseline = run.baseline.metrics if run.baseline else None
    broken = (*report.problems, *metrics.violations(window, run.context.spec.staging.budget, baseline))
    if broken:
        raise ReleaseFailed("; ".join(broken))
    return _summary(window)


def _measure_under_load(run: ReleaseRun, stack: Orchestrator) -> tuple[TrafficMetrics, LoadReport]:
    """Puts the configured load on *stack*; returns the metrics of its replicas and the report of the load."""
    probes, settings = run.context.probes, run.context.spec.staging
    load = probes.load(stack, run.api_key(stack), workers=settings.load_workers)
    load.prepare()
    before = probes.scrape(stack)
    with load:
        time.sleep(settings.load_seconds)
    return metrics.traffic_between(before, probes.scrape(stack)), load.report()


def _vectors(run: ReleaseRun) -> dict[str, list[float]]:
    return run.baseline.load.vectors() if run.baseline else {}


def _count(run: ReleaseRun, counts: dict[str, float]) -> None:
    run.record = structs.replace(run.record, counts={**run.record.counts, **counts})


def _passed(report: SmokeTestReport) -> str:
    if report.failures:
        raise ReleaseFailed("; ".join(report.failures))
    return f"{len(report.checks)} checks with {report.requests} requests passed"


def _summary(window: TrafficMetrics) -> str:
    slowest = max(window.p95_seconds.values(), default=0.0)
    return f"{window.requests} requests, p95 {slowest:.3f} s, error fraction {window.error_fraction:.4f}"
