"""Takes bytes of a tar archive from the chunks of a layer stream: headers, texts, and contents to hash or to skip."""

from collections.abc import Callable
from typing import Final

from buildkit.image.errors import CorruptLayer, LayerTooLarge
from buildkit.image.layer_stream import LayerStream
from buildkit.image.tar_format import BLOCK_BYTES, HEADER_TEXT_BYTES, TarHeader

__all__ = ["TarCursor"]

_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)


class TarCursor:
    """A position in a tar archive that only moves forward.

    Attributes:
        stream: the source of the chunks.
        chunk: the current chunk.
        position: the offset of the next byte in the chunk.
        has_end_marker: whether the end marker of the archive was read.
    """

    def __init__(self, stream: LayerStream) -> None:
        self.stream = stream
        self.chunk = memoryview(b"")
        self.position = 0
        self.has_end_marker = False
        self._earlier_bytes = 0

    @property
    def offset(self) -> int:
        """The offset of the next byte in the archive."""
        return self._earlier_bytes + self.position

    def take_header(self) -> bytes | None:
        """Returns the next header block; None at the end marker, or if the archive ends between two entries."""
        end = self.position + BLOCK_BYTES
        if end <= len(self.chunk):
            block = bytes(self.chunk[self.position : end])
            self.position = end
        else:
            block = self._take_up_to(BLOCK_BYTES)
            if not block:
                return None
            if len(block) < BLOCK_BYTES:
                raise CorruptLayer("the archive ends inside a header")
        if block == _ZERO_BLOCK:
            second = self._take_up_to(BLOCK_BYTES)
            if second.strip(b"\0"):
                raise CorruptLayer("a zero block precedes an entry")
            self.has_end_marker = True
            return None
        return block

    def take_text(self, header: TarHeader) -> bytes:
        """Returns the content of an extended header."""
        if header.size_bytes > HEADER_TEXT_BYTES:
            raise LayerTooLarge(f"an extended header of {header.size_bytes} bytes")
        text = self.take(header.size_bytes)
        self.skip(-header.size_bytes % BLOCK_BYTES)
        return text

    def take(self, count: int) -> bytes:
        """Returns the next *count* bytes; raises CorruptLayer if the archive ends before."""
        taken = self._take_up_to(count)
        if len(taken) < count:
            raise CorruptLayer("the archive ends inside an entry")
        return taken

    def feed(self, count: int, update: Callable[[memoryview], object]) -> None:
        """Calls *update* with the next *count* bytes, part by part."""
        while count:
            if self.position == len(self.chunk):
                self._next_chunk()
                if not self.chunk:
                    raise CorruptLayer("the archive ends inside a file")
            part = self.chunk[self.position : self.position + count]
            update(part)
            self.position += len(part)
            count -= len(part)

    def skip(self, count: int) -> None:
        """Moves *count* bytes forward."""
        end = self.position + count
        if end <= len(self.chunk):
            self.position = end
        else:
            self.feed(count, len)  # which ignores the bytes

    def _take_up_to(self, count: int) -> bytes:
        end = self.position + count
        if end <= len(self.chunk):
            taken = bytes(self.chunk[self.position : end])
            self.position = end
            return taken
        parts = bytearray()
        while len(parts) < count:
            if self.position == len(self.chunk):
                self._next_chunk()
                if not self.chunk:
                    break
            part = self.chunk[self.position : self.position + count - len(parts)]
            parts += part
            self.position += len(part)
        return bytes(parts)

    def _next_chunk(self) -> None:
        self._earlier_bytes += len(self.chunk)
        self.chunk, self.position = self.stream.next_chunk(), 0
