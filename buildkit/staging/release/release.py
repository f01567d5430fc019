"""Releases a verified image to staging: lists of steps, from the verification record to measured traffic.

The first step that fails ends the release: it and the steps before it are undone, the previous release keeps serving,
and the attempt is recorded in releases.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buildkit.staging.release import publish, records, rollout, schema, traffic
from buildkit.staging.release.run import ReleaseRun, undo_on_failure
from buildkit.staging.release.steps import Step, StepRunner

if TYPE_CHECKING:
    from buildkit.staging.release.records import Release
    from buildkit.staging.release.run import ReleaseContext

__all__ = ["FIRST_RELEASE", "PUBLISH", "REPLACE_BROKEN", "UPDATE", "stage"]

VERIFY_RECORD: Final = Step("verify record", publish.verify_record)
TAG: Final = Step("tag", publish.tag_image)
PUSH: Final = Step("push", publish.push_images)
DEPLOY: Final = Step("deploy", rollout.deploy, undo=rollout.undo_deploy)
BASELINE: Final = Step("baseline", traffic.measure_baseline)
MIGRATION_PLAN: Final = Step("migration plan", schema.plan_upgrade, undo=schema.stop_canary)
MIGRATE: Final = Step("migrate", schema.migrate, undo=schema.undo_migrate, when=schema.migrates_before_rollout)
CANARY: Final = Step("canary", traffic.smoke_test_canary)
SIDECARS: Final = Step("sidecars", rollout.update_sidecars, when=rollout.sidecars_differ)
ROLLOUT: Final = Step("rollout", rollout.roll_out, undo=rollout.undo_roll_out)
SMOKE_TEST: Final = Step("smoke test", traffic.smoke_test)
MEASURE: Final = Step("measure", traffic.measure)

PUBLISH: Final = (VERIFY_RECORD, TAG, PUSH)
"""Every release starts with these."""
FIRST_RELEASE: Final = (DEPLOY, SMOKE_TEST, MEASURE)
"""Nothing is deployed."""
UPDATE: Final = (BASELINE, MIGRATION_PLAN, MIGRATE, CANARY, SIDECARS, ROLLOUT, SMOKE_TEST, MEASURE)
"""A release serves, and is replaced without failed requests."""
REPLACE_BROKEN: Final = (MIGRATION_PLAN, MIGRATE, CANARY, SIDECARS, ROLLOUT, SMOKE_TEST, MEASURE)
"""A release is deployed but does not answer: there is no baseline, and no caller to protect."""


def stage(context: ReleaseContext) -> Release:
    """Releases the verified image and returns the record of the release, which now serves. The caller holds the lock.

    Raises:
        ReleaseFailed: a step failed; the release was undone and recorded.
        InvalidFile: releases.json cannot be read.
    """
    run = ReleaseRun.begin(context)
    runner = StepRunner(run, context.log)
    with undo_on_failure(run, runner):
        runner.run(PUBLISH)
        runner.run(_remaining_steps(run))
        release = run.finish("serving", runner)
        records.save(context.state, run.history.with_release(release))
    return release


def _remaining_steps(run: ReleaseRun) -> tuple[Step[ReleaseRun], ...]:
    if run.old is None:
        return FIRST_RELEASE
    if run.context.probes.answers(run.old):
        return UPDATE
    run.context.log("the deployed release does not answer: it is replaced without a baseline")
    return REPLACE_BROKEN
