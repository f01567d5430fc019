"""Reads one layer's tar archive into a list of entries: name, kind, size, owner and SHA-256 of each, in one pass.

`read_layer` takes the bytes of a blob as they are stored and never seeks, so it reads pipes and files alike. It does
not use the standard library's `tarfile`, which takes twice as long for a large image, and which repairs archives that
must be refused here.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from buildkit.image.errors import CorruptLayer, LayerError, LayerTooLarge
from buildkit.image.layer_stream import ByteSource, Compression, LayerStream, Limits, check_expansion
from buildkit.image.sparse import SparseMap, hash_sparse_file, read_sparse_map
from buildkit.image.tar_cursor import TarCursor
from buildkit.image.tar_format import (
    BLOCK_BYTES,
    HEADER_ONLY,
    EntryKind,
    TarHeader,
    decode_name,
    entry_kind,
    normalize_path,
    padded_bytes,
    parse_decimal,
    parse_pax,
    parse_seconds,
    xattrs_sha256,
)

__all__ = ["FORMAT_VERSION", "GpuCode", "LayerContents", "LayerEntry", "read_layer"]

FORMAT_VERSION: Final = 2  # of `LayerContents` in the cache
_EMPTY_SHA256: Final = hashlib.sha256(b"").digest()
_ALL_PATHS_BYTES: Final = 200 << 20


class LayerEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of a layer; `path` is normalized and relative to the root, which itself is the empty string.

    `link` is the target of a symbolic link as written, the normalized path of a hard link, or "major:minor" of a
    device. `size_bytes` of a sparse file includes its holes, as engines unpack them; a hard link has size 0. A name
    that is not UTF-8 is escaped (`tar_format.decode_name`). `content_offset` is the start of the content in the
    uncompressed archive, -1 for everything but regular files that are not sparse.
    """

    path: str
    kind: EntryKind
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
    """The GPU code of one file for one architecture, named as NVIDIA's tools do: sm_90a, compute_120 (PTX), lto_75.

    `path` is that of the layer's entry; `code_bytes` includes the headers of the code.
    """

    path: str
    architecture: str
    code_bytes: int


