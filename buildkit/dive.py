"""Efficiency as dive reports it, so that its users can hold our figures against theirs.

dive (wagoodman/dive, dive/filetree/efficiency.go and dive/image/analysis.go) looks at every leaf of every layer's tree.
For each path it takes the sizes that the layers have for it: a whiteout counts as nothing where it hides a file, and as
all that is below where it hides a directory that some layer names. Then

    efficiency_fraction  = sum over paths of the least size / sum over paths of all sizes
    wasted_bytes         = sum of all sizes of the paths that more than one layer has
    wasted_user_fraction = wasted_bytes / bytes of all layers but the lowest

The files below a deleted directory are no leaves of the layer that deletes it, so they stay in the first sum: the score
is too good wherever directories were deleted. Opaque directories are not looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from buildkit.layer_tar import LayerContents

__all__ = ["DiveEfficiency", "dive_efficiency"]


@dataclass(frozen=True, slots=True)
class DiveEfficiency:
    """dive's three figures; its CI rules are `lowestEfficiency`, `highestWastedBytes`, `highestUserWastedPercent`."""

    efficiency_fraction: float
    wasted_bytes: int
    wasted_user_fraction: float


@dataclass(slots=True)
class _Tree:
    """Sizes by name, a directory having more names below it."""

    size_bytes: int = 0
    is_directory: bool = False
    children: dict[str, "_Tree"] = field(default_factory=dict)

    def put(self, path: str, size_bytes: int, *, is_directory: bool) -> None:
        node = self
        for part in path.split("/"):
            node = node.children.setdefault(part, _Tree())
        node.size_bytes, node.is_directory = size_bytes, is_directory

    def pop(self, path: str) -> "_Tree | None":
        node, parts = self, path.split("/")
        for part in parts[:-1]:
            if part not in node.children:
                return None
            node = node.children[part]
        return node.children.pop(parts[-1], None)

    def below(self) -> int:
        """Return the bytes of all names below this one; 0 for a file."""
        total_bytes, stack = 0, list(self.children.values())
        while stack:
            node = stack.pop()
            total_bytes += node.size_bytes
            stack.extend(node.children.values())
        return total_bytes


def dive_efficiency(layers: Sequence[LayerContents]) -> DiveEfficiency:
    """Compute dive's figures; 1, 0 and 0 for an image without files."""
    stacked = _Tree()
    sizes: dict[str, list[int]] = {}
    layer_bytes = []
    for layer in layers:
        own = {entry.path: entry.size_bytes for entry in layer.entries if entry.path and entry.kind != "opaque"}
        directories = {entry.path for entry in layer.entries if entry.kind == "directory"}
        folders: set[str] = set()
        for path in own:
            folder = path.rpartition("/")[0]
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition("/")[0]
        hidden = {path for path in own if path.rpartition("/")[2].startswith(".wh.")}
        layer_bytes.append(sum(own.values()))
        for path in own.keys() - folders:
            target = _target(path)
            gone = stacked.pop(target) if path in hidden else None
            sizes.setdefault(target, []).append(own[path] if gone is None or not gone.is_directory else gone.below())
        for path in own.keys() - hidden:
            stacked.put(path, own[path], is_directory=path in directories)
    repeated = [each for each in sizes.values() if len(each) > 1]
    all_bytes = sum(map(sum, sizes.values()))
    wasted_bytes = sum(map(sum, repeated))
    user_bytes = sum(layer_bytes[1:])
    return DiveEfficiency(
        efficiency_fraction=sum(map(min, sizes.values())) / all_bytes if all_bytes else 1.0,
        wasted_bytes=wasted_bytes,
        wasted_user_fraction=wasted_bytes / user_bytes if user_bytes else 0.0,
    )


def _target(path: str) -> str:
    """Return the path that a whiteout hides, any other path as it is."""
    folder, _, name = path.rpartition("/")
    name = name.removeprefix(".wh.")
    return f"{folder}/{name}" if folder else name
