"""Makes small ELF files that a loader accepts, with just the traits that a test wants."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["fatbin", "make_elf"]

HEADER, PROGRAM, SECTION, SYMBOL, RELOCATION = 64, 56, 64, 24, 24
DT_NULL, DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_RELAENT = 0, 1, 5, 6, 7, 8, 9
DT_STRSZ, DT_SYMENT, DT_SONAME, DT_RUNPATH = 10, 11, 14, 29
R_X86_64_GLOB_DAT = 6


def make_elf(
    *,
    soname: str = "",
    needed: Sequence[str] = (),
    undefined: Sequence[str] = (),
    runpath: str = "",
    sections: Sequence[tuple[str, bytes]] = (),
    is_executable: bool = False,
) -> bytes:
    """An x86-64 shared object, or an executable that only looks like one, with extra *sections* that are not loaded."""
    strings = bytearray(b"\0")

    def string(text: str) -> int:
        offset = len(strings)
        strings.extend(text.encode() + b"\0")
        return offset

    dynamic = [(DT_NEEDED, string(name)) for name in needed]
    dynamic += [(tag, string(text)) for tag, text in ((DT_SONAME, soname), (DT_RUNPATH, runpath)) if text]
    symbols = bytes(SYMBOL) + b"".join(struct.pack("<IBBHQQ", string(name), 0x10, 0, 0, 0, 0) for name in undefined)
    start = HEADER + 3 * PROGRAM
    strings_at = start
    symbols_at = -(-(strings_at + len(strings)) // 8) * 8
    relocations_at = symbols_at + len(symbols)
    slots_at = relocations_at + RELOCATION * len(undefined)
    dynamic_at = slots_at + 8 * len(undefined)
    relocations = b"".join(
        struct.pack("<QQq", slots_at + 8 * index, (index + 1) << 32 | R_X86_64_GLOB_DAT, 0)
        for index in range(len(undefined))
    )
    dynamic += [(DT_STRTAB, strings_at), (DT_SYMTAB, symbols_at), (DT_STRSZ, len(strings)), (DT_SYMENT, SYMBOL)]
    if undefined:
        dynamic += [(DT_RELA, relocations_at), (DT_RELASZ, len(relocations)), (DT_RELAENT, RELOCATION)]
    table = b"".join(struct.pack("<QQ", *entry) for entry in [*dynamic, (DT_NULL, 0)])
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
            (1, 6, 0, 0, 0, loaded_bytes, loaded_bytes, 0x1000),  # PT_LOAD, readable and writable
            (2, 6, dynamic_at, dynamic_at, dynamic_at, len(table), len(table), 8),  # PT_DYNAMIC
            (0x6474E551, 6, 0, 0, 0, 0, 0, 16),  # PT_GNU_STACK: without it the loader asks for an executable stack
        )
    )
    extra, headers, names = bytearray(), [bytes(SECTION)], bytearray(b"\0")
    for name, content in sections:
        headers.append(
            struct.pack("<IIQQQQIIQQ", len(names), 1, 0, 0, loaded_bytes + len(extra), len(content), 0, 0, 1, 0)
        )
        names.extend(name.encode() + b"\0")
        extra.extend(content)
    names_at = loaded_bytes + len(extra)
    headers.append(struct.pack("<IIQQQQIIQQ", len(names), 3, 0, 0, names_at, len(names) + 10, 0, 0, 1, 0))
    names.extend(b".shstrtab\0")
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    kind, sections_at = (2 if is_executable else 3), names_at + len(names)
    header = struct.pack(
        "<HHIQQQIHHHHHH",
        kind,
        62,
        1,
        0,
        HEADER,
        sections_at,
        0,
        HEADER,
        PROGRAM,
        3,
        SECTION,
        len(headers),
        len(headers) - 1,
    )
    return bytes(ident + header + programs + body + extra + names + b"".join(headers))


def fatbin(*targets: int) -> bytes:
    """One container of device code with an empty cubin for each compute capability."""
    entries = b""
    for target in targets:
        entry = bytearray(64)
        struct.pack_into("<HHIQ", entry, 0, 2, 0x0101, 64, 8)
        struct.pack_into("<I", entry, 28, target)
        entries += bytes(entry) + bytes(8)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries
