"""Reads the GPU code of a shared library: the sections with CUDA fat binaries, and every pointer into them.

The containers of `.nv_fatbin` and `__nv_relfatbin` are found at run time through wrappers in `.nvFatBinSegment`. Each
wrapper points to one container, by a relative relocation. A library with any other pointer into these sections, or
with anything that the libraries of torch 2.13.0 do not have, raises `UnsupportedBinary`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import EM_X86_64, ET_DYN, SHT_DYNSYM, SYMBOL, UnsupportedBinary
from buildkit.binary.fatbin import FATBIN_SECTIONS, Container, parse_containers

if TYPE_CHECKING:
    from buildkit.binary.elf import Content, Elf, Section

__all__ = [
    "RELA",
    "WRAPPER_POINTER_OFFSET",
    "WRAPPER_SECTION",
    "GpuSections",
    "read_gpu_sections",
]

WRAPPER_SECTION: Final = ".nvFatBinSegment"
# magic, version, pointer to the container, second pointer: `__fatBinC_Wrapper_t` of fatbinary_section.h (CUDA 13.0).
_WRAPPER: Final = struct.Struct("<IIQQ")
_WRAPPER_MAGIC: Final = 0x466243B1
_WRAPPER_VERSIONS: Final = frozenset({1, 2})
WRAPPER_POINTER_OFFSET: Final = 8

# The dynamic tags and the relocation type of the AMD64 supplement and elf.h that place the pointers to containers.
_DT_RELA: Final = 7
_DT_RELASZ: Final = 8
_DT_RELAENT: Final = 9
_DT_REL: Final = 17
_DT_JMPREL: Final = 23
_DT_PLTRELSZ: Final = 2
_DT_RELR: Final = 36
RELA: Final = struct.Struct("<QQq")
_R_X86_64_RELATIVE: Final = 8


@dataclass(frozen=True, slots=True)
class GpuSections:
    """The GPU code of a library and the pointers to it.

    Attributes:
        sections: the sections that hold containers, in file order, each with its containers.
        wrapper_section: the section of the wrappers.
        wrappers: file offset of each wrapper to the virtual address of its container.
        relocations: virtual address of each wrapper's pointer to the file offset of its relocation.
    """

    sections: tuple[tuple[Section, tuple[Container, ...]], ...]
    wrapper_section: Section
    wrappers: dict[int, int]
    relocations: dict[int, int]

    def pointer_address(self, wrapper_offset: int) -> int:
        """Returns the virtual address of the pointer in the wrapper at this file offset."""
        return self.wrapper_section.address + wrapper_offset - self.wrapper_section.file_offset + WRAPPER_POINTER_OFFSET


def read_gpu_sections(content: Content, elf: Elf) -> GpuSections | None:
    """Returns the GPU code of a file, or None if it has none that wrappers point to.

    Raises:
        UnsupportedBinary: a container could not be moved safely; the reason says why.
    """
    found = [section for section in elf.sections if section.name in FATBIN_SECTIONS and section.stored_bytes]
    wrapper_section = elf.section(WRAPPER_SECTION)
    if not found or wrapper_section is None:
        return None
    if elf.machine != EM_X86_64:
        raise UnsupportedBinary("prune-machine", str(elf.machine))
    if elf.type != ET_DYN:
        raise UnsupportedBinary("prune-type", f"{elf.type} is not a shared object")
    if len({section.name for section in found}) != len(found):
        raise UnsupportedBinary("elf-duplicate-section", ", ".join(section.name for section in found))
    view = memoryview(content)
    sections = tuple(
        (section, parse_containers(view[section.file_offset : section.file_end]))
        for section in sorted(found, key=lambda section: section.file_offset)
    )
    wrappers = _read_wrappers(view, wrapper_section, sections)
    _refuse_exported_symbols(view, elf, found)
    gpu_sections = GpuSections(
        sections=sections,
        wrapper_section=wrapper_section,
        wrappers=wrappers,
        relocations=_read_relocations(view, elf, found, wrapper_section),
    )
    missing = [offset for offset in wrappers if gpu_sections.pointer_address(offset) not in gpu_sections.relocations]
    if missing:
        raise UnsupportedBinary(
            "prune-unrelocated-wrapper", f"{len(missing)} of {len(wrappers)}, first at {missing[0]:#x}"
        )
    return gpu_sections


def _read_wrappers(
    view: memoryview, wrapper_section: Section, sections: tuple[tuple[Section, tuple[Container, ...]], ...]
) -> dict[int, int]:
    """Returns the wrappers; each container must have one, except possibly the first of a section."""
    if wrapper_section.size_bytes % _WRAPPER.size:
        raise UnsupportedBinary("prune-wrappers", f"{wrapper_section.size_bytes} bytes")
    unwrapped = {section.address + container.offset for section, containers in sections for container in containers}
    wrappers: dict[int, int] = {}
    for offset in range(wrapper_section.file_offset, wrapper_section.file_end, _WRAPPER.size):
        magic, version, address, second = _WRAPPER.unpack_from(view, offset)
        if magic != _WRAPPER_MAGIC or version not in _WRAPPER_VERSIONS:
            raise UnsupportedBinary("prune-wrapper-version", f"{magic:#x}, {version} at {offset:#x}")
        if address not in unwrapped:
            raise UnsupportedBinary("prune-wrapper-pointer", f"{address:#x} at {offset:#x}")
        if any(section.address <= second < section.address + section.size_bytes for section, _ in sections):
            raise UnsupportedBinary("prune-wrapper-second-pointer", f"{second:#x} at {offset:#x}")
        unwrapped.remove(address)
        wrappers[offset] = address
    # In some libraries, code reaches the first container without a wrapper; a prune leaves that one unchanged.
    stray = unwrapped - {section.address for section, _ in sections}
    if stray:
        raise UnsupportedBinary("prune-stray-container", f"{len(stray)} without a wrapper, one at {min(stray):#x}")
    return wrappers


def _refuse_exported_symbols(view: memoryview, elf: Elf, found: list[Section]) -> None:
    """Raises UnsupportedBinary if a dynamic symbol is in a section with GPU code."""
    tables = [section for section in elf.sections if section.type == SHT_DYNSYM]
    if len(tables) != 1 or tables[0].size_bytes % SYMBOL.size:
        raise UnsupportedBinary("prune-symbols", f"{len(tables)} tables of dynamic symbols")
    for section in tables:
        for *_, index, value, _size in SYMBOL.iter_unpack(view[section.file_offset : section.file_end]):
            if index and any(fat.address <= value < fat.address + fat.size_bytes for fat in found):
                raise UnsupportedBinary("prune-exported-symbol", f"at {value:#x}")


def _read_relocations(view: memoryview, elf: Elf, found: list[Section], wrappers: Section) -> dict[int, int]:
    """Returns the address of each wrapper's pointer to the file offset of its relocation.

    Raises:
        UnsupportedBinary: another relocation points into a container or changes one.
    """
    tags = elf_format.read_dynamic_tags(view, elf)
    for tag, name in ((_DT_REL, "prune-rel"), (_DT_RELR, "prune-relr")):
        if tag in tags:
            raise UnsupportedBinary(name, "an unsupported kind of relocation table")
    if _DT_RELA in tags and tags.get(_DT_RELAENT) != RELA.size:
        raise UnsupportedBinary("prune-rela", f"entries of {tags.get(_DT_RELAENT)} bytes")
    fat_ranges = [(section.address, section.address + section.size_bytes) for section in found]
    wrapper_end = wrappers.address + wrappers.size_bytes
    relocations: dict[int, int] = {}
    for start_tag, size_tag in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
        if start_tag not in tags:
            continue
        start = elf.file_offset_of(tags[start_tag])
        table = view[start : start + tags.get(size_tag, 0)]
        if len(table) != tags.get(size_tag) or len(table) % RELA.size:
            raise UnsupportedBinary("prune-rela", f"a table of {tags.get(size_tag)} bytes at {start:#x}")
        for index, (address, kind, addend) in enumerate(RELA.iter_unpack(table)):
            for low, high in fat_ranges:
                if low <= addend < high:
                    is_pointer = (
                        kind == _R_X86_64_RELATIVE
                        and wrappers.address <= address < wrapper_end
                        and (address - wrappers.address) % _WRAPPER.size == WRAPPER_POINTER_OFFSET
                    )
                    if not is_pointer or address in relocations:
                        raise UnsupportedBinary("prune-stray-pointer", f"to {addend:#x} at {address:#x}")
                    relocations[address] = start + index * RELA.size
                if low <= address < high:
                    raise UnsupportedBinary("prune-relocated-container", f"at {address:#x}")
    return relocations
