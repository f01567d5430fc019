"""What the blocks of a tar archive mean: headers, extended headers, numbers, names and sparse maps, without any input.

Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU headers as in GNU tar's manual, "Basic Tar Format"; sparse
files as in its "Storing Sparse Files"; whiteouts as in the OCI image specification 1.1, layer.md. What is not in them
is refused and named, never skipped.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from buildkit.errors import BuildkitError

__all__ = [
    "BLOCK_BYTES",
    "HEADER_ONLY",
    "HEADER_TEXT_BYTES",
    "CorruptLayer",
    "Kind",
    "LayerError",
    "LayerTooLarge",
    "SparseMap",
    "TarHeader",
    "UnsafePath",
    "UnsupportedEntry",
    "decimal",
    "kind_of",
    "normalise",
    "number",
    "padded",
    "parse_pax",
    "seconds",
    "text_of",
    "xattrs_sha256",
]

BLOCK_BYTES: Final = 512
HEADER_TEXT_BYTES: Final = 1 << 20  # of one pax header or GNU long name: Go's archive/tar takes as much
_PATH_BYTES: Final = 4096  # PATH_MAX of Linux, limits.h: no engine could unpack a longer one
_LONGEST_DECIMAL: Final = 40
Kind = Literal["file", "hardlink", "symlink", "directory", "character", "block", "fifo", "whiteout", "opaque"]


class LayerError(BuildkitError):
    """A layer that cannot be measured: `layer` names its blob, `reason` says what is wrong with it."""

    exit_code = 3

    def __init__(self, reason: str, *, layer: str = "layer", path: str | None = None) -> None:
        super().__init__(f"{layer}: {reason}" if path is None else f"{layer}: {path!r}: {reason}")
        self.reason = reason
        self.layer = layer
        self.path = path


class CorruptLayer(LayerError):
    """The bytes are not a whole, well-formed tar stream in a known compression."""


class UnsafePath(LayerError):
    """An entry or a link points outside of the image's root."""


class UnsupportedEntry(LayerError):
    """A well-formed entry of a kind that no container engine unpacks."""


class LayerTooLarge(LayerError):
    """More bytes, entries or text than `Limits` allows: an archive made to exhaust its reader, or a limit to raise."""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """The fixed fields of one header block, checksum verified."""

    block: bytes
    name: bytes
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime_seconds: float
    type_flag: bytes
    link_name: bytes
    is_ustar: bool

    @classmethod
    def parse(cls, block: bytes) -> "TarHeader":
        """Read one block of 512 bytes; CorruptLayer where its checksum or a number is wrong."""
        if number(block[148:156]) != sum(block) - sum(block[148:156]) + 256:
            raise CorruptLayer("a header's checksum is wrong, or this is no tar archive")
        name = block[:100].split(b"\0", 1)[0]
        is_ustar = block[257:263] == b"ustar\0"
        if is_ustar and block[345]:
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        size_bytes = number(block[124:136])
        if size_bytes < 0:
            raise CorruptLayer("an entry of negative size")
        return cls(
            block=block,
            name=name,
            mode=number(block[100:108]),
            uid=number(block[108:116]),
            gid=number(block[116:124]),
            size_bytes=size_bytes,
            mtime_seconds=number(block[136:148]),
            type_flag=block[156:157],
            link_name=block[157:257].split(b"\0", 1)[0],
            is_ustar=is_ustar,
        )

    @property
    def device_major(self) -> int:
        """Major number of a device node."""
        return number(self.block[329:337])

    @property
    def device_minor(self) -> int:
        """Minor number of a device node."""
        return number(self.block[337:345])


@dataclass(frozen=True, slots=True)
class SparseMap:
    """Where the stored bytes of a sparse file go; everything else up to `real_bytes` is zero."""

    segments: tuple[tuple[int, int], ...]
    real_bytes: int
    data_bytes: int
    map_bytes: int

    @classmethod
    def of(cls, numbers: list[int], real_bytes: int, *, map_bytes: int = 0) -> "SparseMap":
        """Pair up offsets and lengths, which must ascend without overlap and stay inside of the file."""
        if len(numbers) % 2:
            raise CorruptLayer("sparse map with an offset that has no length")
        segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        position = 0
        for offset, length in segments:
            if offset < position or offset + length > real_bytes:
                raise CorruptLayer("sparse map that overlaps or leaves the file")
            position = offset + length
        return cls(segments, real_bytes, sum(length for _, length in segments), map_bytes)


