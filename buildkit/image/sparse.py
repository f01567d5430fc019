"""Reads the maps of sparse files in a tar archive, and hashes the files with their holes.

Formats: GNU tar's manual, "Storing Sparse Files": the old GNU format, and pax versions 0.0, 0.1 and 1.0.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from buildkit.image.errors import CorruptLayer, LayerTooLarge, UnsupportedEntry
from buildkit.image.tar_cursor import TarCursor
from buildkit.image.tar_format import BLOCK_BYTES, HEADER_TEXT_BYTES, TarHeader, parse_decimal, parse_number

__all__ = ["SparseMap", "hash_sparse_file", "read_sparse_map"]

_ZEROS: Final = memoryview(bytes(1 << 20))
_NUMBER_BYTES: Final = 12  # of one number in the old GNU format


@dataclass(frozen=True, slots=True)
class SparseMap:
    """The data segments of a sparse file, as (offset, length) in bytes; the rest of its `real_bytes` is zero.

    `map_bytes` is the part of the stored content that holds the map itself.
    """

    segments: tuple[tuple[int, int], ...]
    real_bytes: int
    data_bytes: int
    map_bytes: int

    @classmethod
    def of(cls, numbers: list[int], real_bytes: int, *, map_bytes: int = 0) -> "SparseMap":
        """Pairs offsets and lengths; raises CorruptLayer if they overlap or leave the file."""
        if len(numbers) % 2:
            raise CorruptLayer("a sparse map with an offset that has no length")
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        position = 0
        for offset, length in segments:
            if offset < position or offset + length > real_bytes:
                raise CorruptLayer("a sparse map that overlaps or leaves the file")
            position = offset + length
        return cls(segments, real_bytes, sum(length for _, length in segments), map_bytes)


def read_sparse_map(
    cursor: TarCursor, header: TarHeader, pax: Mapping[str, bytes], stored_bytes: int
) -> SparseMap | None:
    """Returns the map of a sparse file, None for an ordinary file; moves *cursor* past a map in the content.

    Raises:
        UnsupportedEntry: a version that GNU tar does not write.
        CorruptLayer, LayerTooLarge: the map is wrong or too long.
    """
    if header.type_flag == b"S":
        return _read_old_gnu_map(cursor, header)
    version = (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor"))
    if version == (b"1", b"0"):
        return _read_pax_1_0_map(cursor, pax, stored_bytes)
    if version not in {(None, None), (b"0", b"0"), (b"0", b"1")}:
        raise UnsupportedEntry(f"a sparse file of unknown version {version}")
    if "GNU.sparse.map" not in pax:
        return None
    numbers = [parse_decimal(number, "a sparse map") for number in pax["GNU.sparse.map"].split(b",") if number]
    real_bytes = parse_decimal(pax.get("GNU.sparse.realsize", pax.get("GNU.sparse.size", b"")), "the sparse size")
    return SparseMap.of(numbers, real_bytes)


def _read_old_gnu_map(cursor: TarCursor, header: TarHeader) -> SparseMap:
    """Reads four pairs from the header, and 21 from each block that follows it."""
    block, numbers = header.block, list[int]()
    offset, pairs, more_at = 386, 4, 482
    while True:
        for pair in range(pairs):
            start = offset + 2 * _NUMBER_BYTES * pair
            middle = start + _NUMBER_BYTES
            if block[start] == 0:
                break
            numbers += [parse_number(block[start:middle]), parse_number(block[middle : middle + _NUMBER_BYTES])]
        if not block[more_at]:
            break
        if len(numbers) * _NUMBER_BYTES > HEADER_TEXT_BYTES:
            raise LayerTooLarge(f"a sparse map of more than {HEADER_TEXT_BYTES} bytes")
        block = cursor.take(BLOCK_BYTES)
        offset, pairs, more_at = 0, 21, 504
    return SparseMap.of(numbers, parse_number(header.block[483:495]))


def _read_pax_1_0_map(cursor: TarCursor, pax: Mapping[str, bytes], stored_bytes: int) -> SparseMap:
    """Reads the map at the start of the content: decimal numbers, one per line, padded to a block."""
    text = b""
    wanted = None
    while wanted is None or text.count(b"\n") < wanted:
        if len(text) + BLOCK_BYTES > stored_bytes:
            raise CorruptLayer("a sparse map longer than the file's content")
        text += cursor.take(BLOCK_BYTES)
        if len(text) > HEADER_TEXT_BYTES:
            raise LayerTooLarge(f"a sparse map of more than {HEADER_TEXT_BYTES} bytes")
        if wanted is None and b"\n" in text:
            wanted = 1 + 2 * parse_decimal(text.split(b"\n", 1)[0], "a sparse map")
    numbers = [parse_decimal(line, "a sparse map") for line in text.split(b"\n")[1:wanted]]
    real_bytes = parse_decimal(pax.get("GNU.sparse.realsize", b""), "the sparse size")
    return SparseMap.of(numbers, real_bytes, map_bytes=len(text))


def hash_sparse_file(cursor: TarCursor, sparse: SparseMap) -> bytes:
    """Returns the SHA-256 of the file with its holes, and moves *cursor* past its data."""
    hasher = hashlib.sha256()
    position = 0
    for offset, length in sparse.segments:
        _feed_zeros(hasher.update, offset - position)
        cursor.feed(length, hasher.update)
        position = offset + length
    _feed_zeros(hasher.update, sparse.real_bytes - position)
    return hasher.digest()


def _feed_zeros(update: Callable[[memoryview], object], count: int) -> None:
    while count:
        part = _ZEROS[:count]
        update(part)
        count -= len(part)
