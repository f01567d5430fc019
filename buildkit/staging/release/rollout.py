"""Steps that change the running services: first deployment, sidecars, the rolling update of the API."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from msgspec import structs

from buildkit.errors import ReleaseFailed, StackFailed
from buildkit.staging.release.records import Migrations
from buildkit.staging.stack.sidecars import SIDECARS

if TYPE_CHECKING:
    from buildkit.staging.release.run import ReleaseRun

__all__ = ["deploy", "roll_out", "sidecars_differ", "undo_deploy", "undo_roll_out", "update_sidecars"]

_START_SECONDS: Final = 120.0
"""Time for the database or the proxy to start (a generous guess: images may have to be pulled)."""


def deploy(run: ReleaseRun) -> str:
    """Deploys all services at once: nothing serves yet."""
    context, new = run.context, run.new
    update_seconds = context.spec.staging.update_seconds
    new.deploy()
    new.wait_for_rollout("database", seconds=_START_SECONDS)
    new.wait_for_job("migrate", seconds=update_seconds)
    new.wait_for_rollout("api", seconds=update_seconds)
    new.wait_for_rollout("proxy", seconds=_START_SECONDS)
    schema = context.probes.migration_plan(new, new.container("api")).current
    run.record = structs.replace(run.record, migrations=Migrations(before=None, after=schema))
    return f"schema {schema}"


def undo_deploy(run: ReleaseRun) -> str:
    """Removes the stack again; volumes stay."""
    run.new.remove()
    return "the stack was removed again; its volumes stay"


def sidecars_differ(run: ReleaseRun) -> bool:
    """Returns whether the database or the proxy runs another image than that of this release."""
    return run.old is not None and any(run.old.images[service] != run.new.images[service] for service in SIDECARS)


def update_sidecars(run: ReleaseRun) -> str:
    """Updates the database and the proxy. There is one of each, so clients have to retry meanwhile.

    Has no undo: swarm itself rolls back a sidecar that does not start.
    """
    old = run.deployed()
    old.with_release({**run.new.images, "api": old.images["api"]}, run.new.settings).deploy()
    for service in ("database", "proxy", "api"):
        run.new.wait_for_rollout(service, seconds=2 * _START_SECONDS)
    return "the database or the proxy has another image"


def roll_out(run: ReleaseRun) -> str:
    """Updates the API replica by replica. With a baseline, a small load runs meanwhile and must not lose requests."""
    if run.baseline is None:
        _update(run)
        return ""
    load = run.baseline.load
    with load:
        _update(run)
    report = load.report()
    if report.problems:
        raise ReleaseFailed("under load: " + "; ".join(report.problems))
    allowed = run.context.spec.staging.budget.retried_fraction
    if report.retried_fraction > allowed:
        raise ReleaseFailed(f"{report.retried} of {report.requests} requests had to be retried, allowed {allowed:.1%}")
    return (
        f"{report.requests} requests meanwhile, {report.retried} retried, none wrong, none lost, "
        f"longest gap {report.longest_gap_seconds:.2f} s"
    )


def undo_roll_out(run: ReleaseRun) -> str:
    """Restores the previous images and settings, unless swarm has rolled back already.

    Raises:
        ReleaseFailed: the previous release does not run again.
    """
    old = run.deployed()
    previous = old.images["api"]
    digest = previous.partition("@")[2]
    update = old.last_update("api")
    if old.image("api") != previous:
        run.context.log(f"restoring {previous}")
        old.deploy()
    with contextlib.suppress(StackFailed):  # swarm reports its own rollback as a failed update
        old.wait_for_rollout(
            "api", seconds=run.context.spec.staging.update_seconds, previous_update=update, until_digest=digest
        )
    if not any(replica.is_running and replica.digest == digest for replica in old.replicas("api")):
        raise ReleaseFailed(f"{previous} does not run again")
    return f"{previous} is serving again"


def _update(run: ReleaseRun) -> None:
    new = run.new
    update = new.last_update("api")
    new.deploy()
    new.wait_for_rollout(
        "api",
        previous_update=update,
        seconds=run.context.spec.staging.update_seconds,
        until_digest=new.images["api"].partition("@")[2],
    )
