"""Makes library placeholders without symbols: one that the loader refuses, and one that writes a warning when loaded.

The unloadable library is written byte by byte: its dynamic section alone makes the loader refuse it with the message.

The warning library runs code when it is loaded, so it is compiled. It is needed because cuDNN does not print the
loader's error: with unloadable libraries, cuDNN 9.20 prints only "Invalid handle. Cannot load symbol
cudnnCreateConvolutionDescriptor" (measured on the CPU on 2026-11-27). The compiler is no new requirement: the rule
`cudnn-engines` belongs to the profile `inference`, whose stub libraries are compiled too.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import ELF_HEADER_BYTES, ET_DYN, PT_DYNAMIC, PT_LOAD, SEGMENT_HEADER, SYMBOL, UnsupportedBinary
from buildkit.slim.placeholders.compiler import c_string, compile_library
from buildkit.slim.placeholders.kinds import removal_message

if TYPE_CHECKING:
    from buildkit.binary.elf import Elf
    from buildkit.slim.placeholders.kinds import RemovalRule

__all__ = ["unloadable_library", "warning_library"]

# gabi, "Dynamic Section"
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 0, 1, 5, 6, 10, 11, 14
_DYNAMIC_ENTRY: Final = struct.Struct("<QQ")
_PF_WRITE, _PF_READ = 2, 4
_PT_GNU_STACK: Final = 0x6474E551
_PAGE_BYTES: Final = 0x10000  # the largest page of any supported machine
_WARNING_SOURCE: Final = """\
#include <unistd.h>
static const char message[] = {message};
__attribute__((constructor)) static void warn(void) {{
    if (write(2, message, sizeof message - 1) < 0) return;
}}
"""


def unloadable_library(original: Elf, name: str, rule: RemovalRule) -> bytes:
    """Returns a shared object for the machine of `original` that the loader refuses with the message.

    It needs a library whose name is the message, and the loader's error starts with the name of what is missing.
    """
    message = removal_message(name, rule.name, rule.lost)
    needed = message.replace("/", "-").encode()  # the loader takes a name with a slash for a path
    strings = b"\0" + needed + b"\0" + name.encode() + b"\0"
    strings_offset = ELF_HEADER_BYTES + 3 * SEGMENT_HEADER.size
    symbols_offset = _aligned(strings_offset + len(strings))
    dynamic_offset = symbols_offset + SYMBOL.size
    entries = (
        (_DT_NEEDED, 1),
        (_DT_SONAME, len(needed) + 2),
        (_DT_STRTAB, strings_offset),
        (_DT_SYMTAB, symbols_offset),
        (_DT_STRSZ, len(strings)),
        (_DT_SYMENT, SYMBOL.size),
        (_DT_NULL, 0),
    )
    dynamic = b"".join(_DYNAMIC_ENTRY.pack(*entry) for entry in entries)
    end = dynamic_offset + len(dynamic)
    flags = _PF_READ | _PF_WRITE  # the loader writes into the dynamic section
    segments = (
        (PT_LOAD, flags, 0, 0, 0, end, end, _PAGE_BYTES),
        (PT_DYNAMIC, flags, dynamic_offset, dynamic_offset, dynamic_offset, len(dynamic), len(dynamic), 8),
        (_PT_GNU_STACK, flags, 0, 0, 0, 0, 0, 16),  # without it, the loader makes the stack executable
    )
    header = elf_format.pack_header(
        replace(original, type=ET_DYN, entry_address=0),
        segment_table_offset=ELF_HEADER_BYTES,
        segment_count=len(segments),
        section_table_offset=0,
        section_count=0,
        name_section_index=0,
    )
    body = b"".join((header, *(SEGMENT_HEADER.pack(*segment) for segment in segments), strings))
    return body.ljust(dynamic_offset, b"\0") + dynamic


def warning_library(original: Elf, name: str, rule: RemovalRule) -> bytes:
    """Returns a shared object that writes the message to standard error when it is loaded.

    Raises:
        CompilerMissing: there is no C compiler.
        UnsupportedBinary: the compiler does not make libraries for the machine of `original`.
    """
    message = removal_message(name, rule.name, rule.lost)
    made = compile_library({"warning.c": _WARNING_SOURCE.format(message=c_string(f"{message}\n"))}, soname=name)
    machine = elf_format.parse(made).machine
    if machine != original.machine:
        raise UnsupportedBinary("placeholder-machine", f"{name} is for machine {original.machine}, gcc for {machine}")
    return made


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7
