"""Times builds: each scenario of each target in turn, a baseline's beside it in the same run.

A turn starts with an empty builder cache and a full build; every change is then timed against that full build, and at
the end of the turn the cache is emptied again, so that two targets never need their room at once.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit import spec as specs
from buildkit.build import base as bases
from buildkit.build import build as builds
from buildkit.errors import BuildFailed, CommandFailed, DiskTooFull, UsageError
from buildkit.timing import changes
from buildkit.timing.record import (
    SCENARIOS,
    SCHEMA_VERSION,
    BuildTiming,
    Machine,
    Skipped,
    Timings,
    phases_of,
    stages_of,
    steps_of,
    summaries_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit.build.base import Base, Origin
    from buildkit.build.display import BuildDisplay
    from buildkit.build.events import Events
    from buildkit.build.locks import Requirement
    from buildkit.build.record import BuildRecord
    from buildkit.errors import BuildkitError
    from buildkit.spec import ImageSpec, Target
    from buildkit.timing.builder import CacheScope
    from buildkit.timing.record import CacheState, Scenario

__all__ = ["BenchmarkPlan", "time_builds"]

_SAMPLE_SECONDS: Final = 0.05
_SMALL_BYTES: Final = 1_000_000_000
"""Room for a build that changes the application only (a generous guess)."""


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """What to time.

    Attributes:
        target: by its name in docker/images.toml.
        against: the baseline's name, None for none.
        scenarios: a full build is made in any case, and recorded as what it was.
        runs: how often each is timed.
        dependency: the locked distribution whose release the dependency scenario changes.
    """

    target: str
    against: str | None
    scenarios: tuple[Scenario, ...]
    runs: int
    dependency: str

    def __post_init__(self) -> None:
        """Refuses what cannot be timed.

        Raises:
            UsageError: no run, a target against itself, or an unknown scenario.
        """
        if self.runs < 1:
            raise UsageError("runs", self.runs, "at least 1; the median of 3 or more says more")
        if self.against == self.target:
            raise UsageError("against", self.against, "another target than the one that is timed")
        for scenario in self.scenarios:
            if scenario not in SCENARIOS:
                raise UsageError("scenario", scenario, f"one of {', '.join(SCENARIOS)}")


def time_builds(
    plan: BenchmarkPlan,
    scope: CacheScope,
    *,
    spec: ImageSpec,
    environment: Mapping[str, str],
    base_origin: Origin,
    cache: Path,
    show: Callable[[Events, str], BuildDisplay],
    log: Callable[[str], None],
    keep: Callable[[Timings], None],
) -> Timings:
    """Time every build of *plan* in *scope* and return all samples; *keep* gets what there is after each build.

    Side effects: the cache of *scope* is emptied, images of the targets come and go in it. *cache* is where a base that
    is made from Debian's packages is kept.

    Raises:
        DiskTooFull: not even the first full build has room.
        UsageError: the plan does not fit the project.
        BuildFailed, CommandFailed, BaseUnavailable: as `build` and `base.obtain` do, for a full build. A change that
            has no room or does not build is listed in `not_run`, and the rest is timed.
    """
    targets = tuple(spec.target(name) for name in (plan.target, plan.against) if name is not None)
    with tempfile.TemporaryDirectory(prefix="timing-") as scratch:
        folder = Path(scratch)
        changes.copy_project(spec.project, folder / "context")
        base = bases.ensure_base_image(
            scope.engine, reference=spec.base, python=spec.python, origin=base_origin, cache=cache, log=log
        )
        bench = _BenchmarkRun(
            plan, scope, folder=folder, spec=spec, base=base, environment=environment, show=show, log=log, keep=keep
        )
        bench.clear(downloads=False)
        for run in range(1, plan.runs + 1):
            for target in targets:
                bench.turn(target, run)
        return bench.timings()


class _BenchmarkRun:
    """Holds what was timed so far; `turn` is called for each target and run, one after the other."""

    def __init__(
        self,
        plan: BenchmarkPlan,
        scope: CacheScope,
        *,
        folder: Path,
        spec: ImageSpec,
        base: Base,
        environment: Mapping[str, str],
        show: Callable[[Events, str], BuildDisplay],
        log: Callable[[str], None],
        keep: Callable[[Timings], None],
    ) -> None:
        self._plan = plan
        self._scope = scope
        self._folder = folder
        self._pristine = folder / "context"
        self._work = folder / "work"
        self._user_spec = spec
        self._base = base
        self._environment = environment
        self._show = show
        self._say = log
        self._keep = keep
        self._started = datetime.now(tz=UTC)
        self._builds: list[BuildTiming] = []
        self._not_run: list[Skipped] = []
        self._versions: dict[str, str] = {}
        self._warm: set[str] = scope.downloaded()
        self._full: dict[str, int] = {}
        self._full_bytes = 0
        self._releases: list[Requirement] = []
        self._older_torch: tuple[Path, str] | None = None
        if "dependency" in plan.scenarios:
            log(f"asking the package index for other releases of {plan.dependency}")
            self._releases = changes.lower(self._spec(self._pristine), plan.dependency, plan.runs)

    def timings(self) -> Timings:
        """Return all that was timed so far."""
        return Timings(
            schema_version=SCHEMA_VERSION,
            started=self._started.isoformat(timespec="seconds"),
            machine=_machine(),
            versions=self._versions,
            cache_scope=self._scope.description,
            base_origin=self._base.origin,
            target=self._plan.target,
            against=self._plan.against,
            runs=self._plan.runs,
            summaries=summaries_of(self._builds, against=self._plan.against),
            builds=tuple(self._builds),
            not_run=tuple(self._not_run),
        )

    def turn(self, target: Target, run: int) -> None:
        """Time one run of all scenarios of *target*, and leave the cache without a layer of it."""
        wanted = [scenario for scenario in self._plan.scenarios if scenario not in {"cold-empty", "cold"}]
        self._full_build(target, run)
        for scenario in wanted:
            if self._has_room(target, scenario, run):
                try:
                    self._changed_build(target, scenario, run)
                except (BuildFailed, CommandFailed) as error:  # what was timed before stays, and so does what follows
                    self._leave_out(target, scenario, run, error)
        self.clear(downloads=False)

    def _full_build(self, target: Target, run: int) -> None:
        """Build without a known step: with empty downloads where that was asked for or is so, with warm ones after."""
        key = f"{target.name} {builds.lock_digest(self._spec(self._pristine), target)}"
        is_first = key not in self._warm
        if "cold-empty" in self._plan.scenarios:
            self.clear(downloads=True)
            self._warm.clear()
            is_first = True
        if is_first:
            # a build that fills the downloads is a sample only where they are known to be empty: not in a user's
            # builder, and not after another target, which may share them
            is_sample = "cold-empty" in self._plan.scenarios or (self._scope.private is not None and not self._warm)
            self._build(target, "cold-empty", run, layers="empty", downloads="empty", is_sample=is_sample)
            self._warm.add(key)
            self._scope.remember(key)
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
            base = changes.change_base(self._scope.engine, self._base, run, self._folder)
            change = "a base of new layers"
        else:
            self._fresh()
        self._build(target, scenario, run, layers="warm", downloads="warm", change=change, base=base)

    def _with_older_torch(self) -> tuple[Path, str]:
        """Return a copy of the project that pins an older torch; it is resolved once."""
        if self._older_torch is None:
            copy = self._folder / "torch"
            _copy_tree(self._pristine, copy)
            self._say("resolving the lock with an older torch")
            self._older_torch = copy, changes.change_torch(copy)
        return self._older_torch

    def _fresh(self) -> Path:
        """Make the context that is built as it was in the beginning; always in the same place, as a user's is."""
        _copy_tree(self._pristine, self._work)
        return self._work

    def _spec(self, project: Path) -> ImageSpec:
        return specs.load(project, base=self._user_spec.base, python=self._user_spec.python)

    def clear(self, *, downloads: bool) -> None:
        """Remove the images that were made, and empty the cache."""
        self._say("emptying the builder's cache" + (", downloads too" if downloads else ""))
        for name in filter(None, (self._plan.target, self._plan.against)):
            tag = builds.tag_of(self._user_spec, self._user_spec.target(name))
            self._scope.remove_image(tag)
            self._scope.remove_image(builds.previous_tag(tag))
        for run in range(1, self._plan.runs + 1):
            self._scope.remove_image(changes.base_tag(run))
        self._scope.empty(downloads=downloads)

    def _has_room(self, target: Target, scenario: Scenario, run: int) -> bool:
        """Whether a changed build has room: in the worst case it takes as much again as the full build did."""
        free_bytes = self._scope.free_bytes()
        needed_bytes = _SMALL_BYTES if scenario in {"no-op", "code"} else max(_SMALL_BYTES, self._full_bytes)
        if free_bytes is None or free_bytes >= needed_bytes:
            return True
        refusal = DiskTooFull(str(self._scope.engine.root), target.name, needed_bytes, free_bytes)
        self._leave_out(target, scenario, run, refusal)
        return False

    def _leave_out(self, target: Target, scenario: Scenario, run: int, error: BuildkitError) -> None:
        self._say(f"{target.name}, {scenario}: {error}")
        reason = f"{error.stage}: {error.instruction}" if isinstance(error, BuildFailed) else str(error)
        self._not_run.append(Skipped(target.name, scenario, run, " ".join(reason.split())))
        self._keep(self.timings())

    def _build(
        self,
        target: Target,
        scenario: Scenario,
        run: int,
        *,
        layers: CacheState,
        downloads: CacheState,
        change: str = "",
        base: Base | None = None,
        is_sample: bool = True,
    ) -> None:
        is_full = layers == "empty"
        if is_full:
            self._fresh()
        self._say(f"run {run} of {self._plan.runs}: {target.name}, {scenario}" + (f" ({change})" if change else ""))
        os.sync()  # so that no build pays for what an earlier one wrote
        free_bytes = self._scope.free_bytes()
        load_average = os.getloadavg()[0]
        with _writes(self._scope) as written:
            record = builds.build(
                self._spec(self._work),
                target,
                engine=self._scope.engine,
                base=base or self._base,
                environment=self._environment,
                folder=self._folder / "records",
                show=lambda events: self._show(events, f"{target.name}, {scenario}, run {run}"),
                check_disk=is_full,
                network=self._scope.network,
            )
        self._versions = record.versions
        blobs = self._scope.blobs(record.digest)
        if is_full:
            self._full = blobs
            if free_bytes is not None:
                self._full_bytes = free_bytes - (self._scope.free_bytes() or 0)
        if not is_sample:
            return
        transfer_bytes = sum(size for digest, size in blobs.items() if is_full or digest not in self._full)
        self._builds.append(
            _timing(
                record,
                scenario=scenario,
                run=run,
                change=change,
                layer_cache=layers,
                download_cache=downloads,
                load_average=load_average,
                written=written,
                transfer_bytes=transfer_bytes,
            )
        )
        self._keep(self.timings())


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


@contextmanager
def _writes(scope: CacheScope) -> Iterator[list[tuple[float, int]]]:
    """Collect samples for the length of the block: the moment, and what the engine wrote until then."""
    samples: list[tuple[float, int]] = []
    is_over = threading.Event()

    def sample() -> None:
        count = scope.written_bytes()
        if count is not None:
            samples.append((time.time(), count))

    def watch() -> None:
        while not is_over.wait(_SAMPLE_SECONDS):
            sample()

    sample()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        is_over.set()
        thread.join()
        sample()


def _machine() -> Machine:
    """This machine; the engine's where it is another is not asked."""
    facts = platform.freedesktop_os_release()
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return Machine(
        system=f"{facts.get('PRETTY_NAME', 'unknown')}, Linux {platform.release()}",
        processor=processor,
        cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
