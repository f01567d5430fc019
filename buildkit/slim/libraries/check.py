"""Checks that a pruned library equals its original except for the removed kernels, byte by byte at each address.

It uses only the parsers, and not the plan by which the library was pruned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import ELF_HEADER_BYTES, PT_LOAD, PT_PHDR, Elf, Segment, UnsupportedBinary
from buildkit.binary.fatbin import Container, usable_entries
from buildkit.binary.gpu_sections import RELA, WRAPPER_POINTER_OFFSET, GpuSections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit.binary.library import Library

__all__ = ["check_pruned"]

_WORD_BYTES: Final = 8
_CHUNK_BYTES: Final = 1 << 20


def check_pruned(original: Library, pruned: Library, targets: frozenset[int]) -> None:
    """Compares the bytes that the loader would map from both files.

    - Outside the sections with GPU code, every mapped byte is equal, at the same address with the same access rights.
      Exceptions are the file header, and the pointers in the wrappers with the addends of their relocations, which
      must agree with each other.
    - Each wrapper points to a container with exactly the entries that these targets use, or all if they use none.
    - A container without a wrapper is unchanged.

    Raises:
        UnsupportedBinary: `compare-*`, at the first difference.
    """
    before, after = original.gpu_sections, pruned.gpu_sections
    if before is None or after is None:
        raise UnsupportedBinary("compare-fatbins", "no GPU code in one of the files")
    _check_segments(original.elf, pruned.elf)
    for start, end in _compared_ranges(original.elf, before):
        _check_range(original, pruned, start, end)
    _check_wrappers(original, pruned, before, after, targets)


def _check_segments(before: Elf, after: Elf) -> None:
    """Checks the new segments: sorted, not overlapping, the table inside one, and nothing mapped that was not."""
    for left, right in zip(after.loads, after.loads[1:], strict=False):
        if left.address + left.memory_bytes > right.address:
            raise UnsupportedBinary("compare-segments", f"{right.address:#x} overlaps the segment before it")
        if _pages(left)[1] > _pages(right)[0] and left.flags != right.flags and _shares_page(before, right.address):
            raise UnsupportedBinary("compare-segments", f"{right.address:#x} shares a page with the segment before it")
    table = (after.segment_table_offset, after.segment_table_end)
    holders = [
        segment
        for segment in after.loads
        if segment.file_offset <= table[0] and table[1] <= segment.file_offset + segment.file_bytes
    ]
    if len(holders) != 1:
        raise UnsupportedBinary("compare-segment-table", f"at {table[0]:#x}, mapped by {len(holders)} segments")
    table_address = holders[0].address + table[0] - holders[0].file_offset
    for segment in after.segments:
        if segment.type == PT_PHDR and segment.address != table_address:
            raise UnsupportedBinary(
                "compare-segment-table", f"PT_PHDR says {segment.address:#x}, the table is at {table_address:#x}"
            )
    for segment in after.loads:
        old = _holder(before, segment.address)
        if segment.flags != old.flags:
            raise UnsupportedBinary("compare-segments", f"other access rights at {segment.address:#x}")
        if segment.address + segment.memory_bytes > old.address + old.memory_bytes:
            raise UnsupportedBinary("compare-segments", f"{segment.address:#x} is longer than before")
    if _other_segments(before) != _other_segments(after):
        raise UnsupportedBinary("compare-segments", "a segment of another type than PT_LOAD changed")


def _other_segments(elf: Elf) -> list[tuple[int, ...]]:
    """Returns the segments that only describe parts of the mapped ones, without their file offsets."""
    others = [segment for segment in elf.segments if segment.type not in {PT_LOAD, PT_PHDR}]
    return [(s.type, s.flags, s.address, s.file_bytes, s.memory_bytes) for s in others]


def _pages(segment: Segment) -> tuple[int, int]:
    page_bytes = max(segment.alignment, 1)
    start = segment.address // page_bytes * page_bytes
    return start, -(-(segment.address + segment.memory_bytes) // page_bytes) * page_bytes


def _shares_page(before: Elf, address: int) -> bool:
    """Returns whether no old segment starts at this address; linkers sometimes let old neighbours share a page."""
    return all(segment.address != address for segment in before.loads)


def _holder(elf: Elf, address: int) -> Segment:
    for segment in elf.loads:
        if segment.address <= address < segment.address + max(1, segment.memory_bytes):
            return segment
    raise UnsupportedBinary("compare-unmapped", hex(address))


def _compared_ranges(elf: Elf, before: GpuSections) -> Iterator[tuple[int, int]]:
    """Yields the address ranges whose bytes must be equal: all mapped ones except those that a prune may change."""
    fields = [
        (segment.address, segment.address + ELF_HEADER_BYTES - segment.file_offset)
        for segment in elf.loads
        if segment.file_offset < ELF_HEADER_BYTES
    ]
    fields += [(section.address, section.address + section.size_bytes) for section, _ in before.sections]
    for pointer, relocation in before.relocations.items():
        fields.append((pointer, pointer + _WORD_BYTES))
        addend = _address_of(elf, relocation + RELA.size - _WORD_BYTES)
        fields.append((addend, addend + _WORD_BYTES))
    fields.sort()
    for segment in elf.loads:
        start, end = segment.address, segment.address + segment.file_bytes
        for low, high in fields:
            if start <= low < end:
                if low > start:
                    yield start, low
                start = max(start, high)
        if start < end:
            yield start, end


def _address_of(elf: Elf, offset: int) -> int:
    for segment in elf.loads:
        if segment.file_offset <= offset < segment.file_offset + segment.file_bytes:
            return segment.address + offset - segment.file_offset
    raise UnsupportedBinary("compare-unmapped", f"file offset {offset:#x}")


def _check_range(original: Library, pruned: Library, start: int, end: int) -> None:
    """Compares the bytes of both files between two addresses."""
    old, new = memoryview(original.content), memoryview(pruned.content)
    old_start = original.elf.file_offset_of(start)
    address = start
    while address < end:
        segment = _holder(pruned.elf, address)
        stop = min(end, segment.address + segment.file_bytes)
        if stop <= address:
            raise UnsupportedBinary("compare-unmapped", hex(address))
        new_start = segment.file_offset + address - segment.address
        size_bytes = stop - address
        offset = old_start + address - start
        for chunk in range(0, size_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, size_bytes - chunk)
            old_chunk = bytes(old[offset + chunk : offset + chunk + length])
            if old_chunk != bytes(new[new_start + chunk : new_start + chunk + length]):
                raise UnsupportedBinary("compare-bytes", f"within {length} bytes of {address + chunk:#x}")
        address = stop


def _check_wrappers(
    original: Library, pruned: Library, before: GpuSections, after: GpuSections, targets: frozenset[int]
) -> None:
    """Compares the container of each wrapper, the relocations, and the containers without a wrapper."""
    old, new = memoryview(original.content), memoryview(pruned.content)
    old_containers = _by_address(before)
    new_containers = _by_address(after)
    if len(before.wrappers) != len(after.wrappers):
        raise UnsupportedBinary("compare-wrappers", f"{len(before.wrappers)} before, {len(after.wrappers)} after")
    for old_address, new_address in zip(before.wrappers.values(), after.wrappers.values(), strict=True):
        _check_container(old, new, old_containers.pop(old_address), new_containers.pop(new_address), targets=targets)
    for pointer, relocation in after.relocations.items():
        _, _, addend = RELA.unpack_from(new, relocation)
        in_place = int.from_bytes(new[(at := pruned.elf.file_offset_of(pointer)) : at + _WORD_BYTES], "little")
        if addend != in_place:
            raise UnsupportedBinary("compare-addend", f"{addend:#x} and {in_place:#x} at {pointer:#x}")
    if before.relocations.keys() != after.relocations.keys():
        raise UnsupportedBinary(
            "compare-addend", f"other pointers than {WRAPPER_POINTER_OFFSET} bytes into each wrapper"
        )
    if old_containers.keys() != new_containers.keys():
        raise UnsupportedBinary("compare-stray-container", f"{len(old_containers)} before, {len(new_containers)} after")
    for address, container in old_containers.items():
        _check_container(old, new, container, new_containers[address], targets=None)


def _by_address(gpu_sections: GpuSections) -> dict[int, tuple[int, Container]]:
    """Returns the address of each container to (file offset of its section, container)."""
    return {
        section.address + container.offset: (section.file_offset, container)
        for section, containers in gpu_sections.sections
        for container in containers
    }


def _check_container(
    old: memoryview,
    new: memoryview,
    before: tuple[int, Container],
    after: tuple[int, Container],
    *,
    targets: frozenset[int] | None,
) -> None:
    """Compares two containers, given with their sections' offsets; `targets` of None means no entry was removed."""
    (old_section, old_container), (new_section, new_container) = before, after
    expected = usable_entries(old_container, targets) if targets is not None else ()
    if not expected or len(new_container.entries) == len(old_container.entries):
        expected = old_container.entries
    if len(expected) != len(new_container.entries):
        raise UnsupportedBinary("compare-entries", f"{len(expected)} expected, {len(new_container.entries)} found")
    for left, right in zip(expected, new_container.entries, strict=True):
        left_start, right_start = old_section + left.offset, new_section + right.offset
        if (
            left.size_bytes != right.size_bytes
            or old[left_start : left_start + left.size_bytes] != new[right_start : right_start + right.size_bytes]
        ):
            raise UnsupportedBinary("compare-entries", f"{left.name} differs at file offset {right_start:#x}")
