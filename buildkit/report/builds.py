"""Builds as reports: when each step ran, how long the phases took, and the medians of a series beside its baseline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from buildkit.build.record import BuildRecord
from buildkit.check.budget import BudgetReport
from buildkit.report.document import Section, budget_section, chart_label, document, plotly_text
from buildkit.report.hypertext import chart, code, table, text
from buildkit.report.markdown import as_cell, as_instruction, budget_markdown, markdown_table
from buildkit.text import format_bytes
from buildkit.timing.record import BuildTiming, Summary, Timings

__all__ = [
    "Timeline",
    "TimelineStep",
    "builds_section",
    "timeline_of",
    "timelines_of",
    "timings_json",
    "timings_markdown",
    "timings_page",
    "timings_tables",
]

_SLOWEST: Final = 8
_SHORT_SECONDS: Final = 10.0
_LEGEND: Final = (
    "cold: no step known, downloads there; cold-empty: nothing there; the others follow a full build. Written: by the "
    "engine's processes. To fetch: by a node with the full build's image (by one with nothing, for a cold build), as "
    "the engine stores layers. Load: of the minute before each build, this run's own builds included."
)


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step of a build; `start_seconds` counts from the build's start."""

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


def timeline_of(record: BuildRecord) -> Timeline:
    """Return when each step of a recorded build ran."""
    ran = [(step, step.started) for step in record.steps if step.started is not None]
    first = min((started for _, started in ran), default=0.0)
    steps = (
        TimelineStep(step.stage, step.instruction, started - first, step.seconds, step.cached) for step, started in ran
    )
    return Timeline(f"{record.target}, {record.seconds:.0f} s, {record.started[:16]}", tuple(steps))


def timelines_of(timings: Timings) -> tuple[Timeline, ...]:
    """Return the typical build of each target and scenario: the one whose time is nearest to the median."""
    typical = [timings.typical(each.target, each.scenario) for each in timings.summaries]
    return tuple(_timeline(build) for build in typical if build is not None)


def _timeline(build: BuildTiming) -> Timeline:
    steps = (
        TimelineStep(step.stage, step.instruction, step.start_seconds, step.seconds, step.is_cached)
        for step in build.steps
    )
    return Timeline(f"{build.target}, {build.scenario}, run {build.run}: {build.seconds:.1f} s", tuple(steps))


def builds_section(timelines: Sequence[Timeline]) -> Section:
    """Write the part of a page that shows when each step ran."""
    body, charts = "", dict[str, object]()
    for number, timeline in enumerate(timelines):
        name = f"timeline-{number}"
        charts[name] = {
            "kind": "timeline",
            "steps": [
                {
                    "stage": plotly_text(step.stage),
                    "name": chart_label(step.name),
                    "start": step.start_seconds,
                    "seconds": step.seconds,
                    "cached": step.is_cached,
                }
                for step in timeline.steps
            ],
        }
        rows = [
            [text(step.stage), code(step.name), f"{step.start_seconds:.2f}", f"{step.seconds:.2f}", _cached(step)]
            for step in timeline.steps
        ]
        body += f"<h3>{escape(timeline.title)}</h3>"
        body += chart(name, f"Timeline of the {len(rows)} steps of {timeline.title}. The table below says the same.")
        headings = ("Stage", "Step", "Start (s)", "Seconds", "Cache")
        body += table(f"{name}-table", f"Steps of {timeline.title}", headings, rows, numbers=(2, 3))
    return Section("builds", "Builds", body, charts)


def _cached(step: TimelineStep) -> str:
    return "from the cache" if step.is_cached else "run"


# ---- a series of timed builds ---------------------------------------------------------------------------------------

_SUMMARY_HEADINGS: Final = ("Scenario", "Target", "Median (s)", "Samples (s)", "Ratio", "Written", "To fetch", "Load")
_PHASE_HEADINGS: Final = (
    *("Scenario", "Target", "Context", "Resolve", "Steps", "Cached", "Export", "Unpack", "Rest", "Written"),
)
_PHASES_SAY: Final = (
    "Of the build nearest to the median, in seconds. Rest: the client's start, and what the builder tells nothing of. "
    "Written: while layers were exported and unpacked."
)
_BUILD_HEADINGS: Final = ("Build", "Seconds", "Layer cache", "Downloads", "Changed", "Load", "Started")


def timings_json(timings: Timings) -> str:
    """Write timings as JSON, indented for readers."""
    return msgspec.json.format(msgspec.json.encode(timings), indent=2).decode() + "\n"


