from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from buildkit.binary import elf
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.rewrite import apply_rewrite
from buildkit.slim.libraries import strip
from tests.support.elf import EntrySpec, Library, container, mapped
from tests.support.strategies import libraries

if TYPE_CHECKING:
    from pathlib import Path

CORRUPT_INPUTS = 4000


@given(libraries())
def test_what_is_mapped_stays_the_same_and_symbols_are_gone(library: Library) -> None:
    content = library.build()

    plan = strip.plan_strip(content)

    if plan is None:
        assert not library.has_symbols
        return
    stripped = apply_rewrite(content, plan.rewrite)
    parsed = elf.parse(stripped)
    assert mapped(stripped) == mapped(content)
    assert not {".symtab", ".strtab", ".debug_info", ".comment"} & {section.name for section in parsed.sections}
    assert [s.name for s in parsed.sections if s.is_allocated] == [
        s.name for s in elf.parse(content).sections if s.is_allocated
    ]
    assert elf.read_dynamic_names(stripped, parsed) == elf.read_dynamic_names(content, elf.parse(content))
    if not library.is_extended and library.has_symbols:
        assert len(stripped) <= len(content) - 10_240 - 24 * 300  # at least .debug_info and .symtab
    assert len(stripped) <= len(content)
    assert strip.plan_strip(stripped) is None


@pytest.mark.parametrize("is_extended", [False, True])
@pytest.mark.parametrize("is_atomic", [False, True])
def test_both_ways_of_writing_give_the_planned_bytes(tmp_path: Path, *, is_extended: bool, is_atomic: bool) -> None:
    content = Library(is_extended=is_extended).build()
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    path.chmod(0o750)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    inode = path.stat().st_ino

    plan = strip.strip_file(path, is_atomic=is_atomic)

    assert plan is not None
    assert path.read_bytes() == apply_rewrite(content, plan.rewrite)
    assert (path.stat().st_mode & 0o7777, path.stat().st_mtime_ns) == (0o750, 1_600_000_000_123_456_789)
    assert (path.stat().st_ino == inode) is not is_atomic
    assert strip.strip_file(path, is_atomic=is_atomic) is None
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_a_cache_shares_is_replaced_and_the_cache_left_alone(tmp_path: Path) -> None:
    content = Library().build()
    (tmp_path / "cached.so").write_bytes(content)
    os.link(tmp_path / "cached.so", tmp_path / "lib.so")

    assert strip.strip_file(tmp_path / "lib.so") is not None

    assert (tmp_path / "cached.so").read_bytes() == content
    assert (tmp_path / "lib.so").stat().st_size < len(content)


@pytest.mark.parametrize("is_atomic", [False, True])
@pytest.mark.parametrize("is_extended", [False, True])
def test_a_failed_check_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_extended: bool, is_atomic: bool
) -> None:
    content = Library(is_extended=is_extended).build()
    path = tmp_path / "lib.so"
    path.write_bytes(content)

    def fail(*_arguments: object) -> None:
        raise UnsupportedBinary("strip-check", "planted")

    monkeypatch.setattr(strip, "_check_stripped", fail)
    with pytest.raises(UnsupportedBinary, match="planted"):
        strip.strip_file(path, is_atomic=is_atomic)

    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_sections_that_a_program_may_read_from_its_own_file_stay() -> None:
    library = Library()
    content = library.build().replace(b".comment\0", b".mydata.\0")
    assert content != library.build()

    plan = strip.plan_strip(content)

    assert plan is not None
    stripped = apply_rewrite(content, plan.rewrite)
    section = elf.parse(stripped).section(".mydata.")
    assert section is not None
    assert stripped[section.file_offset : section.file_end] == b"GCC: (made up) 1.0\0"


@pytest.mark.parametrize(
    ("library", "reason"),
    [(Library(appended=b"payload"), "strip-appended-bytes"), (Library(type=1), "elf-type")],
)
def test_what_must_not_be_stripped_is_refused(library: Library, reason: str) -> None:
    with pytest.raises(UnsupportedBinary) as refusal:
        strip.plan_strip(library.build())

    assert refusal.value.reason == reason


def test_corrupt_files_are_refused_or_stripped_and_never_changed_otherwise() -> None:
    """A plan for a corrupt file is as good as one for a whole file: the loader sees the same bytes."""
    chance = random.Random(20261)  # noqa: S311 - a corpus, not a secret
    whole = Library(fatbin=[container(EntrySpec())], is_extended=True, has_table_segment=True).build()
    parsed = elf.parse(whole)
    tables = [*range(64 + 56 * len(parsed.segments)), *range(parsed.section_table_offset, len(whole))]
    outcomes = {"refused": 0, "planned": 0, "nothing": 0}
    for _ in range(CORRUPT_INPUTS):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.choice(tables)] = chance.choice((0, 1, 8, 0x7F, 0xFF, chance.randrange(256)))
        if chance.random() < 0.1:
            del content[chance.randrange(len(content)) :]
        try:
            plan = strip.plan_strip(content)
            if plan is None:
                outcomes["nothing"] += 1
                continue
            stripped = apply_rewrite(content, plan.rewrite)
            strip._check_stripped(stripped, plan.rewrite, elf.parse(content))
        except UnsupportedBinary:
            outcomes["refused"] += 1
        else:
            outcomes["planned"] += 1
            assert mapped(stripped) == mapped(bytes(content))
    assert min(outcomes["refused"], outcomes["planned"]) > 100, outcomes
