"""Kernels for other GPUs out of a shared object: containers shrunk, the freed pages cut out of the file.

The containers of `.nv_fatbin` and `__nv_relfatbin` are found at run time through wrappers in `.nvFatBinSegment`, one
each, whose pointer is a relative relocation. So a container may move if its wrapper and relocation follow. Kept
entries move to the front of their section; the pages freed behind them leave the file by splitting the segment that
holds them in two. Every byte outside keeps its virtual address. The longer segment table goes right behind the last
kept container, where it is mapped (the unwinder reads it there), and no existing segment gives up its slot.

What is not exactly as in the libraries that this was worked out on is refused by name, and the file left as it was.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import (
    EM_X86_64,
    ET_DYN,
    PT_LOAD,
    PT_PHDR,
    SECTION_HEADER,
    SEGMENT_HEADER,
    SHT_DYNSYM,
    Content,
    Elf,
    Section,
    Segment,
    UnsupportedBinary,
)
from buildkit.binary.fatbin import (
    CONTAINER_HEADER_BYTES,
    FATBIN_SECTIONS,
    Container,
    FatbinEntry,
    pack_container_header,
    parse_containers,
    usable_entries,
)
from buildkit.binary.rewrite import CopyRange, Rewrite

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RELA", "WRAPPER_POINTER_OFFSET", "Fatbins", "PrunePlan", "plan_prune", "read_fatbins"]

WRAPPER_SECTION: Final = ".nvFatBinSegment"
# magic, version, pointer to the container, second pointer: `__fatBinC_Wrapper_t` of fatbinary_section.h (CUDA 13.0).
WRAPPER: Final = struct.Struct("<IIQQ")
_WRAPPER_MAGIC: Final = 0x466243B1
_WRAPPER_VERSIONS: Final = frozenset({1, 2})
WRAPPER_POINTER_OFFSET: Final = 8

# The dynamic tags and relocation of the AMD64 supplement and elf.h that decide where pointers to containers are.
_DT_RELA: Final = 7
_DT_RELASZ: Final = 8
_DT_RELAENT: Final = 9
_DT_REL: Final = 17
_DT_JMPREL: Final = 23
_DT_PLTRELSZ: Final = 2
_DT_RELR: Final = 36
RELA: Final = struct.Struct("<QQq")
_R_X86_64_RELATIVE: Final = 8
_SYMBOL: Final = struct.Struct("<IBBHQQ")

_SHF_EXECINSTR: Final = 0x4  # gabi, "Section Attribute Flags"
# lea r64, [rip + disp32]: REX.W with or without R, 8d, a ModRM byte of mode 0 and base 5 (Intel SDM 2A, "LEA").
_LEA: Final = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]....", re.DOTALL)
_DISPLACEMENT: Final = struct.Struct("<i")

# Page size of x86-64 (AMD64 supplement, 3.3.1); linkers align segments to more, which a cut need not keep.
_PAGE_BYTES: Final = 4096
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Fatbins:
    """Everything about GPU code in a file that a prune depends on, read and checked.

    Attributes:
        sections: the sections that hold containers, in file order, each with its containers.
        wrappers: file offset of each wrapper to the virtual address of its container.
        relocations: virtual address of each wrapper's pointer to the file offset of its relocation.
    """

    elf: Elf
    sections: tuple[tuple[Section, tuple[Container, ...]], ...]
    wrappers: dict[int, int]
    relocations: dict[int, int]


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune writes, and what it takes out: (entry name, entries, bytes), summed by name."""

    rewrite: Rewrite
    removed: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Packing:
    """A section after compaction; `starts` are the containers' new offsets in it."""

    section: Section
    kept: tuple[tuple[Container, tuple[FatbinEntry, ...]], ...]
    starts: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Cut:
    """Whole pages that leave the file, as offsets in the old one."""

    start: int
    end: int


