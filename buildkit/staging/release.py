"""A release: one list of steps from a verified digest to traffic, and the way back to an earlier one.

The first failing step ends it. What was done is taken back, the release that served before serves on, and only then
is the attempt recorded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping  # noqa: TC003  # fields of a dataclass
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003  # the same
from typing import TYPE_CHECKING, Final

import msgspec

from buildkit import engine as engines
from buildkit.errors import CommandFailed, RegistryFailed, ReleaseFailed
from buildkit.staging import artefact, inside, metrics, releases, suite
from buildkit.staging.client import Client, Unanswered
from buildkit.staging.inside import SchemaPlan
from buildkit.staging.load import Load
from buildkit.staging.push import push
from buildkit.staging.releases import Migrations, Release, Releases
from buildkit.staging.steps import Steps

if TYPE_CHECKING:
    from buildkit.engine import Engine
    from buildkit.spec import ImageSpec
    from buildkit.staging.artefact import Artefact
    from buildkit.staging.inside import Key
    from buildkit.staging.load import Report
    from buildkit.staging.push import Pushed
    from buildkit.staging.releases import Window
    from buildkit.staging.suite import Outcome
    from buildkit.staging.swarm import Stack

__all__ = ["Stage", "roll_back", "stage"]

_STARTED_SECONDS: Final = 120.0
"""How long the database, the proxy or a job may take to start (a generous guess: images may have to be pulled)."""
_ANSWER_SECONDS: Final = 20.0
"""How long what serves may be silent before it counts as broken (above a restart of the proxy, measured: 3 s)."""
_OK: Final = 200
_UPDATE_WORKERS: Final = 2
_UPDATE_PAUSE_SECONDS: Final = 0.05
_COMMAND: Final = "setpriv --no-new-privs python -m service migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a release needs to know.

    Attributes:
        build_path, verify_path: the records of build and verification.
        state: the folder of releases.json and the secrets.
        stack: with the settings that this release shall have; images are filled in.
        repository: registry and path that the API's image is pushed to, as host:port/truthgraph-api.
        part: gives the digest of a part's image.
        allows_gap: migrate even where the serving release does not work on the new schema.
        keeps_schema: roll back code alone.
    """

    spec: ImageSpec
    engine: Engine
    build_path: Path
    verify_path: Path
    state: Path
    stack: Stack
    repository: str
    tell: Callable[[str], None]
    base: str
    authority: str | None = None
    part: Callable[[str], str] = field(default=lambda _: "")
    allows_gap: bool = False
    keeps_schema: bool = False

    def client(self, key: Key) -> Client:
        """A client that goes through the proxy."""
        return Client(self.base, key.secret, authority=self.authority)


