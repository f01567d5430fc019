"""Removes GPU code for other GPUs from a shared library: containers shrink, and the freed pages leave the file.

The wrappers of `.nvFatBinSegment` and their relocations follow the containers that move. Freed pages are removed from
the file by splitting the segment around them in two, so every byte outside keeps its virtual address. The longer
segment table is written behind the last container that stays, where it is mapped (the unwinder reads it there), and
no existing segment loses its entry.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import PT_LOAD, PT_PHDR, SECTION_HEADER, UnsupportedBinary
from buildkit.binary.fatbin import CONTAINER_HEADER_BYTES, pack_container_header
from buildkit.binary.gpu_sections import RELA, WRAPPER_POINTER_OFFSET
from buildkit.binary.library import Library
from buildkit.binary.rewrite import CopyRange, Rewrite, replace_file
from buildkit.slim.libraries.check import check_pruned
from buildkit.slim.libraries.loadcheck import check_loads
from buildkit.slim.libraries.packing import pack_gpu_code

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buildkit.binary.elf import Segment
    from buildkit.slim.libraries.packing import PackedSection, Packing

__all__ = ["PrunePlan", "plan_prune", "prune_library"]

_SHF_EXECINSTR: Final = 0x4  # gabi, "Section Attribute Flags"
# lea r64, [rip + disp32]: REX.W with or without R, 8d, a ModRM byte of mode 0 and base 5 (Intel SDM 2A, "LEA").
_LEA: Final = re.compile(rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]....", re.DOTALL)
_DISPLACEMENT: Final = struct.Struct("<i")
_WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """The file that a prune writes, and the entries that it removes: name (`sm_80`) to their number and bytes."""

    rewrite: Rewrite
    removed: dict[str, tuple[int, int]]


def prune_library(
    library: Library, targets: frozenset[int], *, is_load_checked: bool
) -> tuple[Library, dict[str, tuple[int, int]]] | None:
    """Replaces a library by one without code for other GPUs, after comparing the two.

    Args:
        library: the library on disk.
        targets: the compute capabilities whose code stays, as 90 for 9.0.
        is_load_checked: whether the new library must also load.

    Returns:
        The new library and the entries removed (as in `PrunePlan`), or None if no page would be freed.

    Raises:
        UnsupportedBinary: the library cannot be pruned safely; the file is unchanged.
    """
    plan = plan_prune(library, targets)
    if plan is None:
        return None

    def check(path: Path) -> Library:
        pruned = Library.open(path)
        check_pruned(library, pruned, targets)
        if is_load_checked:
            check_loads(library, pruned)
        return pruned

    return replace_file(library.path, plan.rewrite, check).moved_to(library.path), plan.removed


def plan_prune(library: Library, targets: frozenset[int]) -> PrunePlan | None:
    """Returns the file that a prune would write, or None if no page would be freed.

    Raises:
        UnsupportedBinary: the file cannot be pruned safely; the reason says why.
    """
    packing = pack_gpu_code(library, targets)
    if packing is None:
        return None
    moved = packing.moved_containers()
    _refuse_code_pointers(library, moved)
    return PrunePlan(
        rewrite=Rewrite(
            bytes_before=packing.elf.file_bytes,
            bytes_after=packing.elf.file_bytes - packing.freed_bytes,
            ranges=_kept_ranges(packing),
            patches=(
                *_table_patches(packing),
                *_container_patches(packing),
                *_pointer_patches(library, packing, moved),
            ),
        ),
        removed=packing.removed_entries(),
    )


def _refuse_code_pointers(library: Library, moved: dict[int, int]) -> None:
    """Raises UnsupportedBinary if an instruction names a container that moves: only its wrapper may.

    The search looks at every byte of the code, so it may take other bytes for a `lea`. In the libraries that this was
    developed with, no such pattern hits the start of a container.
    """
    view = memoryview(library.content)
    for section in library.elf.sections:
        if not section.flags & _SHF_EXECINSTR or not section.stored_bytes:
            continue
        code = bytes(view[section.file_offset : section.file_end])
        for match in _LEA.finditer(code):
            end = match.end()
            (displacement,) = _DISPLACEMENT.unpack_from(code, end - _DISPLACEMENT.size)
            if section.address + end + displacement in moved:
                raise UnsupportedBinary("prune-code-pointer", f"at {section.address + match.start():#x}")


def _split_segments(packing: Packing) -> list[Segment]:
    """Returns the new segments, at old-file offsets: the segment around each cut is split in two."""
    segments = list(packing.elf.segments)
    for packed in packing.sections:
        segments = [part for segment in segments for part in _split_segment(segment, packed, packing)]
    if len(segments) != len(packing.elf.segments) + len(packing.sections):
        raise UnsupportedBinary("prune-segment", "a section with GPU code lies in no segment, or in two")
    return segments


def _split_segment(segment: Segment, packed: PackedSection, packing: Packing) -> tuple[Segment, ...]:
    """Returns the segment, or the two parts of it before and behind the cut."""
    section, end = packed.section, segment.file_offset + segment.file_bytes
    if not segment.file_bytes or end <= packed.cut_start or packed.cut_end <= segment.file_offset:
        return (segment,)
    if segment.type != PT_LOAD or segment.file_offset > section.file_offset or end < packed.cut_end:
        raise UnsupportedBinary("prune-segment", f"type {segment.type:#x} at {segment.file_offset:#x} overlaps a cut")
    kept_end = section.file_offset + packed.size_bytes
    if packed is packing.sections[0]:
        kept_end = packing.table_offset + packing.table_bytes
    head_bytes = kept_end - segment.file_offset
    tail_start = packed.cut_end - segment.file_offset
    return (
        dataclasses.replace(segment, file_bytes=head_bytes, memory_bytes=head_bytes),
        dataclasses.replace(
            segment,
            file_offset=packed.cut_end,
            address=segment.address + tail_start,
            physical_address=segment.physical_address + tail_start,
            file_bytes=segment.file_bytes - tail_start,
            memory_bytes=segment.memory_bytes - tail_start,
        ),
    )


def _move_segment(segment: Segment, packing: Packing) -> Segment:
    """Returns the segment at its offset in the new file; `PT_PHDR` describes the new segment table."""
    if segment.type == PT_PHDR:
        first = packing.sections[0]
        table_address = first.section.address + first.size_bytes
        return dataclasses.replace(
            segment,
            file_offset=packing.shifted(packing.table_offset),
            address=table_address,
            physical_address=table_address,
            file_bytes=packing.table_bytes,
            memory_bytes=packing.table_bytes,
        )
    alignment = min(segment.alignment, packing.page_bytes) if segment.type == PT_LOAD else segment.alignment
    return dataclasses.replace(segment, file_offset=packing.shifted(segment.file_offset), alignment=alignment)


def _kept_ranges(packing: Packing) -> tuple[CopyRange, ...]:
    """Returns the bytes to copy: all outside the packed sections, and the entries that stay. The rest is zero."""
    ranges: list[CopyRange] = []
    position = 0
    for packed in packing.sections:
        section = packed.section
        ranges.append(_copy(packing, position, section.file_offset))
        new_start = packing.shifted(section.file_offset)
        for (_, entries), start in zip(packed.kept, packed.starts, strict=True):
            new_offset = new_start + start + CONTAINER_HEADER_BYTES
            for entry in entries:
                # Neighbours in both files become one range: a container that stays complete is one copy.
                old_offset = section.file_offset + entry.offset
                last = ranges[-1]
                last_ends = (last.old_offset + last.size_bytes, last.new_offset + last.size_bytes)
                if last_ends == (old_offset, new_offset) and entry is not entries[0]:
                    ranges[-1] = dataclasses.replace(last, size_bytes=last.size_bytes + entry.size_bytes)
                else:
                    ranges.append(CopyRange(old_offset, new_offset, entry.size_bytes))
                new_offset += entry.size_bytes
        position = section.file_end
    ranges.append(_copy(packing, position, packing.elf.file_bytes))
    return tuple(piece for piece in ranges if piece.size_bytes)


def _copy(packing: Packing, start: int, end: int) -> CopyRange:
    return CopyRange(old_offset=start, new_offset=packing.shifted(start), size_bytes=end - start)


def _table_patches(packing: Packing) -> Iterator[tuple[int, bytes]]:
    """Yields the file header and both tables; the old segment table stays in the file, unused."""
    elf = packing.elf
    segments = [_move_segment(segment, packing) for segment in _split_segments(packing)]
    table_offset, section_table_offset = (
        packing.shifted(packing.table_offset),
        packing.shifted(elf.section_table_offset),
    )
    header = elf_format.pack_header(
        elf,
        segment_table_offset=table_offset,
        segment_count=len(segments),
        section_table_offset=section_table_offset,
        section_count=len(elf.sections),
        name_section_index=elf.name_section_index,
    )
    yield 0, header
    yield table_offset, b"".join(segment.pack(file_offset=segment.file_offset) for segment in segments)
    yield section_table_offset, _section_table(packing)


def _section_table(packing: Packing) -> bytes:
    """Returns the section headers with the new offsets and the sizes of the packed sections."""
    sizes = {packed.section.name: packed.size_bytes for packed in packing.sections}
    table = bytearray()
    for section, name_offset in zip(packing.elf.sections, packing.elf.section_name_offsets, strict=True):
        if section.name not in sizes and section.stored_bytes:
            for packed in packing.sections:
                if packed.cut_start < section.file_end and section.file_offset < packed.cut_end:
                    raise UnsupportedBinary("prune-section", f"{section.name} overlaps a cut")
        table += SECTION_HEADER.pack(
            name_offset,
            section.type,
            section.flags,
            section.address,
            packing.shifted(section.file_offset),
            sizes.get(section.name, section.size_bytes),
            section.link,
            section.info,
            section.alignment,
            section.entry_bytes,
        )
    return bytes(table)


def _container_patches(packing: Packing) -> Iterator[tuple[int, bytes]]:
    """Yields the header of each container."""
    for packed in packing.sections:
        section_start = packing.shifted(packed.section.file_offset)
        for (_, entries), start in zip(packed.kept, packed.starts, strict=True):
            yield section_start + start, pack_container_header(sum(entry.size_bytes for entry in entries))


def _pointer_patches(library: Library, packing: Packing, moved: dict[int, int]) -> Iterator[tuple[int, bytes]]:
    """Yields the pointer in the wrapper, and the addend of its relocation, of each container that moves."""
    gpu_sections = library.gpu_sections
    if gpu_sections is None:
        return
    for offset, address in gpu_sections.wrappers.items():
        if address not in moved:
            continue
        relocation_offset = gpu_sections.relocations[gpu_sections.pointer_address(offset)]
        _, _, addend = RELA.unpack_from(library.content, relocation_offset)
        if addend != address:
            raise UnsupportedBinary("prune-wrapper-addend", f"{addend:#x} for {address:#x}")
        new_address = moved[address].to_bytes(_WORD_BYTES, "little")
        yield packing.shifted(offset + WRAPPER_POINTER_OFFSET), new_address
        yield packing.shifted(relocation_offset + RELA.size - _WORD_BYTES), new_address
