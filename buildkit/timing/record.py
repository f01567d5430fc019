"""Defines the timings of builds, saved as JSON: each build with its phases, stages and steps, and the medians.

Seconds are wall time. The phases of a build come from BuildKit's events and may overlap: a stage can start while the
context is being sent.
    context  sends the Dockerfile, .dockerignore and the files of the context
    resolve  looks up base images and named contexts
    steps    runs the Dockerfile's instructions, of all stages at once
    export   writes layers, configuration and manifest, compressed or not
    unpack   unpacks the image's layers, so that containers can start
`seconds` of a phase is the time in which at least one of its steps ran. In the rest of a
build's `seconds` the client starts or waits for the builder.

The published schema of the file is `timings.schema.json` in this folder.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from buildkit import jsonfile
from buildkit.build.events import Step

__all__ = [
    "SCENARIOS",
    "SCHEMA_VERSION",
    "BuildTiming",
    "Machine",
    "Phase",
    "PhaseName",
    "Scenario",
    "Skipped",
    "StageTiming",
    "StepTiming",
    "Summary",
    "Timings",
    "load",
    "phases_of",
    "save",
    "schema",
    "stages_of",
    "steps_of",
    "summaries_of",
]

SCHEMA_VERSION: Final = 2

Scenario = Literal["cold-empty", "cold", "no-op", "code", "dependency", "torch", "base"]
SCENARIOS: Final[tuple[Scenario, ...]] = get_args(Scenario)
PhaseName = Literal["context", "resolve", "steps", "export", "unpack"]
CacheState = Literal["empty", "warm"]

_CONTEXT: Final = ("load build definition", "load .dockerignore", "load build context")  # BuildKit, dockerui/config.go


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a build.

    Attributes:
        start_seconds: since the build's start.
        written_bytes: bytes that the engine's processes wrote during the phase; those of a container count when it
            ends. None if they cannot be counted or the phase never ran.
    """

    name: PhaseName
    start_seconds: float
    seconds: float
    steps: int
    cached: int
    written_bytes: int | None


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage of the Dockerfile: the time in which at least one of its steps ran, and how many were cached."""

    stage: str
    seconds: float
    steps: int
    cached: int


@dataclass(frozen=True, slots=True)
class StepTiming:
    """One step, or a part of the export."""

    stage: str
    instruction: str
    start_seconds: float
    seconds: float
    is_cached: bool


@dataclass(frozen=True, slots=True)
class BuildTiming:
    """One timed build.

    Attributes:
        run: from 1; the builds of one run follow each other.
        change: the change since the full build before it; "" for none.
        layer_cache: "warm" if the builder had cached steps.
        download_cache: "warm" if the cache mounts held the packages that the target needs.
        started: RFC 3339, UTC.
        load_average: the load average of the minute before the build, which includes earlier builds of this benchmark.
        written_bytes: bytes that the engine's processes wrote; None if they cannot be counted.
        transfer_bytes: the size of the layers that a node with the full build's image must fetch; for a cold build, of
            all layers. None if the engine's store cannot be read.
    """

    target: str
    scenario: Scenario
    run: int
    change: str
    layer_cache: CacheState
    download_cache: CacheState
    started: str
    load_average: float
    seconds: float
    digest: str
    written_bytes: int | None
    transfer_bytes: int | None
    phases: tuple[Phase, ...]
    stages: tuple[StageTiming, ...]
    steps: tuple[StepTiming, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """The builds of one target and scenario; `ratio` is their median divided by the baseline's, or None."""

    target: str
    scenario: Scenario
    seconds: tuple[float, ...]
    median_seconds: float
    median_written_bytes: int | None
    median_transfer_bytes: int | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A build of the plan that could not be timed."""

    target: str
    scenario: Scenario
    run: int
    reason: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of the benchmark."""

    system: str
    processor: str
    cpus: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Timings:
    """The result of a benchmark: timed builds in the order in which they were made.

    Attributes:
        started: RFC 3339, UTC.
        versions: the versions of engine, client, buildx, buildkit (the builder) and toolkit (this program).
        builder: a description of the builder.
        base_origin: the origin of the base image: "registry" or "debian".
        against: the target that is the baseline; None without one.
        skipped: builds of the plan that could not be timed.
    """

    schema_version: int
    started: str
    machine: Machine
    versions: dict[str, str]
    builder: str
    base_origin: str
    target: str
    against: str | None
    runs: int
    summaries: tuple[Summary, ...]
    builds: tuple[BuildTiming, ...]
    skipped: tuple[Skipped, ...]

    def transfer_bytes(self, target: str) -> dict[str, int]:
        """Returns the median `transfer_bytes` of *target* by scenario, for `budget.evaluate`."""
        return {
            each.scenario: each.median_transfer_bytes
            for each in self.summaries
            if each.target == target and each.median_transfer_bytes is not None
        }

    def seconds_ratio(self, target: str) -> dict[str, float]:
        """Returns the ratios of *target* to the baseline by scenario, for `budget.evaluate`."""
        ratios = {each.scenario: each.ratio for each in self.summaries if each.target == target}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None}

    def typical(self, target: str, scenario: Scenario) -> BuildTiming | None:
        """Returns the build with the time nearest to the median, or the earlier of two; None if there is no build."""
        builds = [each for each in self.builds if (each.target, each.scenario) == (target, scenario)]
        if not builds:
            return None
        median = statistics.median(each.seconds for each in builds)
        return min(builds, key=lambda each: abs(each.seconds - median))


