"""The pieces of HTML that the page is made of: tables, places for charts, and text that cannot be read as markup."""

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

__all__ = ["chart", "code", "script_json", "table", "text"]

_ROWS: Final = 200
_NARROW_COLUMNS: Final = 5  # what fits a phone


def chart(name: str, description: str) -> str:
    """Write the place of a chart; *description* is what a screen reader says instead of it."""
    return f'<div class="chart" data-chart="{name}" role="img" aria-label="{escape(description)}"></div>'


def table(
    name: str,
    caption: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    is_filtered: bool = False,
    limit: int = _ROWS,
) -> str:
    """Write a table of cells that are HTML already; what is over *limit* is counted, not shown."""
    if not rows:
        return f'<p class="muted">{escape(caption)}: none.</p>'
    right = set(numbers)

    number = ' class="number"'

    def cell(column: int, content: str) -> str:
        kind = number if column in right else ""
        return f'<th scope="row"{kind}>{content}</th>' if column == 0 else f"<td{kind}>{content}</td>"

    head = "".join(
        f'<th scope="col"{number if column in right else ""}>{escape(heading)}</th>'
        for column, heading in enumerate(headings)
    )
    body = "".join(
        f"<tr>{''.join(cell(column, content) for column, content in enumerate(row))}</tr>" for row in rows[:limit]
    )
    shown = f"{caption} ({limit:,} of {len(rows):,})" if len(rows) > limit else caption
    search = (
        f'<p class="filter" hidden><label for="{name}-filter">Filter</label><input type="search" id="{name}-filter" '
        f'data-filter="{name}"><span id="{name}-count" role="status"></span></p>'
        if is_filtered
        else ""
    )
    kind = "scroll tall" if is_filtered else "scroll"
    wide = ' class="wide"' if len(headings) > _NARROW_COLUMNS else ""
    return (
        f'{search}<div class="{kind}" role="region" tabindex="0" aria-label="{escape(caption)}">'
        f'<table id="{name}"{wide}>'
        f"<caption>{escape(shown)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def text(content: str) -> str:
    """Write a text as HTML."""
    return escape(content)


def code(content: str) -> str:
    """Write a path or an instruction as HTML, in letters of one width."""
    return f'<span class="path">{escape(content)}</span>'


def script_json(value: object) -> str:
    """Write JSON that cannot end the script element that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
