from __future__ import annotations

import random
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from buildkit.binary import elf, fatbin
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.rewrite import apply_rewrite, replace_file
from buildkit.slim.libraries import prune, strip
from buildkit.slim.libraries.check import check_pruned
from tests.support.elf import EntrySpec, Library, container
from tests.support.strategies import FLAG_A, TARGETS, libraries

if TYPE_CHECKING:
    from pathlib import Path

CORRUPT_INPUTS = 4000
HOPPER = frozenset({90})


def code(architecture: int, size_bytes: int = 9000, flags: int = 0) -> EntrySpec:
    return EntrySpec(architecture=architecture, flags=0x11 | flags, payload=bytes([architecture]) * size_bytes)


def typical() -> Library:
    """Several containers, one of them an orphan for Hopper, in both sections."""
    return Library(
        fatbin=[
            container(code(80), code(90, 3000)),
            container(code(75)),
            container(code(80), code(90, 3000, FLAG_A), code(90, 2000), code(100)),
        ],
        relocatable=[container(code(80, 20_000), code(90))],
        page_bytes=0x200000,
        has_table_segment=True,
    )


def entries_by_wrapper(content: bytes) -> list[list[bytes]]:
    """What each wrapper leads to, entry by entry."""
    fatbins = prune.read_fatbins(content)
    assert fatbins is not None
    found = {
        section.address + item.offset: [
            content[section.file_offset + entry.offset :][: entry.size_bytes] for entry in item.entries
        ]
        for section, containers in fatbins.sections
        for item in containers
    }
    return [found[address] for address in fatbins.wrappers.values()]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(libraries(), TARGETS)
def test_a_pruned_library_holds_exactly_the_kept_entries(library: Library, targets: frozenset[int]) -> None:
    content = library.build()

    plan = prune.plan_prune(content, targets)

    if plan is None:
        return
    pruned = apply_rewrite(content, plan.rewrite)
    check_pruned(content, pruned, targets)
    assert len(pruned) == plan.rewrite.bytes_after < len(content)
    contents = [*library.fatbin[library.unwrapped :], *library.relocatable]
    for before, after in zip(contents, entries_by_wrapper(pruned), strict=True):
        (whole,) = fatbin.parse_containers(before)
        all_entries = [before[entry.offset :][: entry.size_bytes] for entry in whole.entries]
        kept = [before[entry.offset :][: entry.size_bytes] for entry in fatbin.usable_entries(whole, targets)]
        assert after in (kept or all_entries, all_entries)
    assert prune.plan_prune(pruned, targets) is None
    stripped = strip.plan_strip(pruned)
    if stripped is not None:
        check_pruned(content, apply_rewrite(pruned, stripped.rewrite), targets)


def test_every_part_of_a_library_survives_its_prune() -> None:
    content = typical().build()

    plan = prune.plan_prune(content, HOPPER)

    assert plan is not None
    pruned = apply_rewrite(content, plan.rewrite)
    assert len(content) - len(pruned) > 36_000
    assert plan.removed == (
        ("sm_100", 1, 9064),
        ("sm_80", 3, 2 * 9064 + 20_064),
    )
    parsed, original = elf.parse(pruned), elf.parse(content)
    assert elf.read_dynamic_names(pruned, parsed) == elf.read_dynamic_names(content, original)
    assert len(parsed.loads) == len(original.loads) + 2
    assert [section.name for section in parsed.sections] == [section.name for section in original.sections]
    assert all(load.alignment == 4096 for load in parsed.loads)
    assert entries_by_wrapper(pruned)[1] == [code(75).pack()]  # an orphan stays whole


def test_pruning_for_fewer_targets_later_is_pruning_for_them_at_once() -> None:
    content = typical().build()
    both = prune.plan_prune(content, frozenset({80, 90}))
    assert both is not None

    first = apply_rewrite(content, both.rewrite)
    then = prune.plan_prune(first, HOPPER)

    assert then is not None
    again = apply_rewrite(first, then.rewrite)
    check_pruned(content, again, HOPPER)


def test_a_container_without_a_wrapper_stays_whole_where_it_is() -> None:
    library = typical()
    library.unwrapped = 1
    content = library.build()

    plan = prune.plan_prune(content, HOPPER)

    assert plan is not None
    pruned = apply_rewrite(content, plan.rewrite)
    check_pruned(content, pruned, HOPPER)
    section = elf.parse(pruned).section(".nv_fatbin")
    assert section is not None
    assert pruned[section.file_offset :].startswith(library.fatbin[0])


