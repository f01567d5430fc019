from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit.diff.diff import compare
from buildkit.errors import UsageError
from buildkit.report.content import ImageReport
from buildkit.report.junit import budgets_junit, checks_junit
from buildkit.report.markdown import checks_markdown
from buildkit.report.render import FORMATS, Format, render, render_checks, render_timings
from buildkit.report.sarif import checks_sarif
from tests.buildkit.timing.test_record import BUILDS, timings
from tests.support.reports import BUDGETS, CHECK_RESULTS, render_in_browser

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.diff.model import Comparison
    from buildkit.image.model import Measurement

STARTS = {"json": "{", "markdown": "## ", "html": "<!DOCTYPE html>", "junit": "<?xml", "sarif": "{"}
HOSTILE = "<img src=x onerror=document.title='owned'> | `x`"
SERIES = timings(*(replace(build, change=HOSTILE) for build in BUILDS))


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_shows_images_and_builds(kind: Format, after: Measurement, comparison: Comparison) -> None:
    for text in (
        render(kind, ImageReport(after, budgets=BUDGETS)),
        render(kind, ImageReport(after, comparison, BUDGETS)),
        render_timings(kind, SERIES, budgets=BUDGETS),
    ):
        assert text.startswith(STARTS[kind])


def test_json_is_the_comparison_if_there_is_one(before: Measurement) -> None:
    assert "transfer_bytes" in json.loads(render("json", ImageReport(before, compare(before, before))))
    assert json.loads(render("json", ImageReport(before)))["totals"]["unpacked_bytes"] == before.totals.unpacked_bytes


def test_json_of_timings_has_every_build() -> None:
    assert len(json.loads(render_timings("json", SERIES))["builds"]) == len(BUILDS)


def test_markdown_shows_budgets_if_there_are_any(before: Measurement) -> None:
    assert "### Budgets" in render("markdown", ImageReport(before, budgets=BUDGETS))
    assert "### Budgets" not in render("markdown", ImageReport(before))


@pytest.mark.parametrize("kind", ["junit", "sarif"])
def test_junit_and_sarif_need_budgets(kind: Format, before: Measurement) -> None:
    with pytest.raises(UsageError, match="needs budgets"):
        render(kind, ImageReport(before))
    with pytest.raises(UsageError):
        render_timings(kind, SERIES)


def test_every_format_but_html_shows_checks() -> None:
    assert json.loads(render_checks("json", CHECK_RESULTS))["target"] == "api"
    assert render_checks("junit", CHECK_RESULTS) == checks_junit(CHECK_RESULTS)
    assert render_checks("sarif", CHECK_RESULTS) == checks_sarif(CHECK_RESULTS)
    assert render_checks("markdown", CHECK_RESULTS) == checks_markdown(CHECK_RESULTS)
    with pytest.raises(UsageError, match="junit or sarif"):
        render_checks("html", CHECK_RESULTS)


def test_timed_builds_of_a_failed_budget_fail_in_junit() -> None:
    assert render_timings("junit", SERIES, budgets=BUDGETS) == budgets_junit(BUDGETS)


def test_template_engine_is_imported_for_html_only(pytestconfig: pytest.Config) -> None:
    program = "import sys, buildkit.report.render; sys.exit('jinja2' in sys.modules or 'junitparser' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", program], cwd=pytestconfig.rootpath, check=False)

    assert done.returncode == 0


def test_browser_draws_every_timeline_without_an_error(browser: str, tmp_path: Path) -> None:
    """On the screen of a phone, in the dark theme; test_html tries the others."""
    path = tmp_path / "page.html"
    path.write_text(render_timings("html", SERIES, budgets=BUDGETS))

    document, log = render_in_browser(browser, path, "--window-size=390,844", "--blink-settings=preferredColorScheme=0")

    assert 'data-drawn="yes"' in document
    assert document.count('data-chart="timeline-') == len(BUILDS)
    assert document.count('class="main-svg"') >= 3
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []
    assert "<title>api against phase1: build times</title>" in document
