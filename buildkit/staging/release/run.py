"""Holds the inputs and the state of one release or rollback, and undoes and records it if it fails."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from buildkit.errors import ReleaseFailed
from buildkit.staging.release import records
from buildkit.staging.release.probes import Probes, ServiceProbes
from buildkit.staging.stack.services import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec
    from buildkit.staging.probes.container_exec import ApiKey, MigrationPlan
    from buildkit.staging.probes.metrics import TrafficMetrics
    from buildkit.staging.release.probes import BackgroundLoad
    from buildkit.staging.release.records import Release, ReleaseOutcome, Releases
    from buildkit.staging.release.steps import StepRunner
    from buildkit.staging.stack.orchestrator import Orchestrator

__all__ = ["Baseline", "ReleaseContext", "ReleaseRun", "undo_on_failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseContext:
    """The inputs of a release or rollback.

    Attributes:
        spec: docker/images.toml; its `staging` table holds times and the budget.
        engine: holds the image, and pushes it to the registry.
        build_path, verify_path: the records of build and verification.
        state: the folder with releases.json and the secrets.
        stack: the deployment, with the settings that this release should have.
        repository: registry and path of the API's image, as host:port/truthgraph-api.
        log: gets the progress lines.
        sidecar: service -> digest of its image in the engine, built if needed.
        probes: asks the running service.
        allow_downtime: migrate even if the serving release does not work on the new schema.
        keep_schema: roll back the code only.
    """

    spec: ImageSpec
    engine: Engine
    build_path: Path
    verify_path: Path
    state: Path
    stack: Orchestrator
    repository: str
    log: Callable[[str], None]
    sidecar: Callable[[str], str]
    probes: Probes = field(default_factory=ServiceProbes)
    allow_downtime: bool = False
    keep_schema: bool = False


@dataclass(frozen=True, slots=True)
class Baseline:
    """The behaviour of the serving release just before the rollout.

    It is measured minutes before, on the same machine. Figures of another day are not comparable, because the load of
    the machine differs.

    Attributes:
        load: knows the serving release's answers, which the new one must give too.
        metrics: of the serving release under the load of `measure`.
    """

    load: BackgroundLoad
    metrics: TrafficMetrics


@dataclass(slots=True)
class ReleaseRun:
    """The state of one release or rollback in progress. Steps read and fill it.

    Attributes:
        context: the inputs.
        history: releases.json as it was at the start.
        old: the deployment as it was at the start, to be restored after a failure; None if nothing is deployed.
        new: the deployment after the release.
        record: the release so far; it is written to releases.json at the end.
        target: the earlier release that a rollback returns to.
        plan: the planned change of the schema.
        baseline: the behaviour of the serving release; None if there was nothing to measure.
        key: an API key for the probes.
        cleanup: removes the key at the end.
    """

    context: ReleaseContext
    history: Releases
    old: Orchestrator | None
    new: Orchestrator
    record: Release
    target: Release | None = None
    plan: MigrationPlan | None = None
    baseline: Baseline | None = None
    key: ApiKey | None = None
    cleanup: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def begin(cls, context: ReleaseContext) -> ReleaseRun:
        """Returns the state before the first step.

        Raises:
            InvalidFile: releases.json cannot be read.
            CommandFailed: the engine does not answer.
        """
        stack, history = context.stack, records.load(context.state)
        old = None
        if stack.exists("api"):
            images = {service: stack.image(service) for service in SERVICES}
            old = stack.with_release(images, history.serving.settings if history.serving else stack.settings)
        return cls(context=context, history=history, old=old, new=stack, record=records.new_release())

    def deployed(self) -> Orchestrator:
        """Returns `old`.

        Raises:
            ReleaseFailed: nothing is deployed.
        """
        if self.old is None:
            raise ReleaseFailed("the stack does not run; `nox -s stage` starts it")
        return self.old

    def api_key(self, stack: Orchestrator, service: str = "api") -> ApiKey:
        """Returns the key for the probes; the first call creates it in a container of *service*."""
        if self.key is None:
            self.key = self.cleanup.enter_context(self.context.probes.api_key(stack, service))
        return self.key

    def finish(
        self, outcome: ReleaseOutcome, runner: StepRunner[ReleaseRun], *, failed_step: str = "", reason: str = ""
    ) -> Release:
        """Returns the complete record."""
        self.record = structs.replace(
            self.record, outcome=outcome, failed_step=failed_step, reason=reason, steps=tuple(runner.records)
        )
        return self.record


@contextmanager
def undo_on_failure(run: ReleaseRun, runner: StepRunner[ReleaseRun]) -> Iterator[None]:
    """Undoes the steps and records the attempt if the block fails or is interrupted; raises the error again.

    A `ReleaseFailed` also gets the name of the release that serves now. An attempt that ended before its images were in
    the registry is not recorded: nothing outside this machine changed.
    """
    try:
        with run.cleanup:
            yield
    except BaseException as error:
        failed_step = runner.current
        lines: list[str] = []
        try:
            lines = runner.undo()
        finally:
            if isinstance(error, ReleaseFailed):
                error.serving = "\n".join([*lines, _serving(run, runner)])
            if run.record.image:
                outcome: ReleaseOutcome = "failed" if isinstance(error, Exception) else "interrupted"
                reason = error.reason if isinstance(error, ReleaseFailed) else str(error) or type(error).__name__
                record = run.finish(outcome, runner, failed_step=failed_step, reason=reason)
                records.save(run.context.state, run.history.with_release(record))
        raise


def _serving(run: ReleaseRun, runner: StepRunner[ReleaseRun]) -> str:
    if not runner.is_undone:
        return "not everything was undone: `nox -s stage-status` shows the serving release"
    serving = run.history.serving
    return f"{serving.name} is still serving" if serving else "no release is serving, as before"
