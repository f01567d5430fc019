"""One layer's tar stream as a list of entries: every name, kind, size, owner and SHA-256, in a single pass.

`read_layer` is given the bytes of a blob as they are stored and never seeks, so a pipe is as good as a file. The
standard library's `tarfile` is not used: it needs twice the time for a large image, and it repairs what this project
wants refused.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from buildkit.image.layer_stream import ByteSource, Compression, LayerStream, Limits, check_expansion
from buildkit.image.tar_format import (
    BLOCK_BYTES,
    HEADER_ONLY,
    HEADER_TEXT_BYTES,
    CorruptLayer,
    Kind,
    LayerError,
    LayerTooLarge,
    SparseMap,
    TarHeader,
    UnsupportedEntry,
    decimal,
    kind_of,
    normalise,
    number,
    padded,
    parse_pax,
    seconds,
    text_of,
    xattrs_sha256,
)

__all__ = ["FORMAT_VERSION", "GpuCode", "LayerContents", "LayerEntry", "read_layer"]

_EMPTY_SHA256: Final = hashlib.sha256(b"").digest()
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_ZEROS: Final = memoryview(bytes(1 << 20))
_ALL_PATHS_BYTES: Final = 200 << 20
FORMAT_VERSION: Final = 2


class LayerEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of a layer: `path` is relative to the root and normalised, the root itself is the empty string.

    `link` is the target as written for a symlink, a normalised path for a hard link, "major:minor" for a device.
    `size_bytes` of a sparse file counts its holes, as the engine unpacks them; a hard link has none of its own.
    A name that is not UTF-8 is escaped as `text_of` says. `content_offset` is where the content of a regular file that
    is not sparse begins in the uncompressed tar, -1 for all others.
    """

    path: str
    kind: Kind
    size_bytes: int
    mode: int
    uid: int
    gid: int
    mtime_seconds: float
    link: str
    sha256: bytes
    xattrs_sha256: bytes
    content_offset: int