class LayerContents(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The entries of a layer, its digests and sizes; `captured` has the content of selected small files, by path.

    `gpu_code` is None if the layer was not searched for it, which takes an uncompressed archive in a file.
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
    """Reads one blob to its end: entries in the order of the archive, digests of the blob, the archive and every file.

    The compression is recognized by its magic number. It needs memory for the entries and 10 MB more.

    Args:
        source: the blob as it is stored.
        name: the layer's name in error messages.
        captures: returns whether the content of the file at a path is wanted.
        limits: the largest layer to read; None for the defaults of `Limits`.

    Raises:
        CorruptLayer: truncated, a wrong checksum or number, broken compression, an inconsistent sparse map.
        UnsafePath: a name or hard link that leaves the root.
        UnsupportedEntry: an entry type that no engine unpacks (multi-volume, dump directories, vendor types).
        LayerTooLarge: it exceeds *limits*.
    """
    bounds = limits or Limits()
    stream = LayerStream(source, limits=bounds)
    try:
        reader = _TarReader(stream, captures=captures, limits=bounds)
        reader.read()
        stream.drain()
        if stream.compression == "zstd" and not reader.has_end_marker:
            # the decoder does not always notice; engines accept the other compressions without end marker
            raise CorruptLayer("the zstd stream ends early")
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


class _TarReader(TarCursor):
    """Turns an archive into entries: call `read` once. It inherits from the cursor to save calls per entry."""

    def __init__(self, stream: LayerStream, *, captures: Callable[[str], bool], limits: Limits) -> None:
        super().__init__(stream)
        self._captures = captures
        self._limits = limits
        self._global_pax: dict[str, bytes] = {}
        self._paths_bytes = 0
        self._captured_bytes = 0
        self.entries: list[LayerEntry] = []
        self.captured: dict[str, bytes] = {}
        self.unpacked_bytes = 0

    def read(self) -> None:
        pax: dict[str, bytes] = {}
        while (block := self.take_header()) is not None:
            header = TarHeader.parse(block)
            match header.type_flag:
                case b"x" | b"X":
                    pax |= parse_pax(self.take_text(header))
                case b"g":
                    self._global_pax |= parse_pax(self.take_text(header))
                case b"L":
                    pax["path"] = self.take_text(header).rstrip(b"\0")
                case b"K":
                    pax["linkpath"] = self.take_text(header).rstrip(b"\0")
                case _:
                    self._add_entry(header, self._global_pax | pax if self._global_pax else pax)
                    pax = {}
        if pax:
            raise CorruptLayer("the archive ends after an extended header")

    def _add_entry(self, header: TarHeader, pax: Mapping[str, bytes]) -> None:
        raw_path, path = self._path(header, pax)
        kind = entry_kind(header, raw_path, path)
        stored_bytes = parse_decimal(pax["size"], "size") if "size" in pax else header.size_bytes
        size_bytes = 0
        sha256 = b""
        link = ""
        content_offset = -1
        if kind == "file":
            if not any(key.startswith("GNU.sparse.") for key in pax) and header.type_flag != b"S":
                content_offset = self.offset
            sha256, size_bytes = self._read_content(header, pax, path, stored_bytes)
            self.unpacked_bytes += size_bytes
        elif kind == "hardlink":
            link = normalize_path(pax.get("linkpath", header.link_name))
            if not link:
                raise CorruptLayer("a hard link to the root directory", path=path)
        elif kind == "symlink":
            link = decode_name(pax.get("linkpath", header.link_name))
        elif kind in {"character", "block"}:
            link = f"{header.device_major}:{header.device_minor}"
        elif kind in {"whiteout", "opaque"} and header.type_flag not in HEADER_ONLY:
            self.skip(padded_bytes(stored_bytes))
        self.entries.append(
            LayerEntry(
                path=path,
                kind=kind,
                size_bytes=size_bytes,
                mode=header.mode & 0o7777,
                uid=parse_decimal(pax["uid"], "uid") if "uid" in pax else header.uid,
                gid=parse_decimal(pax["gid"], "gid") if "gid" in pax else header.gid,
                mtime_seconds=parse_seconds(pax["mtime"]) if "mtime" in pax else header.mtime_seconds,
                link=link,
                sha256=sha256,
                xattrs_sha256=xattrs_sha256(pax) if pax else b"",
                content_offset=content_offset,
            )
        )

    def _path(self, header: TarHeader, pax: Mapping[str, bytes]) -> tuple[bytes, str]:
        """Returns the name of an entry, as written and normalized; counts entries and names against the limits."""
        if len(self.entries) >= self._limits.entries:
            raise LayerTooLarge(f"more than {self._limits.entries} entries; --max-entries raises the limit")
        sparse_name = pax.get("GNU.sparse.name")
        raw_path = sparse_name if sparse_name is not None else pax.get("path", header.name)
        path = normalize_path(raw_path)
        self._paths_bytes += len(raw_path)
        if self._paths_bytes > _ALL_PATHS_BYTES:
            raise LayerTooLarge(f"names of more than {_ALL_PATHS_BYTES} bytes together", path=path)
        return raw_path, path

    def _read_content(
        self, header: TarHeader, pax: Mapping[str, bytes], path: str, stored_bytes: int
    ) -> tuple[bytes, int]:
        """Reads one regular file and returns its SHA-256 and its unpacked size."""
        sparse = read_sparse_map(self, header, pax, stored_bytes)
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
            content = self.take(stored_bytes)
            self.captured[path] = content
            digest = hashlib.sha256(content).digest()
        else:
            end = self.position + stored_bytes
            if end <= len(self.chunk):
                digest = hashlib.sha256(self.chunk[self.position : end]).digest()
                self.position = end
            else:
                hasher = hashlib.sha256()
                self.feed(stored_bytes, hasher.update)
                digest = hasher.digest()
        self.skip(-stored_bytes % BLOCK_BYTES)
        return digest, stored_bytes

    def _read_sparse(self, sparse: SparseMap, path: str, stored_bytes: int) -> tuple[bytes, int]:
        if sparse.map_bytes + sparse.data_bytes != stored_bytes:
            raise CorruptLayer(f"a sparse map of {sparse.data_bytes} bytes for a content of {stored_bytes}", path=path)
        check_expansion(self.unpacked_bytes + sparse.real_bytes, self.stream.blob_bytes + stored_bytes, self._limits)
        digest = hash_sparse_file(self, sparse)
        self.skip(-stored_bytes % BLOCK_BYTES)
        return digest, sparse.real_bytes
