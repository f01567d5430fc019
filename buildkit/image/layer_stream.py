"""Streams the tar archive of a layer's blob: a thread reads, decompresses, counts and hashes it.

That thread spends its time in calls that release the interpreter lock (reading, hashing, inflating), so the thread that
takes the bytes has another core to itself.
"""

import hashlib
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Final, Literal, Protocol, cast

from buildkit.image.errors import CorruptLayer, LayerTooLarge

__all__ = ["ByteSource", "Compression", "LayerStream", "Limits", "check_expansion", "is_compressed"]

_CHUNK_BYTES: Final = 1 << 20  # fits a core's second-level cache; 256 kB and 4 MB were measured slower
_CHUNKS_IN_FLIGHT: Final = 8
# The default limit of the reference decoder (zstd.h, ZSTD_WINDOWLOG_LIMIT_DEFAULT); a larger window takes more memory.
_ZSTD_WINDOW_LOG: Final = 27
_GZIP_MAGIC: Final = b"\x1f\x8b"  # RFC 1952, 2.3.1
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
_ZSTD_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # RFC 8878, 3.1.2, after a first byte of 0x50 to 0x5F
Compression = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest layer that is read; larger ones are refused.

    Attributes:
        unpacked_bytes: regular files of one layer.
        entries: entries of one layer, and of all layers of an image together. 400,000 entries take 460 MB to analyze
            (measured, with paths of 95 letters); the largest CUDA images known have half as many.
        captured_bytes: lists of package files of one layer.
        expansion_ratio: unpacked to stored bytes, past `expansion_free_bytes`. Deflate cannot exceed 1032, zstd and
            holes can; no layer of real files comes near 500.
        expansion_free_bytes: unpacked bytes up to which any ratio is accepted.
    """

    unpacked_bytes: int = 256 << 30
    entries: int = 400_000
    captured_bytes: int = 64 << 20
    expansion_ratio: int = 500
    expansion_free_bytes: int = 4 << 30


def is_compressed(prefix: bytes) -> bool:
    """Returns whether a blob that starts with *prefix* is gzip or zstd; four bytes suffice."""
    is_skippable = prefix[1:4] == _ZSTD_SKIPPABLE_MAGIC and prefix[0] in range(0x50, 0x60)
    return prefix[:2] == _GZIP_MAGIC or prefix[:4] == _ZSTD_MAGIC or is_skippable


class ByteSource(Protocol):
    """A source of bytes, such as an unbuffered file."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fills *buffer* from its start and returns the number of bytes, 0 at the end."""


