"""Builds the tables and timelines of recorded and timed builds: when each step ran, medians, phases, slowest steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from buildkit.build.record import BuildRecord
from buildkit.report.format import format_optional_bytes, format_seconds, shorten_instruction
from buildkit.report.tables import Cell, Table, code, table
from buildkit.text import format_bytes
from buildkit.timing.record import BuildTiming, StepTiming, Summary, Timings

__all__ = [
    "LEGEND",
    "PHASES_LEGEND",
    "Timeline",
    "TimelineStep",
    "build_table",
    "circumstances",
    "median_table",
    "not_timed",
    "phase_table",
    "slowest_steps",
    "steps_table",
    "timeline_of_build",
    "timeline_of_record",
    "timelines_of",
]

LEGEND: Final = (
    "Scenarios: cold has no cached step, but has the downloads; cold-empty has neither; the others follow a full "
    "build. Written: by the engine's processes. To fetch: by a node with the image of the full build (for a cold "
    "build, by one with nothing), as the engine stores layers. Load: average of the minute before each build, with the "
    "builds of this run."
)
"""Explains the columns of `median_table`."""
PHASES_LEGEND: Final = (
    "Of the build nearest to the median, in seconds. Rest: the start of the client, and time that the builder does "
    "not report. Written: while layers were exported and unpacked."
)
"""Explains the columns of `phase_table`."""

_SLOWEST: Final = 8
_SLOW_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step of a build; `start_seconds` counts from the start of the build."""

    stage: str
    name: str
    start_seconds: float
    seconds: float
    is_cached: bool


@dataclass(frozen=True, slots=True)
class Timeline:
    """A build and its steps."""

    title: str
    steps: tuple[TimelineStep, ...]


def timeline_of_record(record: BuildRecord) -> Timeline:
    """Returns the start and duration of each step of a recorded build."""
    ran = [(step, step.started) for step in record.steps if step.started is not None]
    first = min((started for _, started in ran), default=0.0)
    steps = (
        TimelineStep(step.stage, step.instruction, started - first, step.seconds, step.cached) for step, started in ran
    )
    return Timeline(f"{record.target}, {record.seconds:.0f} s, {record.started[:16]}", tuple(steps))


def timeline_of_build(build: BuildTiming) -> Timeline:
    """Returns the start and duration of each step of a timed build."""
    steps = (
        TimelineStep(step.stage, step.instruction, step.start_seconds, step.seconds, step.is_cached)
        for step in build.steps
    )
    return Timeline(f"{build.target}, {build.scenario}, run {build.run}: {build.seconds:.1f} s", tuple(steps))


def timelines_of(timings: Timings) -> tuple[Timeline, ...]:
    """Returns the timeline of the typical build of each target and scenario: the one nearest to the median."""
    typical = [timings.typical(each.target, each.scenario) for each in timings.summaries]
    return tuple(timeline_of_build(build) for build in typical if build is not None)


def steps_table(timeline: Timeline, name: str) -> Table:
    """Returns the steps of a build; *name* is unique in the page."""
    rows = (
        (
            step.stage,
            code(step.name),
            f"{step.start_seconds:.2f}",
            f"{step.seconds:.2f}",
            "from the cache" if step.is_cached else "run",
        )
        for step in timeline.steps
    )
    headings = ("Stage", "Step", "Start (s)", "Seconds", "Cache")
    return table(name, f"Steps of {timeline.title}", headings, rows, numbers=(2, 3))


def circumstances(timings: Timings) -> str:
    """Returns a sentence that says when, on which machine and with which cache the builds ran."""
    machine = timings.machine
    versions = ", ".join(f"{name} {version}" for name, version in timings.versions.items())
    return (
        f"{timings.started}, {machine.cpus} processors ({machine.processor}), {format_bytes(machine.memory_bytes)}, "
        f"{machine.system}; {versions}; cache: {timings.builder}; base from {timings.base_origin}."
    )


def not_timed(timings: Timings) -> list[str]:
    """Returns a line for each build that did not run, with its reason."""
    return [f"{each.target}, {each.scenario}, run {each.run}: {each.reason}" for each in timings.skipped]