def summaries_of(builds: Sequence[BuildTiming], *, against: str | None) -> tuple[Summary, ...]:
    """Returns the summaries of *builds* by target and scenario, in the order in which they first appear."""
    groups: dict[tuple[str, Scenario], list[BuildTiming]] = {}
    for each in builds:
        groups.setdefault((each.target, each.scenario), []).append(each)
    medians = {key: statistics.median(each.seconds for each in group) for key, group in groups.items()}
    found = []
    for (target, scenario), group in groups.items():
        baseline = medians.get((against, scenario)) if against is not None and target != against else None
        median = medians[target, scenario]
        found.append(
            Summary(
                target=target,
                scenario=scenario,
                seconds=tuple(each.seconds for each in group),
                median_seconds=round(median, 3),
                median_written_bytes=_median(each.written_bytes for each in group),
                median_transfer_bytes=_median(each.transfer_bytes for each in group),
                ratio=round(median / baseline, 4) if baseline else None,
            )
        )
    return tuple(found)


def _median(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known)) if known else None


def phases_of(steps: Iterable[Step], began: float, written: Sequence[tuple[float, int]] = ()) -> tuple[Phase, ...]:
    """Returns the phases of a build.

    Args:
        steps: the steps of the build.
        began: the start of the build in seconds since the epoch.
        written: samples in order of time: seconds since the epoch, and bytes written by then.
    """
    intervals: dict[PhaseName, list[tuple[float, float]]] = {name: [] for name in get_args(PhaseName)}
    cached = dict.fromkeys(intervals, 0)
    for step in steps:
        if step.started is None:
            continue
        phase = _phase(step)
        cached[phase] += step.cached
        if phase != "export":
            intervals[phase].append((step.started, step.started + step.seconds))
            continue
        unpacking = [
            (part.started, part.started + part.seconds) for part in step.parts if part.name.startswith("unpacking")
        ]
        intervals["unpack"] += unpacking
        # The rest of the step is the export: BuildKit unpacks last.
        end = min((start for start, _ in unpacking), default=step.started + step.seconds)
        intervals["export"].append((step.started, end))
    found = []
    for name, spans in intervals.items():
        start = min((first for first, _ in spans), default=began)
        end = max((last for _, last in spans), default=began)
        found.append(
            Phase(
                name=name,
                start_seconds=round(start - began, 3),
                seconds=round(_covered(spans), 3),
                steps=len(spans),
                cached=cached[name],
                written_bytes=_between(written, start, end) if spans and written else None,
            )
        )
    return tuple(found)


def _phase(step: Step) -> PhaseName:
    if step.stage == "export":
        return "export"
    if step.stage == "internal" and step.instruction.startswith(_CONTEXT):
        return "context"
    if step.stage in {"internal", "context", "auth"}:
        return "resolve"
    return "steps"


def stages_of(steps: Iterable[Step]) -> tuple[StageTiming, ...]:
    """Returns the stages of the Dockerfile, in the order in which they started."""
    spans: dict[str, list[tuple[float, float]]] = {}
    cached: dict[str, int] = {}
    for step in steps:
        if step.started is not None and _phase(step) == "steps":
            spans.setdefault(step.stage, []).append((step.started, step.started + step.seconds))
            cached[step.stage] = cached.get(step.stage, 0) + step.cached
    return tuple(
        StageTiming(stage=stage, seconds=round(_covered(each), 3), steps=len(each), cached=cached[stage])
        for stage, each in spans.items()
    )


def steps_of(steps: Iterable[Step], began: float) -> tuple[StepTiming, ...]:
    """Returns the steps that ran or were cached, with the parts of the export in its place."""
    found = []
    for step in steps:
        if step.started is None:
            continue
        parts = step.parts if step.stage == "export" else ()
        if not parts:
            start = step.started - began
            found.append(
                StepTiming(step.stage, step.instruction, round(start, 3), round(step.seconds, 3), is_cached=step.cached)
            )
        for part in parts:
            start = part.started - began
            name = part.name.split(" sha256")[0]
            found.append(StepTiming(step.stage, name, round(start, 3), round(part.seconds, 3), is_cached=False))
    return tuple(sorted(found, key=lambda each: each.start_seconds))


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the seconds that at least one of *spans* covers."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _between(written: Sequence[tuple[float, int]], start: float, end: float) -> int:
    """Returns the bytes written from *start* to *end*, by the last samples at or before these times."""

    def until(moment: float) -> int:
        return next((count for time, count in reversed(written) if time <= moment), written[0][1])

    return max(0, until(end) - until(start))


def save(timings: Timings, path: Path) -> None:
    """Writes *timings* as JSON; makes the folders, and replaces an existing file atomically."""
    jsonfile.save(timings, path, indent=1)


def load(path: Path) -> Timings:
    """Reads timings that `save` wrote.

    Raises:
        InvalidFile: the file is missing, has another schema version, or holds no timings.
    """
    return jsonfile.load(path, Timings, version=SCHEMA_VERSION, what="timings")


def schema() -> dict[str, object]:
    """Returns the JSON Schema (2020-12) of saved timings."""
    return jsonfile.schema_of(Timings, f"Build timings, version {SCHEMA_VERSION}")
