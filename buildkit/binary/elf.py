"""Reads ELF64 files: header, program headers, sections and the names in the dynamic section.

Field names and constants are those of the System V ABI, chapters 4 and 5 (gabi, "Object Files", "Program Loading
and Dynamic Linking") and of `elf.h` in glibc 2.41. A file with a feature that this reader does not know raises
`UnsupportedBinary`.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from buildkit.errors import BuildkitError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "ELF_HEADER_BYTES",
    "EM_AARCH64",
    "EM_X86_64",
    "ET_DYN",
    "ET_EXEC",
    "MAGIC",
    "PT_DYNAMIC",
    "PT_LOAD",
    "PT_PHDR",
    "SECTION_HEADER",
    "SEGMENT_HEADER",
    "SHF_ALLOC",
    "SHT_DYNSYM",
    "SHT_NOBITS",
    "SHT_NULL",
    "SHT_STRTAB",
    "SHT_SYMTAB",
    "SYMBOL",
    "Content",
    "DynamicNames",
    "Elf",
    "Section",
    "Segment",
    "UnsupportedBinary",
    "map_file",
    "pack_header",
    "parse",
    "read_dynamic_names",
    "read_dynamic_tags",
]

Content: TypeAlias = bytes | bytearray | memoryview | mmap.mmap

MAGIC: Final = b"\x7fELF"
ELF_HEADER_BYTES: Final = 64
# The fields of `_Header`, after the 16 bytes of e_ident.
_HEADER: Final = struct.Struct("<HHIQQQIHHHHHH")
SEGMENT_HEADER: Final = struct.Struct("<IIQQQQQQ")
SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
SYMBOL: Final = struct.Struct("<IBBHQQ")  # name, info, other, section index, value, size
_DYNAMIC_ENTRY: Final = struct.Struct("<QQ")

_CLASS_64: Final = 2
_LITTLE_ENDIAN: Final = 1
ET_EXEC: Final = 2
ET_DYN: Final = 3
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
PT_LOAD: Final = 1
PT_DYNAMIC: Final = 2
PT_PHDR: Final = 6
SHT_NULL: Final = 0
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_NOBITS: Final = 8
SHT_DYNSYM: Final = 11
SHF_ALLOC: Final = 0x2
_PN_XNUM: Final = 0xFFFF
_DT_NEEDED: Final = 1
_DT_STRTAB: Final = 5
_DT_STRSZ: Final = 10
_DT_SONAME: Final = 14
_DT_RPATH: Final = 15
_DT_RUNPATH: Final = 29


class UnsupportedBinary(BuildkitError):
    """A file with a feature that this program does not support. Such a file is never changed.

    Attributes:
        reason: a stable identifier such as `elf-machine` or `fatbin-unknown-kind`.
        detail: the value found in the file.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnsupportedBinary], tuple[str, str]]:
        """Keeps both fields when the error is sent to another process."""
        return (UnsupportedBinary, (self.reason, self.detail))


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header (`Elf64_Phdr`)."""

    type: int
    flags: int
    file_offset: int
    address: int
    physical_address: int
    file_bytes: int
    memory_bytes: int
    alignment: int

    def pack(self, *, file_offset: int) -> bytes:
        """Returns the header's 56 bytes, for a segment whose content is at `file_offset`."""
        return SEGMENT_HEADER.pack(
            self.type,
            self.flags,
            file_offset,
            self.address,
            self.physical_address,
            self.file_bytes,
            self.memory_bytes,
            self.alignment,
        )


@dataclass(frozen=True, slots=True)
class Section:
    """One section header (`Elf64_Shdr`) with its name resolved."""

    name: str
    type: int
    flags: int
    address: int
    file_offset: int
    size_bytes: int
    link: int
    info: int
    alignment: int
    entry_bytes: int

    @property
    def is_allocated(self) -> bool:
        """Whether the loader maps it (`SHF_ALLOC`)."""
        return bool(self.flags & SHF_ALLOC)

    @property
    def stored_bytes(self) -> int:
        """Its bytes in the file: 0 for `SHT_NOBITS` and `SHT_NULL`."""
        return 0 if self.type in {SHT_NOBITS, SHT_NULL} else self.size_bytes

    @property
    def file_end(self) -> int:
        """The offset after its last stored byte."""
        return self.file_offset + self.stored_bytes