def median_table(timings: Timings) -> Table:
    """Returns the median of each scenario and target."""
    rows = (
        (
            summary.scenario,
            summary.target,
            format_seconds(summary.median_seconds),
            " ".join(map(format_seconds, summary.seconds)),
            "" if summary.ratio is None else f"{summary.ratio:.2f}",
            format_optional_bytes(summary.median_written_bytes),
            format_optional_bytes(summary.median_transfer_bytes),
            _load(timings, summary),
        )
        for summary in _by_scenario(timings)
    )
    headings = ("Scenario", "Target", "Median (s)", "Samples (s)", "Ratio", "Written", "To fetch", "Load")
    return table("median-table", "Medians by scenario and target", headings, rows, numbers=(2, 4, 5, 6, 7))


def phase_table(timings: Timings) -> Table:
    """Returns the phases of the typical build of each scenario and target."""
    typical = ((summary, timings.typical(summary.target, summary.scenario)) for summary in _by_scenario(timings))
    rows = (_phase_row(summary, build) for summary, build in typical if build is not None)
    headings = ("Scenario", "Target", "Context", "Resolve", "Steps", "Cached", "Export", "Unpack", "Rest", "Written")
    caption = "Phases of the build nearest to the median, in seconds"
    return table("phase-table", caption, headings, rows, numbers=range(2, 10))


def _phase_row(summary: Summary, build: BuildTiming) -> tuple[Cell, ...]:
    seconds = {phase.name: f"{phase.seconds:.2f}" if phase.steps else "" for phase in build.phases}
    steps = next(phase for phase in build.phases if phase.name == "steps")
    written = [phase.written_bytes for phase in build.phases if phase.name in {"export", "unpack"}]
    is_known = any(each is not None for each in written)
    return (
        summary.scenario,
        summary.target,
        seconds["context"],
        seconds["resolve"],
        seconds["steps"],
        f"{steps.cached}/{steps.steps}",
        seconds["export"],
        seconds["unpack"],
        f"{max(0.0, build.seconds - sum(phase.seconds for phase in build.phases)):.2f}",
        format_optional_bytes(sum(each or 0 for each in written) if is_known else None),
    )


def build_table(timings: Timings) -> Table:
    """Returns every timed build."""
    rows = (
        (
            f"{each.target}, {each.scenario}, run {each.run}",
            f"{each.seconds:.2f}",
            each.layer_cache,
            each.download_cache,
            each.change,
            f"{each.load_average:.1f}",
            each.started[:19],
        )
        for each in timings.builds
    )
    headings = ("Build", "Seconds", "Layer cache", "Downloads", "Changed", "Load", "Started")
    return table("build-table", "All builds", headings, rows, numbers=(1, 5))


def slowest_steps(timings: Timings) -> Iterator[Table]:
    """Yields the slowest steps of the typical build of each scenario, if any took a second."""
    for summary in _by_scenario(timings):
        build = timings.typical(summary.target, summary.scenario)
        slow = [each for each in (build.steps if build else ()) if each.seconds >= _SLOW_SECONDS]
        if slow:
            slow.sort(key=lambda each: -each.seconds)
            yield _slow_table(summary, slow[:_SLOWEST])


def _slow_table(summary: Summary, steps: Iterable[StepTiming]) -> Table:
    name = f"{summary.target}, {summary.scenario}"
    rows = (
        (each.stage, code(shorten_instruction(each.instruction)), f"{each.start_seconds:.1f}", f"{each.seconds:.1f}")
        for each in steps
    )
    return table(f"slowest-{name}", name, ("Stage", "Step", "Start (s)", "Seconds"), rows, numbers=(2, 3))


def _by_scenario(timings: Timings) -> list[Summary]:
    """Returns the summaries with the targets of one scenario next to each other."""
    order = {each.scenario: number for number, each in reversed(list(enumerate(timings.summaries)))}
    return sorted(timings.summaries, key=lambda each: order[each.scenario])


def _load(timings: Timings, summary: Summary) -> str:
    loads = [
        each.load_average
        for each in timings.builds
        if (each.target, each.scenario) == (summary.target, summary.scenario)
    ]
    return f"{min(loads):.1f}" if min(loads) == max(loads) else f"{min(loads):.1f} to {max(loads):.1f}"
