"""Computes the efficiency figures of dive, so that its users can compare them with ours.

dive (wagoodman/dive, dive/filetree/efficiency.go and dive/image/analysis.go) visits every leaf of every layer's tree.
For each path it collects the sizes that layers have for it. A whiteout has size 0 if it hides a file; if it hides a
directory that some layer has an entry for, it has the size of everything below. Then

    efficiency_fraction  = sum over paths of the least size / sum over paths of all sizes
    wasted_bytes         = sum of all sizes of the paths that more than one layer has
    wasted_user_fraction = wasted_bytes / bytes of all layers but the lowest

The files below a deleted directory are not leaves of the layer that deletes it, so they stay in the first sum: the
score is too high if directories were deleted. Opaque directories are ignored.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from buildkit.image.layer_tar import LayerContents

__all__ = ["DiveEfficiency", "dive_efficiency"]


@dataclass(frozen=True, slots=True)
class DiveEfficiency:
    """The three figures of dive's CI rules: `lowestEfficiency`, `highestWastedBytes`, `highestUserWastedPercent`."""

    efficiency_fraction: float
    wasted_bytes: int
    wasted_user_fraction: float


def dive_efficiency(layers: Sequence[LayerContents]) -> DiveEfficiency:
    """Computes the figures of dive; 1, 0 and 0 for an image without files."""
    stacked: dict[str, int] = {}
    directories: set[str] = set()
    sizes: dict[str, list[int]] = {}
    layer_bytes = []
    for layer in layers:
        own = {entry.path: entry.size_bytes for entry in layer.entries if entry.path and entry.kind != "opaque"}
        hidden = {path for path in own if path.rpartition("/")[2].startswith(".wh.")}
        targets = {path: _target(path) for path in hidden}
        below = _below(stacked, [target for target in targets.values() if target in directories])
        for path in own.keys() - _folders(own):
            target = targets.get(path, path)
            sizes.setdefault(target, []).append(below.get(target, 0) if path in hidden else own[path])
        for target in targets.values():
            stacked.pop(target, None)
        stacked |= {path: size_bytes for path, size_bytes in own.items() if path not in hidden}
        directories |= {entry.path for entry in layer.entries if entry.kind == "directory"}
        layer_bytes.append(sum(own.values()))
    repeated = [each for each in sizes.values() if len(each) > 1]
    all_bytes = sum(map(sum, sizes.values()))
    wasted_bytes = sum(map(sum, repeated))
    user_bytes = sum(layer_bytes[1:])
    return DiveEfficiency(
        efficiency_fraction=sum(map(min, sizes.values())) / all_bytes if all_bytes else 1.0,
        wasted_bytes=wasted_bytes,
        wasted_user_fraction=wasted_bytes / user_bytes if user_bytes else 0.0,
    )


def _folders(paths: Iterable[str]) -> set[str]:
    """Returns all folders above *paths*."""
    folders: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders


def _below(stacked: dict[str, int], hidden: Sequence[str]) -> dict[str, int]:
    """Returns the bytes below each hidden directory, and removes those files from *stacked*."""
    if not hidden:
        return {}
    names = sorted(stacked)
    ranges = {path: names[bisect_left(names, f"{path}/") : bisect_left(names, f"{path}0")] for path in hidden}
    found = {path: sum(stacked[name] for name in below) for path, below in ranges.items()}
    for below in ranges.values():
        for name in below:
            stacked.pop(name, None)
    return found


def _target(path: str) -> str:
    """Returns the path that a whiteout hides; any other path is returned unchanged."""
    folder, _, name = path.rpartition("/")
    name = name.removeprefix(".wh.")
    return f"{folder}/{name}" if folder else name