@dataclass(frozen=True, slots=True)
class Elf:
    """The header and both tables of a file. `identity` is the 16 bytes of `e_ident`."""

    identity: bytes
    type: int
    machine: int
    version: int
    entry_address: int
    segment_table_offset: int
    section_table_offset: int
    flags: int
    name_section_index: int
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]
    section_name_offsets: tuple[int, ...]
    file_bytes: int

    @property
    def segment_table_end(self) -> int:
        """The offset after the last program header."""
        return self.segment_table_offset + SEGMENT_HEADER.size * len(self.segments)

    @property
    def section_table_end(self) -> int:
        """The offset after the last section header."""
        return self.section_table_offset + SECTION_HEADER.size * len(self.sections)

    @property
    def loads(self) -> tuple[Segment, ...]:
        """The `PT_LOAD` segments, in file order of the table."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD)

    def section(self, name: str) -> Section | None:
        """Returns the section of that name, or None.

        Raises:
            UnsupportedBinary: several sections have that name.
        """
        found = [section for section in self.sections if section.name == name]
        if len(found) > 1:
            raise UnsupportedBinary("elf-duplicate-section", name)
        return found[0] if found else None

    def file_offset_of(self, address: int) -> int:
        """Returns the file offset of the byte that is loaded at `address`."""
        for segment in self.loads:
            if segment.address <= address < segment.address + segment.file_bytes:
                return address - segment.address + segment.file_offset
        raise UnsupportedBinary("elf-unmapped-address", hex(address))


@dataclass(frozen=True, slots=True)
class DynamicNames:
    """The names in a dynamic section: needed libraries, the file's own name, and the search path."""

    needed: tuple[str, ...]
    soname: str | None
    runpath: str | None


class _Header(NamedTuple):
    """The fields of `Elf64_Ehdr` after `e_ident`, in their order."""

    type: int
    machine: int
    version: int
    entry_address: int
    segment_table_offset: int
    section_table_offset: int
    flags: int
    header_bytes: int
    segment_entry_bytes: int
    segment_count: int
    section_entry_bytes: int
    section_count: int
    name_section_index: int


def parse(content: Content) -> Elf:
    """Reads the header and both tables of a little-endian ELF64 file for x86-64 or aarch64.

    Raises:
        UnsupportedBinary: the file is of another class, byte order, machine or version, is truncated, or its tables
            use the extended numbering or lie outside the file.
    """
    view = memoryview(content)
    identity, header = _read_header(view)
    segment_bytes, section_bytes = (
        SEGMENT_HEADER.size * header.segment_count,
        SECTION_HEADER.size * header.section_count,
    )
    segment_table = _table(view, header.segment_table_offset, segment_bytes, "segment table")
    section_table = _table(view, header.section_table_offset, section_bytes, "section table")
    segments = tuple(Segment(*fields) for fields in SEGMENT_HEADER.iter_unpack(segment_table))
    for segment in segments:
        if segment.file_bytes:
            _table(view, segment.file_offset, segment.file_bytes, "segment")
        if segment.type == PT_LOAD:
            _check_load(segment)
    return Elf(
        identity=identity,
        type=header.type,
        machine=header.machine,
        version=header.version,
        entry_address=header.entry_address,
        segment_table_offset=header.segment_table_offset,
        section_table_offset=header.section_table_offset,
        flags=header.flags,
        name_section_index=header.name_section_index,
        segments=segments,
        sections=_named_sections(view, section_table, header.name_section_index),
        section_name_offsets=tuple(fields[0] for fields in SECTION_HEADER.iter_unpack(section_table)),
        file_bytes=len(view),
    )


def map_file(path: Path) -> mmap.mmap:
    """Maps a file's content for reading. It is unmapped when the last reference to it is deleted.

    Raises:
        UnsupportedBinary: it is too short to be an ELF file.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < ELF_HEADER_BYTES:
            raise UnsupportedBinary("elf-truncated", f"fewer than {ELF_HEADER_BYTES} bytes")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def pack_header(
    elf: Elf,
    *,
    segment_table_offset: int,
    segment_count: int,
    section_table_offset: int,
    section_count: int,
    name_section_index: int,
) -> bytes:
    """Returns the 64 bytes of `elf`'s header, with its tables at other offsets."""
    return elf.identity + _HEADER.pack(
        elf.type,
        elf.machine,
        elf.version,
        elf.entry_address,
        segment_table_offset,
        section_table_offset,
        elf.flags,
        ELF_HEADER_BYTES,
        SEGMENT_HEADER.size,
        segment_count,
        SECTION_HEADER.size,
        section_count,
        name_section_index,
    )


def read_dynamic_names(content: Content, elf: Elf) -> DynamicNames:
    """Returns the names in the dynamic section, found by virtual address as the loader does; none for a static file."""
    view = memoryview(content)
    tags = list(_dynamic_entries(view, elf))
    if not tags:
        return DynamicNames(needed=(), soname=None, runpath=None)
    single = dict(tags)
    if _DT_STRTAB not in single or _DT_STRSZ not in single:
        raise UnsupportedBinary("elf-dynamic", "no string table")
    start = elf.file_offset_of(single[_DT_STRTAB])
    strings = bytes(_table(view, start, single[_DT_STRSZ], "dynamic string table"))
    runpath = single.get(_DT_RUNPATH, single.get(_DT_RPATH))
    return DynamicNames(
        needed=tuple(_string(strings, value) for tag, value in tags if tag == _DT_NEEDED),
        soname=_string(strings, single[_DT_SONAME]) if _DT_SONAME in single else None,
        runpath=_string(strings, runpath) if runpath is not None else None,
    )