@pytest.mark.parametrize("library", [Library(), Library(fatbin=[container(code(90))])])
def test_where_nothing_is_to_gain_nothing_is_planned(library: Library) -> None:
    assert prune.plan_prune(library.build(), HOPPER) is None


def spoiled(**changes: object) -> Library:
    library = typical()
    for name, value in changes.items():
        setattr(library, name, value)
    return library


def inside(library: Library) -> int:
    section = elf.parse(library.build()).section(".nv_fatbin")
    assert section is not None
    return section.address + 16


def inside_related() -> int:
    """The same address in a library that has one relocation more."""
    return inside(spoiled(extra_relocations=[(0, 0, 0)]))


UNEXPECTED: dict[str, tuple[Library, str]] = {
    "another machine": (spoiled(machine=183), "prune-machine"),
    "an executable": (spoiled(type=2), "prune-type"),
    "two containers without wrapper": (spoiled(unwrapped=2), "prune-stray-container"),
    "zeros behind the containers": (spoiled(gap_in_fatbin=bytes(64)), "fatbin-magic"),
    "bytes behind the containers": (spoiled(gap_in_fatbin=b"tail"), "fatbin-truncated"),
    "relative relocations packed": (spoiled(extra_tags=[(36, 0x1000)]), "prune-relr"),
    "relocations without addend": (spoiled(extra_tags=[(17, 0x1000)]), "prune-rel"),
    "relocations of another size": (spoiled(extra_tags=[(9, 48)]), "prune-rela"),
    "a third of a wrapper": (spoiled(extra_wrapper=bytes(8)), "prune-wrappers"),
    "a wrapper of zeros": (spoiled(extra_wrapper=bytes(24)), "prune-wrapper-version"),
    "a wrapper of version 3": (
        spoiled(extra_wrapper=struct.pack("<IIQQ", 0x466243B1, 3, 0, 0)),
        "prune-wrapper-version",
    ),
    "a wrapper that points elsewhere": (
        spoiled(extra_wrapper=struct.pack("<IIQQ", 0x466243B1, 1, 64, 0)),
        "prune-wrapper-pointer",
    ),
    "a symbol in a container": (spoiled(exported_address=inside(typical())), "prune-exported-symbol"),
    "a pointer into a container": (spoiled(extra_relocations=[(0x40, 8, inside_related())]), "prune-stray-pointer"),
    "a relocation of a container": (
        spoiled(extra_relocations=[(inside_related(), 8, 0)]),
        "prune-relocated-container",
    ),
}


@pytest.mark.parametrize("case", UNEXPECTED)
def test_anything_else_than_expected_is_refused_by_name(case: str) -> None:
    library, reason = UNEXPECTED[case]
    with pytest.raises(UnsupportedBinary) as refusal:
        prune.plan_prune(library.build(), HOPPER)

    assert refusal.value.reason == reason


def test_a_second_pointer_into_the_containers_is_refused() -> None:
    content = bytearray(typical().build())
    section = elf.parse(content).section(prune.WRAPPER_SECTION)
    assert section is not None
    struct.pack_into("<Q", content, section.file_offset + 16, inside(typical()))

    with pytest.raises(UnsupportedBinary, match="prune-wrapper-second-pointer"):
        prune.plan_prune(content, HOPPER)


def test_a_container_that_an_instruction_names_is_refused() -> None:
    library = typical()
    content = bytearray(library.build())
    text, fat = elf.parse(content).section(".text"), elf.parse(content).section(".nv_fatbin")
    assert text is not None
    assert fat is not None

    def plan_with_pointer_to(address: int) -> prune.PrunePlan | None:
        instruction = b"\x48\x8d\x3d" + struct.pack("<i", address - (text.address + 101 + 7))
        content[text.file_offset + 101 : text.file_offset + 108] = instruction
        return prune.plan_prune(content, HOPPER)

    assert plan_with_pointer_to(fat.address) is not None  # the first does not move
    with pytest.raises(UnsupportedBinary, match="prune-code-pointer"):
        plan_with_pointer_to(fat.address + len(library.fatbin[0]))


