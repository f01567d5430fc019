"""What stands between the command line and the files: obtain a measurement, render a report."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, get_args

import msgspec

from buildkit.check.budget import BudgetReport
from buildkit.diff.diff import Comparison
from buildkit.errors import UsageError
from buildkit.image.analyze import analyze
from buildkit.image.layer_stream import Limits
from buildkit.image.model import Measurement, load
from buildkit.image.read import read_image
from buildkit.report.builds import Timeline, timings_json, timings_markdown, timings_page
from buildkit.report.findings import checks_junit, checks_sarif, junit, sarif
from buildkit.report.markdown import (
    budget_markdown,
    checks_markdown,
    comparison_markdown,
    measurement_markdown,
    to_json,
)
from buildkit.report.page import TrendPoint, page
from buildkit.timing.record import Timings
from checks.verdicts import Results

__all__ = ["FORMATS", "Format", "load_measurement", "render", "render_checks", "render_timings"]

Format = Literal["json", "markdown", "html", "junit", "sarif"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)


def load_measurement(
    name: str,
    *,
    cache: Path | None = None,
    platform: str | None = None,
    tag: str | None = None,
    limits: Limits | None = None,
    docker: Sequence[str] = ("docker",),
) -> Measurement:
    """Measure an image, or load a measurement that was saved: *name* is then a path that ends in .json.

    The other arguments are those of `image.read_image`, and so is what is raised.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return load(path)
    return analyze(read_image(name, cache=cache, platform=platform, tag=tag, limits=limits, docker=docker))


def render(
    kind: Format,
    measurement: Measurement,
    *,
    comparison: Comparison | None = None,
    verdict: BudgetReport | None = None,
    timelines: Sequence[Timeline] = (),
    trend: Sequence[Measurement] = (),
    before: str = "Before",
    after: str = "After",
) -> str:
    """Write a report in one of `FORMATS`: of *comparison* where there is one, of *measurement* else.

    *trend* are kept measurements, the oldest first. JUnit and SARIF show *verdict*, so they are refused without one;
    Markdown and HTML show it where there is one.
    """
    match kind:
        case "json":
            return to_json(comparison or measurement)
        case "html":
            return page(
                measurement,
                comparison=comparison,
                verdict=verdict,
                timelines=timelines,
                trend=[TrendPoint(each.measured_at or "", each.totals) for each in trend],
                before=before,
                after=after,
            )
        case "markdown":
            text = (
                measurement_markdown(measurement)
                if comparison is None
                else comparison_markdown(comparison, before=before, after=after)
            )
            return text if verdict is None else f"{text}\n### Budgets\n\n{budget_markdown(verdict)}"
    return _findings(kind, verdict, measurement)


def render_timings(kind: Format, timings: Timings, *, verdict: BudgetReport | None = None) -> str:
    """Write a report on timed builds in one of `FORMATS`; what `render` says of *verdict* holds here too."""
    match kind:
        case "json":
            return timings_json(timings)
        case "html":
            return timings_page(timings, verdict)
        case "markdown":
            return timings_markdown(timings, verdict)
    return _findings(kind, verdict)


def render_checks(kind: Format, results: Results, *, required: Iterable[str] = ()) -> str:
    """Write a report on the checks of an image in one of `FORMATS` but HTML; *required* are tiers, as in `verify`."""
    match kind:
        case "json":
            return msgspec.json.format(msgspec.json.encode(results), indent=2).decode() + "\n"
        case "markdown":
            return checks_markdown(results)
        case "junit":
            return checks_junit(results, required=required)
        case "sarif":
            return checks_sarif(results, required=required)
    raise UsageError("format", kind, "checks are shown as json, markdown, junit or sarif; `measure` writes HTML")


def _findings(kind: Format, verdict: BudgetReport | None, measurement: Measurement | None = None) -> str:
    if verdict is None:
        raise UsageError("format", kind, "shows budgets, and none was judged; json, markdown or html need none")
    return junit(verdict) if kind == "junit" else sarif(verdict, measurement)
