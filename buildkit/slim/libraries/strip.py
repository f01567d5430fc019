"""Symbols and debug information out of shared objects and executables, without moving what the loader maps.

The sections that a loader never reads usually lie after everything that it does. The file then only needs a new
section table after its last mapped byte, and to be cut there: a few kilobytes written, whatever its size (binutils'
strip writes the whole file again, and loses the page alignment of files that patchelf has extended). Where mapped
bytes do lie after the symbols, they move down in the file by whole pages; no virtual address ever changes.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from dataclasses import dataclass
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
    Content,
    Elf,
    Section,
    UnsupportedBinary,
    map_file,
)
from buildkit.binary.rewrite import CopyRange, Rewrite, replace_file, write_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

__all__ = ["StripPlan", "is_droppable", "plan_strip", "strip_file"]

# What binutils' strip removes with --strip-unneeded, and what names the tools or the missing symbols (.comment,
# .gnu_debuglink). Any other section that is not loaded stays: a program may read it from its own file.
_DROPPED_NAMES: Final = frozenset(
    {".symtab", ".strtab", ".symtab_shndx", ".comment", ".gdb_index", ".gnu_debuglink", ".gnu_debugaltlink"}
)
_DROPPED_PREFIXES: Final = (".debug", ".zdebug", ".stab", ".gnu.build.attributes", ".GCC.command.line", ".gnu.lto_")
_NAME_TABLE: Final = ".shstrtab"
# Page size of x86-64 (System V ABI AMD64 supplement, 3.3.1): the least that a mapped run moves by.
_LEAST_PAGE_BYTES: Final = 4096
# Mapped bytes after the symbols are held in memory while they move; a file with more is written anew.
_MOVED_IN_PLACE_BYTES: Final = 64 * 1024 * 1024
_SHDR_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class StripPlan:
    """What a strip writes, and (section name, stored bytes) of each section that it drops."""

    rewrite: Rewrite
    removed: tuple[tuple[str, int], ...]


def is_droppable(section: Section) -> bool:
    """Whether a strip removes this section: not loaded, and known to serve debuggers and linkers only."""
    if section.is_allocated or section.type == SHT_NULL:
        return False
    return section.name in _DROPPED_NAMES or section.name.startswith(_DROPPED_PREFIXES)


def _is_symbolic(section: Section) -> bool:
    """Whether it holds symbols or debug information; other droppable sections alone are a few hundred bytes."""
    return section.type == SHT_SYMTAB or section.name.startswith(_DROPPED_PREFIXES[:3])


def plan_strip(content: Content) -> StripPlan | None:
    """What a strip of this file would write, or None where it holds nothing to remove or it is not worth writing.

    Raises:
        UnsupportedBinary: the file is not one that can be stripped safely; the reason says why.
    """
    elf = elf_format.parse(content)
    if elf.type not in {ET_EXEC, ET_DYN}:
        raise UnsupportedBinary("elf-type", f"{elf.type} is neither executable nor shared object")
    dropped = [section for section in elf.sections if is_droppable(section)]
    if not dropped:
        return None
    if not elf.loads:
        raise UnsupportedBinary("elf-no-load", "nothing is mapped, so nothing says what is needed")
    kept = _kept_sections(elf)
    _refuse_appended_bytes(content, elf)
    runs = _place_runs(elf, _needed_runs(elf, kept.values()), dropped)
    tail_offset = max(run.new_offset + run.size_bytes for run in runs)
    names, name_offsets = _name_table(kept.values())
    section_table_offset = _align_up(tail_offset + len(names), _SHDR_ALIGNMENT)
    section_count = max(kept, default=0) + 2
    table = _section_table(kept, runs, name_offsets)
    table += SECTION_HEADER.pack(name_offsets[_NAME_TABLE], SHT_STRTAB, 0, 0, tail_offset, len(names), 0, 0, 1, 0)
    tail = names.ljust(section_table_offset - tail_offset, b"\0") + table
    header = elf_format.pack_header(
        elf,
        segment_table_offset=_moved_offset(runs, elf.segment_table_offset),
        segment_count=len(elf.segments),
        section_table_offset=section_table_offset,
        section_count=section_count,
        name_section_index=section_count - 1,
    )
    segments = b"".join(segment.pack(file_offset=_moved_offset(runs, segment.file_offset)) for segment in elf.segments)
    bytes_after = tail_offset + len(tail)
    # Symbols go even where the new tables take as much room, so that "no symbols" can be checked; the rest must pay.
    if not any(map(_is_symbolic, dropped)) and elf.file_bytes - bytes_after < _LEAST_PAGE_BYTES:
        return None
    patches = ((0, header), (_moved_offset(runs, elf.segment_table_offset), segments), (tail_offset, tail))
    return StripPlan(
        rewrite=Rewrite(bytes_before=elf.file_bytes, bytes_after=bytes_after, runs=runs, patches=patches),
        removed=tuple((section.name, section.stored_bytes) for section in dropped),
    )


def strip_file(
    path: Path, *, is_atomic: bool = False, check: Callable[[Path, Path], None] | None = None
) -> StripPlan | None:
    """Strips a file, keeping its mode and times, and returns what was done, or None where nothing was to do.

    In place, the new tables are written, read back and compared before the file is cut; if anything fails until
    then, the bytes overwritten are put back. A file with other hard links (a package cache's, say) is replaced by a
    new one, as every file is with `is_atomic` or where there is something to `check`, which then gets the old file
    and the new one.

    Raises:
        UnsupportedBinary: the file cannot be stripped safely; it is as it was.
    """
    status = path.stat()
    content = map_file(path)
    plan = plan_strip(content)
    if plan is None:
        return None
    original = elf_format.parse(content)
    moved_bytes = sum(run.size_bytes for run in plan.rewrite.moved)
    is_replaced = is_atomic or check is not None or status.st_nlink > 1 or moved_bytes > _MOVED_IN_PLACE_BYTES
    if is_replaced:

        def check_written(written: Path) -> None:
            _check_file(written, plan.rewrite, original)
            if check is not None:
                check(path, written)

        replace_file(path, plan.rewrite, check_written)
    else:
        moved = [
            (run.new_offset, content[run.old_offset : run.old_offset + run.size_bytes]) for run in plan.rewrite.moved
        ]
        del content
        _write_in_place(path, moved, plan.rewrite, original)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return plan


def _kept_sections(elf: Elf) -> dict[int, Section]:
    """The sections kept by their index, which does not change: symbols in .dynsym refer to sections by number."""
    kept = {
        index: section
        for index, section in enumerate(elf.sections)
        if section.type != SHT_NULL and not is_droppable(section) and index != elf.name_section_index
    }
    gone = {index for index, section in enumerate(elf.sections) if is_droppable(section)}
    for section in kept.values():
        if section.link in gone and not section.is_allocated:
            raise UnsupportedBinary("strip-linked-section", f"{section.name} needs section {section.link}")
    return kept


def _refuse_appended_bytes(content: Content, elf: Elf) -> None:
    """Bytes after all that the tables name are a payload (an installer, a bundled program): not ours to cut."""
    end = max(
        elf.section_table_end,
        elf.segment_table_end,
        max((section.file_end for section in elf.sections), default=0),
        max((segment.file_offset + segment.file_bytes for segment in elf.segments), default=0),
    )
    if any(memoryview(content)[end:]):
        raise UnsupportedBinary("strip-appended-bytes", f"{elf.file_bytes - end} bytes after offset {end}")


def _needed_runs(elf: Elf, kept: Iterable[Section]) -> list[tuple[int, int, int]]:
    """(start, end, alignment) of each stretch of the file that must survive, merged where they touch."""
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
    runs: list[tuple[int, int, int]] = []
    for start, end, alignment in sorted(needed):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]), max(alignment, runs[-1][2]))
        else:
            runs.append((start, end, alignment))
    return runs


def _place_runs(elf: Elf, needed: list[tuple[int, int, int]], dropped: list[Section]) -> tuple[CopyRange, ...]:
    """Closes the gaps that dropped sections leave, each by a multiple of the following run's alignment."""
    freed = [(section.file_offset, section.file_end) for section in dropped if section.stored_bytes]
    freed.append((elf.section_table_offset, elf.section_table_end))
    runs: list[CopyRange] = []
    shift = 0
    previous_end = 0
    for start, end, alignment in needed:
        is_freed = any(previous_end <= freed_start < start for freed_start, _ in freed)
        shift = (shift + (start - previous_end if is_freed else 0)) // alignment * alignment
        runs.append(CopyRange(old_offset=start, new_offset=start - shift, size_bytes=end - start))
        previous_end = end
    return _joined(runs)


def _joined(runs: list[CopyRange]) -> tuple[CopyRange, ...]:
    """Runs that move by the same amount as one run, with the padding between them."""
    joined: list[CopyRange] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and last.old_offset - last.new_offset == run.old_offset - run.new_offset:
            size_bytes = run.old_offset + run.size_bytes - last.old_offset
            joined[-1] = CopyRange(old_offset=last.old_offset, new_offset=last.new_offset, size_bytes=size_bytes)
        else:
            joined.append(run)
    return tuple(joined)


def _moved_offset(runs: tuple[CopyRange, ...], offset: int) -> int:
    """Where the byte at `offset` lies after the move; offsets between runs go with the run before them."""
    moved = offset
    for run in runs:
        if run.old_offset <= offset:
            moved = offset - (run.old_offset - run.new_offset)
    return moved


def _name_table(kept: Iterable[Section]) -> tuple[bytes, dict[str, int]]:
    """A section name table, and the offset of each name in it."""
    offsets = {"": 0}
    table = bytearray(b"\0")
    for name in [*(section.name for section in kept), _NAME_TABLE]:
        if name not in offsets:
            offsets[name] = len(table)
            table += name.encode("utf-8", "surrogateescape") + b"\0"
    return bytes(table), offsets


def _section_table(kept: dict[int, Section], runs: tuple[CopyRange, ...], name_offsets: dict[str, int]) -> bytes:
    """The section headers at their old indexes; a dropped one before the last kept is left as `SHT_NULL`."""
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
            _moved_offset(runs, section.file_offset),
            section.size_bytes,
            section.link if section.link in kept else 0,
            section.info,
            section.alignment,
            section.entry_bytes,
        )
    return bytes(table)


