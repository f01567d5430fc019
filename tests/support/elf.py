"""Shared objects made by the byte: small, complete, and with every feature that the slim has to deal with."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from buildkit.binary import elf

HEADER_BYTES = 64
SEGMENT_BYTES = 56


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
    """A container as the CUDA compiler writes it."""
    content = b"".join(entry.pack() for entry in entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


@dataclass(slots=True)
class Library:
    """A shared object; every part may be spoiled before `build` is called.

    Attributes:
        fatbin: containers of `.nv_fatbin`; `relocatable` those of `__nv_relfatbin`.
        unwrapped: how many of the first containers of `.nv_fatbin` have no wrapper.
        page_bytes: alignment of the segments, 4 KiB or the linkers' 2 MiB.
        is_extended: whether mapped bytes lie after the symbols, as patchelf leaves them.
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
        """The file; a pure function of the fields."""
        strings = b"\0libneeded.so.1\0libsynthetic.so\0$ORIGIN\0exported\0"
        segment_count = 4 + self.has_table_segment + self.is_extended
        wrapped_count = len(self.fatbin) - self.unwrapped + len(self.relocatable)
        image = bytearray(HEADER_BYTES + SEGMENT_BYTES * segment_count)
        sections: list[tuple[str, int, int, int, int, int, int, int]] = []

        def add(name: str, content: bytes, kind: int = 1, *, flags: int = 2, link: int = 0, entry: int = 0) -> int:
            image.extend(bytes(-len(image) % 8))
            offset = len(image)
            image.extend(content)
            sections.append((name, kind, flags, offset, len(content), link, entry, 0))
            return offset

        add(".dynsym", bytes(48), 11, link=2, entry=24)
        add(".dynstr", strings, 3)
        relocation_count = wrapped_count + len(self.extra_relocations)
        rela = add(".rela.dyn", bytes(24 * relocation_count), 4, entry=24)
        add(".text", self.text, flags=6)
        relfat = add("__nv_relfatbin", b"".join(self.relocatable)) if self.relocatable else 0
        if self.relocatable:
            add("__nv_module_id", b"between the container sections")
        fat = add(".nv_fatbin", b"".join(self.fatbin) + self.gap_in_fatbin) if self.fatbin else 0
        add(".rodata", self.text[::-1])
        first_end = len(image)

        image.extend(bytes(-len(image) % 16))
        second_start = len(image)
        delta = self.page_bytes  # the second segment lies one page further in memory than in the file
        tags = [(1, 1), (14, 16), (29, 32), (5, sections[1][3]), (10, len(strings)), (6, sections[0][3]), (11, 24)]
        tags += [(7, rela), (8, 24 * relocation_count), (9, 24), *self.extra_tags, (0, 0)]
        dynamic = add(".dynamic", b"".join(struct.pack("<QQ", *tag) for tag in tags), 6, flags=3, link=2, entry=16)
        addresses = [
            *_starts(fat, self.fatbin)[self.unwrapped :],
            *_starts(relfat, self.relocatable),
        ]
        wrappers = b"".join(struct.pack("<IIQQ", 0x466243B1, 1, address, 0) for address in addresses)
        wrapper = 0
        if self.fatbin or self.relocatable:
            wrapper = add(".nvFatBinSegment", wrappers + self.extra_wrapper, flags=3)
        add(".data", self.data, flags=3)
        second_end = len(image)
        relocations = [(wrapper + delta + 24 * index + 8, 8, address) for index, address in enumerate(addresses)]
        for index, relocation in enumerate([*relocations, *self.extra_relocations]):
            struct.pack_into("<QQq", image, rela + 24 * index, *relocation)
        value = self.exported_address if self.exported_address is not None else sections[3][3]
        struct.pack_into("<IBBHQQ", image, sections[0][3] + 24, 41, 0x12, 0, 4, value, 16)
        addressed = {name: offset + (delta if offset >= second_start else 0) for name, _, _, offset, *_ in sections}

        add(".comment", b"GCC: (made up) 1.0\0", flags=0)
        if self.has_symbols:
            add(".debug_info", bytes(range(256)) * 40, flags=0)
            add(".symtab", bytes(24 * 300), 2, flags=0, entry=24)
            add(".strtab", b"\0" + b"a_long_mangled_name\0" * 300, 3, flags=0)
        extended = (0, 0)
        if self.is_extended:
            image.extend(bytes(-len(image) % self.page_bytes))
            start = add(".moved", b"what patchelf appended" * 50, flags=2)
            extended = (start, len(image))
            addressed[".moved"] = start + 4 * delta

        names = b"\0"
        name_offsets = []
        for name in [*(section[0] for section in sections), ".shstrtab"]:
            name_offsets.append(len(names))
            names += name.encode() + b"\0"
        add(".shstrtab", names, 3, flags=0)
        image.extend(bytes(-len(image) % 8))
        section_table = len(image)
        image.extend(bytes(64))
        for (name, kind, flags, offset, size, link, entry, info), name_offset in zip(
            sections, name_offsets, strict=True
        ):
            image.extend(
                struct.pack(
                    "<IIQQQQIIQQ", name_offset, kind, flags, addressed.get(name, 0), offset, size, link, info, 8, entry
                )
            )
        self._write_tables(image, len(sections) + 1, section_table, (first_end, second_start, second_end), extended)
        struct.pack_into("<IIQQQQQQ", image, self._slot(2), 2, 6, dynamic, dynamic + delta, dynamic + delta,
                         16 * len(tags), 16 * len(tags), 8)  # fmt: skip
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
        identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        fields = struct.pack(
            "<HHIQQQIHHHHHH", self.type, self.machine, 1, 0, HEADER_BYTES, section_table, 0, 64, 56, segment_count, 64,
            section_count, section_count - 1)  # fmt: skip
        image[:HEADER_BYTES] = identity + fields
        table_bytes = SEGMENT_BYTES * segment_count
        if self.has_table_segment:
            struct.pack_into("<IIQQQQQQ", image, HEADER_BYTES, 6, 4, 64, 64, 64, table_bytes, table_bytes, 8)
        size = end - start
        loads = [
            (1, 5, 0, 0, 0, first_end, first_end, page),
            (1, 6, start, start + delta, start + delta, size, size + 4096, page),
        ]
        for index, load in enumerate(loads):
            struct.pack_into("<IIQQQQQQ", image, self._slot(index), *load)
        struct.pack_into("<IIQQQQQQ", image, self._slot(3), 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
        if self.is_extended:
            low, high = extended
            load = (1, 4, low, low + 4 * delta, low + 4 * delta, high - low, high - low, page)
            struct.pack_into("<IIQQQQQQ", image, self._slot(4), *load)


def mapped(content: bytes) -> list[tuple[int, int, bytes]]:
    """What the loader maps: address, size in memory and bytes of each segment, without header and segment table."""
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