def test_corrupt_libraries_are_refused_or_pruned_correctly() -> None:
    """Whatever the corpus holds, a plan that is made passes the comparison, and nothing but a refusal is raised."""
    chance = random.Random(20262)  # noqa: S311 - a corpus, not a secret
    whole = typical().build()
    parsed = elf.parse(whole)
    fat = [section for section in parsed.sections if section.name in fatbin.FATBIN_SECTIONS]
    wrappers = parsed.section(prune.WRAPPER_SECTION)
    rela = parsed.section(".rela.dyn")
    assert wrappers is not None
    assert rela is not None
    weak = [
        *range(64 + 56 * len(parsed.segments)),
        *range(parsed.section_table_offset, len(whole)),
        *range(wrappers.file_offset, wrappers.file_end),
        *range(rela.file_offset, rela.file_end),
        *(offset for section in fat for offset in range(section.file_offset, section.file_offset + 96)),
    ]
    outcomes = {"refused": 0, "planned": 0, "nothing": 0, "caught": 0}
    for _ in range(CORRUPT_INPUTS):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.choice(weak)] = chance.choice((0, 1, 8, 0x7F, 0xFF, chance.randrange(256)))
        if chance.random() < 0.1:
            del content[chance.randrange(len(content)) :]
        try:
            plan = prune.plan_prune(content, HOPPER)
        except UnsupportedBinary:
            outcomes["refused"] += 1
            continue
        if plan is None:
            outcomes["nothing"] += 1
            continue
        try:
            check_pruned(content, apply_rewrite(content, plan.rewrite), HOPPER)
        except UnsupportedBinary:
            outcomes["caught"] += 1  # the comparison stands before the file is replaced
        else:
            outcomes["planned"] += 1
    assert min(outcomes["refused"], outcomes["planned"]) > 100, outcomes


SOURCE = r"""
#include <stddef.h>
#include <stdint.h>
#include <string.h>
extern const char first[], second[];
__asm__(".section .nv_fatbin,\"a\",@progbits\n.balign 8\n"
        "first: .incbin \"first.bin\"\n.balign 8\nsecond: .incbin \"second.bin\"\n"
        ".hidden first\n.hidden second\n.previous\n");
struct wrapper { int magic, version; const void *data; void *unused; };
__attribute__((section(".nvFatBinSegment"), used)) struct wrapper wrappers[2] = {
    {0x466243b1, 1, first, 0}, {0x466243b1, 1, second, 0}};
static int constructed;
__attribute__((constructor)) static void construct(void) { constructed = 7; }
int answer(void) { return constructed * 6; }
uint64_t container_bytes(int index) { uint64_t size; memcpy(&size, (char *)wrappers[index].data + 8, 8); return size; }
int byte_at(int index, int offset) { return ((unsigned char *)wrappers[index].data)[offset]; }
"""


def complaints(path: Path) -> str:
    """What binutils, another reader of the same tables, has to say about a file; it comes with the compiler."""
    result = subprocess.run(["readelf", "-lSdrW", path], capture_output=True, text=True, check=True)
    return result.stderr


def test_a_real_library_loads_and_finds_its_kernels_after_prune_and_strip(tmp_path: Path, gcc: str) -> None:
    """Made by a compiler and a linker, pruned, stripped, loaded by the system's loader, asked for its containers."""
    (tmp_path / "first.bin").write_bytes(container(code(80, 40_000), code(90, 5000)))
    (tmp_path / "second.bin").write_bytes(container(code(80, 30_000), code(90, 6000)))
    (tmp_path / "lib.c").write_text(SOURCE)
    path = tmp_path / "lib.so"
    subprocess.run([gcc, "-g", "-shared", "-fPIC", "-o", path, "lib.c"], cwd=tmp_path, check=True)
    content = path.read_bytes()
    program = (
        "import ctypes, sys; lib = ctypes.CDLL(sys.argv[1]); lib.container_bytes.restype = ctypes.c_uint64;"
        "print(lib.answer(), lib.container_bytes(0), lib.container_bytes(1), lib.byte_at(0, 100), lib.byte_at(1, 100))"
    )

    def run() -> list[int]:
        result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        return [int(word) for word in result.stdout.split()]

    assert run() == [42, 40_000 + 5000 + 128, 30_000 + 6000 + 128, 80, 80]
    plan = prune.plan_prune(content, HOPPER)
    assert plan is not None
    replace_file(path, plan.rewrite, lambda new: check_pruned(content, new.read_bytes(), HOPPER))
    assert run() == [42, 5064, 6064, 90, 90]
    assert complaints(path) == ""
    assert strip.strip_file(path) is not None
    assert run() == [42, 5064, 6064, 90, 90]
    assert complaints(path) == ""
    assert path.stat().st_size < len(content) - 60_000