class _Running:
    """A release while it is made: what is known of it so far."""

    def __init__(self, context: Stage, known: Releases) -> None:
        self.context = context
        self.known = known
        self.serving = known.serving
        self.steps = Steps(context.tell)
        self.started = releases.now()
        self.new = context.stack
        self.old: Stack | None = None
        self.name = ""
        self.artefact: Artefact | None = None
        self.bytes_sent: int | None = None
        self.migrations: Migrations | None = None
        self.counts: dict[str, float] = {}
        self.window: Window | None = None
        self.update_load: Load | None = None

    def record(self, outcome: releases.Outcome, *, failed_step: str = "", reason: str = "") -> Release:
        """What is kept of it."""
        digest = self.new.images["api"].partition("@")[2]
        return Release(
            name=self.name,
            image=self.new.images["api"],
            digest=digest,
            version=self.artefact.version if self.artefact else "",
            revision=self.artefact.revision if self.artefact else "",
            who=releases.who(),
            started=self.started,
            outcome=outcome,
            failed_step=failed_step,
            reason=reason,
            bytes_sent=self.bytes_sent,
            migrations=self.migrations,
            integration=self.counts,
            metrics=self.window,
            steps=tuple(self.steps.records),
            parts={part: image for part, image in self.new.images.items() if part != "api"},
            settings=dict(self.new.settings),
        )

    # ---- steps that releases and rollbacks share --------------------------------------------------------------------

    def find_old(self) -> None:
        """What serves now, so that it can be put back."""
        stack = self.context.stack
        if not stack.exists("api"):
            return
        images = {
            part: stack.inspect(service)["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
            for part, service in (("api", "api"), ("postgres", "database"), ("proxy", "proxy"))
        }
        settings = self.serving.settings if self.serving else stack.settings
        self.old = replace(stack, images=images, settings=settings)

    def answers(self) -> bool:
        """Whether what serves now has a healthy replica here, and the proxy leads to it."""
        stack = self.old or self.new
        try:
            stack.container()
            client = Client(self.context.base, authority=self.context.authority, patience_seconds=_ANSWER_SECONDS)
            try:
                return client.send("GET", "/livez").status == _OK
            finally:
                client.close()
        except (CommandFailed, Unanswered):
            return False

    def deploy_first(self) -> None:
        """Everything at once: there is nothing to keep serving."""
        seconds = self.context.spec.staging.update_seconds
        self.new.deploy()
        for part, patience in (("database", _STARTED_SECONDS), ("api", seconds), ("proxy", _STARTED_SECONDS)):
            if part == "api":
                self.new.wait_job("migrate", seconds=patience, step="deployed", tell=self.context.tell)
            self.new.settle(part, began="", seconds=patience, tell=self.context.tell, step="deployed")

    def undo_first(self) -> str:
        """Nothing served before; the volume stays."""
        self.new.remove(volumes=False, tell=self.context.tell)
        return "the stack was removed again; its volumes stay"

    @property
    def changes_parts(self) -> bool:
        """Whether PostgreSQL or the proxy have another image than what runs."""
        return self.old is not None and {**self.old.images, "api": ""} != {**self.new.images, "api": ""}

    def update_parts(self) -> None:
        """New images of PostgreSQL and the proxy: there is one of each, so requests are sent again meanwhile."""
        if self.old is None:
            return
        replace(self.new, images={**self.new.images, "api": self.old.images["api"]}).deploy()
        for part in ("database", "proxy", "api"):
            self.new.settle(part, began="", seconds=_STARTED_SECONDS * 2, tell=self.context.tell, step="parts")

    def update(self) -> None:
        """The engine's rolling update."""
        began = self.new.update_began("api")
        self.new.deploy()
        self.new.settle(
            "api",
            began=began,
            seconds=self.context.spec.staging.update_seconds,
            tell=self.context.tell,
            step="updated",
            until_digest=self.new.images["api"].partition("@")[2],
        )

    def update_under(self, load: Load) -> Report:
        """The engine's rolling update under a small load of our own, which must notice nothing."""
        with load:
            self.update()
        report = load.report()
        if report.faults:
            raise ReleaseFailed("updated", "under load: " + "; ".join(report.faults))
        allowed = self.context.spec.staging.budget.retried_fraction
        if report.retried_fraction > allowed:
            reason = f"{report.retried} of {report.requests} requests had to be sent again, allowed {allowed:.1%}"
            raise ReleaseFailed("updated", reason)
        return report

    def undo_update(self) -> str:
        """Puts the old images and settings back, unless the engine has done so."""
        if self.old is None:
            return ""
        began = self.old.update_began("api")
        image = self.old.inspect("api")["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        seconds = self.context.spec.staging.update_seconds
        wanted = self.old.images["api"]
        if image != wanted:
            self.context.tell(f"putting {wanted} back")
            self.old.deploy()
        digest = wanted.partition("@")[2]
        with contextlib.suppress(ReleaseFailed):  # `rolled back` is what we wait for here
            self.old.settle(
                "api", began=began, seconds=seconds, tell=self.context.tell, step="updated", until_digest=digest
            )
        if not any(replica.is_running and replica.digest == digest for replica in self.old.replicas("api")):
            raise ReleaseFailed("updated", f"{wanted} does not run again")
        return f"{wanted} serves"

    def integrate(self, key: Key, vectors: Mapping[str, list[float]]) -> Outcome:
        """The suite through the proxy."""
        client = self.context.client(key)
        outcome = suite.run(client, vectors=vectors)
        client.close()
        self.counts |= {"checks": len(outcome.checks), "checks_wrong": len(outcome.wrong), "requests": outcome.requests}
        if outcome.wrong:
            raise ReleaseFailed("integrated", "; ".join(outcome.wrong))
        return outcome

    def measure(self, key: Key, before: Window | None) -> Window:
        """The replicas' own metrics over a load of a fixed length, held against the release *before*."""
        self.window, report = self.observe(self.new, key)
        self.counts |= {f"load_{name}": value for name, value in report.counts().items()}
        broken = (*report.faults, *metrics.judge(self.window, self.context.spec.staging.budget, before))
        if broken:
            raise ReleaseFailed("measured", "; ".join(broken))
        return self.window

    def compare(self, key: Key, load: Load) -> Window:
        """Takes the answers and the times of what serves now: minutes later, on the same machine, they are comparable.

        A record of some other day is not: the machine may have been busy then, or may be now.
        """
        load.prepare()
        return self.observe(self.old or self.new, key)[0]

    def observe(self, stack: Stack, key: Key) -> tuple[Window, Report]:
        """Puts load on what serves and looks at its metrics before and after."""
        settings = self.context.spec.staging
        load = Load(lambda: self.context.client(key), workers=settings.load_workers)
        load.prepare()
        first = inside.scrape(stack)
        with load:
            time.sleep(settings.load_seconds)
        return metrics.window(first, inside.scrape(stack)), load.report()

    def migrate_back(self, revision: str | None, image: str) -> str:
        """Brings the schema back to *revision* with the code of *image*, or says why it stays."""
        plan = self.migrations
        if plan is None or revision is None or plan.after == revision:
            return ""
        try:
            self.migrate(image, revision)
        except ReleaseFailed as error:
            return f"the schema stays at {plan.after}, on which the release before works: {error.reason}"
        return f"the schema is at {revision} again"

    def migrate(self, image: str, revision: str = "head") -> None:
        """Runs the migration job to *revision*."""
        words = _COMMAND if revision == "head" else f"{_COMMAND} --to {revision}"
        self.new.run_job(
            "migrate", image, seconds=_STARTED_SECONDS * 2, step="migrated", tell=self.context.tell, words=words
        )


# ---- release --------------------------------------------------------------------------------------------------------


def stage(context: Stage) -> Release:
    """Releases the verified image; the record of what now serves.

    The caller holds the lock. Whatever goes wrong is raised after it was taken back and recorded.

    Raises:
        ReleaseFailed: a step found a reason to stop.
        BuildkitError: a step could not be done.
    """
    run = _Running(context, releases.load(context.state))
    steps = run.steps
    try:
        run.artefact = steps.run(
            "verified",
            lambda: artefact.obtain(context.build_path, context.verify_path, engine=context.engine),
            detail=lambda found: f"{found.digest}, not verified: {', '.join(found.not_verified) or 'nothing'}",
        )
        run.name = artefact.tag_of(run.artefact, run.known)
        name, digest = f"{context.repository}:{run.name}", run.artefact.digest
        steps.run("tagged", lambda: _tag(context.engine, digest, name), detail=lambda _: name)
        sent = steps.run("pushed", lambda: _push(context, run), detail=_sent)
        run.bytes_sent = sent.bytes_sent
        run.find_old()
        _put_in_place(context, run)
    except BaseException as error:
        _taken_back(context, run, error)
        raise
    record = run.record("serving")
    releases.save(context.state, run.known.with_release(record))
    return record


def _put_in_place(context: Stage, run: _Running) -> None:
    """From pushed images to measured traffic."""
    steps = run.steps
    if run.old is None:
        steps.run("deployed", run.deploy_first, undo=run.undo_first)
        with inside.key_for_checks(run.new) as key:
            found = inside.plan(run.new, run.new.container())
            run.migrations = Migrations(before=None, after=found.current)
            _judge(run, key, {}, None)
    elif not run.answers():
        context.tell("the serving release does not answer: there is nothing to compare with, nor to keep serving")
        _prepare_schema(context, run)
        try:
            run.new.wait_candidate(seconds=context.spec.staging.update_seconds, step="tried")
            with inside.key_for_checks(run.new, "candidate") as key:
                steps.run("tried", lambda: _try_candidate(run, key, {}), detail=_checked)
                _replace_parts(run)
                steps.run("updated", run.update, undo=run.undo_update)
                _judge(run, key, {}, None)
        finally:
            run.new.stop_candidate()
    else:
        with inside.key_for_checks(run.old) as key:
            load = Load(lambda: context.client(key), workers=_UPDATE_WORKERS, pause_seconds=_UPDATE_PAUSE_SECONDS)
            served = steps.run("compared", lambda: run.compare(key, load), detail=_measured)
            try:
                _prepare_schema(context, run)
                run.new.wait_candidate(seconds=context.spec.staging.update_seconds, step="tried")
                steps.run("tried", lambda: _try_candidate(run, key, load.vectors()), detail=_checked)
            finally:
                run.new.stop_candidate()
            _replace_parts(run)
            steps.run("updated", lambda: run.update_under(load), detail=_loaded, undo=run.undo_update)
            _judge(run, key, load.vectors(), served)


def _prepare_schema(context: Stage, run: _Running) -> None:
    """Starts the candidate, and brings the schema to where its code needs it."""
    found = run.steps.run("planned", lambda: _plan(context, run), detail=_planned)
    run.migrations = Migrations(before=found.current, after=found.target)
    image, before = run.new.images["api"], found.current
    if found.direction == "up":
        run.steps.run(
            "migrated",
            lambda: run.migrate(image),
            detail=lambda _: f"{found.current} to {found.target}",
            undo=lambda: run.migrate_back(before, image),
        )


def _replace_parts(run: _Running) -> None:
    if run.changes_parts:
        run.steps.run("parts", run.update_parts, detail=lambda _: "PostgreSQL or the proxy have another image")


def _judge(run: _Running, key: Key, vectors: Mapping[str, list[float]], served: Window | None) -> None:
    run.steps.run("integrated", lambda: run.integrate(key, vectors), detail=_checked)
    run.steps.run("measured", lambda: run.measure(key, served), detail=_measured)


def _tag(engine: Engine, digest: str, name: str) -> None:
    engines.docker(engine.host, "image", "tag", digest, name)


def _push(context: Stage, run: _Running) -> Pushed:
    """The API's image, and the parts beside it where the registry does not have them."""
    if run.artefact is None:
        raise ReleaseFailed("pushed", "nothing was verified")
    digests = {"api": run.artefact.digest, **{part: context.part(part) for part in ("postgres", "proxy")}}
    images: dict[str, str] = {}
    pushed: list[Pushed] = []
    for part, digest in digests.items():
        repository = context.repository if part == "api" else f"{context.repository.removesuffix('-api')}-{part}"
        tag = run.name if part == "api" else digest.removeprefix("sha256:")[:12]
        _tag(context.engine, digest, f"{repository}:{tag}")
        done = push(context.engine, digest=digest, repository=repository, tag=tag, tell=context.tell)
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


def _plan(context: Stage, run: _Running) -> SchemaPlan:
    """Starts the candidate and asks its code what it would do to the schema.

    Raises:
        ReleaseFailed: the serving release would not work on the new schema, or the database is ahead of this code.
    """
    container = run.new.start_candidate(run.new.images["api"], seconds=_STARTED_SECONDS, step="planned")
    try:
        found = inside.plan(run.new, container)
    except ReleaseFailed:
        run.new.must_live("candidate", step="planned")  # one that has ended says more than a broken pipe
        raise
    if found.direction == "down":
        reason = f"the schema is at {found.current}, this release's code is older ({found.target})"
        raise ReleaseFailed("planned", f"{reason}; to go back, run `nox -s rollback`")
    if found.direction == "up" and not found.is_served and not context.allows_gap:
        reason = f"migration {found.target} does not say that code of {found.current} works on its schema (`serves`)"
        raise ReleaseFailed("planned", f"{reason}, so the serving release would stop; `-- --allow-gap` takes that on")
    return found


def _try_candidate(run: _Running, key: Key, vectors: Mapping[str, list[float]]) -> Outcome:
    """The suite inside the new release while the old one has all traffic."""
    outcome = inside.check_inside(run.new, run.new.container("candidate"), key, vectors)
    if outcome.wrong:
        raise ReleaseFailed("tried", "; ".join(outcome.wrong))
    return outcome


def _taken_back(context: Stage, run: _Running, error: BaseException) -> None:
    """Undoes the steps and records the attempt, unless nothing left this machine yet."""
    step = run.steps.current
    said = run.steps.undo()
    if isinstance(error, ReleaseFailed):
        serving = f"{run.serving.name} serves on" if run.serving else "nothing served before, and nothing does now"
        error.serving = "\n".join([*said, serving])
    else:
        for line in said:
            context.tell(line)
    if not run.new.images:
        return
    outcome: releases.Outcome = "failed" if isinstance(error, Exception) else "interrupted"
    reason = error.reason if isinstance(error, ReleaseFailed) else str(error) or type(error).__name__
    record = run.record(outcome, failed_step=step, reason=reason)
    releases.save(context.state, run.known.with_release(record))


# ---- rollback -------------------------------------------------------------------------------------------------------


def roll_back(context: Stage, name: str | None) -> Release:
    """Brings an earlier release back, its schema included where nothing is lost by that.

    Nothing is asked of the release that serves: it may be the reason. What the earlier one is found to do wrong
    afterwards is recorded and told (`reason` of the record), and is no reason to leave it again.

    The caller holds the lock.

    Raises:
        UsageError: there is no such release.
        ReleaseFailed: going back would lose data, or the earlier release does not start; the one that served serves on.
    """
    known = releases.load(context.state)
    run = _Running(context, known)
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
        found = steps.run("planned", lambda: _plan_back(context, run, target), detail=_planned)
        moves = found.direction != "none" and not (found.direction == "down" and context.keeps_schema)
        run.migrations = Migrations(before=found.current, after=found.target if moves else found.current)
        # The newer code alone knows the way. Where the older one works on both schemas, it serves before the change.
        newer = target.image if found.direction == "up" else old.images["api"]
        is_first = found.direction == "up" or not found.is_served
        if moves and is_first:
            _move(run, found, newer)
        steps.run("updated", run.update, undo=run.undo_update)
        if moves and not is_first:
            _move(run, found, newer)
    except BaseException as error:
        _taken_back(context, run, error)
        raise
    reason = _look_at(context, run)
    record = msgspec.structs.replace(
        run.record("serving", reason=reason), version=target.version, revision=target.revision, bytes_sent=0
    )
    kept = msgspec.structs.replace(known, releases=known.retired("rolled back"))
    releases.save(context.state, kept.with_release(record))
    return record


def _look_at(context: Stage, run: _Running) -> str:
    """What the suite and the metrics find wrong with what serves now; "" where nothing."""
    try:
        with inside.key_for_checks(run.new) as key:
            _judge(run, key, {}, None)
    except (ReleaseFailed, CommandFailed) as error:
        context.tell(f"went back, and found: {error}")
        return str(error)
    return ""


def _must_run(run: _Running) -> Stack:
    if run.old is None:
        raise ReleaseFailed("found", "the stack does not run; `nox -s stage` starts it")
    return run.old


def _move(run: _Running, found: SchemaPlan, image: str) -> None:
    run.steps.run(
        "migrated",
        lambda: run.migrate(image, found.target),
        detail=lambda _: f"{found.current} to {found.target}",
        undo=lambda: _move_again(run, found, image),
    )


def _move_again(run: _Running, found: SchemaPlan, image: str) -> str:
    run.migrate(image, found.current or "head")
    return f"the schema is at {found.current} again"


def _fetch(context: Stage, image: str) -> None:
    try:
        engines.docker(context.engine.host, "pull", "--quiet", image, seconds=context.spec.staging.update_seconds)
    except CommandFailed as error:
        raise RegistryFailed(image.partition("/")[0], error.log_tail or str(error)) from error


def _plan_back(context: Stage, run: _Running, target: Release) -> SchemaPlan:
    """What going back means for the schema, by the newer code, which alone knows the way.

    Raises:
        ReleaseFailed: it would lose data, or it cannot be found out.
    """
    revision = target.migrations.after if target.migrations else None
    now = run.serving.migrations.after if run.serving and run.serving.migrations else None
    if revision is None:
        raise ReleaseFailed("planned", f"it is not known which schema {run.name} worked on")
    if revision == now:
        return SchemaPlan(revision, revision, "none", (), is_served=True, losses=())
    found = _ask_either(run, revision)
    if found.direction != "down":
        return found
    if found.losses and not context.keeps_schema:
        hint = "; `-- --keep-schema` takes the code alone back" if found.is_served else ""
        raise ReleaseFailed("planned", f"going back would lose data: {'; '.join(found.losses)}{hint}")
    if context.keeps_schema and not found.is_served:
        reason = f"code of {found.target} does not work on the schema {found.current}"
        raise ReleaseFailed("planned", f"{reason}: its migration does not say so (`serves`)")
    return found


def _ask_either(run: _Running, revision: str) -> SchemaPlan:
    """The way to *revision* by the code that serves, or by the release that is gone back to, whichever knows it.

    Each is asked in a container without traffic: the replicas that serve may be broken.
    """
    reasons: list[str] = []
    for image in (run.old.images["api"] if run.old else "", run.new.images["api"]):
        try:
            return inside.plan(
                run.new, run.new.start_candidate(image, seconds=_STARTED_SECONDS, step="planned"), revision
            )
        except ReleaseFailed as error:
            reasons.append(error.reason)
        finally:
            run.new.stop_candidate()
    raise ReleaseFailed("planned", "; ".join(reasons))


# ---- how steps are told ---------------------------------------------------------------------------------------------


def _sent(pushed: Pushed) -> str:
    return f"{pushed.bytes_sent / 1e6:,.1f} MB sent, {pushed.bytes_there / 1e6:,.1f} MB were there"


def _planned(found: SchemaPlan) -> str:
    way = " ".join(found.revisions)
    return f"schema {found.current}: nothing to do" if found.direction == "none" else f"schema {found.direction} {way}"


def _checked(outcome: Outcome) -> str:
    return f"{len(outcome.checks)} checks with {outcome.requests} requests, none wrong"


def _loaded(report: Report) -> str:
    return (
        f"{report.requests} requests meanwhile, {report.retried} sent again, none wrong, none lost, "
        f"longest gap {report.longest_gap_seconds:.2f} s"
    )


def _measured(window: Window) -> str:
    slowest = max(window.p95_seconds.values(), default=0.0)
    return f"{window.requests} requests, p95 {slowest:.3f} s, error fraction {window.error_fraction:.4f}"
