"""Timed builds in every format: circumstances beside the figures, and a page that a browser draws."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from buildkit.check.budget import BudgetReport, BudgetResult
from buildkit.errors import UsageError
from buildkit.report.builds import timelines_of, timings_tables
from buildkit.report.render import render_timings
from buildkit.timing.record import Skipped
from tests.buildkit.report.test_page import rendered
from tests.buildkit.timing.test_record import BUILDS, timings

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<img src=x onerror=document.title='owned'> | `x`"
SERIES = replace(
    timings(*(replace(build, change=HOSTILE) for build in BUILDS)),
    not_run=(Skipped("phase1", "dependency", 1, "no room | at all"),),
)
VERDICT = BudgetReport("api", (BudgetResult("build_seconds_ratio.cold", "failed", 0.3, 0.5, "too slow"),))


def test_markdown_says_where_it_was_measured_and_what_was_not() -> None:
    text = render_timings("markdown", SERIES, verdict=VERDICT)

    for wanted in (
        "engine 26.1.5",
        "an engine of its own",
        "2 processors (EPYC)",
        "| cold | api | 40.0 | 30.0 50.0 | 0.50 |",
    ):
        assert wanted in text
    assert "phase1, dependency, run 1: no room" in text
    assert "too slow" in text
    typical = SERIES.typical("api", "cold")
    assert typical is not None
    rest = typical.seconds - sum(phase.seconds for phase in typical.phases)
    assert rest > 0
    assert f"| {rest:.2f} |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_a_terminal_shows_ratio_and_phases() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(timings_tables(SERIES))
    text = console.export_text()

    assert re.search(r"cold +api +40\.0 +30\.0 50\.0 +0\.50", text)
    assert "1/3" in text  # steps from the cache
    assert "not timed: phase1, dependency, run 1" in text


def test_json_is_what_was_timed_and_findings_need_a_verdict() -> None:
    assert json.loads(render_timings("json", SERIES))["builds"][0]["seconds"] == 30
    assert "BudgetExceeded" in render_timings("junit", SERIES, verdict=VERDICT)
    assert json.loads(render_timings("sarif", SERIES, verdict=VERDICT))["runs"][0]["results"][0]["level"] == "error"
    with pytest.raises(UsageError):
        render_timings("junit", SERIES)


def test_each_scenario_has_the_timeline_of_one_build() -> None:
    titles = [each.title for each in timelines_of(SERIES)]

    assert titles == ["api, cold, run 1: 30.0 s", "phase1, cold, run 1: 100.0 s", "api, code, run 1: 2.0 s"]


def test_a_browser_draws_every_timeline_without_a_complaint(browser: str, tmp_path: Path) -> None:
    """On a phone, in the dark; the frame of the page is tried in the other ways with test_page."""
    path = tmp_path / "page.html"
    path.write_text(render_timings("html", SERIES, verdict=VERDICT))

    document, log = rendered(browser, path, "--window-size=390,844", "--blink-settings=preferredColorScheme=0")

    assert 'data-drawn="yes"' in document
    assert len(re.findall(r'data-chart="timeline-\d"', document)) == len(BUILDS)
    assert len(re.findall(r'class="main-svg"', document)) >= 3
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert "<title>api against phase1: how long builds take</title>" in document
