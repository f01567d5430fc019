"""Packs the GPU code of a library: the entries that stay, their new offsets, and the pages that leave the file.

The entries that stay move to the front of their section. The pages freed behind them are cut out of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import SEGMENT_HEADER, UnsupportedBinary
from buildkit.binary.fatbin import CONTAINER_HEADER_BYTES, usable_entries

if TYPE_CHECKING:
    from buildkit.binary.elf import Elf, Section
    from buildkit.binary.fatbin import Container, FatbinEntry
    from buildkit.binary.library import Library

__all__ = ["PackedSection", "Packing", "pack_gpu_code"]

# Page size of x86-64 (AMD64 supplement, 3.3.1). Linkers align segments to more, which a cut need not preserve.
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class PackedSection:
    """A section with GPU code, after packing.

    Attributes:
        kept: each container with the entries that stay.
        starts: the new offset of each container in the section.
        size_bytes: the section's new size.
        cut_start, cut_end: offsets in the old file of the pages that leave it.
    """

    section: Section
    kept: tuple[tuple[Container, tuple[FatbinEntry, ...]], ...]
    starts: tuple[int, ...]
    size_bytes: int
    cut_start: int
    cut_end: int


@dataclass(frozen=True, slots=True)
class Packing:
    """The packed sections of a library, in file order, and the new offsets of everything else.

    Attributes:
        page_bytes: the alignment of the cuts.
    """

    elf: Elf
    sections: tuple[PackedSection, ...]
    page_bytes: int

    @property
    def freed_bytes(self) -> int:
        """The bytes of all cuts."""
        return sum(packed.cut_end - packed.cut_start for packed in self.sections)

    @property
    def table_offset(self) -> int:
        """The old-file offset of the new segment table: behind the last container of the first packed section."""
        return self.sections[0].section.file_offset + self.sections[0].size_bytes

    @property
    def table_bytes(self) -> int:
        """The size of the new segment table; each cut splits a segment in two."""
        return SEGMENT_HEADER.size * (len(self.elf.segments) + len(self.sections))

    def shifted(self, offset: int) -> int:
        """Returns the new offset of the byte at an old offset outside the cuts."""
        return offset - sum(packed.cut_end - packed.cut_start for packed in self.sections if packed.cut_end <= offset)

    def moved_containers(self) -> dict[int, int]:
        """Returns old to new virtual address of each container that moves."""
        return {
            packed.section.address + container.offset: packed.section.address + start
            for packed in self.sections
            for (container, _), start in zip(packed.kept, packed.starts, strict=True)
            if container.offset != start
        }

    def removed_entries(self) -> dict[str, tuple[int, int]]:
        """Returns the name of each kind of entry that leaves the file (`sm_80`) to their number and bytes."""
        sums: dict[str, tuple[int, int]] = {}
        for packed in self.sections:
            for container, entries in packed.kept:
                for entry in set(container.entries).difference(entries):
                    count, size_bytes = sums.get(entry.name, (0, 0))
                    sums[entry.name] = (count + 1, size_bytes + entry.size_bytes)
        return dict(sorted(sums.items()))


def pack_gpu_code(library: Library, targets: frozenset[int]) -> Packing | None:
    """Packs the entries that GPUs of these compute capabilities use, or returns None if no page would be freed.

    Raises:
        UnsupportedBinary: the file cannot be pruned safely; the reason says why.
    """
    gpu_sections = library.gpu_sections
    if gpu_sections is None:
        return None
    elf = library.elf
    page_bytes = max(_PAGE_BYTES, *(section.alignment for section in elf.sections if section.is_allocated))
    table_bytes = SEGMENT_HEADER.size * (len(elf.segments) + len(gpu_sections.sections))
    wrapped = set(gpu_sections.wrappers.values())
    packed_sections: list[PackedSection] = []
    for section, containers in gpu_sections.sections:
        reserved_bytes = 0 if packed_sections else table_bytes  # the segment table goes into the first one
        packed = _pack(section, _kept_entries(section, containers, targets, wrapped), page_bytes, reserved_bytes)
        if packed.cut_start < packed.cut_end:
            packed_sections.append(packed)
    if not packed_sections:
        return None
    return Packing(elf=elf, sections=tuple(packed_sections), page_bytes=page_bytes)


def _kept_entries(
    section: Section, containers: tuple[Container, ...], targets: frozenset[int], wrapped: set[int]
) -> tuple[tuple[Container, tuple[FatbinEntry, ...]], ...]:
    """Returns each container with the entries that stay: all of them if it has no wrapper or no usable entry."""
    kept = []
    for container in containers:
        is_wrapped = section.address + container.offset in wrapped
        entries = (usable_entries(container, targets) if is_wrapped else ()) or container.entries
        kept.append((container, entries))
    return tuple(kept)


def _pack(
    section: Section,
    kept: tuple[tuple[Container, tuple[FatbinEntry, ...]], ...],
    page_bytes: int,
    reserved_bytes: int,
) -> PackedSection:
    """Places the containers one after the other; the whole pages behind them and the reserved bytes are cut."""
    if (section.file_offset - section.address) % page_bytes:
        raise UnsupportedBinary(
            "prune-alignment", f"{section.name} at {section.file_offset:#x} for {section.address:#x}"
        )
    starts: list[int] = []
    offset = 0
    for _, entries in kept:
        starts.append(offset)
        offset += CONTAINER_HEADER_BYTES + sum(entry.size_bytes for entry in entries)
    return PackedSection(
        section=section,
        kept=kept,
        starts=tuple(starts),
        size_bytes=offset,
        cut_start=-(-(section.file_offset + offset + reserved_bytes) // page_bytes) * page_bytes,
        cut_end=section.file_end // page_bytes * page_bytes,
    )