def read_fatbins(content: Content) -> Fatbins | None:
    """Reads the GPU code of a file, or None where it has none that wrappers point to.

    Raises:
        UnsupportedBinary: something is not as a prune needs it; the reason says what.
    """
    elf = elf_format.parse(content)
    found = [section for section in elf.sections if section.name in FATBIN_SECTIONS and section.stored_bytes]
    wrapper_section = elf.section(WRAPPER_SECTION)
    if not found or wrapper_section is None:
        return None
    if elf.machine != EM_X86_64:
        raise UnsupportedBinary("prune-machine", str(elf.machine))
    if elf.type != ET_DYN:
        raise UnsupportedBinary("prune-type", f"{elf.type} is no shared object")
    if len({section.name for section in found}) != len(found):
        raise UnsupportedBinary("elf-duplicate-section", ", ".join(section.name for section in found))
    view = memoryview(content)
    sections = tuple(
        (section, parse_containers(view[section.file_offset : section.file_end]))
        for section in sorted(found, key=lambda section: section.file_offset)
    )
    wrappers = _read_wrappers(view, wrapper_section, sections)
    _refuse_exported_symbols(view, elf, found)
    relocations = _read_relocations(view, elf, found, wrapper_section)
    missing = [
        offset
        for offset in wrappers
        if wrapper_section.address + offset - wrapper_section.file_offset + WRAPPER_POINTER_OFFSET not in relocations
    ]
    if missing:
        raise UnsupportedBinary(
            "prune-unrelocated-wrapper", f"{len(missing)} of {len(wrappers)}, first at {missing[0]:#x}"
        )
    return Fatbins(elf=elf, sections=sections, wrappers=wrappers, relocations=relocations)


def plan_prune(content: Content, targets: frozenset[int]) -> PrunePlan | None:
    """What a prune for GPUs of these compute capabilities would write, or None where no page would be freed.

    Raises:
        UnsupportedBinary: the file cannot be pruned safely; the reason says why.
    """
    fatbins = read_fatbins(content)
    if fatbins is None:
        return None
    elf = fatbins.elf
    page_bytes = max(_PAGE_BYTES, *(section.alignment for section in elf.sections if section.is_allocated))
    table_bytes = SEGMENT_HEADER.size * (len(elf.segments) + len(fatbins.sections))
    packings: list[_Packing] = []
    cuts: list[_Cut] = []
    for section, containers in fatbins.sections:
        packing = _pack(section, containers, targets, set(fatbins.wrappers.values()))
        cut = _cut(packing, page_bytes, table_bytes if not cuts else 0)
        if cut is not None:
            packings.append(packing)
            cuts.append(cut)
    if not cuts:
        return None
    moved = _moved_containers(packings)
    _refuse_code_pointers(memoryview(content), elf, moved)
    table_offset = packings[0].section.file_offset + packings[0].size_bytes
    segments = _split_segments(elf, cuts, packings, table_offset, page_bytes)
    return PrunePlan(
        rewrite=Rewrite(
            bytes_before=elf.file_bytes,
            bytes_after=elf.file_bytes - sum(cut.end - cut.start for cut in cuts),
            runs=_runs(elf, cuts, packings),
            patches=(
                *_table_patches(elf, cuts, packings, segments, table_offset),
                *_container_patches(packings, cuts),
                *_pointer_patches(memoryview(content), fatbins, moved, cuts),
            ),
        ),
        removed=_removed(packings),
    )


def _read_wrappers(
    view: memoryview, wrapper_section: Section, sections: tuple[tuple[Section, tuple[Container, ...]], ...]
) -> dict[int, int]:
    """The wrappers, checked to point one each to every container but, at most, the first of a section."""
    if wrapper_section.size_bytes % WRAPPER.size:
        raise UnsupportedBinary("prune-wrappers", f"{wrapper_section.size_bytes} bytes")
    unwrapped = {section.address + container.offset for section, containers in sections for container in containers}
    wrappers: dict[int, int] = {}
    for offset in range(wrapper_section.file_offset, wrapper_section.file_end, WRAPPER.size):
        magic, version, address, second = WRAPPER.unpack_from(view, offset)
        if magic != _WRAPPER_MAGIC or version not in _WRAPPER_VERSIONS:
            raise UnsupportedBinary("prune-wrapper-version", f"{magic:#x}, {version} at {offset:#x}")
        if address not in unwrapped:
            raise UnsupportedBinary("prune-wrapper-pointer", f"{address:#x} at {offset:#x}")
        if any(section.address <= second < section.address + section.size_bytes for section, _ in sections):
            raise UnsupportedBinary("prune-wrapper-second-pointer", f"{second:#x} at {offset:#x}")
        unwrapped.remove(address)
        wrappers[offset] = address
    # Some libraries keep a first container that code reaches by itself; it stays whole and where it is.
    stray = unwrapped - {section.address for section, _ in sections}
    if stray:
        raise UnsupportedBinary("prune-stray-container", f"{len(stray)} without a wrapper, one at {min(stray):#x}")
    return wrappers


