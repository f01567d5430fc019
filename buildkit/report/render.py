"""Renders a report in the format that the caller chose."""

from collections.abc import Iterable
from typing import Final, Literal, get_args

import msgspec

from buildkit.check.budget import BudgetReport
from buildkit.diff.model import Comparison
from buildkit.errors import UsageError
from buildkit.image.model import Measurement
from buildkit.report.content import ImageReport
from buildkit.report.markdown import (
    budgets_markdown,
    checks_markdown,
    comparison_markdown,
    measurement_markdown,
    timings_markdown,
)
from buildkit.timing.record import Timings
from checks.results import Results

__all__ = ["FORMATS", "Format", "render", "render_checks", "render_timings"]

Format = Literal["json", "markdown", "html", "junit", "sarif"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

# HTML, JUnit and SARIF are imported where they are written: Jinja2 and junitparser take 60 to 90 ms to import.


def render(kind: Format, report: ImageReport) -> str:
    """Returns a report on the comparison if there is one, otherwise on the image.

    HTML shows everything, Markdown all but timelines and history. JUnit and SARIF show budgets and need them.

    Raises:
        UsageError: the format is JUnit or SARIF, and there are no budgets.
        PlotlyMissing: the format is HTML, and plotly is not installed.
    """
    comparison = report.comparison
    match kind:
        case "json":
            return _json(comparison or report.measurement)
        case "html":
            from buildkit.report.html import measurement_page  # noqa: PLC0415

            return measurement_page(report)
        case "markdown":
            text = (
                measurement_markdown(report.measurement)
                if comparison is None
                else comparison_markdown(comparison, before=report.before, after=report.after)
            )
            return text if report.budgets is None else f"{text}\n### Budgets\n\n{budgets_markdown(report.budgets)}"
    return _render_budgets(kind, report.budgets, report.measurement)


def render_timings(kind: Format, timings: Timings, *, budgets: BudgetReport | None = None) -> str:
    """Returns a report on timed builds; *budgets* and the errors are as in `render`."""
    match kind:
        case "json":
            return _json(timings)
        case "html":
            from buildkit.report.html import timings_page  # noqa: PLC0415

            return timings_page(timings, budgets)
        case "markdown":
            return timings_markdown(timings, budgets)
    return _render_budgets(kind, budgets)


def render_checks(kind: Format, results: Results, *, required: Iterable[str] = ()) -> str:
    """Returns a report on the checks of an image; *required* are the tiers in which "not verified" is a finding.

    Raises:
        UsageError: the format is HTML.
    """
    match kind:
        case "json":
            return _json(results)
        case "markdown":
            return checks_markdown(results)
        case "junit":
            from buildkit.report.junit import checks_junit  # noqa: PLC0415

            return checks_junit(results, required=required)
        case "sarif":
            from buildkit.report.sarif import checks_sarif  # noqa: PLC0415

            return checks_sarif(results, required=required)
    raise UsageError("format", kind, "results of checks are written as json, markdown, junit or sarif")


def _render_budgets(
    kind: Literal["junit", "sarif"], budgets: BudgetReport | None, measurement: Measurement | None = None
) -> str:
    if budgets is None:
        raise UsageError(
            "format", kind, "needs budgets, and none were evaluated: use json, markdown or html, or add budgets"
        )
    if kind == "junit":
        from buildkit.report.junit import budgets_junit  # noqa: PLC0415

        return budgets_junit(budgets)
    from buildkit.report.sarif import budgets_sarif  # noqa: PLC0415

    return budgets_sarif(budgets, measurement)


def _json(value: Measurement | Comparison | Timings | Results) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