def timings_markdown(timings: Timings, verdict: BudgetReport | None = None) -> str:
    """Write medians, phases and slowest steps, with the builder and the state of its cache."""
    heading = f"## Build times of {timings.target}" + (f" against {timings.against}" if timings.against else "")
    parts = [
        heading + "\n",
        _circumstances(timings) + "\n",
        _table(_SUMMARY_HEADINGS, _summary_rows(timings)),
        _LEGEND + "\n",
        "### Phases\n",
        f"{_PHASES_SAY}\n",
        _table(_PHASE_HEADINGS, _phase_rows(timings)),
        "### Slowest steps\n",
        *(
            f"{title}\n\n{markdown_table(('Stage', 'Step', 'Start (s)', 'Seconds'), rows)}"
            for title, rows in _slowest(timings)
        ),
        "### Every build\n",
        _table(_BUILD_HEADINGS, _build_rows(timings)),
    ]
    if timings.not_run:
        parts += ["### Not timed\n", "".join(f"- {as_cell(line)}\n" for line in _not_run(timings))]
    if verdict is not None:
        parts += ["### Budgets\n", budget_markdown(verdict)]
    return "\n".join(parts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(headings, ([as_cell(cell) for cell in row] for row in rows))


def timings_tables(timings: Timings) -> Group:
    """Return medians and phases as tables for a terminal."""
    medians = _grid(_SUMMARY_HEADINGS, _summary_rows(timings))
    phases = _grid(_PHASE_HEADINGS, _phase_rows(timings), title="Phases of the build nearest to the median, in seconds")
    lines = [Text(_LEGEND, style="dim")]
    lines += [Text(f"not timed: {line}", style="yellow") for line in _not_run(timings)]
    return Group(Text(_circumstances(timings)), medians, phases, *lines)


def timings_page(timings: Timings, verdict: BudgetReport | None = None) -> str:
    """Write medians, phases, all samples and a timeline for each build as one HTML page.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    numbers = (2, 4, 5, 6, 7)
    summary = [[text(cell) for cell in row] for row in _summary_rows(timings)]
    phases = [[text(cell) for cell in row] for row in _phase_rows(timings)]
    every = [[text(cell) for cell in row] for row in _build_rows(timings)]
    body = f"<p>{escape(_circumstances(timings))}</p>"
    body += table("median-table", "Medians by scenario and target", _SUMMARY_HEADINGS, summary, numbers=numbers)
    body += table(
        "phase-table",
        "Phases of the build nearest to the median, in seconds",
        _PHASE_HEADINGS,
        phases,
        numbers=tuple(range(2, 10)),
    )
    body += table("build-table", "Every build", _BUILD_HEADINGS, every, numbers=(1, 5))
    body += "".join(f"<p>Not timed: {escape(line)}</p>" for line in _not_run(timings))
    sections = [Section("summary", "Summary", body)]
    if verdict is not None:
        sections.append(budget_section(verdict))
    sections.append(builds_section([_timeline(build) for build in timings.builds]))
    name = timings.target + (f" against {timings.against}" if timings.against else "")
    return document(
        title=f"{name}: how long builds take",
        heading=name,
        subtitle=f"Timed builds, {escape(timings.started)}",
        sections=sections,
        footer=f"Seconds are wall time. {_LEGEND}",
    )


def _circumstances(timings: Timings) -> str:
    machine = timings.machine
    versions = ", ".join(f"{name} {version}" for name, version in timings.versions.items())
    return (
        f"{timings.started}, {machine.cpus} processors ({machine.processor}), {machine.memory_bytes / 1e9:.0f} GB, "
        f"{machine.system}; {versions}; cache: {timings.cache_scope}; base from {timings.base_origin}."
    )


def _summary_rows(timings: Timings) -> list[tuple[str, ...]]:
    return [
        (
            summary.scenario,
            summary.target,
            _seconds(summary.median_seconds),
            " ".join(map(_seconds, summary.seconds)),
            "" if summary.ratio is None else f"{summary.ratio:.2f}",
            _bytes(summary.median_written_bytes),
            _bytes(summary.median_transfer_bytes),
            _load(timings, summary),
        )
        for summary in _by_scenario(timings)
    ]


def _by_scenario(timings: Timings) -> list[Summary]:
    """Put the targets of one scenario one below the other."""
    order = {each.scenario: number for number, each in reversed(list(enumerate(timings.summaries)))}
    return sorted(timings.summaries, key=lambda each: order[each.scenario])


def _load(timings: Timings, summary: Summary) -> str:
    loads = [
        each.load_average
        for each in timings.builds
        if (each.target, each.scenario) == (summary.target, summary.scenario)
    ]
    return f"{min(loads):.1f}" if min(loads) == max(loads) else f"{min(loads):.1f} to {max(loads):.1f}"


def _phase_rows(timings: Timings) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for summary in _by_scenario(timings):
        build = timings.typical(summary.target, summary.scenario)
        if build is None:
            continue
        seconds = {phase.name: f"{phase.seconds:.2f}" if phase.steps else "" for phase in build.phases}
        steps = next(phase for phase in build.phases if phase.name == "steps")
        written = [phase.written_bytes for phase in build.phases if phase.name in {"export", "unpack"}]
        rows.append(
            (
                summary.scenario,
                summary.target,
                seconds["context"],
                seconds["resolve"],
                seconds["steps"],
                f"{steps.cached}/{steps.steps}",
                seconds["export"],
                seconds["unpack"],
                f"{max(0.0, build.seconds - sum(phase.seconds for phase in build.phases)):.2f}",
                _bytes(sum(each or 0 for each in written) if any(each is not None for each in written) else None),
            )
        )
    return rows


def _slowest(timings: Timings) -> Iterable[tuple[str, list[tuple[str, ...]]]]:
    """Yield a title and the slowest steps of the typical build of each scenario where one took a second."""
    for summary in _by_scenario(timings):
        build = timings.typical(summary.target, summary.scenario)
        steps = sorted(build.steps if build else (), key=lambda each: -each.seconds)[:_SLOWEST]
        rows: list[tuple[str, ...]] = [
            (
                each.stage,
                as_instruction(each.instruction),
                f"{each.start_seconds:.1f}",
                f"{each.seconds:.1f}",
            )
            for each in steps
            if each.seconds >= 1
        ]
        if rows:
            yield f"{summary.target}, {summary.scenario}:", rows


def _build_rows(timings: Timings) -> list[tuple[str, ...]]:
    return [
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
    ]


def _not_run(timings: Timings) -> list[str]:
    return [f"{each.target}, {each.scenario}, run {each.run}: {each.reason}" for each in timings.not_run]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < _SHORT_SECONDS else f"{seconds:.1f}"


def _bytes(count: int | None) -> str:
    return "" if count is None else format_bytes(count)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> Table:
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        is_text = heading in {"Scenario", "Target"}
        widest = max((len(row[place]) for row in rows), default=0) if is_text else None
        grid.add_column(heading, justify="left" if is_text else "right", min_width=widest)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