def _refuse_exported_symbols(view: memoryview, elf: Elf, found: list[Section]) -> None:
    tables = [section for section in elf.sections if section.type == SHT_DYNSYM]
    if len(tables) != 1 or tables[0].size_bytes % _SYMBOL.size:
        raise UnsupportedBinary("prune-symbols", f"{len(tables)} tables of dynamic symbols")
    for section in tables:
        for *_, index, value, _size in _SYMBOL.iter_unpack(view[section.file_offset : section.file_end]):
            if index and any(fat.address <= value < fat.address + fat.size_bytes for fat in found):
                raise UnsupportedBinary("prune-exported-symbol", f"at {value:#x}")


def _read_relocations(view: memoryview, elf: Elf, found: list[Section], wrappers: Section) -> dict[int, int]:
    """Address of each wrapper's pointer to the file offset of its relocation; any other into a container is refused."""
    tags = elf_format.read_dynamic_tags(view, elf)
    for tag, name in ((_DT_REL, "prune-rel"), (_DT_RELR, "prune-relr")):
        if tag in tags:
            raise UnsupportedBinary(name, "relocations of a form that is not handled")
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
                        and (address - wrappers.address) % WRAPPER.size == WRAPPER_POINTER_OFFSET
                    )
                    if not is_pointer or address in relocations:
                        raise UnsupportedBinary("prune-stray-pointer", f"to {addend:#x} at {address:#x}")
                    relocations[address] = start + index * RELA.size
                if low <= address < high:
                    raise UnsupportedBinary("prune-relocated-container", f"at {address:#x}")
    return relocations


def _refuse_code_pointers(view: memoryview, elf: Elf, moved: dict[int, int]) -> None:
    """Refuses a container that an instruction names by itself, besides its wrapper: it must not move.

    It looks at any byte of the code, so it may see a `lea` that is none; but compilers reach containers through their
    wrappers only, and in the libraries that this was worked out on not one such pattern hits a container's start.
    """
    for section in elf.sections:
        if not section.flags & _SHF_EXECINSTR or not section.stored_bytes:
            continue
        code = bytes(view[section.file_offset : section.file_end])
        for match in _LEA.finditer(code):
            end = match.end()
            (displacement,) = _DISPLACEMENT.unpack_from(code, end - _DISPLACEMENT.size)
            if section.address + end + displacement in moved:
                raise UnsupportedBinary("prune-code-pointer", f"at {section.address + match.start():#x}")


def _pack(section: Section, containers: tuple[Container, ...], targets: frozenset[int], wrapped: set[int]) -> _Packing:
    """The entries that stay, and where their containers go; a container with nothing usable stays whole."""
    kept: list[tuple[Container, tuple[FatbinEntry, ...]]] = []
    starts: list[int] = []
    offset = 0
    for container in containers:
        is_wrapped = section.address + container.offset in wrapped
        entries = (usable_entries(container, targets) if is_wrapped else ()) or container.entries
        kept.append((container, entries))
        starts.append(offset)
        offset += CONTAINER_HEADER_BYTES + sum(entry.size_bytes for entry in entries)
    return _Packing(section=section, kept=tuple(kept), starts=tuple(starts), size_bytes=offset)


