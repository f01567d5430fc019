"""A release: one list of steps from a verified digest to traffic.

The first failing step ends it. What was done is taken back, the release that served before serves on, and only then
is the attempt recorded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from buildkit.errors import ReleaseFailed
from buildkit.staging.probes import container_exec, smoke_tests
from buildkit.staging.probes.load import Load
from buildkit.staging.release import records, verified_image
from buildkit.staging.release.records import Migrations
from buildkit.staging.release.run import STARTED_SECONDS, ReleaseRun, checked, loaded, measured, planned
from buildkit.staging.stack.push import push

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit.engine.client import Engine
    from buildkit.staging.probes.container_exec import ApiKey, SchemaPlan
    from buildkit.staging.probes.smoke_tests import SmokeTestReport
    from buildkit.staging.release.records import Release
    from buildkit.staging.release.run import ReleaseContext
    from buildkit.staging.stack.push import Pushed

__all__ = ["stage"]

_UPDATE_WORKERS: Final = 2
_UPDATE_PAUSE_SECONDS: Final = 0.05
"""The load during an update is small: it looks for what is lost, and must not be what makes the update slow."""


def stage(context: ReleaseContext) -> Release:
    """Releases the verified image; the record of what now serves.

    The caller holds the lock. Whatever goes wrong is raised after it was taken back and recorded.

    Raises:
        ReleaseFailed: a step found a reason to stop.
        BuildkitError: a step could not be done.
    """
    run = ReleaseRun(context, records.load(context.state))
    steps = run.steps
    try:
        run.verified_image = steps.run(
            "verified",
            lambda: verified_image.load_verified_image(context.build_path, context.verify_path, engine=context.engine),
            detail=lambda found: f"{found.digest}, not verified: {', '.join(found.not_verified) or 'nothing'}",
        )
        run.name = verified_image.tag_of(run.verified_image, run.known)
        name, digest = f"{context.repository}:{run.name}", run.verified_image.digest
        steps.run("tagged", lambda: _tag(context.engine, digest, name), detail=lambda _: name)
        sent = steps.run("pushed", lambda: _push(context, run), detail=_sent)
        run.bytes_sent = sent.bytes_sent
        run.find_old()
        _put_in_place(context, run)
    except BaseException as error:
        run.take_back(error)
        raise
    record = run.record("serving")
    records.save(context.state, run.known.with_release(record))
    return record


def _put_in_place(context: ReleaseContext, run: ReleaseRun) -> None:
    """From pushed images to measured traffic."""
    steps = run.steps
    if run.old is None:
        steps.run("deployed", run.deploy_first, undo=run.undo_first)
        with container_exec.temporary_key(run.new) as key:
            found = container_exec.plan_migration(run.new, run.new.container())
            run.migrations = Migrations(before=None, after=found.current)
            run.judge(key, {}, None)
    elif not run.answers():
        context.log("the serving release does not answer: there is nothing to compare with, nor to keep serving")
        try:
            _prepare_schema(context, run)
            run.new.wait_candidate(seconds=context.spec.staging.update_seconds, step="tried")
            with container_exec.temporary_key(run.new, "candidate") as key:
                steps.run("tried", lambda: _try_candidate(run, key, {}), detail=checked)
                _replace_parts(run)
                steps.run("updated", run.update, undo=run.undo_update)
                run.judge(key, {}, None)
        finally:
            run.new.stop_candidate()
    else:
        old = run.old
        with container_exec.temporary_key(old) as key:
            load = Load(lambda: run.client(old, key), workers=_UPDATE_WORKERS, pause_seconds=_UPDATE_PAUSE_SECONDS)
            served = steps.run("compared", lambda: run.compare(key, load), detail=measured)
            try:
                _prepare_schema(context, run)
                run.new.wait_candidate(seconds=context.spec.staging.update_seconds, step="tried")
                steps.run("tried", lambda: _try_candidate(run, key, load.vectors()), detail=checked)
            finally:
                run.new.stop_candidate()
            _replace_parts(run)
            steps.run("updated", lambda: run.update_under(load), detail=loaded, undo=run.undo_update)
            run.judge(key, load.vectors(), served)


def _prepare_schema(context: ReleaseContext, run: ReleaseRun) -> None:
    """Starts the candidate, and brings the schema to where its code needs it."""
    found = run.steps.run("planned", lambda: _plan(context, run), detail=planned)
    run.migrations = Migrations(before=found.current, after=found.target)
    image, before = run.new.images["api"], found.current
    if found.direction == "up":
        run.steps.run(
            "migrated",
            lambda: run.migrate(image),
            detail=lambda _: f"{found.current} to {found.target}",
            undo=lambda: run.migrate_back(before, image),
        )


def _replace_parts(run: ReleaseRun) -> None:
    if run.changes_parts:
        run.steps.run("parts", run.update_parts, detail=lambda _: "PostgreSQL or the proxy have another image")


def _tag(engine: Engine, digest: str, name: str) -> None:
    engine.docker("image", "tag", digest, name)


def _push(context: ReleaseContext, run: ReleaseRun) -> Pushed:
    """The API's image, and the parts beside it where the registry does not have them."""
    if run.verified_image is None:
        raise ReleaseFailed("pushed", "nothing was verified")
    digests = {"api": run.verified_image.digest, **{part: context.part(part) for part in ("postgres", "proxy")}}
    images: dict[str, str] = {}
    pushed: list[Pushed] = []
    for part, digest in digests.items():
        repository = context.repository if part == "api" else f"{context.repository.removesuffix('-api')}-{part}"
        tag = run.name if part == "api" else digest.removeprefix("sha256:")[:12]
        _tag(context.engine, digest, f"{repository}:{tag}")
        done = push(context.engine, digest=digest, repository=repository, tag=tag, log=context.log)
        images[part] = done.reference
        pushed.append(done)
    settings = {**context.stack.settings, "TRUTHGRAPH_RELEASE": run.name}
    run.new = replace(context.stack, images=images, settings=settings)
    return replace(
        pushed[0],
        bytes_sent=sum(done.bytes_sent for done in pushed),
        bytes_there=sum(done.bytes_there for done in pushed),
        seconds=sum(done.seconds for done in pushed),
    )