def _check_stripped(content: Content, rewrite: Rewrite, original: Elf) -> None:
    """Compares a stripped file's tables with the original's: equal but for the offsets that the plan moved."""
    stripped = elf_format.parse(content)
    expected = tuple(
        dataclasses.replace(segment, file_offset=_moved_offset(rewrite.runs, segment.file_offset))
        for segment in original.segments
    )
    if stripped.segments != expected:
        raise UnsupportedBinary("strip-check", "the segments differ from the plan")
    kept = [
        dataclasses.replace(section, file_offset=_moved_offset(rewrite.runs, section.file_offset), link=0)
        for section in original.sections
        if section.is_allocated
    ]
    found = [dataclasses.replace(section, link=0) for section in stripped.sections if section.is_allocated]
    if kept != found:
        raise UnsupportedBinary("strip-check", "the loaded sections differ from the plan")
    if any(is_droppable(section) for section in stripped.sections):
        raise UnsupportedBinary("strip-check", "a dropped section is still there")
    for offset, patch in rewrite.patches:
        if memoryview(content)[offset : offset + len(patch)] != patch:
            raise UnsupportedBinary("strip-check", f"the bytes written at {offset:#x} are not there")


def _check_file(path: Path, rewrite: Rewrite, original: Elf) -> None:
    _check_stripped(map_file(path), rewrite, original)


