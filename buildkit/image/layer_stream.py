"""A layer's blob as the bytes of its tar: inflated, counted and hashed by a thread of its own.

The reading thread spends its time in calls that release the interpreter lock (reading, hashing, inflating), so the
thread that takes the bytes has the other core for itself.
"""

import hashlib
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Final, Literal, Protocol, cast

from buildkit.image.tar_format import CorruptLayer, LayerTooLarge

__all__ = ["ByteSource", "Compression", "LayerStream", "Limits", "check_expansion", "is_compressed"]

_CHUNK_BYTES: Final = 1 << 20  # fits a core's second-level cache; 256 kB and 4 MB were measured slower
_CHUNKS_IN_FLIGHT: Final = 8
# The reference decoder's own default limit (zstd.h, ZSTD_WINDOWLOG_LIMIT_DEFAULT); more would break the memory promise.
_ZSTD_WINDOW_LOG: Final = 27
_GZIP_MAGIC: Final = b"\x1f\x8b"  # RFC 1952, 2.3.1
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"  # RFC 8878, 3.1.1
_ZSTD_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # RFC 8878, 3.1.2, after a first byte of 0x50 to 0x5F
Compression = Literal["none", "gzip", "zstd"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one layer may hold before it is refused; `entries` holds for an image's layers together, too.

    400,000 entries take 460 MB to measure (measured, with paths of 95 letters); the largest CUDA images
    known have half as many.
    `expansion_ratio` applies past `expansion_free_bytes`: deflate cannot pass 1032 to 1, zstd and holes can, and no
    layer of real files comes near 500.
    """

    unpacked_bytes: int = 256 << 30
    entries: int = 400_000
    captured_bytes: int = 64 << 20
    expansion_ratio: int = 500
    expansion_free_bytes: int = 4 << 30


def is_compressed(prefix: bytes) -> bool:
    """Recognise gzip and zstd by the first four bytes of a blob."""
    is_skippable = prefix[1:4] == _ZSTD_SKIPPABLE_MAGIC and prefix[0] in range(0x50, 0x60)
    return prefix[:2] == _GZIP_MAGIC or prefix[:4] == _ZSTD_MAGIC or is_skippable


class ByteSource(Protocol):
    """Anything that fills a buffer and says how many bytes it put there, 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill `buffer` from its start."""


class LayerStream:
    """The reading thread and its queue: hands out the tar's bytes in chunks, in order, each to be given back.

    The digests are right once the stream has been drained.
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
        except BaseException as error:  # noqa: BLE001 (a thread's edge: raised again in the waiting caller)
            self._full.put(error)

    def next_chunk(self) -> memoryview:
        """Return the next bytes of the tar, empty at its end. The chunk before is no longer valid."""
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
        """Read what follows the archive's end, which engines ignore, so that the digests cover the whole blob."""
        while self.next_chunk():
            pass
        self._thread.join()

    def close(self) -> None:
        """Stop the reading thread; the source is the caller's to close."""
        self._is_at_end = True
        self._free.put(None)
        self._thread.join()

    @property
    def blob_digest(self) -> str:
        """Digest of the bytes as stored."""
        return self._hashed.digest()

    @property
    def blob_bytes(self) -> int:
        """How many bytes were read, as stored."""
        return self._hashed.count_bytes

    @property
    def diff_id(self) -> str:
        """Digest of the tar: the one that the configuration names."""
        return self.blob_digest if self._tar_hash is None else f"sha256:{self._tar_hash.hexdigest()}"


class _HashedSource:
    """The blob's bytes, hashed and counted on their way."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._prefix = b""
        self.count_bytes = 0

    def peek(self, count: int) -> bytes:
        """Return the first bytes without using them up; only before the first read."""
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
        """Fill the whole of `buffer` unless the source ends first."""
        start = min(len(self._prefix), len(buffer))
        buffer[:start] = self._prefix[:start]
        self._prefix = self._prefix[start:]
        filled = start + self._fill(buffer[start:])
        self._hash.update(buffer[:filled])
        self.count_bytes += filled
        return filled

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes: what decompressors ask for."""
        buffer = bytearray(size if size >= 0 else _CHUNK_BYTES)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readable(self) -> bool:
        """Files are asked this before they are read."""
        return True

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class _Inflater(Protocol):
    """What `zlib.decompressobj` returns, as far as it is used here."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _inflater() -> tuple[Callable[[], _Inflater], type[Exception]]:
    """Return what inflates gzip and what it raises: ISA-L, at 1.8 times zlib's speed (measured), where it is there."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 (only where it was installed)
    except ImportError:
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    return lambda: isal_zlib.decompressobj(wbits=31), cast("type[Exception]", isal_zlib.error)


class _GzipReader:
    """Inflates a gzip file of one or more members (RFC 1952), refusing one that ends early or has a tail."""

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
                raise CorruptLayer("bytes that are not gzip follow the gzip stream")


class _ZstdReader:
    """Decodes zstd frames (RFC 8878), skippable ones included, with a window of at most 128 MiB.

    Before Python 3.14 a frame that is cut short reads as its end; the tar inside and the digests tell.
    """

    def __init__(self, source: _HashedSource) -> None:
        self._reader: ByteSource
        self._errors: tuple[type[Exception], ...]
        file = cast("IO[bytes]", source)  # both ask for a whole file object and call only its `read`
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 (not in older ones)

            options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
            self._reader = zstd.ZstdFile(file, options=options)
            self._errors = (zstd.ZstdError, EOFError)
        else:
            import zstandard  # noqa: PLC0415 (not needed by newer ones)

            decoder = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG)
            self._reader = decoder.stream_reader(file, read_across_frames=True, read_size=_CHUNK_BYTES)
            self._errors = (zstandard.ZstdError,)

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self._reader.readinto(buffer) or 0
        except self._errors as error:
            raise CorruptLayer(f"broken zstd stream ({error})") from error


def check_expansion(unpacked_bytes: int, stored_bytes: int, limits: Limits) -> None:
    """Raise LayerTooLarge where *limits* do not allow so much to come from so little."""
    if unpacked_bytes > limits.unpacked_bytes:
        raise LayerTooLarge(f"more than {limits.unpacked_bytes} bytes unpacked, the limit")
    if unpacked_bytes > limits.expansion_free_bytes and unpacked_bytes > stored_bytes * limits.expansion_ratio:
        raise LayerTooLarge(
            f"{stored_bytes} stored bytes become {unpacked_bytes}: more than {limits.expansion_ratio} times as many"
        )
