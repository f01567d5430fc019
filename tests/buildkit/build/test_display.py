from __future__ import annotations

import io

from rich.console import Console

from buildkit.build.display import BuildDisplay
from buildkit.build.events import Events, Step, SubStep


def step(**fields: object) -> Step:
    values: dict[str, object] = {
        "stage": "torch",
        "instruction": "RUN python3 install",
        "started": 0.0,
        "seconds": 12.34,
        "cached": False,
        "error": "",
        "parts": (),
    }
    return Step(**{**values, **fields})  # type: ignore[arg-type] # the fields are those of Step


def shown(*steps: Step) -> str:
    """The output to a pipe for finished *steps*."""
    out = io.StringIO()
    with BuildDisplay(Console(file=out, width=80), Events(), title="building api") as display:
        for each in steps:
            display.add(each)
    return out.getvalue()


def test_step_is_one_line_with_stage_and_seconds() -> None:
    assert shown(step()).splitlines() == ["✓ torch          12.3 s  RUN python3 install"]


def test_long_instruction_is_cut_to_one_line() -> None:
    (line,) = shown(step(instruction="RUN " + "x" * 500)).splitlines()

    assert len(line) <= 80
    assert line.endswith("…")


def test_short_and_cached_steps_get_no_line() -> None:
    text = shown(step(seconds=0.01), step(cached=True), step(cached=True, stage="internal"))

    assert text.splitlines() == ["  cached steps: 1"]


def test_failed_step_is_marked() -> None:
    assert shown(step(error="exit code: 1")).startswith("✗ torch")


def test_cancelled_step_is_not_shown() -> None:
    assert shown(step(error="context canceled")) == ""


def test_parts_of_the_export_are_shown() -> None:
    part = SubStep(name="exporting layers sha256:abc", seconds=30.0, total=0, started=0.0)

    assert "30.0 s  exporting layers" in shown(step(stage="export", parts=(part,)))


def test_terminal_shows_running_steps() -> None:
    out = io.StringIO()
    events = Events()
    events.feed('{"vertexes":[{"digest":"sha256:a","name":"[torch 1/1] RUN x","started":"2026-01-01T00:00:00Z"}]}')
    with BuildDisplay(Console(file=out, width=80, force_terminal=True), events, title="building api"):
        pass

    assert "building api" in out.getvalue()
    assert "torch" in out.getvalue()