def _write_in_place(path: Path, moved: list[tuple[int, bytes]], rewrite: Rewrite, original: Elf) -> None:
    """Writes, reads back, compares, and only then cuts the file; puts the old bytes back on any failure."""
    with path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()
        padding = [(start, bytes(end - start)) for start, end in rewrite.zeros]
        writes = [*moved, *rewrite.patches, *padding]
        saved = [(offset, os.pread(descriptor, len(patch), offset)) for offset, patch in writes]
        try:
            for offset, patch in writes:
                write_at(descriptor, patch, offset)
            written = mmap.mmap(descriptor, rewrite.bytes_after, access=mmap.ACCESS_READ)
            _check_stripped(written, rewrite, original)
            for run, (_, expected) in zip(rewrite.moved, moved, strict=True):
                _check_moved(written, run, expected, rewrite)
        except BaseException:
            for offset, patch in saved:
                write_at(descriptor, patch, offset)
            os.ftruncate(descriptor, rewrite.bytes_before)
            raise
        os.ftruncate(descriptor, rewrite.bytes_after)


def _check_moved(content: Content, run: CopyRange, moved: bytes, rewrite: Rewrite) -> None:
    """Refuses where a moved run did not arrive, apart from the patches (the segment table may lie in it)."""
    expected = bytearray(moved)
    for offset, patch in rewrite.patches:
        if run.new_offset <= offset < run.new_offset + run.size_bytes:
            expected[offset - run.new_offset : offset - run.new_offset + len(patch)] = patch
    if memoryview(content)[run.new_offset : run.new_offset + run.size_bytes] != expected:
        raise UnsupportedBinary("strip-check", f"the run at {run.new_offset:#x} differs")


def _align_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