def read_dynamic_tags(content: Content, elf: Elf) -> dict[int, int]:
    """Returns the dynamic section as tag to value; for a repeated tag, its last value."""
    return dict(_dynamic_entries(memoryview(content), elf))


def _dynamic_entries(view: memoryview, elf: Elf) -> Iterator[tuple[int, int]]:
    dynamic = [segment for segment in elf.segments if segment.type == PT_DYNAMIC]
    if len(dynamic) > 1:
        raise UnsupportedBinary("elf-dynamic", f"{len(dynamic)} dynamic segments")
    for segment in dynamic:
        table_bytes = segment.file_bytes // _DYNAMIC_ENTRY.size * _DYNAMIC_ENTRY.size
        table = view[segment.file_offset : segment.file_offset + table_bytes]
        for tag, value in _DYNAMIC_ENTRY.iter_unpack(table):
            if tag == 0:
                return
            yield tag, value


def _read_header(view: memoryview) -> tuple[bytes, _Header]:
    """Returns `e_ident` and the rest of the file header, with every field in the range that this reader supports."""
    if len(view) < ELF_HEADER_BYTES or bytes(view[:4]) != MAGIC:
        raise UnsupportedBinary("elf-magic", bytes(view[:4]).hex())
    identity = bytes(view[:16])
    if identity[4] != _CLASS_64:
        raise UnsupportedBinary("elf-class", str(identity[4]))
    if identity[5] != _LITTLE_ENDIAN:
        raise UnsupportedBinary("elf-byte-order", str(identity[5]))
    header = _Header(*_HEADER.unpack_from(view, 16))
    if header.machine not in {EM_X86_64, EM_AARCH64}:
        raise UnsupportedBinary("elf-machine", str(header.machine))
    if identity[6] != 1 or header.version != 1 or header.header_bytes != ELF_HEADER_BYTES:
        raise UnsupportedBinary(
            "elf-version", f"{identity[6]}, {header.version}, header of {header.header_bytes} bytes"
        )
    if header.segment_count == _PN_XNUM or (header.section_count == 0 and header.section_table_offset != 0):
        counts = f"{header.segment_count} segments, {header.section_count} sections"
        raise UnsupportedBinary("elf-extended-numbering", counts)
    if (header.segment_count and header.segment_entry_bytes != SEGMENT_HEADER.size) or (
        header.section_count and header.section_entry_bytes != SECTION_HEADER.size
    ):
        sizes = f"{header.segment_entry_bytes}, {header.section_entry_bytes}"
        raise UnsupportedBinary("elf-table-entry-size", sizes)
    return identity, header


def _check_load(segment: Segment) -> None:
    """Raises UnsupportedBinary for a segment that a loader would reject: inconsistent sizes or alignment."""
    alignment = segment.alignment
    if alignment & (alignment - 1):
        raise UnsupportedBinary("elf-alignment", f"{alignment:#x} is not a power of two")
    if alignment > 1 and (segment.file_offset - segment.address) % alignment:
        raise UnsupportedBinary("elf-alignment", f"offset {segment.file_offset:#x} for address {segment.address:#x}")
    if segment.file_bytes > segment.memory_bytes:
        raise UnsupportedBinary(
            "elf-segment", f"{segment.file_bytes} bytes in the file, {segment.memory_bytes} in memory"
        )


def _named_sections(view: memoryview, table: memoryview, name_section_index: int) -> tuple[Section, ...]:
    headers = list(SECTION_HEADER.iter_unpack(table))
    if not headers:
        return ()
    if not 0 < name_section_index < len(headers) or headers[name_section_index][1] != SHT_STRTAB:
        raise UnsupportedBinary("elf-section-names", f"index {name_section_index} of {len(headers)}")
    names = bytes(_table(view, headers[name_section_index][4], headers[name_section_index][5], "section names"))
    sections = tuple(Section(_string(names, fields[0]), *fields[1:]) for fields in headers)
    for section in sections:
        if section.stored_bytes:
            _table(view, section.file_offset, section.stored_bytes, f"section {section.name}")
    return sections


def _table(view: memoryview, offset: int, size_bytes: int, name: str) -> memoryview:
    if offset + size_bytes > len(view):
        raise UnsupportedBinary("elf-truncated", f"{name} ends at {offset + size_bytes}, the file at {len(view)}")
    return view[offset : offset + size_bytes]


def _string(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset)
    if not 0 <= offset < len(strings) or end < 0:
        raise UnsupportedBinary("elf-string", f"offset {offset} of {len(strings)}")
    return strings[offset:end].decode("utf-8", "surrogateescape")
