"""Removes symbols and debug information from shared objects and executables, without changing a virtual address.

The sections that a loader does not read usually lie behind those that it does. Then the file only gets a new section
table behind its last mapped byte and is truncated there: a few kilobytes are written. (The strip of binutils writes
the complete file again, and loses the page alignment of files that patchelf extended.) If mapped bytes lie behind the
symbols, they move down in the file by a number of pages.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import (
    ELF_HEADER_BYTES,
    ET_DYN,
    ET_EXEC,
    SECTION_HEADER,
    SHT_NULL,
    SHT_STRTAB,
    SHT_SYMTAB,
    Elf,
    Section,
    UnsupportedBinary,
)
from buildkit.binary.library import Library
from buildkit.binary.rewrite import CopyRange, Rewrite, replace_file, write_at
from buildkit.slim.libraries.loadcheck import check_loads

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["check_stripped", "is_droppable", "plan_strip", "strip_library"]

# The sections that binutils' strip removes with --strip-unneeded, and those that name the compiler (.comment) or the
# file with the symbols (.gnu_debuglink). Any other section that is not loaded stays: a program may read it.
_DROPPED_NAMES: Final = frozenset(
    {".symtab", ".strtab", ".symtab_shndx", ".comment", ".gdb_index", ".gnu_debuglink", ".gnu_debugaltlink"}
)
_DROPPED_PREFIXES: Final = (".debug", ".zdebug", ".stab", ".gnu.build.attributes", ".GCC.command.line", ".gnu.lto_")
_NAME_TABLE: Final = ".shstrtab"
# Page size of x86-64 (System V ABI AMD64 supplement, 3.3.1): mapped ranges move by multiples of it.
_LEAST_PAGE_BYTES: Final = 4096
# Mapped bytes behind the symbols are held in memory while they move. A file with more of them is written as a new file.
_MOVED_IN_PLACE_BYTES: Final = 64 * 1024 * 1024
_SHDR_ALIGNMENT: Final = 8


def is_droppable(section: Section) -> bool:
    """Returns whether a strip removes this section: it is not loaded, and only debuggers and linkers use it."""
    if section.is_allocated or section.type == SHT_NULL:
        return False
    return section.name in _DROPPED_NAMES or section.name.startswith(_DROPPED_PREFIXES)


def _is_symbolic(section: Section) -> bool:
    """Returns whether a section holds symbols or debug information; other droppable ones have a few hundred bytes."""
    return section.type == SHT_SYMTAB or section.name.startswith(_DROPPED_PREFIXES[:3])


def strip_library(library: Library, *, is_atomic: bool = False, is_load_checked: bool = False) -> Library | None:
    """Strips a file, keeping its owner, mode and times.

    In place, the new tables are written, read back and compared before the file is truncated; after a failure the old
    bytes are written back. Some files are replaced by a new file instead: those with other hard links (to a package
    cache, for example), and all if `is_atomic` or `is_load_checked`.

    Args:
        library: the file; it must not be used after a strip in place.
        is_atomic: whether to replace the file instead of writing in place.
        is_load_checked: whether the new file must also load.

    Returns:
        The stripped library, or None if there was nothing to remove.

    Raises:
        UnsupportedBinary: the file cannot be stripped safely; it is unchanged.
    """
    status = library.path.stat()
    rewrite = plan_strip(library)
    if rewrite is None:
        return None
    moved_bytes = sum(piece.size_bytes for piece in rewrite.moved)
    if not (is_atomic or is_load_checked or status.st_nlink > 1 or moved_bytes > _MOVED_IN_PLACE_BYTES):
        stripped = _strip_in_place(library, rewrite)
        os.utime(library.path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return stripped

    def check(path: Path) -> Library:
        written = Library.open(path)
        check_stripped(library.elf, written, rewrite)
        if is_load_checked:
            check_loads(library, written)
        return written

    return replace_file(library.path, rewrite, check).moved_to(library.path)


def plan_strip(library: Library) -> Rewrite | None:
    """Returns the file that a strip would write, or None if there is nothing to remove or too little to be worth it.

    Raises:
        UnsupportedBinary: the file cannot be stripped safely; the reason says why.
    """
    elf = library.elf
    if elf.type not in {ET_EXEC, ET_DYN}:
        raise UnsupportedBinary("elf-type", f"{elf.type} is neither executable nor shared object")
    dropped = [section for section in elf.sections if is_droppable(section)]
    if not dropped:
        return None
    if not elf.loads:
        raise UnsupportedBinary("elf-no-load", "no segment is mapped")
    kept = _kept_sections(elf)
    _refuse_appended_bytes(library)
    ranges = _place_ranges(elf, _needed_ranges(elf, kept.values()), dropped)
    tail_offset = max(piece.new_offset + piece.size_bytes for piece in ranges)
    names, name_offsets = _name_table(kept.values())
    section_table_offset = _align_up(tail_offset + len(names), _SHDR_ALIGNMENT)
    section_count = max(kept, default=0) + 2
    table = _section_table(kept, ranges, name_offsets)
    table += SECTION_HEADER.pack(name_offsets[_NAME_TABLE], SHT_STRTAB, 0, 0, tail_offset, len(names), 0, 0, 1, 0)
    tail = names.ljust(section_table_offset - tail_offset, b"\0") + table
    segment_table_offset = _moved_offset(ranges, elf.segment_table_offset)
    header = elf_format.pack_header(
        elf,
        segment_table_offset=segment_table_offset,
        segment_count=len(elf.segments),
        section_table_offset=section_table_offset,
        section_count=section_count,
        name_section_index=section_count - 1,
    )
    moved = [segment.pack(file_offset=_moved_offset(ranges, segment.file_offset)) for segment in elf.segments]
    bytes_after = tail_offset + len(tail)
    # Symbols are removed even if the new tables need as much room, so that "no symbols" can be checked. Other sections
    # are removed only if that frees a page.
    if not any(map(_is_symbolic, dropped)) and elf.file_bytes - bytes_after < _LEAST_PAGE_BYTES:
        return None
    patches = ((0, header), (segment_table_offset, b"".join(moved)), (tail_offset, tail))
    return Rewrite(bytes_before=elf.file_bytes, bytes_after=bytes_after, ranges=ranges, patches=patches)


def _kept_sections(elf: Elf) -> dict[int, Section]:
    """Returns the sections that stay, by index. The index does not change: symbols in .dynsym refer to it."""
    kept = {
        index: section
        for index, section in enumerate(elf.sections)
        if section.type != SHT_NULL and not is_droppable(section) and index != elf.name_section_index
    }
    dropped = {index for index, section in enumerate(elf.sections) if is_droppable(section)}
    for section in kept.values():
        if section.link in dropped and not section.is_allocated:
            raise UnsupportedBinary("strip-linked-section", f"{section.name} needs section {section.link}")
    return kept


def _refuse_appended_bytes(library: Library) -> None:
    """Raises UnsupportedBinary for bytes that no table describes: a payload, such as a bundled program."""
    elf = library.elf
    end = max(
        elf.section_table_end,
        elf.segment_table_end,
        max((section.file_end for section in elf.sections), default=0),
        max((segment.file_offset + segment.file_bytes for segment in elf.segments), default=0),
    )
    if any(memoryview(library.content)[end:]):
        raise UnsupportedBinary("strip-appended-bytes", f"{elf.file_bytes - end} bytes after offset {end}")


def _needed_ranges(elf: Elf, kept: Iterable[Section]) -> list[tuple[int, int, int]]:
    """Returns (start, end, alignment) of each range of the file that must stay; touching ranges are merged."""
    page_bytes = max(_LEAST_PAGE_BYTES, *(segment.alignment for segment in elf.loads))
    needed = [(0, ELF_HEADER_BYTES, page_bytes), (elf.segment_table_offset, elf.segment_table_end, page_bytes)]
    needed += [
        (segment.file_offset, segment.file_offset + segment.file_bytes, page_bytes)
        for segment in elf.segments
        if segment.file_bytes
    ]
    needed += [
        (section.file_offset, section.file_end, page_bytes if section.is_allocated else max(1, section.alignment))
        for section in kept
        if section.stored_bytes
    ]
    ranges: list[tuple[int, int, int]] = []
    for start, end, alignment in sorted(needed):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]), max(alignment, ranges[-1][2]))
        else:
            ranges.append((start, end, alignment))
    return ranges


def _place_ranges(elf: Elf, needed: list[tuple[int, int, int]], dropped: list[Section]) -> tuple[CopyRange, ...]:
    """Moves each range down over the sections dropped before it, by a multiple of the range's alignment."""
    freed = [(section.file_offset, section.file_end) for section in dropped if section.stored_bytes]
    freed.append((elf.section_table_offset, elf.section_table_end))
    ranges: list[CopyRange] = []
    shift = 0
    previous_end = 0
    for start, end, alignment in needed:
        is_freed = any(previous_end <= freed_start < start for freed_start, _ in freed)
        shift = (shift + (start - previous_end if is_freed else 0)) // alignment * alignment
        ranges.append(CopyRange(old_offset=start, new_offset=start - shift, size_bytes=end - start))
        previous_end = end
    return _joined(ranges)


