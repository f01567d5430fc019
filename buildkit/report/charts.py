"""Builds the data of the charts in the HTML page; `assets/page.js` draws each one by its `kind`."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from buildkit.diff.model import Comparison
from buildkit.image.gpu_code import GpuCodeMeasurement
from buildkit.image.model import FolderSize, Measurement
from buildkit.report.builds import Timeline
from buildkit.report.format import FIGURES, shorten_instruction

__all__ = ["Chart", "gpu_code_bars", "layer_bars", "layer_change_bars", "timeline", "treemap", "trend"]

Chart = dict[str, object]
"""A chart as JSON: its `kind` and what page.js needs to draw that kind."""

_ALMOST_ALL: Final = 0.98
_LABEL_LETTERS: Final = 44
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


def treemap(folders: Sequence[FolderSize]) -> Chart:
    """Returns the folders as nested areas; a folder whose only content is one other folder is drawn as that one."""
    parent_of = _parents(folders)
    shown = sorted((each for each in folders if each.path in parent_of), key=lambda each: each.path)
    return {
        "kind": "treemap",
        "ids": ["/" + each.path for each in shown],
        "labels": [_plain(each.path.removeprefix(parent_of[each.path]).strip("/") or "/") for each in shown],
        "parents": ["/" + parent_of[each.path] if each.path else "" for each in shown],
        "values": [each.final_bytes for each in shown],
        "colors": [_color(each.path) for each in shown],
    }


def layer_bars(measurement: Measurement) -> Chart:
    """Returns the visible and wasted bytes of each layer."""
    names = [f"#{layer.position} {_label(layer.instruction)}" for layer in measurement.layers]
    visible = _series("visible", "after", [layer.final_bytes for layer in measurement.layers])
    wasted = _series("wasted", "waste", [layer.wasted_bytes for layer in measurement.layers])
    return _bars("unpacked", "stack", names, visible, wasted)


def layer_change_bars(comparison: Comparison, before: str, after: str) -> Chart:
    """Returns the unpacked bytes of each layer in both images; a minus sign marks layers of the image before only."""
    names = [
        f"−{layer.before} {_label(layer.instruction)}"  # noqa: RUF001 - a minus sign
        if layer.after is None
        else f"#{layer.after} {_label(layer.instruction)}"
        for layer in comparison.layers
    ]
    old = _series(before, "before", [layer.before_bytes for layer in comparison.layers])
    new = _series(after, "after", [layer.after_bytes for layer in comparison.layers])
    return _bars("unpacked", "group", names, old, new)


def gpu_code_bars(gpu_code: GpuCodeMeasurement) -> Chart:
    """Returns the bytes of GPU code for each architecture."""
    names = [each.architecture for each in gpu_code.architectures]
    return _bars("code", "stack", names, _series("code", "after", [each.code_bytes for each in gpu_code.architectures]))


def timeline(build: Timeline) -> Chart:
    """Returns the start and duration of each step of a build, in seconds."""
    steps = [
        {
            "stage": _plain(step.stage),
            "name": _label(step.name),
            "start": step.start_seconds,
            "seconds": step.seconds,
            "cached": step.is_cached,
        }
        for step in build.steps
    ]
    return {"kind": "timeline", "steps": steps}


def trend(history: Sequence[Measurement]) -> Chart:
    """Returns the sizes of saved measurements over time."""
    lines = (("unpacked_bytes", "before"), ("final_bytes", "after"), ("wasted_bytes", "waste"))
    return {
        "kind": "trend",
        "times": [each.measured_at or "" for each in history],
        "series": [
            _series(FIGURES[name], color, [getattr(each.totals, name) for each in history]) for name, color in lines
        ],
    }


def _bars(title: str, mode: str, names: Sequence[str], *series: Chart) -> Chart:
    return {"kind": "bars", "title": title, "mode": mode, "names": names, "series": series}


def _series(name: str, color: str, values: Sequence[int]) -> Chart:
    return {"name": name, "color": color, "values": values}


def _label(instruction: str | None) -> str:
    """Returns an instruction of at most 44 characters, for the axis of a chart."""
    label = shorten_instruction(instruction)
    return _plain(label if len(label) <= _LABEL_LETTERS else label[: _LABEL_LETTERS - 1] + "…")


def _plain(label: str) -> str:
    """Returns a label that plotly.js, which reads tags in labels, shows as it is."""
    return label.replace("&", "&amp;").replace("<", "&lt;")


def _parents(folders: Sequence[FolderSize]) -> dict[str, str]:
    """Returns the folders to draw, each with its parent: not those with almost all their bytes in one subfolder."""
    sizes = {folder.path: folder.final_bytes for folder in folders}
    largest: dict[str, int] = defaultdict(int)
    for folder in folders:
        if folder.path:
            parent = folder.path.rpartition("/")[0]
            largest[parent] = max(largest[parent], folder.final_bytes)
    shown = {path for path, size_bytes in sizes.items() if not path or largest[path] < _ALMOST_ALL * size_bytes}
    parents = {}
    for path in shown:
        parent = path.rpartition("/")[0]
        while parent not in shown:
            parent = parent.rpartition("/")[0]
        parents[path] = parent
    return parents


def _color(path: str) -> str:
    return next((color for pattern, color in _COLORS if pattern.fullmatch(path)), _OTHER_COLOR)
