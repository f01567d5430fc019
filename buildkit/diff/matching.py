"""Matches the layers and the files of two images."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

from buildkit.image.model import FileRecord, LayerMeasurement, Measurement

__all__ = ["FilePair", "LayerPair", "match_files", "match_layers"]

LayerPair = tuple[LayerMeasurement | None, LayerMeasurement | None]
FilePair = tuple[FileRecord | None, FileRecord | None]

_MAX_LETTERS: Final = 300  # later differences seldom tell two instructions apart
_MIN_SIMILARITY: Final = 0.6  # the bound of difflib.get_close_matches


def match_layers(before: Measurement, after: Measurement, *, base_layers: int = 1) -> Iterator[LayerPair]:
    """Matches equal layers; between them layers of the same instruction; between those layers of similar instructions.

    The lowest *base_layers* of both images always match. All other layers were added or removed. The order is that
    of both images.
    """

    def between(old: Sequence[LayerMeasurement], new: Sequence[LayerMeasurement], step: int) -> Iterator[LayerPair]:
        if step == len(keys):
            yield from _match_similar(old, new, base_layers)
            return
        key = keys[step]
        matcher = SequenceMatcher(None, [key(each) for each in old], [key(each) for each in new], autojunk=False)
        at_old = at_new = 0
        for block in matcher.get_matching_blocks():
            yield from between(old[at_old : block.a], new[at_new : block.b], step + 1)
            yield from zip(old[block.a : block.a + block.size], new[block.b : block.b + block.size], strict=True)
            at_old, at_new = block.a + block.size, block.b + block.size

    keys: tuple[Callable[[LayerMeasurement], Hashable], ...] = (
        lambda layer: layer.diff_id,
        lambda layer: layer.instruction or layer.diff_id,
    )
    yield from between(before.layers, after.layers, 0)


def _match_similar(
    old: Sequence[LayerMeasurement], new: Sequence[LayerMeasurement], base_layers: int
) -> Iterator[LayerPair]:
    rest = list(new)
    for layer in old:
        found = next((place for place, other in enumerate(rest) if _is_successor(layer, other, base_layers)), None)
        if found is None:
            yield layer, None
        else:
            yield from ((None, other) for other in rest[:found])
            yield layer, rest[found]
            rest = rest[found + 1 :]
    yield from ((None, other) for other in rest)


def _is_successor(old: LayerMeasurement, new: LayerMeasurement, base_layers: int) -> bool:
    if max(old.position, new.position) < base_layers:
        return True
    if old.instruction is None or new.instruction is None:
        return old.instruction == new.instruction
    matcher = SequenceMatcher(None, old.instruction[:_MAX_LETTERS], new.instruction[:_MAX_LETTERS])
    return (
        matcher.quick_ratio() >= _MIN_SIMILARITY and matcher.ratio() >= _MIN_SIMILARITY
    )  # the first is a fast upper bound


def match_files(before: Measurement, after: Measurement) -> Iterator[FilePair]:
    """Matches equal paths; then files with the same place in their package; then files of the same name and content.

    So an environment that was moved to another folder is compared file by file.
    """
    new = {record.path: record for record in after.files or ()}
    left_old = []
    for record in before.files or ():
        other = new.pop(record.path, None)
        if other is None:
            left_old.append(record)
        else:
            yield record, other
    left_new = list(new.values())
    for key in (_place_in_package, _name_and_content):
        waiting: dict[Hashable, list[FileRecord]] = defaultdict(list)
        for record in left_new:
            waiting[key(record, after)].append(record)
        waiting.pop(None, None)
        paired: set[str] = set()
        rest = []
        for record in left_old:
            candidates = waiting.get(key(record, before))
            if candidates:
                other = candidates.pop(0)
                paired.add(other.path)
                yield record, other
            else:
                rest.append(record)
        left_old = rest
        left_new = [record for record in left_new if record.path not in paired]
    yield from ((record, None) for record in left_old)
    yield from ((None, record) for record in left_new)


def _place_in_package(record: FileRecord, measurement: Measurement) -> Hashable:
    if record.package < 0 or record.kind not in {"file", "hardlink"}:
        return None
    package = measurement.packages[record.package]
    return package.manager, package.name, record.path.removeprefix(package.location)


def _name_and_content(record: FileRecord, _measurement: Measurement) -> Hashable:
    if record.kind != "file" or not record.size_bytes:
        return None
    return record.path.rpartition("/")[2], record.sha256
