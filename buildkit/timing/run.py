"""Times builds: each scenario of a target, and of a baseline in the same run.

Targets take turns. A turn starts with an empty build cache and a full build. Each change is timed against that full
build. The turn ends with an empty cache again, so that two targets never need disk space at the same time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit import spec as specs
from buildkit.build import base as bases
from buildkit.build import build as builds
from buildkit.errors import BuildFailed, CommandFailed, DiskTooFull
from buildkit.timing import changes
from buildkit.timing.machine import this_machine, written_samples
from buildkit.timing.record import (
    SCHEMA_VERSION,
    BuildTiming,
    Skipped,
    Timings,
    phases_of,
    stages_of,
    steps_of,
    summaries_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit.build.base import BaseImage, Origin
    from buildkit.build.display import BuildDisplay
    from buildkit.build.events import Events
    from buildkit.build.locks import Requirement
    from buildkit.build.record import BuildRecord
    from buildkit.errors import BuildkitError
    from buildkit.spec import ImageSpec, Target
    from buildkit.timing.builder import BenchmarkBuilder
    from buildkit.timing.plan import BenchmarkPlan
    from buildkit.timing.record import CacheState, Scenario

__all__ = ["time_builds"]

_SMALL_BYTES: Final = 1_000_000_000
"""Room for a build that changes only the application (a generous guess)."""


def time_builds(
    plan: BenchmarkPlan,
    builder: BenchmarkBuilder,
    *,
    spec: ImageSpec,
    environment: Mapping[str, str],
    base_origin: Origin,
    cache: Path,
    show: Callable[[Events, str], BuildDisplay],
    log: Callable[[str], None],
    save: Callable[[Timings], None],
) -> Timings:
    """Makes and times every build of *plan*, and returns the timings.

    Clears the cache of *builder*, and replaces and removes images of the targets in its engine.

    Args:
        plan: the builds.
        builder: makes the builds.
        spec: the project; the builds use copies of it.
        environment: the caller's, for build secrets.
        base_origin: the allowed origin of the base image.
        cache: the folder for a base image that is made from Debian's packages.
        show: makes the display of a build's progress, with a title.
        log: gets each line of progress.
        save: called with the timings so far after each build.

    Raises:
        DiskTooFull: a full build has no room.
        UsageError: the project has no such target or dependency, or cannot be changed as planned.
        BuildFailed, CommandFailed, BaseUnavailable: a full build failed. If a changed build fails or has no room, it is
            listed in `skipped`, and the others are timed.
    """
    targets = tuple(spec.target(name) for name in (plan.target, plan.against) if name is not None)
    with tempfile.TemporaryDirectory(prefix="timing-") as scratch:
        folder = Path(scratch)
        changes.copy_project(spec.project, folder / "context")
        base = bases.ensure_base_image(
            builder.engine, reference=spec.base, python=spec.python, origin=base_origin, cache=cache, log=log
        )
        benchmark = _BenchmarkRun(
            plan, builder, folder=folder, spec=spec, base=base, environment=environment, show=show, log=log, save=save
        )
        benchmark.clear(downloads=False)
        for run in range(1, plan.runs + 1):
            for target in targets:
                benchmark.turn(target, run)
        return benchmark.timings()


class _BenchmarkRun:
    """The state of a benchmark: the builds timed so far, and the data that later builds need."""

    def __init__(
        self,
        plan: BenchmarkPlan,
        builder: BenchmarkBuilder,
        *,
        folder: Path,
        spec: ImageSpec,
        base: BaseImage,
        environment: Mapping[str, str],
        show: Callable[[Events, str], BuildDisplay],
        log: Callable[[str], None],
        save: Callable[[Timings], None],
    ) -> None:
        self._plan = plan
        self._builder = builder
        self._folder = folder
        self._original = folder / "context"
        self._work = folder / "work"
        self._project_spec = spec
        self._base = base
        self._environment = environment
        self._show = show
        self._log = log
        self._save = save
        self._started = datetime.now(tz=UTC)
        self._builds: list[BuildTiming] = []
        self._skipped: list[Skipped] = []
        self._versions: dict[str, str] = {}
        self._downloaded: set[str] = builder.downloaded()
        self._full_build_blobs: dict[str, int] = {}
        self._full_build_bytes = 0
        self._releases: list[Requirement] = []
        self._older_torch: tuple[Path, str] | None = None
        if "dependency" in plan.scenarios:
            log(f"querying the package index for other versions of {plan.dependency}")
            self._releases = changes.earlier_releases(self._spec(self._original), plan.dependency, plan.runs)

    def timings(self) -> Timings:
        """Returns the timings so far."""
        return Timings(
            schema_version=SCHEMA_VERSION,
            started=self._started.isoformat(timespec="seconds"),
            machine=this_machine(),
            versions=self._versions,
            builder=self._builder.description,
            base_origin=self._base.origin,
            target=self._plan.target,
            against=self._plan.against,
            runs=self._plan.runs,
            summaries=summaries_of(self._builds, against=self._plan.against),
            builds=tuple(self._builds),
            skipped=tuple(self._skipped),
        )

    def turn(self, target: Target, run: int) -> None:
        """Times one run of all scenarios of *target*, then clears the build cache except for the downloads."""
        wanted = [scenario for scenario in self._plan.scenarios if scenario not in {"cold-empty", "cold"}]
        self._full_build(target, run)
        for scenario in wanted:
            if self._has_room(target, scenario, run):
                try:
                    self._changed_build(target, scenario, run)
                except (BuildFailed, CommandFailed) as error:  # the other scenarios are still timed
                    self._skip(target, scenario, run, error)
        self.clear(downloads=False)

    def _full_build(self, target: Target, run: int) -> None:
        """Makes a full build, and before it one with empty cache mounts if the plan or the cache requires it."""
        key = f"{target.name} {builds.lock_digest(self._spec(self._original), target)}"
        is_first = key not in self._downloaded
        if "cold-empty" in self._plan.scenarios:
            self.clear(downloads=True)
            self._downloaded.clear()
            is_first = True
        if is_first:
            # This build is a sample only if the cache mounts are known to be empty. In a builder of the user they may
            # not be, nor after the build of another target with the same downloads.
            is_sample = "cold-empty" in self._plan.scenarios or (
                self._builder.daemon is not None and not self._downloaded
            )
            self._build(target, "cold-empty", run, layers="empty", downloads="empty", is_sample=is_sample)
            self._downloaded.add(key)
            self._builder.add_downloaded(key)
            if self._plan.scenarios == ("cold-empty",):
                return
            self.clear(downloads=False)
        self._build(target, "cold", run, layers="empty", downloads="warm")

    def _changed_build(self, target: Target, scenario: Scenario, run: int) -> None:
        base, change = self._base, ""
        if scenario == "code":
            change = changes.change_code(self._fresh(), run)
        elif scenario == "dependency":
            change = changes.change_dependency(self._spec(self._fresh()), self._releases[run - 1])
        elif scenario == "torch":
            context, change = self._with_older_torch()
            _copy_tree(context, self._work)
        elif scenario == "base":
            self._fresh()
            base = changes.change_base(self._builder.engine, self._base, run, self._folder)
            change = "a base image of new layers"
        else:
            self._fresh()
        self._build(target, scenario, run, layers="warm", downloads="warm", change=change, base=base)

    def _with_older_torch(self) -> tuple[Path, str]:
        """Returns a copy of the project that pins an older torch, and the change in words; resolves the lock once."""
        if self._older_torch is None:
            copy = self._folder / "torch"
            _copy_tree(self._original, copy)
            self._log("resolving the lock with an older torch")
            self._older_torch = copy, changes.change_torch(copy)
        return self._older_torch

    def _fresh(self) -> Path:
        """Restores the build context to the original and returns its folder, the same for every build."""
        _copy_tree(self._original, self._work)
        return self._work

    def _spec(self, project: Path) -> ImageSpec:
        return specs.load(project, base=self._project_spec.base, python=self._project_spec.python)

    def clear(self, *, downloads: bool) -> None:
        """Removes the images of the targets and clears the build cache; with *downloads* the cache mounts too."""
        self._log("clearing the build cache" + (" and its downloads" if downloads else ""))
        for name in filter(None, (self._plan.target, self._plan.against)):
            tag = builds.tag_of(self._project_spec, self._project_spec.target(name))
            self._builder.remove_image(tag)
            self._builder.remove_image(builds.previous_tag(tag))
        for run in range(1, self._plan.runs + 1):
            self._builder.remove_image(changes.base_tag(run))
        self._builder.clear_cache(downloads=downloads)

    def _has_room(self, target: Target, scenario: Scenario, run: int) -> bool:
        """Returns whether a changed build has room; skips it if not. At worst it needs as much as the full build."""
        free_bytes = self._builder.free_bytes()
        needed_bytes = _SMALL_BYTES if scenario in {"no-op", "code"} else max(_SMALL_BYTES, self._full_build_bytes)
        if free_bytes is None or free_bytes >= needed_bytes:
            return True
        refusal = DiskTooFull(str(self._builder.engine.root), target.name, needed_bytes, free_bytes)
        self._skip(target, scenario, run, refusal)
        return False

    def _skip(self, target: Target, scenario: Scenario, run: int, error: BuildkitError) -> None:
        self._log(f"{target.name}, {scenario}: {error}")
        reason = f"{error.stage}: {error.instruction}" if isinstance(error, BuildFailed) else str(error)
        self._skipped.append(Skipped(target.name, scenario, run, " ".join(reason.split())))
        self._save(self.timings())

    def _build(
        self,
        target: Target,
        scenario: Scenario,
        run: int,
        *,
        layers: CacheState,
        downloads: CacheState,
        change: str = "",
        base: BaseImage | None = None,
        is_sample: bool = True,
    ) -> None:
        is_full = layers == "empty"
        if is_full:
            self._fresh()
        self._log(f"run {run} of {self._plan.runs}: {target.name}, {scenario}" + (f" ({change})" if change else ""))
        os.sync()  # so that no build waits for the writes of an earlier one
        free_bytes = self._builder.free_bytes()
        load_average = os.getloadavg()[0]
        with written_samples(self._builder) as written:
            record = builds.build(
                self._spec(self._work),
                target,
                engine=self._builder.engine,
                base=base or self._base,
                environment=self._environment,
                folder=self._folder / "records",
                show=lambda events: self._show(events, f"{target.name}, {scenario}, run {run}"),
                check_disk=is_full,
                network=self._builder.network,
            )
        self._versions = record.versions
        blobs = self._builder.blobs(record.digest)
        known = {} if is_full else self._full_build_blobs
        if is_full:
            self._full_build_blobs = blobs
            self._full_build_bytes = (free_bytes or 0) - (self._builder.free_bytes() or 0)
        if is_sample:
            timing = _timing(
                record,
                scenario=scenario,
                run=run,
                change=change,
                layer_cache=layers,
                download_cache=downloads,
                load_average=load_average,
                written=written,
                transfer_bytes=sum(size for digest, size in blobs.items() if digest not in known),
            )
            self._builds.append(timing)
            self._save(self.timings())


def _timing(
    record: BuildRecord,
    *,
    scenario: Scenario,
    run: int,
    change: str,
    layer_cache: CacheState,
    download_cache: CacheState,
    load_average: float,
    written: Sequence[tuple[float, int]],
    transfer_bytes: int,
) -> BuildTiming:
    began = datetime.fromisoformat(record.started).timestamp()
    return BuildTiming(
        target=record.target,
        scenario=scenario,
        run=run,
        change=change,
        layer_cache=layer_cache,
        download_cache=download_cache,
        started=record.started,
        load_average=round(load_average, 2),
        seconds=record.seconds,
        digest=record.digest,
        written_bytes=written[-1][1] - written[0][1] if written else None,
        transfer_bytes=transfer_bytes,
        phases=phases_of(record.steps, began, written),
        stages=stages_of(record.steps),
        steps=steps_of(record.steps, began),
    )


def _copy_tree(source: Path, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy, symlinks=True)