def _cut(packing: _Packing, page_bytes: int, table_bytes: int) -> _Cut | None:
    """The whole pages between what is kept (and the segment table behind it) and the end of the section."""
    section = packing.section
    if (section.file_offset - section.address) % page_bytes:
        raise UnsupportedBinary(
            "prune-alignment", f"{section.name} at {section.file_offset:#x} for {section.address:#x}"
        )
    start = section.file_offset + packing.size_bytes + table_bytes
    start = -(-start // page_bytes) * page_bytes
    end = section.file_end // page_bytes * page_bytes
    return _Cut(start, end) if start < end else None


def _shifted(cuts: list[_Cut], offset: int) -> int:
    """Where an old offset outside of the cuts lies in the new file."""
    return offset - sum(cut.end - cut.start for cut in cuts if cut.end <= offset)


def _split_segments(
    elf: Elf, cuts: list[_Cut], packings: list[_Packing], table_offset: int, page_bytes: int
) -> list[Segment]:
    """The new segment table: the segments around each cut in two, offsets moved, `PT_PHDR` on the new table."""
    segments = list(elf.segments)
    for cut, packing in zip(cuts, packings, strict=True):
        split: list[Segment] = []
        for segment in segments:
            end = segment.file_offset + segment.file_bytes
            if not segment.file_bytes or end <= cut.start or cut.end <= segment.file_offset:
                split.append(segment)
            elif segment.type == PT_LOAD and segment.file_offset <= packing.section.file_offset and cut.end <= end:
                kept_end = packing.section.file_offset + packing.size_bytes
                if packing is packings[0]:
                    kept_end = table_offset + SEGMENT_HEADER.size * (len(elf.segments) + len(cuts))
                head_bytes = kept_end - segment.file_offset
                tail_start = cut.end - segment.file_offset
                split.append(dataclasses.replace(segment, file_bytes=head_bytes, memory_bytes=head_bytes))
                split.append(
                    dataclasses.replace(
                        segment,
                        file_offset=cut.end,
                        address=segment.address + tail_start,
                        physical_address=segment.physical_address + tail_start,
                        file_bytes=segment.file_bytes - tail_start,
                        memory_bytes=segment.memory_bytes - tail_start,
                    )
                )
            else:
                raise UnsupportedBinary(
                    "prune-segment", f"type {segment.type:#x} at {segment.file_offset:#x} overlaps a cut"
                )
        segments = split
    if len(segments) != len(elf.segments) + len(cuts):
        raise UnsupportedBinary("prune-segment", "a container section lies in no segment, or in two")
    table_address = packings[0].section.address + packings[0].size_bytes
    table_bytes = SEGMENT_HEADER.size * len(segments)
    moved: list[Segment] = []
    for segment in segments:
        if segment.type == PT_LOAD:
            alignment = min(segment.alignment, page_bytes)
            moved.append(
                dataclasses.replace(segment, file_offset=_shifted(cuts, segment.file_offset), alignment=alignment)
            )
        elif segment.type == PT_PHDR:
            moved.append(
                dataclasses.replace(
                    segment,
                    file_offset=_shifted(cuts, table_offset),
                    address=table_address,
                    physical_address=table_address,
                    file_bytes=table_bytes,
                    memory_bytes=table_bytes,
                )
            )
        else:
            moved.append(dataclasses.replace(segment, file_offset=_shifted(cuts, segment.file_offset)))
    return moved


def _runs(elf: Elf, cuts: list[_Cut], packings: list[_Packing]) -> tuple[CopyRange, ...]:
    """The bytes that stay: all outside the packed sections, and the kept entries inside; the rest is zero."""
    runs: list[CopyRange] = []
    position = 0
    for packing in packings:
        section = packing.section
        runs.append(_move(cuts, position, section.file_offset))
        new_start = _shifted(cuts, section.file_offset)
        for (_, entries), start in zip(packing.kept, packing.starts, strict=True):
            new_offset = new_start + start + CONTAINER_HEADER_BYTES
            for entry in entries:
                # Neighbours in both files become one run: a whole container kept is one copy.
                old_offset = section.file_offset + entry.offset
                last = runs[-1]
                is_next = (last.old_offset + last.size_bytes, last.new_offset + last.size_bytes) == (
                    old_offset,
                    new_offset,
                )
                if is_next and entry is not entries[0]:
                    runs[-1] = dataclasses.replace(last, size_bytes=last.size_bytes + entry.size_bytes)
                else:
                    runs.append(CopyRange(old_offset, new_offset, entry.size_bytes))
                new_offset += entry.size_bytes
        position = section.file_end
    runs.append(_move(cuts, position, elf.file_bytes))
    return tuple(run for run in runs if run.size_bytes)


def _move(cuts: list[_Cut], start: int, end: int) -> CopyRange:
    return CopyRange(old_offset=start, new_offset=_shifted(cuts, start), size_bytes=end - start)


def _table_patches(
    elf: Elf, cuts: list[_Cut], packings: list[_Packing], segments: list[Segment], table_offset: int
) -> Iterator[tuple[int, bytes]]:
    """The header and both tables; the old segment table stays as dead bytes."""
    section_table_offset = _shifted(cuts, elf.section_table_offset)
    yield (
        0,
        elf_format.pack_header(
            elf,
            segment_table_offset=_shifted(cuts, table_offset),
            segment_count=len(segments),
            section_table_offset=section_table_offset,
            section_count=len(elf.sections),
            name_section_index=elf.name_section_index,
        ),
    )
    yield (
        _shifted(cuts, table_offset),
        b"".join(segment.pack(file_offset=segment.file_offset) for segment in segments),
    )
    sizes = {packing.section.name: packing.size_bytes for packing in packings}
    table = bytearray()
    for section, name_offset in zip(elf.sections, elf.section_name_offsets, strict=True):
        if any(cut.start < section.file_end and section.file_offset < cut.end for cut in cuts) and (
            section.name not in sizes and section.stored_bytes
        ):
            raise UnsupportedBinary("prune-section", f"{section.name} overlaps a cut")
        table += SECTION_HEADER.pack(
            name_offset,
            section.type,
            section.flags,
            section.address,
            _shifted(cuts, section.file_offset),
            sizes.get(section.name, section.size_bytes),
            section.link,
            section.info,
            section.alignment,
            section.entry_bytes,
        )
    yield section_table_offset, bytes(table)


def _container_patches(packings: list[_Packing], cuts: list[_Cut]) -> Iterator[tuple[int, bytes]]:
    for packing in packings:
        section_start = _shifted(cuts, packing.section.file_offset)
        for (_, entries), start in zip(packing.kept, packing.starts, strict=True):
            yield section_start + start, pack_container_header(sum(entry.size_bytes for entry in entries))


def _moved_containers(packings: list[_Packing]) -> dict[int, int]:
    """Old to new virtual address of each container that changes place."""
    return {
        packing.section.address + container.offset: packing.section.address + start
        for packing in packings
        for (container, _), start in zip(packing.kept, packing.starts, strict=True)
        if container.offset != start
    }


def _pointer_patches(
    view: memoryview, fatbins: Fatbins, moved: dict[int, int], cuts: list[_Cut]
) -> Iterator[tuple[int, bytes]]:
    """Each wrapper's pointer and the addend of its relocation, where the container moved."""
    wrapper_section = fatbins.elf.section(WRAPPER_SECTION)
    assert wrapper_section is not None  # noqa: S101 - read_fatbins found it
    for offset, address in fatbins.wrappers.items():
        if address not in moved:
            continue
        pointer_offset = offset + WRAPPER_POINTER_OFFSET
        pointer_address = wrapper_section.address + pointer_offset - wrapper_section.file_offset
        relocation_offset = fatbins.relocations[pointer_address]
        _, _, addend = RELA.unpack_from(view, relocation_offset)
        if addend != address:
            raise UnsupportedBinary("prune-wrapper-addend", f"{addend:#x} for {address:#x}")
        new_address = moved[address].to_bytes(_WORD_BYTES, "little")
        yield _shifted(cuts, pointer_offset), new_address
        yield _shifted(cuts, relocation_offset + RELA.size - _WORD_BYTES), new_address


def _removed(packings: list[_Packing]) -> tuple[tuple[str, int, int], ...]:
    sums: dict[str, tuple[int, int]] = {}
    for packing in packings:
        for container, entries in packing.kept:
            for entry in set(container.entries).difference(entries):
                count, size_bytes = sums.get(entry.name, (0, 0))
                sums[entry.name] = (count + 1, size_bytes + entry.size_bytes)
    return tuple((name, count, size_bytes) for name, (count, size_bytes) in sorted(sums.items()))
