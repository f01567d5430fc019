"""Decodes the blocks of a tar archive: headers, extended headers, numbers and names. Reads no input itself.

Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax) and GNU headers as in GNU tar's manual, "Basic Tar Format"; whiteouts
as in the OCI image specification 1.1, layer.md. An unknown header is refused by name, never skipped.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from buildkit.image.errors import CorruptLayer, LayerTooLarge, UnsafePath, UnsupportedEntry

__all__ = [
    "BLOCK_BYTES",
    "HEADER_ONLY",
    "HEADER_TEXT_BYTES",
    "EntryKind",
    "TarHeader",
    "decode_name",
    "entry_kind",
    "normalize_path",
    "padded_bytes",
    "parse_decimal",
    "parse_number",
    "parse_pax",
    "parse_seconds",
    "xattrs_sha256",
]

BLOCK_BYTES: Final = 512
HEADER_TEXT_BYTES: Final = 1 << 20  # of one pax header or GNU long name: the limit of Go's archive/tar
_PATH_BYTES: Final = 4096  # PATH_MAX of Linux, limits.h: no engine can unpack a longer path
_LONGEST_DECIMAL: Final = 40
EntryKind = Literal["file", "hardlink", "symlink", "directory", "character", "block", "fifo", "whiteout", "opaque"]


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
        """Decodes one block of 512 bytes; raises CorruptLayer if its checksum or a number is wrong."""
        if parse_number(block[148:156]) != sum(block) - sum(block[148:156]) + 256:
            raise CorruptLayer("a header has a wrong checksum, or this is not a tar archive")
        name = block[:100].split(b"\0", 1)[0]
        is_ustar = block[257:263] == b"ustar\0"
        if is_ustar and block[345]:
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        size_bytes = parse_number(block[124:136])
        if size_bytes < 0:
            raise CorruptLayer("an entry of negative size")
        return cls(
            block=block,
            name=name,
            mode=parse_number(block[100:108]),
            uid=parse_number(block[108:116]),
            gid=parse_number(block[116:124]),
            size_bytes=size_bytes,
            mtime_seconds=parse_number(block[136:148]),
            type_flag=block[156:157],
            link_name=block[157:257].split(b"\0", 1)[0],
            is_ustar=is_ustar,
        )

    @property
    def device_major(self) -> int:
        """Major number of a device node."""
        return parse_number(self.block[329:337])

    @property
    def device_minor(self) -> int:
        """Minor number of a device node."""
        return parse_number(self.block[337:345])


# Entries of these types have no content, whatever size they state: Go's archive/tar, and so every engine, agrees.
HEADER_ONLY: Final = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})
_KINDS: Final[Mapping[bytes, EntryKind]] = {
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


def entry_kind(header: TarHeader, raw_path: bytes, path: str) -> EntryKind:
    """Returns the kind of an entry; a whiteout is known by its name.

    Raises:
        UnsupportedEntry: no engine unpacks an entry of this type.
        UnsafePath: a whiteout of its own directory or of the parent.
    """
    kind = _KINDS.get(header.type_flag)
    if kind is None:
        raise UnsupportedEntry(f"unknown entry type {header.type_flag!r}", path=path)
    if header.type_flag == b"\0" and raw_path.endswith(b"/"):
        return "directory"  # as archives before POSIX.1-1988 wrote directories
    base = path.rpartition("/")[2]
    if not base.startswith(".wh."):
        return kind
    if kind not in {"file", "hardlink"}:
        raise UnsupportedEntry(f"a whiteout that is a {kind}", path=path)
    if base == ".wh..wh..opq":
        return "opaque"
    if base.startswith(".wh..wh."):
        raise UnsupportedEntry("metadata of AUFS", path=path)
    if base in {".wh.", ".wh..", ".wh..."}:
        raise UnsafePath("a whiteout of its own directory or of the parent", path=path)
    return "whiteout"


def normalize_path(raw: bytes) -> str:
    """Returns the path below the root that engines create for this name.

    Raises:
        UnsafePath: it leads out of the root.
        CorruptLayer, LayerTooLarge: it has a zero byte, or is longer than any path can be.
    """
    if len(raw) > _PATH_BYTES:
        raise LayerTooLarge(f"a name of {len(raw)} bytes, the longest path is {_PATH_BYTES}")
    path = decode_name(raw)
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


def decode_name(raw: bytes) -> str:
    """Decodes a name; bytes that are not UTF-8 become backslash escapes, so that every name fits into JSON."""
    return raw.decode("utf-8", "backslashreplace")


def padded_bytes(count: int) -> int:
    """Returns the bytes that content of this length takes in an archive: a multiple of the block size."""
    return count + -count % BLOCK_BYTES


def parse_number(field: bytes) -> int:
    """Parses a number of a header: octal text, or base 256 if the first bit is set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        return value - (1 << 8 * len(field) - 1) if field[0] & 0x40 else value
    text = field.split(b"\0", 1)[0].strip(b" ")
    try:
        return int(text, 8) if text else 0
    except ValueError as error:
        raise CorruptLayer(f"a header has {text!r} for a number") from error


def parse_decimal(text: bytes, what: str) -> int:
    """Parses a number of an extended header; *what* names it in the error message."""
    if not text.isdigit() or len(text) > _LONGEST_DECIMAL:
        raise CorruptLayer(f"{what} is {text[:40]!r}, not a number")
    return int(text)


def parse_seconds(text: bytes) -> float:
    """Parses a time of an extended header, with its fraction of a second."""
    if not text.lstrip(b"-").replace(b".", b"", 1).isdigit() or len(text) > _LONGEST_DECIMAL:
        raise CorruptLayer(f"mtime is {text[:40]!r}, not a number")
    return float(text)


def parse_pax(text: bytes) -> dict[str, bytes]:
    """Splits `length key=value` records; GNU's sparse records of version 0.0 become one map of version 0.1."""
    records: dict[str, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    while position < len(text):
        space = text.find(b" ", position, position + 21)
        length = parse_decimal(text[position:space], "record length") if space > 0 else 0
        end = position + length
        record = text[space + 1 : end - 1]
        key, equals, value = record.partition(b"=")
        if end > len(text) or not equals or text[end - 1 : end] != b"\n":
            raise CorruptLayer("a malformed record in an extended header")
        if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}:
            sparse.append(value)
        else:
            records[decode_name(key)] = value
        position = end
    if sparse:
        records["GNU.sparse.map"] = b",".join(sparse)
    return records


def xattrs_sha256(pax: Mapping[str, bytes]) -> bytes:
    """Returns a digest of the extended attributes, to see whether they differ; empty if there are none."""
    found = sorted((key, value) for key, value in pax.items() if key.startswith(("SCHILY.xattr.", "LIBARCHIVE.xattr.")))
    return hashlib.sha256(repr(found).encode()).digest() if found else b""