def _plan(context: ReleaseContext, run: ReleaseRun) -> SchemaPlan:
    """Starts the candidate and asks its code what it would do to the schema.

    Raises:
        ReleaseFailed: the serving release would not work on the new schema, or the database is ahead of this code.
    """
    container = run.new.start_candidate(run.new.images["api"], seconds=STARTED_SECONDS, step="planned")
    try:
        found = container_exec.plan_migration(run.new, container)
    except ReleaseFailed:
        run.new.must_live("candidate", step="planned")  # one that has ended says more than a broken pipe
        raise
    if found.direction == "down":
        reason = f"the schema is at {found.current}, this release's code is older ({found.target})"
        raise ReleaseFailed("planned", f"{reason}; to go back, run `nox -s rollback`")
    if found.direction == "up" and not found.is_compatible and not context.allows_gap:
        reason = f"migration {found.target} is not declared `compatible_with` the code of {found.current}"
        raise ReleaseFailed(
            "planned", f"{reason}, so the serving release would stop; `-- --allow-downtime` takes that on"
        )
    return found


def _try_candidate(run: ReleaseRun, key: ApiKey, vectors: Mapping[str, list[float]]) -> SmokeTestReport:
    """The suite inside the new release while the old one has all traffic."""
    with container_exec.canary_client(run.new, run.new.container("candidate"), key) as client:
        outcome = smoke_tests.run(client, baseline=vectors)
    if outcome.failures:
        raise ReleaseFailed("tried", "; ".join(outcome.failures))
    return outcome


def _sent(pushed: Pushed) -> str:
    return f"{pushed.bytes_sent / 1e6:,.1f} MB sent, {pushed.bytes_there / 1e6:,.1f} MB were there"
