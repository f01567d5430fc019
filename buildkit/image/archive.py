"""Reads the files of an image archive, the outer tar, from a file or a pipe.

Formats: OCI image specification 1.1, image-layout.md; the archive of `docker image save`.
"""

import io
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from buildkit.image.errors import CorruptImage, CorruptLayer, LayerError
from buildkit.image.layer_stream import ByteSource
from buildkit.image.tar_format import BLOCK_BYTES, TarHeader, decode_name, parse_decimal, parse_pax

__all__ = ["SMALL_BYTES", "ArchiveEntry", "Section", "archive_entries"]

SMALL_BYTES: Final = 16 << 20  # the most for one JSON file: registries refuse manifests of more than 4 MiB
_SKIP_BYTES: Final = 1 << 20


class Section(io.RawIOBase):
    """The bytes of one entry of an archive, as a file that ends where the entry ends.

    *seek* is called before the first read, for an archive that is a file.
    """

    def __init__(self, source: ByteSource, size_bytes: int, *, seek: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._source = source
        self._seek = seek
        self._prefix = b""
        self.left_bytes = size_bytes

    def readable(self) -> bool:
        """Returns True: a section can be read."""
        return True

    def peek(self, count: int) -> bytes:
        """Returns the first bytes, fewer at the end of the entry, and leaves them to be read."""
        self._prefix = self.take(min(count, self.left_bytes))
        self.left_bytes += len(self._prefix)
        return self._prefix

    def take(self, count: int) -> bytes:
        """Returns the next *count* bytes, fewer at the end of the entry."""
        return _read_exactly(self, min(count, self.left_bytes))

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fills the start of *buffer* with one read of the archive and returns the number of bytes."""
        if self._seek is not None:
            self._seek()
            self._seek = None
        with memoryview(buffer) as view, view[: self.left_bytes] as wanted:
            count = min(len(self._prefix), len(wanted))
            if count:
                wanted[:count] = self._prefix[:count]
                self._prefix = self._prefix[count:]
            elif wanted:
                count = self._source.readinto(wanted) or 0
        self.left_bytes -= count
        return count

    def skip(self) -> None:
        """Reads to the end of the entry."""
        buffer = memoryview(bytearray(_SKIP_BYTES))
        while self.readinto(buffer):
            pass


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A file of an archive; if `link` is set, another name for the file with that name."""

    name: str
    size_bytes: int
    link: str = ""


def archive_entries(archive: ByteSource, image: str) -> Iterator[ArchiveEntry]:
    """Yields the files of an archive; the caller must consume an entry's bytes before it asks for the next one.

    Raises:
        CorruptImage: it is not a tar archive, or it ends early.
    """
    pax: dict[str, bytes] = {}
    while (block := _read_exactly(archive, BLOCK_BYTES)).strip(b"\0"):
        if len(block) < BLOCK_BYTES:
            raise CorruptImage(image, "not an image archive: it ends inside a header")
        try:
            header = TarHeader.parse(block)
            if header.type_flag in {b"x", b"g", b"L", b"K"}:
                pax |= _extended_header(header, archive)
                continue
            size_bytes = parse_decimal(pax["size"], "size") if "size" in pax else header.size_bytes
        except LayerError as error:
            raise CorruptImage(image, f"not an image archive: {error.reason}") from error
        name = posixpath.normpath(decode_name(pax.get("path", header.name))).lstrip("/")
        target = decode_name(pax.get("linkpath", header.link_name))
        pax = {}
        match header.type_flag:
            case b"5":
                continue
            case b"1":
                yield ArchiveEntry(name, 0, posixpath.normpath(target))
            case b"2":
                yield ArchiveEntry(name, 0, posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))
            case b"0" | b"\0":
                yield ArchiveEntry(name, size_bytes)
                _read_exactly(archive, -size_bytes % BLOCK_BYTES)
            case _:
                raise CorruptImage(image, f"{name} in the archive is of type {header.type_flag!r}")


def _extended_header(header: TarHeader, archive: ByteSource) -> dict[str, bytes]:
    if header.size_bytes > SMALL_BYTES:
        raise CorruptLayer(f"an extended header of {header.size_bytes} bytes")
    text = _read_exactly(archive, header.size_bytes + -header.size_bytes % BLOCK_BYTES)[: header.size_bytes]
    match header.type_flag:
        case b"L":
            return {"path": text.rstrip(b"\0")}
        case b"K":
            return {"linkpath": text.rstrip(b"\0")}
        case b"x":
            return parse_pax(text)
    return {}


def _read_exactly(source: ByteSource, count: int) -> bytes:
    """Returns the next *count* bytes, fewer at the end of the source."""
    buffer = memoryview(bytearray(count))
    filled = 0
    while filled < count and (got := source.readinto(buffer[filled:])):
        filled += got
    return bytes(buffer[:filled])