class GpuCode(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The code of one file for one architecture, as NVIDIA's tools name it: sm_90a, compute_120 (PTX), lto_75.

    `path` is that of the entry in its layer; `code_bytes` includes the headers of the code's own entries.
    """

    path: str
    architecture: str
    code_bytes: int


class LayerContents(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a layer holds. `captured` has the content of the small files that the caller asked for, by path.

    `gpu_code` is None where it was not looked for, which needs the uncompressed tar in a file.
    """

    format_version: int
    diff_id: str
    blob_digest: str
    blob_bytes: int
    compression: Compression
    unpacked_bytes: int
    entries: tuple[LayerEntry, ...]
    captured: dict[str, bytes]
    gpu_code: tuple[GpuCode, ...] | None = None


def read_layer(
    source: ByteSource,
    *,
    name: str,
    captures: Callable[[str], bool] = lambda _path: False,
    limits: Limits | None = None,
) -> LayerContents:
    """Read one blob to its end: entries in the order of the archive, digests of the blob, the tar and every file.

    The compression is recognised by its magic number. Memory stays at the entries plus ten megabytes.

    Raises:
        CorruptLayer: truncated, bad checksum or number, broken compression, a sparse map that does not add up.
        UnsafePath: a name or hard link that leaves the root.
        UnsupportedEntry: an entry type that no engine unpacks (multi-volume, dump directories, vendor types).
        LayerTooLarge: beyond `limits`.
    """
    bounds = limits or Limits()
    stream = LayerStream(source, limits=bounds)
    try:
        reader = _TarReader(stream, captures=captures, limits=bounds)
        reader.read()
        stream.drain()
        if stream.compression == "zstd" and not reader.has_end_marker:
            raise CorruptLayer(
                "the zstd stream ends early"
            )  # its decoder does not always tell; engines take the others
    except LayerError as error:
        raise type(error)(error.reason, layer=name, path=error.path) from error
    finally:
        stream.close()
    return LayerContents(
        format_version=FORMAT_VERSION,
        diff_id=stream.diff_id,
        blob_digest=stream.blob_digest,
        blob_bytes=stream.blob_bytes,
        compression=stream.compression,
        unpacked_bytes=reader.unpacked_bytes,
        entries=tuple(reader.entries),
        captured=reader.captured,
    )


class _TarReader:
    """Turns chunks into entries. `read` is the only method to call, once."""

    def __init__(self, stream: LayerStream, *, captures: Callable[[str], bool], limits: Limits) -> None:
        self._stream = stream
        self._captures = captures
        self._limits = limits
        self._chunk = memoryview(b"")
        self._position = 0
        self._before = 0
        self._global_pax: dict[str, bytes] = {}
        self._paths_bytes = 0
        self._captured_bytes = 0
        self.entries: list[LayerEntry] = []
        self.captured: dict[str, bytes] = {}
        self.unpacked_bytes = 0
        self.has_end_marker = False

    def read(self) -> None:
        pax: dict[str, bytes] = {}
        while (block := self._take_header()) is not None:
            header = TarHeader.parse(block)
            match header.type_flag:
                case b"x" | b"X":
                    pax |= parse_pax(self._take_text(header))
                    continue
                case b"g":
                    self._global_pax |= parse_pax(self._take_text(header))
                    continue
                case b"L":
                    pax["path"] = self._take_text(header).rstrip(b"\0")
                    continue
                case b"K":
                    pax["linkpath"] = self._take_text(header).rstrip(b"\0")
                    continue
                case _:
                    self._add_entry(header, self._global_pax | pax if self._global_pax else pax)
                    pax = {}
        if pax:
            raise CorruptLayer("the archive ends after an extended header")

    def _add_entry(self, header: "TarHeader", pax: Mapping[str, bytes]) -> None:
        if len(self.entries) >= self._limits.entries:
            raise LayerTooLarge(f"more than {self._limits.entries} entries, the limit")
        sparse_name = pax.get("GNU.sparse.name")
        raw_path = sparse_name if sparse_name is not None else pax.get("path", header.name)
        path = normalise(raw_path)
        self._paths_bytes += len(raw_path)
        if self._paths_bytes > _ALL_PATHS_BYTES:
            raise LayerTooLarge(f"names of more than {_ALL_PATHS_BYTES} bytes together", path=path)
        kind = kind_of(header, raw_path, path)
        stored_bytes = decimal(pax["size"], "size") if "size" in pax else header.size_bytes
        size_bytes = 0
        sha256 = b""
        link = ""
        content_offset = -1
        if kind == "file":
            if not any(key.startswith("GNU.sparse.") for key in pax) and header.type_flag != b"S":
                content_offset = self._before + self._position
            sha256, size_bytes = self._read_content(header, pax, path, stored_bytes)
            self.unpacked_bytes += size_bytes
        elif kind == "hardlink":
            link = normalise(pax.get("linkpath", header.link_name))
            if not link:
                raise CorruptLayer("hard link to the root directory", path=path)
        elif kind == "symlink":
            link = text_of(pax.get("linkpath", header.link_name))
        elif kind in {"character", "block"}:
            link = f"{header.device_major}:{header.device_minor}"
        elif kind in {"whiteout", "opaque"} and header.type_flag not in HEADER_ONLY:
            self._skip(padded(stored_bytes))
        self.entries.append(
            LayerEntry(
                path=path,
                kind=kind,
                size_bytes=size_bytes,
                mode=header.mode & 0o7777,
                uid=decimal(pax["uid"], "uid") if "uid" in pax else header.uid,
                gid=decimal(pax["gid"], "gid") if "gid" in pax else header.gid,
                mtime_seconds=seconds(pax["mtime"]) if "mtime" in pax else header.mtime_seconds,
                link=link,
                sha256=sha256,
                xattrs_sha256=xattrs_sha256(pax) if pax else b"",
                content_offset=content_offset,
            )
        )

    def _read_content(
        self, header: "TarHeader", pax: Mapping[str, bytes], path: str, stored_bytes: int
    ) -> tuple[bytes, int]:
        """Read one regular file: its SHA-256 and the size that it unpacks to."""
        sparse = self._sparse_map(header, pax, stored_bytes)
        if sparse is not None:
            return self._read_sparse(sparse, path, stored_bytes)
        if stored_bytes == 0:
            if self._captures(path):
                self.captured[path] = b""
            return _EMPTY_SHA256, 0
        if self._captures(path):
            self._captured_bytes += stored_bytes
            if self._captured_bytes > self._limits.captured_bytes:
                raise LayerTooLarge(f"more than {self._limits.captured_bytes} bytes of package lists", path=path)
            content = self._take(stored_bytes)
            self.captured[path] = content
            digest = hashlib.sha256(content).digest()
        else:
            end = self._position + stored_bytes
            if end <= len(self._chunk):
                digest = hashlib.sha256(self._chunk[self._position : end]).digest()
                self._position = end
            else:
                hasher = hashlib.sha256()
                self._feed(stored_bytes, hasher.update)
                digest = hasher.digest()
        self._skip(-stored_bytes % BLOCK_BYTES)
        return digest, stored_bytes

    def _sparse_map(self, header: "TarHeader", pax: Mapping[str, bytes], stored_bytes: int) -> "SparseMap | None":
        """Return the map of a sparse file, None for an ordinary one; a map in the content is read here."""
        if header.type_flag == b"S":
            return self._old_gnu_map(header)
        version = (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor"))
        if version == (b"1", b"0"):
            return self._pax_1_0_map(pax, stored_bytes)
        if version not in {(None, None), (b"0", b"0"), (b"0", b"1")}:
            raise UnsupportedEntry(f"sparse file of unknown version {version}")
        if "GNU.sparse.map" not in pax:
            return None
        numbers = [decimal(number, "sparse map") for number in pax["GNU.sparse.map"].split(b",") if number]
        real_bytes = decimal(pax.get("GNU.sparse.realsize", pax.get("GNU.sparse.size", b"")), "sparse size")
        return SparseMap.of(numbers, real_bytes)

    def _old_gnu_map(self, header: "TarHeader") -> "SparseMap":
        block, numbers = header.block, []
        offset, pairs, more_at = 386, 4, 482
        while True:
            for pair in range(pairs):
                start = offset + 24 * pair
                if block[start] == 0:
                    break
                numbers += [number(block[start : start + 12]), number(block[start + 12 : start + 24])]
            if not block[more_at]:
                break
            self._count_sparse(numbers)
            block = self._take(BLOCK_BYTES)
            offset, pairs, more_at = 0, 21, 504
        return SparseMap.of(numbers, number(header.block[483:495]))

    def _pax_1_0_map(self, pax: Mapping[str, bytes], stored_bytes: int) -> "SparseMap":
        """The map opens the content: decimal numbers, one a line, padded to a whole block."""
        text = b""
        wanted = None
        while wanted is None or text.count(b"\n") < wanted:
            if len(text) + BLOCK_BYTES > stored_bytes:
                raise CorruptLayer("sparse map longer than the file's content")
            text += self._take(BLOCK_BYTES)
            if len(text) > HEADER_TEXT_BYTES:
                raise LayerTooLarge(f"sparse map of more than {HEADER_TEXT_BYTES} bytes")
            if wanted is None and b"\n" in text:
                wanted = 1 + 2 * decimal(text.split(b"\n", 1)[0], "sparse map")
        numbers = [decimal(line, "sparse map") for line in text.split(b"\n")[1:wanted]]
        real_bytes = decimal(pax.get("GNU.sparse.realsize", b""), "sparse size")
        return SparseMap.of(numbers, real_bytes, map_bytes=len(text))

    def _count_sparse(self, numbers: list[int]) -> None:
        if len(numbers) * 12 > HEADER_TEXT_BYTES:
            raise LayerTooLarge(f"sparse map of more than {HEADER_TEXT_BYTES} bytes")

    def _read_sparse(self, sparse: "SparseMap", path: str, stored_bytes: int) -> tuple[bytes, int]:
        if sparse.map_bytes + sparse.data_bytes != stored_bytes:
            raise CorruptLayer(f"sparse map of {sparse.data_bytes} bytes for a content of {stored_bytes}", path=path)
        check_expansion(self.unpacked_bytes + sparse.real_bytes, self._stream.blob_bytes + stored_bytes, self._limits)
        hasher = hashlib.sha256()
        position = 0
        for offset, length in sparse.segments:
            _hash_zeros(hasher.update, offset - position)
            self._feed(length, hasher.update)
            position = offset + length
        _hash_zeros(hasher.update, sparse.real_bytes - position)
        self._skip(-stored_bytes % BLOCK_BYTES)
        return hasher.digest(), sparse.real_bytes

    def _take_header(self) -> bytes | None:
        """Return the next header block; None at the end marker, or where the stream ends between two entries."""
        end = self._position + BLOCK_BYTES
        if end <= len(self._chunk):
            block = bytes(self._chunk[self._position : end])
            self._position = end
        else:
            block = self._take_up_to(BLOCK_BYTES)
            if not block:
                return None
            if len(block) < BLOCK_BYTES:
                raise CorruptLayer("the archive ends inside a header")
        if block == _ZERO_BLOCK:
            second = self._take_up_to(BLOCK_BYTES)
            if second.strip(b"\0"):
                raise CorruptLayer("a zero block stands before an entry")
            self.has_end_marker = True
            return None
        return block

    def _take_text(self, header: "TarHeader") -> bytes:
        if header.size_bytes > HEADER_TEXT_BYTES:
            raise LayerTooLarge(f"extended header of {header.size_bytes} bytes")
        text = self._take(header.size_bytes)
        self._skip(-header.size_bytes % BLOCK_BYTES)
        return text

    def _take(self, count: int) -> bytes:
        taken = self._take_up_to(count)
        if len(taken) < count:
            raise CorruptLayer("the archive ends inside an entry")
        return taken

    def _take_up_to(self, count: int) -> bytes:
        end = self._position + count
        if end <= len(self._chunk):
            taken = bytes(self._chunk[self._position : end])
            self._position = end
            return taken
        parts = bytearray()
        while len(parts) < count:
            if self._position == len(self._chunk):
                self._next_chunk()
                if not self._chunk:
                    break
            part = self._chunk[self._position : self._position + count - len(parts)]
            parts += part
            self._position += len(part)
        return bytes(parts)

    def _feed(self, count: int, update: Callable[[memoryview], object]) -> None:
        while count:
            if self._position == len(self._chunk):
                self._next_chunk()
                if not self._chunk:
                    raise CorruptLayer("the archive ends inside a file")
            part = self._chunk[self._position : self._position + count]
            update(part)
            self._position += len(part)
            count -= len(part)

    def _next_chunk(self) -> None:
        self._before += len(self._chunk)
        self._chunk, self._position = self._stream.next_chunk(), 0

    def _skip(self, count: int) -> None:
        end = self._position + count
        if end <= len(self._chunk):
            self._position = end
        else:
            self._feed(count, _ignore)


def _ignore(part: memoryview, /) -> None:
    """Take bytes that have no meaning."""


def _hash_zeros(update: Callable[[memoryview], object], count: int) -> None:
    while count:
        part = _ZEROS[:count]
        update(part)
        count -= len(part)
