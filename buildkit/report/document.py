"""The frame of every HTML page: sections with their charts in one document that needs nothing else, and the budgets.

plotly.js, which draws the charts, is taken from the `plotly` distribution and stands in the page. A content security
policy forbids the page to load anything.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

from buildkit.check.budget import BudgetReport
from buildkit.errors import BuildkitError
from buildkit.report.hypertext import script_json, table, text
from buildkit.report.markdown import shortened

__all__ = ["PlotlyMissing", "Section", "budget_section", "chart_label", "document", "plotly_text"]

_ASSETS: Final = Path(__file__).parent / "assets"
_LABEL_LETTERS: Final = 44
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


@dataclass
class PlotlyMissing(BuildkitError):
    """The plotly distribution, or the script in it, is not installed."""

    exit_code = 3

    def __str__(self) -> str:
        return "the HTML page needs the plotly distribution: install the `harness` dependency group"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page: `body` is HTML, `charts` are what page.js draws into its places, by their names."""

    name: str
    heading: str
    body: str
    charts: dict[str, object] = field(default_factory=dict)


def document(*, title: str, heading: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """Write a page; *title* and *heading* are text, *subtitle* and *footer* are HTML.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    charts = {name: drawing for section in sections for name, drawing in section.charts.items()}
    links = "".join(f'<li><a href="#{each.name}">{escape(each.heading)}</a></li>' for each in sections)
    bodies = "\n".join(
        f'<section id="{each.name}"><h2>{escape(each.heading)}</h2>{each.body}</section>' for each in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>
{(_ASSETS / "page.css").read_text()}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{escape(heading)}</h1>
<p class="muted">{subtitle}</p>
<nav aria-label="Parts of this report"><ul>{links}</ul></nav>
<button id="theme" type="button" hidden>Switch between light and dark</button>
</header>
<main id="main">
{bodies}
</main>
<footer><p>{footer} Charts: plotly.js (MIT licence).</p></footer>
<script type="application/json" id="chart-data">{script_json(charts)}</script>
<script>{_plotly()}</script>
<script>
{(_ASSETS / "page.js").read_text()}</script>
</body>
</html>
"""


def budget_section(verdict: BudgetReport) -> Section:
    """Write the part of a page that shows every limit with its judgement."""
    rows = [
        [text(each.budget), f'<span class="{each.status.replace(" ", "-")}">{each.status}</span>', text(each.message)]
        for each in verdict.judgements
    ]
    failed = sum(each.status == "failed" for each in verdict.judgements)
    body = f"<p>{failed} of {len(rows)} budgets failed.</p>"
    body += table("budget-table", "Budgets", ("Budget", "BudgetResult", "Measured and allowed"), rows)
    return Section("budgets", "Budgets", body)


def chart_label(instruction: str | None) -> str:
    """Write an instruction as short as a chart's axis needs it."""
    label = shortened(instruction)
    return plotly_text(label if len(label) <= _LABEL_LETTERS else label[: _LABEL_LETTERS - 1] + "…")


def plotly_text(label: str) -> str:
    """Keep a text from being read as markup, which plotly.js does with tags in labels."""
    return label.replace("&", "&amp;").replace("<", "&lt;")


def _plotly() -> str:
    """Return plotly.js as the distribution carries it, without importing the distribution, which takes a second."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        script = Path(folder) / "package_data" / "plotly.min.js"
        if script.is_file():
            return script.read_text(encoding="utf-8").replace("</script", "<\\/script")
    raise PlotlyMissing
