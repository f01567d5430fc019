from __future__ import annotations

import dataclasses
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from buildkit.binary import elf
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.library import Library
from buildkit.binary.rewrite import CopyRange, Rewrite, apply_rewrite
from buildkit.slim.libraries import strip
from tests.support.corruption import corrupt_copies
from tests.support.elf import EntrySpec, LibrarySpec, container, in_memory, mapped_bytes
from tests.support.strategies import libraries

if TYPE_CHECKING:
    from pathlib import Path

CORRUPT_INPUTS = 4000


@given(libraries())
def test_plan_strip_removes_symbols_and_keeps_mapped_bytes(library: LibrarySpec) -> None:
    content = library.build()

    rewrite = strip.plan_strip(in_memory(content))

    if rewrite is None:
        assert not library.has_symbols
        return
    stripped = apply_rewrite(content, rewrite)
    parsed = elf.parse(stripped)
    assert mapped_bytes(stripped) == mapped_bytes(content)
    assert not {".symtab", ".strtab", ".debug_info", ".comment"} & {section.name for section in parsed.sections}
    assert [s.name for s in parsed.sections if s.is_allocated] == [
        s.name for s in elf.parse(content).sections if s.is_allocated
    ]
    assert elf.read_dynamic_names(stripped, parsed) == elf.read_dynamic_names(content, elf.parse(content))
    if not library.is_extended and library.has_symbols:
        assert len(stripped) <= len(content) - 10_240 - 24 * 300  # at least .debug_info and .symtab
    assert len(stripped) <= len(content)
    assert strip.plan_strip(in_memory(stripped)) is None


@pytest.mark.parametrize("is_extended", [False, True])
@pytest.mark.parametrize("is_atomic", [False, True])
def test_strip_library_writes_the_planned_bytes(tmp_path: Path, *, is_extended: bool, is_atomic: bool) -> None:
    content = LibrarySpec(is_extended=is_extended).build()
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    path.chmod(0o750)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    inode = path.stat().st_ino

    rewrite = strip.plan_strip(in_memory(content))
    assert rewrite is not None

    stripped = strip.strip_library(Library.open(path), is_atomic=is_atomic)

    assert stripped is not None
    assert (stripped.path, bytes(stripped.content)) == (path, apply_rewrite(content, rewrite))
    assert path.read_bytes() == bytes(stripped.content)
    assert (path.stat().st_mode & 0o7777, path.stat().st_mtime_ns) == (0o750, 1_600_000_000_123_456_789)
    assert (path.stat().st_ino == inode) is not is_atomic
    assert strip.strip_library(stripped, is_atomic=is_atomic) is None
    assert list(tmp_path.iterdir()) == [path]


def test_strip_library_hard_link_replaces_only_its_own_file(tmp_path: Path) -> None:
    content = LibrarySpec().build()
    (tmp_path / "cached.so").write_bytes(content)
    os.link(tmp_path / "cached.so", tmp_path / "lib.so")

    assert strip.strip_library(Library.open(tmp_path / "lib.so")) is not None

    assert (tmp_path / "cached.so").read_bytes() == content
    assert (tmp_path / "lib.so").stat().st_size < len(content)


@pytest.mark.parametrize("is_atomic", [False, True])
@pytest.mark.parametrize("is_extended", [False, True])
def test_strip_library_failed_check_restores_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_extended: bool, is_atomic: bool
) -> None:
    content = LibrarySpec(is_extended=is_extended).build()
    path = tmp_path / "lib.so"
    path.write_bytes(content)

    def fail(*_arguments: object) -> None:
        raise UnsupportedBinary("strip-check", "planted")

    monkeypatch.setattr(strip, "check_stripped", fail)
    with pytest.raises(UnsupportedBinary, match="planted"):
        strip.strip_library(Library.open(path), is_atomic=is_atomic)

    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_plan_strip_keeps_unknown_sections() -> None:
    library = LibrarySpec()
    content = library.build().replace(b".comment\0", b".mydata.\0")
    assert content != library.build()

    rewrite = strip.plan_strip(in_memory(content))

    assert rewrite is not None
    stripped = apply_rewrite(content, rewrite)
    section = elf.parse(stripped).section(".mydata.")
    assert section is not None
    assert stripped[section.file_offset : section.file_end] == b"GCC: (made up) 1.0\0"


@pytest.mark.parametrize(
    ("library", "reason"),
    [(LibrarySpec(appended=b"payload"), "strip-appended-bytes"), (LibrarySpec(type=1), "elf-type")],
)
def test_plan_strip_unsupported_file_raises(library: LibrarySpec, reason: str) -> None:
    with pytest.raises(UnsupportedBinary) as refusal:
        strip.plan_strip(in_memory(library.build()))

    assert refusal.value.reason == reason


def test_corrupt_files_are_stripped_correctly_or_raise() -> None:
    """If a corrupt file is stripped, the loader maps the same bytes."""
    intact = LibrarySpec(fatbin=[container(EntrySpec())], is_extended=True, has_table_segment=True).build()
    parsed = elf.parse(intact)
    tables = [*range(64 + 56 * len(parsed.segments)), *range(parsed.section_table_offset, len(intact))]
    outcomes = {"refused": 0, "planned": 0, "nothing": 0}
    for content in corrupt_copies(intact, CORRUPT_INPUTS, seed=20261, places=tables):
        try:
            library = in_memory(content)
            rewrite = strip.plan_strip(library)
            if rewrite is None:
                outcomes["nothing"] += 1
                continue
            stripped = apply_rewrite(content, rewrite)
            strip.check_stripped(library.elf, in_memory(stripped), rewrite)
        except UnsupportedBinary:
            outcomes["refused"] += 1
        else:
            outcomes["planned"] += 1
            assert mapped_bytes(stripped) == mapped_bytes(bytes(content))
    assert min(outcomes["refused"], outcomes["planned"]) > 100, outcomes


def test_strip_library_that_breaks_loading_restores_the_file(
    tmp_path: Path, gcc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib.c").write_text("int answer(void) { return 42; }")
    subprocess.run([gcc, "-g", "-shared", "-fPIC", "-o", "lib.so", "lib.c"], cwd=tmp_path, check=True)
    path = tmp_path / "lib.so"
    content = path.read_bytes()
    real = strip.plan_strip

    def plan_wrongly(library: Library) -> Rewrite | None:
        rewrite = real(library)
        assert rewrite is not None
        first = rewrite.ranges[0]
        half = CopyRange(first.old_offset, first.new_offset, first.size_bytes // 2)
        return dataclasses.replace(rewrite, ranges=(half,))

    monkeypatch.setattr(strip, "plan_strip", plan_wrongly)
    with pytest.raises(UnsupportedBinary, match="load-failed"):
        strip.strip_library(Library.open(path), is_load_checked=True)

    assert path.read_bytes() == content