# These have no content, whatever size they state: so Go's archive/tar, and every engine with it, reads them.
HEADER_ONLY: Final = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_KINDS: Final[Mapping[bytes, Kind]] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "character",
    b"4": "block",
    b"5": "directory",
    b"6": "fifo",
}


def kind_of(header: TarHeader, raw_path: bytes, path: str) -> Kind:
    """Return what an entry is; whiteouts by their name, refusing types that no engine unpacks."""
    kind = _KINDS.get(header.type_flag)
    if kind is None:
        raise UnsupportedEntry(f"unknown entry type {header.type_flag!r}", path=path)
    if header.type_flag == b"\0" and raw_path.endswith(b"/"):
        return "directory"  # how archives before POSIX.1-1988 wrote them
    base = path.rpartition("/")[2]
    if not base.startswith(".wh."):
        return kind
    if kind not in {"file", "hardlink"}:
        raise UnsupportedEntry(f"whiteout that is a {kind}", path=path)
    if base == ".wh..wh..opq":
        return "opaque"
    if base.startswith(".wh..wh."):
        raise UnsupportedEntry("bookkeeping of AUFS", path=path)
    if base in {".wh.", ".wh..", ".wh..."}:
        raise UnsafePath("whiteout of a directory itself or of its parent", path=path)
    return "whiteout"


def normalise(raw: bytes) -> str:
    """Return the path below the root that engines would create; raise where they would leave it."""
    if len(raw) > _PATH_BYTES:
        raise LayerTooLarge(f"a name of {len(raw)} bytes, the longest path is {_PATH_BYTES}")
    path = text_of(raw)
    if "\0" in path:
        raise CorruptLayer("a name with a zero byte", path=path)
    if "//" not in path and "./" not in path and path[:1] not in {"/", "."} and path[-2:] not in {"..", "/."}:
        return path.rstrip("/")
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                raise UnsafePath("the path leaves the image's root", path=path)
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def text_of(raw: bytes) -> str:
    """Decode a name; bytes that are not UTF-8 are escaped with a backslash, so that any name can be written as JSON."""
    return raw.decode("utf-8", "backslashreplace")


def padded(count: int) -> int:
    """Return the bytes that content of this length takes up: whole blocks."""
    return count + -count % BLOCK_BYTES


def number(field: bytes) -> int:
    """Read a header's number: octal text, or base 256 where the first bit is set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    text = field.split(b"\0", 1)[0].strip(b" ")
    try:
        return int(text, 8) if text else 0
    except ValueError as error:
        raise CorruptLayer(f"a header's number reads {text!r}") from error


def decimal(text: bytes, what: str) -> int:
    """Read a number of an extended header."""
    if not text.isdigit() or len(text) > _LONGEST_DECIMAL:
        raise CorruptLayer(f"{what} reads {text[:40]!r}")
    return int(text)


def seconds(text: bytes) -> float:
    """Read a time of an extended header, with its fraction."""
    if not text.lstrip(b"-").replace(b".", b"", 1).isdigit() or len(text) > _LONGEST_DECIMAL:
        raise CorruptLayer(f"mtime reads {text[:40]!r}")
    return float(text)


def parse_pax(text: bytes) -> dict[str, bytes]:
    """Split `length key=value` records; GNU's repeated 0.0 sparse records become one map in the 0.1 form."""
    records: dict[str, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(text):
        space = text.find(b" ", position, position + 21)
        length = decimal(text[position:space], "record length") if space > 0 else 0
        end = position + length
        record = text[space + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if end > len(text) or not equals or text[end - 1 : end] != b"\n":
            raise CorruptLayer("malformed record in an extended header")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            sparse.append(value)
        else:
            records[text_of(key)] = value
        position = end
    if sparse:
        records["GNU.sparse.map"] = b",".join(sparse)
    return records


def xattrs_sha256(pax: Mapping[str, bytes]) -> bytes:
    """Digest the extended attributes, empty where there are none: enough to see that they differ."""
    found = sorted((key, value) for key, value in pax.items() if key.startswith(("SCHILY.xattr.", "LIBARCHIVE.xattr.")))
    return hashlib.sha256(repr(found).encode()).digest() if found else b""
