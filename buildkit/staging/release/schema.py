"""Steps that plan and run migrations, forwards for a release and backwards for a rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

from buildkit.errors import CommandFailed, ReleaseFailed, StackFailed
from buildkit.staging.probes.container_exec import MigrationPlan
from buildkit.staging.release.records import Migrations

if TYPE_CHECKING:
    from buildkit.staging.release.records import Release
    from buildkit.staging.release.run import ReleaseRun

__all__ = [
    "migrate",
    "migrates_after_rollout",
    "migrates_before_rollout",
    "plan_rollback",
    "plan_upgrade",
    "stop_canary",
    "undo_migrate",
]

_START_SECONDS: Final = 120.0
_MIGRATE_SECONDS: Final = 240.0
_COMMAND: Final = "setpriv --no-new-privs python -m service migrate"


def plan_upgrade(run: ReleaseRun) -> str:
    """Starts the canary and asks its code which migrations the schema needs.

    Raises:
        ReleaseFailed: the serving release would not work on the new schema, or the schema is ahead of this code.
    """
    new = run.new
    container = new.start_canary(new.images["api"], seconds=_START_SECONDS)
    try:
        plan = run.context.probes.migration_plan(new, container)
    except (ReleaseFailed, CommandFailed):
        new.check_canary()  # if it ended, the end of its log says more than a broken pipe
        raise
    if plan.direction == "down":
        reason = f"the schema is at {plan.current}, but the code of this release is older ({plan.target})"
        raise ReleaseFailed(f"{reason}; to return to it, run `nox -s rollback`")
    if plan.direction == "up" and not plan.is_compatible and not run.context.allow_downtime:
        reason = f"migration {plan.target} does not name {plan.current} in `compatible_with`"
        raise ReleaseFailed(
            f"{reason}, so the serving release would stop working; `-- --allow-downtime` migrates anyway"
        )
    _set_plan(run, plan)
    return _summary(plan)


def stop_canary(run: ReleaseRun) -> str:
    """Undoes `plan_upgrade`."""
    run.new.stop_canary()
    return ""


def plan_rollback(run: ReleaseRun) -> str:
    """Plans the schema change of a rollback with the newer code, because only it has the downgrade.

    Raises:
        ReleaseFailed: the rollback would lose data, or the plan is unknown.
    """
    revision, serving_revision = _revision(run.target), _revision(run.history.serving)
    if revision is None:
        raise ReleaseFailed(f"the record of {run.record.name} does not say which schema it worked on")
    if revision == serving_revision:
        plan = MigrationPlan(revision, revision, "none", (), is_compatible=True, data_loss=())
    else:
        plan = _plan_by_either_code(run, revision)
    if plan.direction == "down":
        if plan.data_loss and not run.context.keep_schema:
            hint = "; `-- --keep-schema` rolls back the code only" if plan.is_compatible else ""
            raise ReleaseFailed(f"the rollback would lose data: {'; '.join(plan.data_loss)}{hint}")
        if run.context.keep_schema and not plan.is_compatible:
            reason = f"code of {plan.target} does not work on the schema {plan.current}"
            raise ReleaseFailed(f"{reason}: the migration does not name it in `compatible_with`")
    _set_plan(run, plan)
    return _summary(plan)


def migrates_before_rollout(run: ReleaseRun) -> bool:
    """Returns whether the schema changes before the code: it must if the code to roll out needs the change."""
    return _moves(run) and (_plan(run).direction == "up" or not _plan(run).is_compatible)


def migrates_after_rollout(run: ReleaseRun) -> bool:
    """Returns whether the schema changes after the code: it may if the older code works on both schemas."""
    return _moves(run) and not migrates_before_rollout(run)


def migrate(run: ReleaseRun) -> str:
    """Runs the migration job to the planned revision."""
    plan = _plan(run)
    _run_migration(run, plan.target)
    return f"{plan.current} to {plan.target}"


def undo_migrate(run: ReleaseRun) -> str:
    """Runs the migration job back to the revision before the release.

    Raises:
        ReleaseFailed: the job failed; the schema stays.
    """
    plan = _plan(run)
    if plan.current is None:
        return ""
    try:
        _run_migration(run, plan.current)
    except StackFailed as error:
        raise ReleaseFailed(f"the schema stays at {plan.target}: {error.reason}") from error
    return f"the schema is at {plan.current} again"


def _run_migration(run: ReleaseRun, revision: str) -> None:
    """Runs the job with the newer of the two releases: the older one lacks the migration."""
    newer = run.deployed() if _plan(run).direction == "down" else run.new
    run.new.run_job(
        "migrate",
        newer.images["api"],
        seconds=_MIGRATE_SECONDS,
        command=f"{_COMMAND} --to {revision}",
    )


def _plan_by_either_code(run: ReleaseRun, revision: str) -> MigrationPlan:
    """Asks the serving release, then the release to return to, for the way to *revision*; the first plan counts.

    Each answers in a canary: the replicas that serve may be broken.
    """
    reasons: list[str] = []
    for stack in (run.deployed(), run.new):
        try:
            container = run.new.start_canary(stack.images["api"], seconds=_START_SECONDS)
            return run.context.probes.migration_plan(run.new, container, revision)
        except (ReleaseFailed, StackFailed) as error:
            reasons.append(error.reason)
        finally:
            run.new.stop_canary()
    raise ReleaseFailed("; ".join(reasons))


def _revision(release: Release | None) -> str | None:
    return release.migrations.after if release and release.migrations else None


def _set_plan(run: ReleaseRun, plan: MigrationPlan) -> None:
    run.plan = plan
    after = plan.target if _moves(run) else plan.current
    run.record = structs.replace(run.record, migrations=Migrations(before=plan.current, after=after))


def _plan(run: ReleaseRun) -> MigrationPlan:
    if run.plan is None:
        raise ReleaseFailed("the migration plan is missing")
    return run.plan


def _moves(run: ReleaseRun) -> bool:
    plan = _plan(run)
    return plan.direction == "up" or (plan.direction == "down" and not run.context.keep_schema)


def _summary(plan: MigrationPlan) -> str:
    if plan.direction == "none":
        return f"schema {plan.current}: nothing to do"
    return f"schema {plan.direction} {' '.join(plan.revisions)}"
