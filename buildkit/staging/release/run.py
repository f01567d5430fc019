"""A release or a rollback while it is made: what is known of it so far, and what both do to the stack."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping  # noqa: TC003  # fields of a dataclass
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003  # the same
from typing import TYPE_CHECKING, Final

from buildkit.errors import CommandFailed, ReleaseFailed
from buildkit.staging.probes import container_exec, metrics, smoke_tests
from buildkit.staging.probes.client import Client, RequestTimedOut
from buildkit.staging.probes.load import Load
from buildkit.staging.release import records
from buildkit.staging.release.records import Migrations, Release, Releases
from buildkit.staging.release.steps import Steps

if TYPE_CHECKING:
    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec
    from buildkit.staging.probes.container_exec import ApiKey, SchemaPlan
    from buildkit.staging.probes.load import LoadReport
    from buildkit.staging.probes.smoke_tests import SmokeTestReport
    from buildkit.staging.release.records import TrafficMetrics
    from buildkit.staging.release.verified_image import VerifiedImage
    from buildkit.staging.stack.stack import Stack

__all__ = ["STARTED_SECONDS", "ReleaseContext", "ReleaseRun", "checked", "loaded", "measured", "planned"]

STARTED_SECONDS: Final = 120.0
"""How long the database, the proxy or a job may take to start (a generous guess: images may have to be pulled)."""
_ANSWER_SECONDS: Final = 20.0
"""How long what serves may be silent before it counts as broken (a guess: above a restart of the proxy)."""
_OK: Final = 200
_COMMAND: Final = "setpriv --no-new-privs python -m service migrate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseContext:
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
    log: Callable[[str], None]
    part: Callable[[str], str] = field(default=lambda _: "")
    allows_gap: bool = False
    keeps_schema: bool = False


class ReleaseRun:
    """A release while it is made: what is known of it so far."""

    def __init__(self, context: ReleaseContext, known: Releases) -> None:
        self.context = context
        self.known = known
        self.serving = known.serving
        self.steps = Steps(context.log)
        self.started = records.now()
        self.new = context.stack
        self.old: Stack | None = None
        self.name = ""
        self.verified_image: VerifiedImage | None = None
        self.bytes_sent: int | None = None
        self.migrations: Migrations | None = None
        self.counts: dict[str, float] = {}
        self.window: TrafficMetrics | None = None
        self.update_load: Load | None = None

    def record(self, outcome: records.SmokeTestReport, *, failed_step: str = "", reason: str = "") -> Release:
        """What is kept of it."""
        digest = self.new.images["api"].partition("@")[2]
        return Release(
            name=self.name,
            image=self.new.images["api"],
            digest=digest,
            version=self.verified_image.version if self.verified_image else "",
            revision=self.verified_image.revision if self.verified_image else "",
            who=records.who(),
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

    @staticmethod
    def client(stack: Stack, key: ApiKey) -> Client:
        """A client that goes through the stack's proxy."""
        return Client(stack.address, key.secret, ca_file=stack.certificate)

    def answers(self) -> bool:
        """Whether what serves now has a healthy replica here, and the proxy leads to it."""
        stack = self.old or self.new
        try:
            stack.container()
            client = Client(stack.address, ca_file=stack.certificate, retry_seconds=_ANSWER_SECONDS)
            try:
                return client.send("GET", "/livez").status == _OK
            finally:
                client.close()
        except (CommandFailed, RequestTimedOut):
            return False

    def deploy_first(self) -> None:
        """Everything at once: there is nothing to keep serving."""
        seconds = self.context.spec.staging.update_seconds
        self.new.deploy()
        for part, patience in (("database", STARTED_SECONDS), ("api", seconds), ("proxy", STARTED_SECONDS)):
            if part == "api":
                self.new.wait_job("migrate", seconds=patience, step="deployed", log=self.context.log)
            self.new.wait_for_rollout(part, began="", seconds=patience, log=self.context.log, step="deployed")

    def undo_first(self) -> str:
        """Nothing served before; the volume stays."""
        self.new.remove(self.context.log)
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
            self.new.wait_for_rollout(part, began="", seconds=STARTED_SECONDS * 2, log=self.context.log, step="parts")

    def update(self) -> None:
        """The engine's rolling update."""
        began = self.new.update_began("api")
        self.new.deploy()
        self.new.wait_for_rollout(
            "api",
            began=began,
            seconds=self.context.spec.staging.update_seconds,
            log=self.context.log,
            step="updated",
            until_digest=self.new.images["api"].partition("@")[2],
        )

    def update_under(self, load: Load) -> LoadReport:
        """The engine's rolling update under a small load of our own, which must notice nothing."""
        with load:
            self.update()
        report = load.report()
        if report.problems:
            raise ReleaseFailed("updated", "under load: " + "; ".join(report.problems))
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
            self.context.log(f"putting {wanted} back")
            self.old.deploy()
        digest = wanted.partition("@")[2]
        with contextlib.suppress(ReleaseFailed):  # `rolled back` is what we wait for here
            self.old.wait_for_rollout(
                "api", began=began, seconds=seconds, log=self.context.log, step="updated", until_digest=digest
            )
        if not any(replica.is_running and replica.digest == digest for replica in self.old.replicas("api")):
            raise ReleaseFailed("updated", f"{wanted} does not run again")
        return f"{wanted} serves"

    def integrate(self, key: ApiKey, vectors: Mapping[str, list[float]]) -> SmokeTestReport:
        """The suite through the proxy."""
        client = self.client(self.new, key)
        outcome = smoke_tests.run(client, baseline=vectors)
        client.close()
        self.counts |= {
            "checks": len(outcome.checks),
            "checks_wrong": len(outcome.failures),
            "requests": outcome.requests,
        }
        if outcome.failures:
            raise ReleaseFailed("integrated", "; ".join(outcome.failures))
        return outcome

    def measure(self, key: ApiKey, before: TrafficMetrics | None) -> TrafficMetrics:
        """The replicas' own metrics over a load of a fixed length, held against the release *before*."""
        self.window, report = self.observe(self.new, key)
        self.counts |= {f"load_{name}": value for name, value in report.counts().items()}
        broken = (*report.problems, *metrics.violations(self.window, self.context.spec.staging.budget, before))
        if broken:
            raise ReleaseFailed("measured", "; ".join(broken))
        return self.window

    def compare(self, key: ApiKey, load: Load) -> TrafficMetrics:
        """Takes the answers and the times of what serves now: minutes later, on the same machine, they are comparable.

        A record of some other day is not: the machine may have been busy then, or may be now.
        """
        load.prepare()
        return self.observe(self.old or self.new, key)[0]

    def observe(self, stack: Stack, key: ApiKey) -> tuple[TrafficMetrics, LoadReport]:
        """Puts load on what serves and looks at its metrics before and after."""
        settings = self.context.spec.staging
        load = Load(lambda: self.client(stack, key), workers=settings.load_workers)
        load.prepare()
        first = container_exec.scrape(stack)
        with load:
            time.sleep(settings.load_seconds)
        return metrics.traffic_between(first, container_exec.scrape(stack)), load.report()

    def migrate_back(self, revision: str | None, image: str) -> str:
        """Brings the schema back to *revision* with the code of *image*, or says why it stays."""
        plan = self.migrations
        if plan is None or revision is None or plan.after == revision:
            return ""
        try:
            self.migrate(image, revision)
        except ReleaseFailed as error:
            return f"the schema stays at {plan.after}: {error.reason}"
        return f"the schema is at {revision} again"

    def migrate(self, image: str, revision: str = "head") -> None:
        """Runs the migration job to *revision*."""
        words = _COMMAND if revision == "head" else f"{_COMMAND} --to {revision}"
        self.new.run_job(
            "migrate", image, seconds=STARTED_SECONDS * 2, step="migrated", log=self.context.log, words=words
        )

    def judge(self, key: ApiKey, vectors: Mapping[str, list[float]], served: TrafficMetrics | None) -> None:
        """The last two steps: the suite through the proxy, then the metrics against those of what served."""
        self.steps.run("integrated", lambda: self.integrate(key, vectors), detail=checked)
        self.steps.run("measured", lambda: self.measure(key, served), detail=measured)

    def take_back(self, error: BaseException) -> None:
        """Undoes the steps and records the attempt, unless nothing left this machine yet."""
        step = self.steps.current
        said = self.steps.undo()
        if isinstance(error, ReleaseFailed):
            serving = (
                f"{self.serving.name} serves on" if self.serving else "nothing served before, and nothing does now"
            )
            error.serving = "\n".join([*said, serving])
        else:
            for line in said:
                self.context.log(line)
        if not self.new.images:
            return
        outcome: records.SmokeTestReport = "failed" if isinstance(error, Exception) else "interrupted"
        reason = error.reason if isinstance(error, ReleaseFailed) else str(error) or type(error).__name__
        record = self.record(outcome, failed_step=step, reason=reason)
        records.save(self.context.state, self.known.with_release(record))


def planned(found: SchemaPlan) -> str:
    """A line about it, for the record."""
    way = " ".join(found.revisions)
    return f"schema {found.current}: nothing to do" if found.direction == "none" else f"schema {found.direction} {way}"


def checked(outcome: SmokeTestReport) -> str:
    """A line about it, for the record."""
    return f"{len(outcome.checks)} checks with {outcome.requests} requests, none wrong"


def loaded(report: LoadReport) -> str:
    """A line about it, for the record."""
    return (
        f"{report.requests} requests meanwhile, {report.retried} sent again, none wrong, none lost, "
        f"longest gap {report.longest_gap_seconds:.2f} s"
    )


def measured(window: TrafficMetrics) -> str:
    """A line about it, for the record."""
    slowest = max(window.p95_seconds.values(), default=0.0)
    return f"{window.requests} requests, p95 {slowest:.3f} s, error fraction {window.error_fraction:.4f}"
