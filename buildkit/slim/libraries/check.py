"""Proof that a pruned file is its original but for the kernels left out, byte by byte at each virtual address.

It reads both files with the parsers only and knows nothing of the plan that made the one from the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import ELF_HEADER_BYTES, PT_LOAD, PT_PHDR, Content, Elf, Segment, UnsupportedBinary
from buildkit.binary.fatbin import Container, usable_entries
from buildkit.slim.libraries.prune import RELA, WRAPPER_POINTER_OFFSET, Fatbins, read_fatbins

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_pruned"]

_WORD_BYTES: Final = 8
_CHUNK_BYTES: Final = 1 << 20


def check_pruned(original: Content, pruned: Content, targets: frozenset[int]) -> None:
    """Compares what the loader would map from both files.

    Promised: outside the container sections every mapped byte is the same, at the same address with the same rights,
    but for the file header, the pointers in the wrappers and the addends of their relocations, which agree with each
    other; each wrapper leads to a container that holds exactly the entries that these targets use, byte for byte, or
    all of them where no target can use any; a container without a wrapper is untouched.

    Raises:
        UnsupportedBinary: `compare-*`, at the first difference.
    """
    before, after = read_fatbins(original), read_fatbins(pruned)
    if before is None or after is None:
        raise UnsupportedBinary("compare-fatbins", "no GPU code in one of the files")
    _check_segments(before.elf, after.elf)
    old, new = memoryview(original), memoryview(pruned)
    for start, end in _compared_ranges(before):
        _check_range((old, before.elf), (new, after.elf), start, end)
    _check_wrappers(old, new, before, after, targets)


def _check_segments(before: Elf, after: Elf) -> None:
    """The loader's view of the new file: ordered, apart, the table inside, nothing mapped that was not."""
    for left, right in zip(after.loads, after.loads[1:], strict=False):
        if left.address + left.memory_bytes > right.address:
            raise UnsupportedBinary("compare-segments", f"{right.address:#x} lies in the segment before it")
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
                "compare-segment-table", f"named at {segment.address:#x}, lies at {table_address:#x}"
            )
    for segment in after.loads:
        whole = _holder(before, segment.address)
        if segment.flags != whole.flags:
            raise UnsupportedBinary("compare-segments", f"other rights at {segment.address:#x}")
        if segment.address + segment.memory_bytes > whole.address + whole.memory_bytes:
            raise UnsupportedBinary("compare-segments", f"{segment.address:#x} is longer than it was")
    old_kinds = [(s.type, s.flags, s.address, s.file_bytes, s.memory_bytes) for s in before.segments if _is_view(s)]
    new_kinds = [(s.type, s.flags, s.address, s.file_bytes, s.memory_bytes) for s in after.segments if _is_view(s)]
    if old_kinds != new_kinds:
        raise UnsupportedBinary("compare-segments", "a segment that is not mapped by itself changed")


def _is_view(segment: Segment) -> bool:
    return segment.type not in {PT_LOAD, PT_PHDR}


def _pages(segment: Segment) -> tuple[int, int]:
    page_bytes = max(segment.alignment, 1)
    start = segment.address // page_bytes * page_bytes
    return start, -(-(segment.address + segment.memory_bytes) // page_bytes) * page_bytes


def _shares_page(before: Elf, address: int) -> bool:
    """Whether this address began a segment of its own already (linkers let neighbours share a page at times)."""
    return all(segment.address != address for segment in before.loads)


def _holder(elf: Elf, address: int) -> Segment:
    for segment in elf.loads:
        if segment.address <= address < segment.address + max(1, segment.memory_bytes):
            return segment
    raise UnsupportedBinary("compare-unmapped", hex(address))


def _compared_ranges(before: Fatbins) -> Iterator[tuple[int, int]]:
    """Address ranges of stored bytes that must be equal: all mapped but what a prune may change."""
    fields = [
        (segment.address, segment.address + ELF_HEADER_BYTES - segment.file_offset)
        for segment in before.elf.loads
        if segment.file_offset < ELF_HEADER_BYTES
    ]
    fields += [(section.address, section.address + section.size_bytes) for section, _ in before.sections]
    for pointer, relocation in before.relocations.items():
        fields.append((pointer, pointer + _WORD_BYTES))
        addend = _address_of(before.elf, relocation + RELA.size - _WORD_BYTES)
        fields.append((addend, addend + _WORD_BYTES))
    fields.sort()
    for segment in before.elf.loads:
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


def _check_range(old_file: tuple[memoryview, Elf], new_file: tuple[memoryview, Elf], start: int, end: int) -> None:
    (old, before), (new, after) = old_file, new_file
    old_start = before.file_offset_of(start)
    address = start
    while address < end:
        segment = _holder(after, address)
        stop = min(end, segment.address + segment.file_bytes)
        if stop <= address:
            raise UnsupportedBinary("compare-unmapped", hex(address))
        new_start = segment.file_offset + address - segment.address
        size_bytes = stop - address
        offset = old_start + address - start
        for chunk in range(0, size_bytes, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, size_bytes - chunk)
            if bytes(old[offset + chunk : offset + chunk + length]) != bytes(
                new[new_start + chunk : new_start + chunk + length]
            ):
                raise UnsupportedBinary("compare-bytes", f"within {length} bytes of {address + chunk:#x}")
        address = stop


def _check_wrappers(old: memoryview, new: memoryview, before: Fatbins, after: Fatbins, targets: frozenset[int]) -> None:
    old_containers = _by_address(before)
    new_containers = _by_address(after)
    if len(before.wrappers) != len(after.wrappers):
        raise UnsupportedBinary("compare-wrappers", f"{len(before.wrappers)} before, {len(after.wrappers)} after")
    for (_, old_address), (_, new_address) in zip(before.wrappers.items(), after.wrappers.items(), strict=True):
        _check_container(old, new, old_containers.pop(old_address), new_containers.pop(new_address), targets=targets)
    for pointer, relocation in after.relocations.items():
        _, _, addend = RELA.unpack_from(new, relocation)
        in_place = int.from_bytes(new[(at := after.elf.file_offset_of(pointer)) : at + _WORD_BYTES], "little")
        if addend != in_place:
            raise UnsupportedBinary("compare-addend", f"{addend:#x} and {in_place:#x} at {pointer:#x}")
    if before.relocations.keys() != after.relocations.keys():
        raise UnsupportedBinary(
            "compare-addend", f"other pointers than {WRAPPER_POINTER_OFFSET} bytes into each wrapper"
        )
    if old_containers.keys() != new_containers.keys():
        raise UnsupportedBinary("compare-stray-container", f"{len(old_containers)} before, {len(new_containers)} after")
    for address, whole in old_containers.items():
        _check_container(old, new, whole, new_containers[address], targets=None)


def _by_address(fatbins: Fatbins) -> dict[int, tuple[int, Container]]:
    """Address to (file offset of the section, container)."""
    return {
        section.address + container.offset: (section.file_offset, container)
        for section, containers in fatbins.sections
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
