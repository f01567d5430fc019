"""ELF64 files as read-only values: header, program headers, sections and what the dynamic section names.

Field names and constants are those of the System V ABI, chapters 4 and 5 (gabi, "Object Files", "Program Loading
and Dynamic Linking") and of `elf.h` in glibc 2.41. Anything that this reader does not know is refused by name.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

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
# e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize, e_phentsize, e_phnum, e_shentsize,
# e_shnum, e_shstrndx, after the 16 bytes of e_ident.
_HEADER: Final = struct.Struct("<HHIQQQIHHHHHH")
SEGMENT_HEADER: Final = struct.Struct("<IIQQQQQQ")
SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
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


class UnsupportedBinary(Exception):
    """A file that the slim leaves exactly as it was, with the reason as a short fixed name.

    Attributes:
        reason: a stable identifier such as `elf-machine` or `fatbin-unknown-kind`.
        detail: the value that was met, for a reader.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnsupportedBinary], tuple[str, str]]:
        """Keeps both fields when the error crosses a process."""
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
        """The header's 56 bytes, with the content at another place in the file."""
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
        """What it occupies in the file: nothing for `SHT_NOBITS` and `SHT_NULL`."""
        return 0 if self.type in {SHT_NOBITS, SHT_NULL} else self.size_bytes

    @property
    def file_end(self) -> int:
        """The offset after its last stored byte."""
        return self.file_offset + self.stored_bytes


@dataclass(frozen=True, slots=True)
class Elf:
    """A parsed file: everything that says where its bytes lie. `identity` is the 16 bytes of `e_ident`."""

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
        """The only section of that name, or None; two of one name are refused."""
        found = [section for section in self.sections if section.name == name]
        if len(found) > 1:
            raise UnsupportedBinary("elf-duplicate-section", name)
        return found[0] if found else None

    def file_offset_of(self, address: int) -> int:
        """Where the byte that is loaded at `address` lies in the file."""
        for segment in self.loads:
            if segment.address <= address < segment.address + segment.file_bytes:
                return address - segment.address + segment.file_offset
        raise UnsupportedBinary("elf-unmapped-address", hex(address))


@dataclass(frozen=True, slots=True)
class DynamicNames:
    """What the dynamic section names: the libraries it needs, its own name, and where it searches."""

    needed: tuple[str, ...]
    soname: str | None
    runpath: str | None


def parse(content: Content) -> Elf:
    """Reads the header and both tables of a little-endian ELF64 file for x86-64 or aarch64.

    Raises:
        UnsupportedBinary: the file is of another class, order, machine or version, is cut short, or its tables use the
            extended numbering or lie outside the file.
    """
    view = memoryview(content)
    if len(view) < ELF_HEADER_BYTES or bytes(view[:4]) != MAGIC:
        raise UnsupportedBinary("elf-magic", bytes(view[:4]).hex())
    identity = bytes(view[:16])
    if identity[4] != _CLASS_64:
        raise UnsupportedBinary("elf-class", str(identity[4]))
    if identity[5] != _LITTLE_ENDIAN:
        raise UnsupportedBinary("elf-byte-order", str(identity[5]))
    (
        file_type,
        machine,
        version,
        entry_address,
        segment_table_offset,
        section_table_offset,
        flags,
        header_bytes,
        segment_entry_bytes,
        segment_count,
        section_entry_bytes,
        section_count,
        name_section_index,
    ) = _HEADER.unpack_from(view, 16)
    if machine not in {EM_X86_64, EM_AARCH64}:
        raise UnsupportedBinary("elf-machine", str(machine))
    if identity[6] != 1 or version != 1 or header_bytes != ELF_HEADER_BYTES:
        raise UnsupportedBinary("elf-version", f"{identity[6]}, {version}, header of {header_bytes} bytes")
    if segment_count == _PN_XNUM or (section_count == 0 and section_table_offset != 0):
        raise UnsupportedBinary("elf-extended-numbering", f"{segment_count} segments, {section_count} sections")
    if (segment_count and segment_entry_bytes != SEGMENT_HEADER.size) or (
        section_count and section_entry_bytes != SECTION_HEADER.size
    ):
        raise UnsupportedBinary("elf-table-entry-size", f"{segment_entry_bytes}, {section_entry_bytes}")
    segment_table = _table(view, segment_table_offset, SEGMENT_HEADER.size * segment_count, "segment table")
    section_table = _table(view, section_table_offset, SECTION_HEADER.size * section_count, "section table")
    segments = tuple(Segment(*fields) for fields in SEGMENT_HEADER.iter_unpack(segment_table))
    for segment in segments:
        if segment.file_bytes:
            _table(view, segment.file_offset, segment.file_bytes, "segment")
        if segment.type == PT_LOAD:
            _check_load(segment)
    return Elf(
        identity=identity,
        type=file_type,
        machine=machine,
        version=version,
        entry_address=entry_address,
        segment_table_offset=segment_table_offset,
        section_table_offset=section_table_offset,
        flags=flags,
        name_section_index=name_section_index,
        segments=segments,
        sections=_named_sections(view, section_table, name_section_index),
        section_name_offsets=tuple(fields[0] for fields in SECTION_HEADER.iter_unpack(section_table)),
        file_bytes=len(view),
    )


def map_file(path: Path) -> mmap.mmap:
    """A file's content, read on demand. It is unmapped when the last view of it is gone, not at a fixed point.

    Raises:
        UnsupportedBinary: it is too short to be an ELF file (nothing of no bytes can be mapped).
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
    """The 64 bytes of `elf`'s header with its tables at other places."""
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
    """The names in the dynamic section, read by virtual address as the loader does; empty for a static file."""
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
    """The dynamic section as tag to value; of a tag that may come more than once, the last."""
    return dict(_dynamic_entries(memoryview(content), elf))


def _dynamic_entries(view: memoryview, elf: Elf) -> Iterator[tuple[int, int]]:
    dynamic = [segment for segment in elf.segments if segment.type == PT_DYNAMIC]
    if len(dynamic) > 1:
        raise UnsupportedBinary("elf-dynamic", f"{len(dynamic)} dynamic segments")
    for segment in dynamic:
        whole_bytes = segment.file_bytes // _DYNAMIC_ENTRY.size * _DYNAMIC_ENTRY.size
        table = view[segment.file_offset : segment.file_offset + whole_bytes]
        for tag, value in _DYNAMIC_ENTRY.iter_unpack(table):
            if tag == 0:
                return
            yield tag, value


def _check_load(segment: Segment) -> None:
    """Refuses what a loader would refuse: sizes and alignments that contradict each other."""
    alignment = segment.alignment
    if alignment & (alignment - 1):
        raise UnsupportedBinary("elf-alignment", f"{alignment:#x} is no power of two")
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


def _table(view: memoryview, offset: int, size_bytes: int, what: str) -> memoryview:
    if offset + size_bytes > len(view):
        raise UnsupportedBinary("elf-truncated", f"{what} ends at {offset + size_bytes}, the file at {len(view)}")
    return view[offset : offset + size_bytes]


def _string(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset)
    if not 0 <= offset < len(strings) or end < 0:
        raise UnsupportedBinary("elf-string", f"offset {offset} of {len(strings)}")
    return strings[offset:end].decode("utf-8", "surrogateescape")
