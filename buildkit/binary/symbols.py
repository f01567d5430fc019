"""Reads the symbols that a shared library exports, with their versions."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import SHT_DYNSYM, SYMBOL, UnsupportedBinary

if TYPE_CHECKING:
    from buildkit.binary.elf import Content, Elf, Section

__all__ = ["Export", "read_exports"]

# elf.h of glibc 2.41
_SHT_GNU_VERDEF: Final = 0x6FFFFFFD
_SHT_GNU_VERSYM: Final = 0x6FFFFFFF
_SHN_ABS: Final = 0xFFF1
_STT_OBJECT: Final = 1
_STT_FUNC: Final = 2
_STT_GNU_IFUNC: Final = 10
_STB_LOCAL: Final = 0
_VERSION_MASK: Final = 0x7FFF  # the highest bit marks a version that is not the default
_VER_FLG_BASE: Final = 1
_LEAST_VERSION: Final = 2  # 0 is local, 1 the base
_VERDEF: Final = struct.Struct("<HHHHIII")
# Symbols that the linker or crti.o defines.
_LINKER_SYMBOLS: Final = frozenset({"_init", "_fini", "_edata", "_end", "__bss_start", "__end__", "_start"})
_SYMBOL_NAME: Final = re.compile(r"[A-Za-z_.$][\w.$]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Export:
    """A symbol that a library defines for others; `version` is None if it has none."""

    name: str
    is_function: bool
    size_bytes: int
    version: str | None
    is_default: bool


def read_exports(content: Content, elf: Elf) -> tuple[Export, ...]:
    """Returns every symbol that a shared object defines, with its version, sorted by name.

    Raises:
        UnsupportedBinary: it exports a symbol that a stub cannot have, such as thread-local data.
    """
    view = memoryview(content)
    table = _only(elf, SHT_DYNSYM)
    if table is None or table.size_bytes % SYMBOL.size:
        raise UnsupportedBinary("stub-symbols", "no table of dynamic symbols")
    names = _strings(view, elf, table)
    versions = _versions(view, elf)
    version_table = _only(elf, _SHT_GNU_VERSYM)
    indexes = (
        [index for (index,) in struct.iter_unpack("<H", view[version_table.file_offset : version_table.file_end])]
        if version_table is not None
        else [1] * (table.size_bytes // SYMBOL.size)
    )
    exports: dict[str, Export] = {}
    symbols = SYMBOL.iter_unpack(view[table.file_offset : table.file_end])
    for (name_offset, info, _, section_index, _, size_bytes), index in zip(symbols, indexes, strict=True):
        name = names[name_offset : names.index(b"\0", name_offset)].decode("utf-8", "surrogateescape")
        if section_index in {0, _SHN_ABS} or info >> 4 == _STB_LOCAL or name in _LINKER_SYMBOLS:
            continue
        kind = info & 0xF
        if kind not in {_STT_OBJECT, _STT_FUNC, _STT_GNU_IFUNC}:
            raise UnsupportedBinary("stub-symbol-type", f"{kind} of {name}")
        if _SYMBOL_NAME.fullmatch(name) is None or name in exports:
            raise UnsupportedBinary("stub-symbol-name", name)
        version = index & _VERSION_MASK
        exports[name] = Export(
            name=name,
            is_function=kind != _STT_OBJECT,
            size_bytes=size_bytes,
            version=versions[version] if version >= _LEAST_VERSION else None,
            is_default=index <= _VERSION_MASK,
        )
    return tuple(export for _, export in sorted(exports.items()))


def _only(elf: Elf, kind: int) -> Section | None:
    found = [section for section in elf.sections if section.type == kind]
    if len(found) > 1:
        raise UnsupportedBinary("elf-duplicate-section", found[1].name)
    return found[0] if found else None


def _strings(view: memoryview, elf: Elf, section: Section) -> bytes:
    if section.link >= len(elf.sections):
        raise UnsupportedBinary("stub-symbols", f"strings in section {section.link}")
    strings = elf.sections[section.link]
    return bytes(view[strings.file_offset : strings.file_end]) + b"\0"


def _versions(view: memoryview, elf: Elf) -> dict[int, str]:
    """Returns index to name of each version that the library defines (LSB 10.7.2, "Symbol Versioning")."""
    section = _only(elf, _SHT_GNU_VERDEF)
    versions: dict[int, str] = {}
    if section is None:
        return versions
    names = _strings(view, elf, section)
    offset = section.file_offset
    for _ in range(section.info):
        _, flags, index, _, _, first_name, following = _VERDEF.unpack_from(view, offset)
        (name_offset,) = struct.unpack_from("<I", view, offset + first_name)
        if not flags & _VER_FLG_BASE:
            versions[index] = names[name_offset : names.index(b"\0", name_offset)].decode()
        offset += following
    return versions
