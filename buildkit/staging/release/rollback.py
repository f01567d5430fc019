"""Rolls back to an earlier release, and to its schema if that loses no data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from buildkit.errors import ReleaseFailed
from buildkit.staging.release import publish, records, rollout, schema
from buildkit.staging.release.release import MEASURE, SMOKE_TEST
from buildkit.staging.release.run import ReleaseRun, undo_on_failure
from buildkit.staging.release.steps import Step, StepRunner
from buildkit.staging.stack.sidecars import SIDECARS

if TYPE_CHECKING:
    from buildkit.staging.release.records import Release
    from buildkit.staging.release.run import ReleaseContext

__all__ = ["CHECKS", "roll_back", "rollback_steps"]

CHECKS: Final = (SMOKE_TEST, MEASURE)
"""The steps after a rollback. The problems that they find are recorded, but do not trigger another rollback."""


def rollback_steps(name: str | None) -> tuple[Step[ReleaseRun], ...]:
    """Returns the steps of a rollback to the release *name*, or to the one before the serving one.

    The serving release is not probed, since it may be the broken one. The schema changes before the rollout if the
    earlier code needs that, and otherwise after it.
    """
    return (
        Step("find release", lambda run: find_release(run, name)),
        Step("pull", publish.pull_image),
        Step("migration plan", schema.plan_rollback),
        Step("migrate", schema.migrate, undo=schema.undo_migrate, when=schema.migrates_before_rollout),
        Step("rollout", rollout.roll_out, undo=rollout.undo_roll_out),
        Step("migrate", schema.migrate, undo=schema.undo_migrate, when=schema.migrates_after_rollout),
    )


def roll_back(context: ReleaseContext, name: str | None) -> Release:
    """Rolls back and returns the record of the release that serves afterwards. The caller holds the lock.

    `Release.reason` has the problems that the smoke test and the measurement found afterwards; "" if none.

    Raises:
        ReleaseFailed: there is no such release, data would be lost, or it does not start; the serving release stays.
        InvalidFile: releases.json cannot be read.
    """
    run = ReleaseRun.begin(context)
    runner = StepRunner(run, context.log)
    with undo_on_failure(run, runner):
        runner.run(rollback_steps(name))
    reason = "interrupted before it was checked"
    try:
        reason = _check(run, runner)
    finally:
        release = run.finish("serving", runner, reason=reason)
        history = structs.replace(run.history, releases=run.history.with_outcome_of_serving("rolled back"))
        records.save(context.state, history.with_release(release))
    return release


def find_release(run: ReleaseRun, name: str | None) -> str:
    """Finds the release to return to, and makes its image the one to roll out.

    Raises:
        UsageError: there is no release *name*.
        ReleaseFailed: there is no earlier release, it serves already, or nothing is deployed.
    """
    history, serving = run.history, run.history.serving
    target = history.find(name) if name else history.previous()
    if target is None:
        raise ReleaseFailed("there is no earlier release")
    if serving is not None and target.digest == serving.digest:
        raise ReleaseFailed(f"{target.name} is serving already")
    run.target = target
    run.record = structs.replace(
        run.record,
        name=target.name,
        image=target.image,
        digest=target.digest,
        version=target.version,
        revision=target.revision,
        settings=target.settings,
        sidecars=target.sidecars,
        bytes_sent=0,
    )
    old = run.deployed()
    # The database and the proxy keep their images: an older image is no reason to restart them.
    sidecars = {service: old.images[service] for service in SIDECARS}
    run.new = old.with_release({"api": target.image, **sidecars}, target.settings)
    run.record = structs.replace(run.record, sidecars=sidecars)
    return target.name


def _check(run: ReleaseRun, runner: StepRunner[ReleaseRun]) -> str:
    """Runs `CHECKS` on the release that serves now; returns the problem that they found, or ""."""
    try:
        with run.cleanup:
            runner.run(CHECKS)
    except ReleaseFailed as error:
        run.context.log(f"rolled back; the release that serves now has problems: {error}")
        return str(error)
    return ""
