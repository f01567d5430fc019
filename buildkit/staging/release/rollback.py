"""The way back to an earlier release, its schema included where nothing is lost by that."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from buildkit.errors import CommandFailed, RegistryFailed, ReleaseFailed
from buildkit.staging.probes import container_exec
from buildkit.staging.probes.container_exec import SchemaPlan
from buildkit.staging.release import records
from buildkit.staging.release.records import Migrations
from buildkit.staging.release.run import STARTED_SECONDS, ReleaseRun, planned

if TYPE_CHECKING:
    from buildkit.staging.release.records import Release
    from buildkit.staging.release.run import ReleaseContext
    from buildkit.staging.stack.stack import Stack

__all__ = ["roll_back"]


def roll_back(context: ReleaseContext, name: str | None) -> Release:
    """Brings an earlier release back, its schema included where nothing is lost by that.

    Nothing is asked of the release that serves: it may be the reason. What the earlier one is found to do wrong
    afterwards is recorded and told (`reason` of the record), and is no reason to leave it again.

    The caller holds the lock.

    Raises:
        UsageError: there is no such release.
        ReleaseFailed: going back would lose data, or the earlier release does not start; the one that served serves on.
    """
    known = records.load(context.state)
    run = ReleaseRun(context, known)
    target = known.called(name) if name else known.before_serving()
    if target is None:
        raise ReleaseFailed("found", "no earlier release was kept")
    if run.serving is not None and target.digest == run.serving.digest:
        raise ReleaseFailed("found", f"{target.name} serves already")
    run.name = target.name
    run.new = replace(context.stack, images={"api": target.image, **target.parts}, settings=target.settings)
    steps = run.steps
    try:
        run.find_old()
        old = _must_run(run)
        # PostgreSQL and the proxy stay as they are: what they were then is no reason to stop them now.
        run.new = replace(run.new, images={**old.images, "api": target.image})
        steps.run("fetched", lambda: _fetch(context, target.image), detail=lambda _: target.image)
        found = steps.run("planned", lambda: _plan_back(context, run, target), detail=planned)
        moves = found.direction != "none" and not (found.direction == "down" and context.keeps_schema)
        run.migrations = Migrations(before=found.current, after=found.target if moves else found.current)
        # The newer code alone knows the way. Where the older one works on both schemas, it serves before the change.
        newer = target.image if found.direction == "up" else old.images["api"]
        is_first = found.direction == "up" or not found.is_compatible
        if moves and is_first:
            _move(run, found, newer)
        steps.run("updated", run.update, undo=run.undo_update)
        if moves and not is_first:
            _move(run, found, newer)
    except BaseException as error:
        run.take_back(error)
        raise
    reason = _look_at(context, run)
    record = msgspec.structs.replace(
        run.record("serving", reason=reason), version=target.version, revision=target.revision, bytes_sent=0
    )
    kept = msgspec.structs.replace(known, releases=known.retired("rolled back"))
    records.save(context.state, kept.with_release(record))
    return record


def _look_at(context: ReleaseContext, run: ReleaseRun) -> str:
    """What the suite and the metrics find wrong with what serves now; "" where nothing."""
    try:
        with container_exec.temporary_key(run.new) as key:
            run.judge(key, {}, None)
    except (ReleaseFailed, CommandFailed) as error:
        context.log(f"went back, and found: {error}")
        return str(error)
    return ""


def _must_run(run: ReleaseRun) -> Stack:
    if run.old is None:
        raise ReleaseFailed("found", "the stack does not run; `nox -s stage` starts it")
    return run.old


def _move(run: ReleaseRun, found: SchemaPlan, image: str) -> None:
    run.steps.run(
        "migrated",
        lambda: run.migrate(image, found.target),
        detail=lambda _: f"{found.current} to {found.target}",
        undo=lambda: _move_again(run, found, image),
    )


def _move_again(run: ReleaseRun, found: SchemaPlan, image: str) -> str:
    run.migrate(image, found.current or "head")
    return f"the schema is at {found.current} again"


def _fetch(context: ReleaseContext, image: str) -> None:
    try:
        context.engine.docker("pull", "--quiet", image, seconds=context.spec.staging.update_seconds)
    except CommandFailed as error:
        raise RegistryFailed(image.partition("/")[0], error.log_tail or str(error)) from error


def _plan_back(context: ReleaseContext, run: ReleaseRun, target: Release) -> SchemaPlan:
    """What going back means for the schema, by the newer code, which alone knows the way.

    Raises:
        ReleaseFailed: it would lose data, or it cannot be found out.
    """
    revision = target.migrations.after if target.migrations else None
    now = run.serving.migrations.after if run.serving and run.serving.migrations else None
    if revision is None:
        raise ReleaseFailed("planned", f"it is not known which schema {run.name} worked on")
    if revision == now:
        return SchemaPlan(revision, revision, "none", (), is_compatible=True, data_loss=())
    found = _ask_either(run, revision)
    if found.direction != "down":
        return found
    if found.data_loss and not context.keeps_schema:
        hint = "; `-- --keep-schema` takes the code alone back" if found.is_compatible else ""
        raise ReleaseFailed("planned", f"going back would lose data: {'; '.join(found.data_loss)}{hint}")
    if context.keeps_schema and not found.is_compatible:
        reason = f"code of {found.target} does not work on the schema {found.current}"
        raise ReleaseFailed("planned", f"{reason}: its migration does not say so (`compatible_with`)")
    return found


def _ask_either(run: ReleaseRun, revision: str) -> SchemaPlan:
    """The way to *revision* by the code that serves, or by the release that is gone back to, whichever knows it.

    Each is asked in a container without traffic: the replicas that serve may be broken.
    """
    reasons: list[str] = []
    for image in (run.old.images["api"] if run.old else "", run.new.images["api"]):
        try:
            return container_exec.plan_migration(
                run.new, run.new.start_candidate(image, seconds=STARTED_SECONDS, step="planned"), revision
            )
        except ReleaseFailed as error:
            reasons.append(error.reason)
        finally:
            run.new.stop_candidate()
    raise ReleaseFailed("planned", "; ".join(reasons))