def _joined(ranges: list[CopyRange]) -> tuple[CopyRange, ...]:
    """Joins neighbouring ranges that move by the same amount, with the padding between them."""
    joined: list[CopyRange] = []
    for piece in ranges:
        last = joined[-1] if joined else None
        if last is not None and last.old_offset - last.new_offset == piece.old_offset - piece.new_offset:
            size_bytes = piece.old_offset + piece.size_bytes - last.old_offset
            joined[-1] = CopyRange(old_offset=last.old_offset, new_offset=last.new_offset, size_bytes=size_bytes)
        else:
            joined.append(piece)
    return tuple(joined)


def _moved_offset(ranges: tuple[CopyRange, ...], offset: int) -> int:
    """Returns the new offset of the byte at `offset`; a byte between ranges moves with the range before it."""
    moved = offset
    for piece in ranges:
        if piece.old_offset <= offset:
            moved = offset - (piece.old_offset - piece.new_offset)
    return moved


def _name_table(kept: Iterable[Section]) -> tuple[bytes, dict[str, int]]:
    """Returns a section name table, and the offset of each name in it."""
    offsets = {"": 0}
    table = bytearray(b"\0")
    for name in [*(section.name for section in kept), _NAME_TABLE]:
        if name not in offsets:
            offsets[name] = len(table)
            table += name.encode("utf-8", "surrogateescape") + b"\0"
    return bytes(table), offsets