class LayerStream:
    """The tar archive of a blob, in chunks; a thread reads ahead into a fixed set of buffers.

    The digests are complete once the stream has been drained.
    """

    def __init__(self, source: ByteSource, *, limits: Limits) -> None:
        self._hashed = _HashedSource(source)
        self._limits = limits
        magic = self._hashed.peek(4)
        self.compression: Compression = "none"
        self._decoded: _HashedSource | _GzipReader | _ZstdReader = self._hashed
        if magic[:2] == _GZIP_MAGIC:
            self.compression, self._decoded = "gzip", _GzipReader(self._hashed)
        elif is_compressed(magic):
            self.compression, self._decoded = "zstd", _ZstdReader(self._hashed)
        self._tar_hash = None if self.compression == "none" else hashlib.sha256()
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._full: SimpleQueue[tuple[bytearray, int] | BaseException] = SimpleQueue()
        self._current: bytearray | None = None
        self._is_at_end = False
        for _ in range(_CHUNKS_IN_FLIGHT):
            self._free.put(bytearray(_CHUNK_BYTES))
        self._thread = threading.Thread(target=self._produce, name="layer-reader", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        inflated_bytes = 0
        try:
            while (buffer := self._free.get()) is not None:
                filled = self._decoded.readinto(memoryview(buffer))
                self._full.put((buffer, filled))
                if not filled:
                    return
                inflated_bytes += filled
                check_expansion(inflated_bytes, self._hashed.count_bytes, self._limits)
        except BaseException as error:  # noqa: BLE001 (the edge of the thread: raised again in the caller)
            self._full.put(error)

    def next_chunk(self) -> memoryview:
        """Returns the next bytes of the archive, empty at its end; the previous chunk becomes invalid."""
        if self._is_at_end:
            return memoryview(b"")
        if self._current is not None:
            self._free.put(self._current)
            self._current = None
        item = self._full.get()
        if isinstance(item, BaseException):
            self._is_at_end = True
            raise item
        self._current, filled = item
        self._is_at_end = not filled
        view = memoryview(self._current)[:filled]
        if self._tar_hash is not None:
            self._tar_hash.update(view)
        return view

    def drain(self) -> None:
        """Reads the bytes after the end of the archive, which engines ignore, for digests of the complete blob."""
        while self.next_chunk():
            pass
        self._thread.join()

    def close(self) -> None:
        """Stops the reading thread; does not close the source."""
        self._is_at_end = True
        self._free.put(None)
        self._thread.join()

    @property
    def blob_digest(self) -> str:
        """The digest of the bytes as stored."""
        return self._hashed.digest()

    @property
    def blob_bytes(self) -> int:
        """The number of bytes read so far, as stored."""
        return self._hashed.count_bytes

    @property
    def diff_id(self) -> str:
        """The digest of the tar archive, which the image's configuration names."""
        return self.blob_digest if self._tar_hash is None else f"sha256:{self._tar_hash.hexdigest()}"


class _HashedSource:
    """A source that hashes and counts the bytes that are read from it."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._prefix = b""
        self.count_bytes = 0

    def peek(self, count: int) -> bytes:
        """Returns the first bytes and leaves them to be read; only before the first read."""
        buffer = memoryview(bytearray(count))
        filled = self._fill(buffer)
        self._prefix = bytes(buffer[:filled])
        return self._prefix

    def _fill(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            count = self._source.readinto(buffer[filled:])
            if not count:
                break
            filled += count
        return filled

    def readinto(self, buffer: memoryview, /) -> int:
        """Fills all of *buffer*, unless the source ends first."""
        start = min(len(self._prefix), len(buffer))
        buffer[:start] = self._prefix[:start]
        self._prefix = self._prefix[start:]
        filled = start + self._fill(buffer[start:])
        self._hash.update(buffer[:filled])
        self.count_bytes += filled
        return filled

    def read(self, size: int = -1, /) -> bytes:
        """Returns up to *size* bytes, for decompressors."""
        buffer = bytearray(size if size >= 0 else _CHUNK_BYTES)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readable(self) -> bool:
        """Returns True: decompressors ask before they read."""
        return True

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Inflater(Protocol):
    """The part of `zlib.decompressobj` that is used here."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _inflater() -> tuple[Callable[[], _Inflater], type[Exception]]:
    """Returns a factory of inflaters and their error: ISA-L if installed, at 1.8 times the speed of zlib (measured)."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 (an optional dependency)
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    return lambda: isal_zlib.decompressobj(wbits=31), cast("type[Exception]", isal_zlib.error)


class _GzipReader:
    """Inflates a gzip file of one or more members (RFC 1952); refuses truncated files and trailing bytes."""

    _READ_BYTES: Final = 1 << 18

    def __init__(self, source: _HashedSource) -> None:
        self._source = source
        self._new_inflater, self._error = _inflater()
        self._inflater = self._new_inflater()
        self._pending = b""

    def readinto(self, buffer: memoryview, /) -> int:
        filled = 0
        while filled < len(buffer):
            if self._inflater.eof:
                self._pending = self._inflater.unused_data or self._source.read(self._READ_BYTES)
                if not self._pending.strip(b"\0"):
                    self._require_only_zeros()
                    break
                self._inflater = self._new_inflater()
            self._pending = self._pending or self._source.read(self._READ_BYTES)
            try:
                inflated = self._inflater.decompress(self._pending, len(buffer) - filled)
            except self._error as error:
                raise CorruptLayer(f"broken gzip stream ({error})") from error
            if not inflated and not self._pending and not self._inflater.eof:
                raise CorruptLayer("the gzip stream ends early")
            buffer[filled : filled + len(inflated)] = inflated
            filled += len(inflated)
            self._pending = self._inflater.unconsumed_tail
        return filled

    def _require_only_zeros(self) -> None:
        while rest := self._source.read(self._READ_BYTES):
            if rest.strip(b"\0"):
                raise CorruptLayer("other bytes follow the gzip stream")


class _ZstdReader:
    """Decodes zstd frames (RFC 8878), skippable ones included, with a window of at most 128 MiB.

    Before Python 3.14 a truncated frame is read as if it were complete; its archive and the digests show the damage.
    """

    def __init__(self, source: _HashedSource) -> None:
        self._reader: ByteSource
        self._errors: tuple[type[Exception], ...]
        file = cast("IO[bytes]", source)  # both decoders take a file object and call only its `read`
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 (new in 3.14)

            options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
            self._reader = zstd.ZstdFile(file, options=options)
            self._errors = (zstd.ZstdError, EOFError)
        else:
            import zstandard  # noqa: PLC0415 (not needed since 3.14)

            decoder = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG)
            self._reader = decoder.stream_reader(file, read_across_frames=True, read_size=_CHUNK_BYTES)
            self._errors = (zstandard.ZstdError,)

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self._reader.readinto(buffer) or 0
        except self._errors as error:
            raise CorruptLayer(f"broken zstd stream ({error})") from error


def check_expansion(unpacked_bytes: int, stored_bytes: int, limits: Limits) -> None:
    """Raises LayerTooLarge if *unpacked_bytes* exceed the limits, alone or in relation to *stored_bytes*."""
    if unpacked_bytes > limits.unpacked_bytes:
        raise LayerTooLarge(f"more than {limits.unpacked_bytes} bytes unpacked; --max-layer-bytes raises the limit")
    if unpacked_bytes > limits.expansion_free_bytes and unpacked_bytes > stored_bytes * limits.expansion_ratio:
        raise LayerTooLarge(
            f"{stored_bytes} stored bytes unpack to {unpacked_bytes}, more than {limits.expansion_ratio} times as many"
        )
