"""A measurement, and what changed since another, as one HTML page that needs nothing else: no request, no server.

Everything that a chart shows is also in a table or a list of folders that a keyboard and a screen reader can go
through; without JavaScript only the charts are missing.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from buildkit.check.budget import BudgetReport
from buildkit.diff.diff import Comparison
from buildkit.image.model import FolderSize, Measurement, Totals
from buildkit.report.builds import Timeline, builds_section
from buildkit.report.document import Section, budget_section, chart_label, document, plotly_text
from buildkit.report.hypertext import chart, code, table, text
from buildkit.report.markdown import (
    FIGURES,
    architectures_text,
    figure_text,
    layer_change,
    layers_not_searched_text,
    shortened,
    summary_row,
)
from buildkit.text import format_byte_change, format_bytes

__all__ = ["TrendPoint", "page"]

_ALMOST_ALL: Final = 0.98
_DEEPEST_LIST: Final = 40
_CARDS: Final = (
    "unpacked_bytes",
    "blob_bytes",
    "final_bytes",
    "wasted_bytes",
    "largest_layer_bytes",
    "layers",
    "packages",
)
# after Okabe and Ito, "Color Universal Design" (2008), darkened until white text has a contrast of 4.5 to 1 and more
_COLORS: Final = (
    (re.compile(r".*/site-packages/nvidia(/.*)?"), "#00735a"),
    (re.compile(r".*/site-packages/torch(/.*)?"), "#a84700"),
    (re.compile(r".*/site-packages/triton(/.*)?"), "#93457a"),
    (re.compile(r".*/site-packages(/.*)?"), "#005a8f"),
    (re.compile(r"(root|home)(/.*)?"), "#7d5600"),
    (re.compile(r"(usr|etc|var|lib|lib64|bin|sbin|boot|dev|run|srv|mnt|media|tmp)(/.*)?"), "#4d5863"),
)
_OTHER_COLOR: Final = "#2a6a8f"


@dataclass(frozen=True, slots=True)
class TrendPoint:
    """A kept measurement: when it was taken, in RFC 3339, and its totals."""

    taken: str
    totals: Totals


def page(
    measurement: Measurement,
    *,
    comparison: Comparison | None = None,
    verdict: BudgetReport | None = None,
    timelines: Sequence[Timeline] = (),
    trend: Sequence[TrendPoint] = (),
    before: str = "Before",
    after: str = "After",
) -> str:
    """Write the page for *measurement*; *comparison* ends in the same image and is called by *before* and *after*.

    Raises:
        PlotlyMissing: plotly is not installed.
    """
    sections = [_summary(measurement, comparison, before, after)]
    if verdict is not None:
        sections.append(budget_section(verdict))
    sections += [_places(measurement), _layers(measurement, comparison, before, after)]
    if comparison is not None:
        sections.append(_changes(comparison, before, after))
    sections += [_waste(measurement), _packages(measurement), _duplicates(measurement)]
    if measurement.gpu_code.architectures:
        sections.append(_gpu_code(measurement))
    if timelines:
        sections.append(builds_section(timelines))
    if trend:
        sections.append(_trend(trend))
    image = measurement.image
    name = image.name
    return document(
        title=f"{name}: what is in the image",
        heading=name,
        subtitle=f"{escape(image.platform)}, created {escape(image.created or 'at an unknown time')}, "
        f"digest <code>{escape(image.manifest_digest or image.config_digest)}</code>",
        sections=sections,
        footer="Sizes are decimal: 1 GB is 10<sup>9</sup> bytes. Unpacked: regular files in the layers' archives. "
        "Seen: what is left of them in the merged file system. Wasted: the difference.",
    )


def _summary(measurement: Measurement, comparison: Comparison | None, before: str, after: str) -> Section:
    cards = []
    for name in _CARDS:
        change = ""
        if comparison is not None:
            figure = comparison.figure(name)
            shown = summary_row(figure)[3]
            change = f'<span class="change">{escape(shown)} since {escape(before)}</span>'
        value = escape(figure_text(name, getattr(measurement.totals, name)))
        cards.append(f"<div><dt>{escape(FIGURES[name])}</dt><dd>{value}{change}</dd></div>")
    body = f'<dl class="cards">{"".join(cards)}</dl>'
    if comparison is not None:
        if comparison.is_empty:
            body += "<p>The images are identical: no layer, package or file differs.</p>"
        body += table(
            "summary-table",
            f"{before} and {after}",
            ("Metric", before, after, "Change", "% change"),
            [[text(cell) for cell in summary_row(figure)] for figure in comparison.figures],
            numbers=(1, 2, 3, 4),
        )
        body += (
            f"<p>A node that holds {escape(before)} fetches {format_bytes(comparison.transfer_bytes)} for "
            f"{escape(after)}.</p>"
        )
    return Section("summary", "Summary", body, {})


def _places(measurement: Measurement) -> Section:
    rows = [
        [
            f'<span class="{"indent" if row.parent else ""}">{text(row.label)}</span>',
            format_bytes(row.final_bytes),
            f"{row.fraction:.1%}",
            f"{row.files:,}",
        ]
        for row in measurement.tree
    ]
    parent_of = _joined(measurement.folders)
    folders = sorted((each for each in measurement.folders if each.path in parent_of), key=lambda each: each.path)
    drawing = {
        "kind": "treemap",
        "ids": ["/" + each.path for each in folders],
        "labels": [plotly_text(each.path.removeprefix(parent_of[each.path]).strip("/") or "/") for each in folders],
        "parents": ["/" + parent_of[each.path] if each.path else "" for each in folders],
        "values": [each.final_bytes for each in folders],
        "colors": [_color(each.path) for each in folders],
    }
    largest = ", ".join(f"{row.label} {format_bytes(row.final_bytes)}" for row in measurement.tree if not row.parent)
    body = ""
    if folders:
        description = f"Treemap of the folders of the image: {largest}. The list of folders below says the same."
        body += chart("treemap", description)
    body += table("tree-table", "Parts of the image", ("Part", "Size", "% of total", "Files"), rows, numbers=(1, 2, 3))
    body += "<h3>Folders</h3>" + _folder_list(measurement.folders)
    return Section("places", "Where the bytes are", body, {"treemap": drawing} if folders else {})


def _joined(folders: Sequence[FolderSize]) -> dict[str, str]:
    """Leave out the folders that hold nothing but one other; return the ones that stay, each with its parent."""
    sizes = {folder.path: folder.final_bytes for folder in folders}
    largest: dict[str, int] = defaultdict(int)
    for folder in folders:
        if folder.path:
            parent = folder.path.rpartition("/")[0]
            largest[parent] = max(largest[parent], folder.final_bytes)
    stay = {path for path, size_bytes in sizes.items() if not path or largest[path] < _ALMOST_ALL * size_bytes}
    parents = {}
    for path in stay:
        parent = path.rpartition("/")[0]
        while parent not in stay:
            parent = parent.rpartition("/")[0]
        parents[path] = parent
    return parents


def _folder_list(folders: Sequence[FolderSize]) -> str:
    """Nest the folders as lists that open and close."""
    children: dict[str, list[FolderSize]] = defaultdict(list)
    for folder in folders:
        if folder.path:
            children[folder.path.rpartition("/")[0]].append(folder)

    def items(parent: str, depth: int) -> str:
        found = []
        for folder in children[parent]:
            name = escape(folder.path.rpartition("/")[2])
            line = f'<span class="path">{name}/</span> {format_bytes(folder.final_bytes)}, {folder.files:,} files'
            inner = items(folder.path, depth + 1) if folder.path in children and depth < _DEEPEST_LIST else ""
            found.append(
                f"<li><details><summary>{line}</summary>{inner}</details></li>"
                if inner
                else f'<li class="leaf">{line}</li>'
            )
        return f"<ul>{''.join(found)}</ul>"

    return f'<div class="folders">{items("", 0)}</div>'


def _layers(measurement: Measurement, comparison: Comparison | None, before: str, after: str) -> Section:
    if comparison is None:
        names = [f"#{layer.position} {chart_label(layer.instruction)}" for layer in measurement.layers]
        series = [
            {"name": "seen", "color": "after", "values": [layer.final_bytes for layer in measurement.layers]},
            {"name": "wasted", "color": "waste", "values": [layer.wasted_bytes for layer in measurement.layers]},
        ]
        mode = "stack"
    else:
        places = [layer.after if layer.after is not None else layer.before for layer in comparison.layers]
        marks = ["#" if layer.after is not None else "−" for layer in comparison.layers]  # noqa: RUF001 (a minus sign)
        names = [
            f"{mark}{place} {chart_label(layer.instruction)}"
            for mark, place, layer in zip(marks, places, comparison.layers, strict=True)
        ]
        series = [
            {"name": before, "color": "before", "values": [layer.before_bytes for layer in comparison.layers]},
            {"name": after, "color": "after", "values": [layer.after_bytes for layer in comparison.layers]},
        ]
        mode = "group"
    drawing = {"kind": "bars", "title": "unpacked", "mode": mode, "names": names, "series": series}
    body = chart("layers", f"Bars: unpacked bytes of the {len(names)} layers. The table below says the same.")
    if comparison is not None:
        body += table(
            "layer-changes",
            f"Layers of {before} and {after}",
            ("Layer", "Instruction", before, after, "Change", "Cause", "To fetch"),
            [
                [
                    f"{_position(layer.before)} → {_position(layer.after)}",
                    code(shortened(layer.instruction)),
                    format_bytes(layer.before_bytes),
                    format_bytes(layer.after_bytes),
                    text(layer_change(layer)),
                    layer.cause or "",
                    format_bytes(layer.fetch_bytes) if layer.fetch_bytes else "",
                ]
                for layer in comparison.layers
            ],
            numbers=(2, 3, 6),
        )
    body += table(
        "layer-table",
        f"Layers of {measurement.image.name}",
        ("#", "Instruction", "Unpacked", "Blob", "Seen", "Wasted", "Files", "Executables"),
        [
            [
                str(layer.position),
                code(layer.instruction or "(no history)"),
                format_bytes(layer.unpacked_bytes),
                format_bytes(layer.blob_bytes),
                format_bytes(layer.final_bytes),
                format_bytes(layer.wasted_bytes),
                f"{layer.files:,}",
                f"{layer.executables:,}",
            ]
            for layer in measurement.layers
        ],
        numbers=(2, 3, 4, 5, 6, 7),
    )
    return Section("layers", "Layers", body, {"layers": drawing})


def _changes(comparison: Comparison, before: str, after: str) -> Section:
    removed = [[text(each.name), format_bytes(each.removed_bytes), text(each.reason)] for each in comparison.removed]
    packages = [
        [
            text(f"{each.name} ({each.manager})"),
            each.kind,
            text(each.before_version or "-"),
            text(each.after_version or "-"),
            format_byte_change(each.before_bytes, each.after_bytes),
        ]
        for each in comparison.packages
    ]
    files = [
        [code(each.path), each.kind, format_bytes(each.before_bytes), format_bytes(each.after_bytes)]
        for each in comparison.files or ()
    ]
    body = table("removed-table", "Removed components", ("Component", "Size", "Reason"), removed, numbers=(1,))
    body += table(
        "package-changes",
        "Packages that changed",
        ("Package", "Change", before, after, "Size"),
        packages,
        numbers=(4,),
        is_filtered=True,
    )
    if comparison.files is None:
        body += "<p>Files were not compared: a measurement was kept without them.</p>"
    else:
        headings = ("File", "Change", before, after)
        body += table("file-changes", "Files that changed", headings, files, numbers=(2, 3), is_filtered=True)
    return Section("changes", "What changed", body, {})


def _waste(measurement: Measurement) -> Section:
    rows = [
        [
            each.cause,
            format_bytes(each.wasted_bytes),
            f"{each.files:,}",
            str(each.stored_by),
            f"{each.caused_by}: {code(shortened(each.instruction))}",
            "<br>".join(f"{code(file.path)} {format_bytes(file.wasted_bytes)}" for file in each.largest[:3]),
        ]
        for each in measurement.waste
    ]
    headings = ("Cause", "Size", "Files", "Stored by", "Hidden by", "Largest")
    body = f"<p>{format_bytes(measurement.totals.wasted_bytes)} are stored and not seen.</p>"
    body += table("waste-table", "Wasted bytes by cause", headings, rows, numbers=(1, 2, 3))
    return Section("waste", "Waste", body, {})


def _packages(measurement: Measurement) -> Section:
    rows = [
        [text(each.name), text(each.version), each.manager, format_bytes(each.final_bytes), f"{each.files:,}"]
        for each in measurement.packages
    ]
    rest = measurement.unowned
    rows.append(["in no package", "", "", format_bytes(rest.final_bytes), f"{rest.files:,}"])
    headings = ("Package", "Version", "Kind", "Size", "Files")
    body = table("package-table", "Packages", headings, rows, numbers=(3, 4), is_filtered=True, limit=len(rows))
    largest = [[code(each.path), format_bytes(each.size_bytes), str(each.layer)] for each in measurement.largest_files]
    body += table("largest-files", "Largest files", ("File", "Size", "Layer"), largest, numbers=(1, 2), limit=25)
    return Section("packages", "Packages and files", body, {})


def _duplicates(measurement: Measurement) -> Section:
    libraries = [
        [
            text(each.soname) + (" (CUDA)" if each.is_cuda else ""),
            format_bytes(each.extra_bytes),
            "<br>".join(f"{code(copy.path)} {format_bytes(copy.size_bytes)}" for copy in each.copies),
        ]
        for each in measurement.duplicate_libraries
    ]
    contents = [
        [
            format_bytes(each.extra_bytes),
            str(each.copies),
            "<br>".join(f"{code(copy.path)} (layer {copy.layer})" for copy in each.examples[:3]),
        ]
        for each in measurement.duplicates
    ]
    body = table(
        "library-table", "Shared libraries more than once", ("Library", "Extra", "Copies"), libraries, numbers=(1,)
    )
    body += table(
        "content-table", "Equal content", ("Extra", "Copies", "For example"), contents, numbers=(0, 1), limit=25
    )
    return Section("duplicates", "Duplicates", body, {})


def _gpu_code(measurement: Measurement) -> Section:
    gpu_code = measurement.gpu_code
    names = [each.architecture for each in gpu_code.architectures]
    series = [{"name": "code", "color": "after", "values": [each.code_bytes for each in gpu_code.architectures]}]
    drawing = {"kind": "bars", "title": "code", "mode": "stack", "names": names, "series": series}
    rows = [
        [text(each.architecture), format_bytes(each.code_bytes), str(each.libraries)] for each in gpu_code.architectures
    ]
    libraries = [
        [code(each.path), format_bytes(each.code_bytes), text(architectures_text(each))] for each in gpu_code.libraries
    ]
    body = chart("gpu-code", f"Bars: bytes of code for {len(rows)} architectures. The table below says the same.")
    body += table("architecture-table", "GPU code", ("Architecture", "Code", "Libraries"), rows, numbers=(1, 2))
    headings = ("Library", "Code", "Most of it for")
    body += table("gpu-libraries", "Libraries with GPU code", headings, libraries, numbers=(1,), limit=25)
    if gpu_code.layers_not_searched:
        body += f"<p>{layers_not_searched_text(gpu_code)}</p>"
    return Section("gpu", "GPU code", body, {"gpu-code": drawing})


def _trend(trend: Sequence[TrendPoint]) -> Section:
    shown = (("unpacked_bytes", "before"), ("final_bytes", "after"), ("wasted_bytes", "waste"))
    drawing = {
        "kind": "trend",
        "times": [point.taken for point in trend],
        "series": [
            {"name": FIGURES[name], "color": color, "values": [getattr(point.totals, name) for point in trend]}
            for name, color in shown
        ],
    }
    rows = [
        [text(point.taken), *(figure_text(name, getattr(point.totals, name)) for name in FIGURES)] for point in trend
    ]
    body = chart("trend", f"Lines: sizes of {len(rows)} kept measurements. The table below says the same.")
    numbers = tuple(range(1, len(FIGURES) + 1))
    body += table("trend-table", "Kept measurements", ("Taken", *FIGURES.values()), rows, numbers=numbers)
    return Section("trend", "Trend", body, {"trend": drawing})


def _position(number: int | None) -> str:
    return "-" if number is None else str(number)


def _color(path: str) -> str:
    return next((color for pattern, color in _COLORS if pattern.fullmatch(path)), _OTHER_COLOR)