def _section_table(kept: dict[int, Section], ranges: tuple[CopyRange, ...], name_offsets: dict[str, int]) -> bytes:
    """Returns the section headers at their old indexes; a dropped one before the last that stays is `SHT_NULL`."""
    table = bytearray()
    for index in range(max(kept, default=0) + 1):
        section = kept.get(index)
        if section is None:
            table += bytes(SECTION_HEADER.size)
            continue
        table += SECTION_HEADER.pack(
            name_offsets[section.name],
            section.type,
            section.flags,
            section.address,
            _moved_offset(ranges, section.file_offset),
            section.size_bytes,
            section.link if section.link in kept else 0,
            section.info,
            section.alignment,
            section.entry_bytes,
        )
    return bytes(table)


def check_stripped(original: Elf, stripped: Library, rewrite: Rewrite) -> None:
    """Compares a stripped file's tables with the original's: they must be equal except for the planned offsets.

    Raises:
        UnsupportedBinary: `strip-check`, at the first difference.
    """
    expected = tuple(
        dataclasses.replace(segment, file_offset=_moved_offset(rewrite.ranges, segment.file_offset))
        for segment in original.segments
    )
    if stripped.elf.segments != expected:
        raise UnsupportedBinary("strip-check", "the segments differ from the plan")
    loaded = [
        dataclasses.replace(section, file_offset=_moved_offset(rewrite.ranges, section.file_offset), link=0)
        for section in original.sections
        if section.is_allocated
    ]
    found = [dataclasses.replace(section, link=0) for section in stripped.elf.sections if section.is_allocated]
    if loaded != found:
        raise UnsupportedBinary("strip-check", "the loaded sections differ from the plan")
    if any(is_droppable(section) for section in stripped.elf.sections):
        raise UnsupportedBinary("strip-check", "a dropped section is still there")
    for offset, patch in rewrite.patches:
        if memoryview(stripped.content)[offset : offset + len(patch)] != patch:
            raise UnsupportedBinary("strip-check", f"the bytes written at {offset:#x} are not there")


def _strip_in_place(library: Library, rewrite: Rewrite) -> Library:
    """Writes, reads back, compares, and only then truncates the file; after a failure writes the old bytes back."""
    view = memoryview(library.content)
    moved = [bytes(view[piece.old_offset : piece.old_offset + piece.size_bytes]) for piece in rewrite.moved]
    padding = [(start, bytes(end - start)) for start, end in rewrite.zeros]
    moves = [(piece.new_offset, content) for piece, content in zip(rewrite.moved, moved, strict=True)]
    writes = [*moves, *rewrite.patches, *padding]
    with library.path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()
        saved = [(offset, os.pread(descriptor, len(patch), offset)) for offset, patch in writes]
        try:
            for offset, patch in writes:
                write_at(descriptor, patch, offset)
            written = mmap.mmap(descriptor, rewrite.bytes_after, access=mmap.ACCESS_READ)
            stripped = Library(library.path, written)
            check_stripped(library.elf, stripped, rewrite)
            for offset, content in moves:
                _check_moved(stripped, offset, content, rewrite)
        except BaseException:
            for offset, patch in saved:
                write_at(descriptor, patch, offset)
            os.ftruncate(descriptor, rewrite.bytes_before)
            raise
        os.ftruncate(descriptor, rewrite.bytes_after)
    return stripped


def _check_moved(stripped: Library, start: int, moved: bytes, rewrite: Rewrite) -> None:
    """Compares a range that moved with its old bytes and the patches in it (the segment table may lie there)."""
    expected = bytearray(moved)
    for offset, patch in rewrite.patches:
        if start <= offset < start + len(moved):
            expected[offset - start : offset - start + len(patch)] = patch
    if memoryview(stripped.content)[start : start + len(moved)] != expected:
        raise UnsupportedBinary("strip-check", f"the range at {start:#x} differs")


def _align_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
