"""Makes small ELF files byte by byte: libraries with GPU code for slimming, and files that the loader accepts."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from buildkit.binary import elf
from buildkit.binary.library import Library

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EntrySpec", "LibrarySpec", "container", "cubin", "gpu_code", "in_memory", "make_elf", "mapped_bytes"]

HEADER_BYTES, SEGMENT_BYTES, SECTION_BYTES, SYMBOL_BYTES, RELOCATION_BYTES = 64, 56, 64, 24, 24
ET_EXEC, ET_DYN = 2, 3
PT_LOAD, PT_DYNAMIC, PT_PHDR, PT_GNU_STACK = 1, 2, 6, 0x6474E551
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_DYNAMIC, SHT_DYNSYM = 1, 2, 3, 4, 6, 11
WRITABLE, ALLOCATED, EXECUTABLE = 1, 2, 4
DT_NULL, DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELAENT = 0, 1, 5, 6, 7, 8, 9
DT_STRSZ, DT_SYMENT, DT_SONAME, DT_RUNPATH = 10, 11, 14, 29
R_X86_64_GLOB_DAT, R_X86_64_RELATIVE = 6, 8


class Section(NamedTuple):
    """One section header; `link` is the index of the section with its names."""

    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int = 0
    entry: int = 0
    address: int = 0
    alignment: int = 8


@dataclass(frozen=True, slots=True)
class EntrySpec:
    """One entry of a container."""

    kind: int = 2
    architecture: int = 90
    flags: int = 0x11
    header_bytes: int = 64
    payload: bytes = bytes(64)

    def pack(self) -> bytes:
        padded = self.payload.ljust(-(-len(self.payload) // 8) * 8, b"\0")
        fields = struct.pack(
            "<HHIQIIHHIIIQQQ",
            self.kind,
            0x0101,
            self.header_bytes,
            len(padded),
            len(self.payload),
            0,
            0,
            9,
            self.architecture,
            0,
            0,
            self.flags,
            0,
            len(self.payload) * 3,
        )
        return fields.ljust(self.header_bytes, b"\x5a") + padded


def container(*entries: EntrySpec) -> bytes:
    """Returns a container as the CUDA compiler writes it."""
    content = b"".join(entry.pack() for entry in entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def cubin(architecture: int, size_bytes: int = 9000, flags: int = 0) -> EntrySpec:
    """Returns an entry of machine code for one compute capability, filled with its number; *flags* are added."""
    return EntrySpec(architecture=architecture, flags=0x11 | flags, payload=bytes([architecture]) * size_bytes)


def gpu_code(*targets: int) -> bytes:
    """Returns one container with a small cubin for each compute capability."""
    return container(*(EntrySpec(architecture=target, payload=bytes(8)) for target in targets))


@dataclass(slots=True)
class LibrarySpec:
    """A shared object with GPU code and symbols; tests change its fields to plant faults.

    Attributes:
        fatbin: containers of `.nv_fatbin`; `relocatable` those of `__nv_relfatbin`.
        unwrapped: the number of first containers of `.nv_fatbin` without a wrapper.
        page_bytes: alignment of the segments, 4 KiB or the linkers' 2 MiB.
        is_extended: whether mapped bytes lie behind the symbols, as in files that patchelf extended.
    """

    fatbin: list[bytes] = field(default_factory=list)
    relocatable: list[bytes] = field(default_factory=list)
    unwrapped: int = 0
    page_bytes: int = 0x1000
    has_symbols: bool = True
    is_extended: bool = False
    has_table_segment: bool = False
    machine: int = 62
    type: int = 3
    text: bytes = bytes(range(256)) * 4
    data: bytes = bytes(range(255, -1, -1)) * 4
    appended: bytes = b""
    extra_relocations: list[tuple[int, int, int]] = field(default_factory=list)
    extra_tags: list[tuple[int, int]] = field(default_factory=list)
    exported_address: int | None = None
    extra_wrapper: bytes = b""
    gap_in_fatbin: bytes = b""

    def build(self) -> bytes:  # noqa: PLR0915 - one layout, read from top to bottom
        """Returns the file; the same fields give the same bytes."""
        strings = b"\0libneeded.so.1\0libsynthetic.so\0$ORIGIN\0exported\0"
        segment_count = 4 + self.has_table_segment + self.is_extended
        wrapped_count = len(self.fatbin) - self.unwrapped + len(self.relocatable)
        image = bytearray(HEADER_BYTES + SEGMENT_BYTES * segment_count)
        sections: list[Section] = []

        def add(
            name: str,
            content: bytes,
            kind: int = SHT_PROGBITS,
            *,
            flags: int = ALLOCATED,
            link: int = 0,
            entry: int = 0,
        ) -> int:
            image.extend(bytes(-len(image) % 8))
            offset = len(image)
            image.extend(content)
            sections.append(Section(name, kind, flags, offset, len(content), link, entry))
            return offset

        symbols = add(".dynsym", bytes(2 * SYMBOL_BYTES), SHT_DYNSYM, link=2, entry=SYMBOL_BYTES)
        string_table = add(".dynstr", strings, SHT_STRTAB)
        relocation_bytes = RELOCATION_BYTES * (wrapped_count + len(self.extra_relocations))
        rela = add(".rela.dyn", bytes(relocation_bytes), SHT_RELA, entry=RELOCATION_BYTES)
        text = add(".text", self.text, flags=ALLOCATED | EXECUTABLE)
        relfat = add("__nv_relfatbin", b"".join(self.relocatable)) if self.relocatable else 0
        if self.relocatable:
            add("__nv_module_id", b"between the container sections")
        fat = add(".nv_fatbin", b"".join(self.fatbin) + self.gap_in_fatbin) if self.fatbin else 0
        add(".rodata", self.text[::-1])
        first_end = len(image)

        image.extend(bytes(-len(image) % 16))
        second_start = len(image)
        delta = self.page_bytes  # the second segment lies one page further in memory than in the file
        tags = [(DT_NEEDED, 1), (DT_SONAME, 16), (DT_RUNPATH, 32), (DT_STRTAB, string_table), (DT_STRSZ, len(strings))]
        tags += [(DT_SYMTAB, symbols), (DT_SYMENT, SYMBOL_BYTES), (DT_RELA, rela), (DT_RELASZ, relocation_bytes)]
        tags += [(DT_RELAENT, RELOCATION_BYTES), *self.extra_tags, (DT_NULL, 0)]
        writable = ALLOCATED | WRITABLE
        dynamic = add(".dynamic", _dynamic(tags), SHT_DYNAMIC, flags=writable, link=2, entry=16)
        addresses = [
            *_starts(fat, self.fatbin)[self.unwrapped :],
            *_starts(relfat, self.relocatable),
        ]
        wrappers = b"".join(struct.pack("<IIQQ", 0x466243B1, 1, address, 0) for address in addresses)
        wrapper = 0
        if self.fatbin or self.relocatable:
            wrapper = add(".nvFatBinSegment", wrappers + self.extra_wrapper, flags=writable)
        add(".data", self.data, flags=writable)
        second_end = len(image)
        relocations = [
            (wrapper + delta + 24 * index + 8, R_X86_64_RELATIVE, address) for index, address in enumerate(addresses)
        ]
        for index, relocation in enumerate([*relocations, *self.extra_relocations]):
            struct.pack_into("<QQq", image, rela + RELOCATION_BYTES * index, *relocation)
        value = self.exported_address if self.exported_address is not None else text
        struct.pack_into("<IBBHQQ", image, symbols + SYMBOL_BYTES, 40, 0x12, 0, 4, value, 16)
        sections = [
            section._replace(address=section.offset + (delta if section.offset >= second_start else 0))
            for section in sections
        ]

        add(".comment", b"GCC: (made up) 1.0\0", flags=0)
        if self.has_symbols:
            add(".debug_info", bytes(range(256)) * 40, flags=0)
            add(".symtab", bytes(SYMBOL_BYTES * 300), SHT_SYMTAB, flags=0, entry=SYMBOL_BYTES)
            add(".strtab", b"\0" + b"a_long_mangled_name\0" * 300, SHT_STRTAB, flags=0)
        extended = (0, 0)
        if self.is_extended:
            image.extend(bytes(-len(image) % self.page_bytes))
            start = add(".moved", b"what patchelf appended" * 50)
            extended = (start, len(image))
            sections[-1] = sections[-1]._replace(address=start + 4 * delta)

        image.extend(bytes(-len(image) % 8))
        tail, section_table = _section_tables(len(image), sections)
        image.extend(tail)
        self._write_tables(image, len(sections) + 2, section_table, (first_end, second_start, second_end), extended)
        address, size = dynamic + delta, 16 * len(tags)
        struct.pack_into("<IIQQQQQQ", image, self._slot(2), PT_DYNAMIC, 6, dynamic, address, address, size, size, 8)
        return bytes(image) + self.appended

    def _slot(self, index: int) -> int:
        return HEADER_BYTES + SEGMENT_BYTES * (index + self.has_table_segment)

    def _write_tables(
        self,
        image: bytearray,
        section_count: int,
        section_table: int,
        ends: tuple[int, int, int],
        extended: tuple[int, int],
    ) -> None:
        first_end, start, end = ends
        delta, page = self.page_bytes, self.page_bytes
        segment_count = 4 + self.has_table_segment + self.is_extended
        image[:HEADER_BYTES] = _header(self.type, self.machine, segment_count, section_table, section_count)
        table_bytes = SEGMENT_BYTES * segment_count
        if self.has_table_segment:
            struct.pack_into("<IIQQQQQQ", image, HEADER_BYTES, PT_PHDR, 4, 64, 64, 64, table_bytes, table_bytes, 8)
        size = end - start
        loads = [
            (PT_LOAD, 5, 0, 0, 0, first_end, first_end, page),
            (PT_LOAD, 6, start, start + delta, start + delta, size, size + 4096, page),
        ]
        for index, load in enumerate(loads):
            struct.pack_into("<IIQQQQQQ", image, self._slot(index), *load)
        struct.pack_into("<IIQQQQQQ", image, self._slot(3), PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16)
        if self.is_extended:
            low, high = extended
            load = (PT_LOAD, 4, low, low + 4 * delta, low + 4 * delta, high - low, high - low, page)
            struct.pack_into("<IIQQQQQQ", image, self._slot(4), *load)


def make_elf(
    *,
    soname: str = "",
    needed: Sequence[str] = (),
    undefined: Sequence[str] = (),
    runpath: str = "",
    sections: Sequence[tuple[str, bytes]] = (),
    is_executable: bool = False,
) -> bytes:
    """Returns an x86-64 shared object that the loader accepts, with extra `sections` that are not loaded.

    An executable has only its header; it cannot be run.
    """
    strings = bytearray(b"\0")

    def string(text: str) -> int:
        offset = len(strings)
        strings.extend(text.encode() + b"\0")
        return offset

    dynamic = [(DT_NEEDED, string(name)) for name in needed]
    dynamic += [(tag, string(text)) for tag, text in ((DT_SONAME, soname), (DT_RUNPATH, runpath)) if text]
    symbols = bytes(SYMBOL_BYTES) + b"".join(
        struct.pack("<IBBHQQ", string(name), 0x10, 0, 0, 0, 0) for name in undefined
    )
    start = HEADER_BYTES + 3 * SEGMENT_BYTES
    strings_at = start
    symbols_at = -(-(strings_at + len(strings)) // 8) * 8
    relocations_at = symbols_at + len(symbols)
    slots_at = relocations_at + RELOCATION_BYTES * len(undefined)
    dynamic_at = slots_at + 8 * len(undefined)
    relocations = b"".join(
        struct.pack("<QQq", slots_at + 8 * index, (index + 1) << 32 | R_X86_64_GLOB_DAT, 0)
        for index in range(len(undefined))
    )
    dynamic += [(DT_STRTAB, strings_at), (DT_SYMTAB, symbols_at), (DT_STRSZ, len(strings)), (DT_SYMENT, SYMBOL_BYTES)]
    if undefined:
        dynamic += [(DT_RELA, relocations_at), (DT_RELASZ, len(relocations)), (DT_RELAENT, RELOCATION_BYTES)]
    table = _dynamic([*dynamic, (DT_NULL, 0)])
    loaded_bytes = dynamic_at + len(table)
    body = bytearray(loaded_bytes - start)
    for offset, part in (
        (strings_at, strings),
        (symbols_at, symbols),
        (relocations_at, relocations),
        (dynamic_at, table),
    ):
        body[offset - start : offset - start + len(part)] = part
    programs = b"".join(
        struct.pack("<IIQQQQQQ", *fields)
        for fields in (
            (PT_LOAD, 6, 0, 0, 0, loaded_bytes, loaded_bytes, 0x1000),  # readable and writable
            (PT_DYNAMIC, 6, dynamic_at, dynamic_at, dynamic_at, len(table), len(table), 8),
            (PT_GNU_STACK, 6, 0, 0, 0, 0, 0, 16),  # without it, the loader makes the stack executable
        )
    )
    extra, headers = bytearray(), []
    for name, content in sections:
        headers.append(Section(name, SHT_PROGBITS, 0, loaded_bytes + len(extra), len(content), alignment=1))
        extra.extend(content)
    tail, section_table = _section_tables(loaded_bytes + len(extra), headers)
    header = _header(ET_EXEC if is_executable else ET_DYN, elf.EM_X86_64, 3, section_table, len(headers) + 2)
    return bytes(header + programs + body + extra + tail)


def _header(kind: int, machine: int, segment_count: int, section_table: int, section_count: int) -> bytes:
    """Returns the file header; the segment table is behind it, and the last section has the section names."""
    tables = (HEADER_BYTES, section_table, 0, HEADER_BYTES, SEGMENT_BYTES, segment_count)
    fields = (kind, machine, 1, 0, *tables, SECTION_BYTES, section_count, section_count - 1)
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", *fields)


def _section_tables(start: int, sections: Sequence[Section]) -> tuple[bytes, int]:
    """Returns the section names and headers, for the end of a file of `start` bytes, and the headers' offset."""
    names, headers = bytearray(b"\0"), bytearray(SECTION_BYTES)
    name_bytes = 1 + sum(len(section.name) + 1 for section in sections) + len(".shstrtab\0")
    for section in (*sections, Section(".shstrtab", SHT_STRTAB, 0, start, name_bytes)):
        place = (section.address, section.offset, section.size, section.link, 0, section.alignment, section.entry)
        headers += struct.pack("<IIQQQQIIQQ", len(names), section.type, section.flags, *place)
        names += section.name.encode() + b"\0"
    padding = bytes(-(start + len(names)) % 8)
    return bytes(names + padding + headers), start + len(names) + len(padding)


def _dynamic(tags: Sequence[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("<QQ", *tag) for tag in tags)


def in_memory(content: bytes | bytearray) -> Library:
    """Returns a library that is not on disk."""
    return Library(Path("in-memory.so"), content)


def mapped_bytes(content: bytes) -> list[tuple[int, int, bytes]]:
    """Returns (address, size in memory, bytes) of each mapped segment, without the header and the segment table."""
    parsed = elf.parse(content)
    blank = bytearray(content)
    blank[:64] = bytes(64)
    blank[parsed.segment_table_offset : parsed.segment_table_end] = bytes(56 * len(parsed.segments))
    return [
        (load.address, load.memory_bytes, bytes(blank[load.file_offset : load.file_offset + load.file_bytes]))
        for load in parsed.loads
    ]


def _starts(start: int, containers: list[bytes]) -> list[int]:
    starts = []
    for content in containers:
        starts.append(start)
        start += len(content)
    return starts
