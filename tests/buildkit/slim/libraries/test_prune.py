from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from buildkit.binary import elf, fatbin
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.gpu_sections import WRAPPER_SECTION
from buildkit.binary.library import Library
from buildkit.binary.rewrite import apply_rewrite
from buildkit.slim.libraries import prune, strip
from buildkit.slim.libraries.check import check_pruned
from tests.support.corruption import corrupt_copies
from tests.support.elf import LibrarySpec, container, cubin, in_memory
from tests.support.strategies import FLAG_A, TARGETS, libraries

if TYPE_CHECKING:
    from pathlib import Path

CORRUPT_INPUTS = 4000
HOPPER = frozenset({90})


def typical() -> LibrarySpec:
    """Several containers in both sections; one has no code for Hopper."""
    return LibrarySpec(
        fatbin=[
            container(cubin(80), cubin(90, 3000)),
            container(cubin(75)),
            container(cubin(80), cubin(90, 3000, FLAG_A), cubin(90, 2000), cubin(100)),
        ],
        relocatable=[container(cubin(80, 20_000), cubin(90))],
        page_bytes=0x200000,
        has_table_segment=True,
    )


def entries_by_wrapper(content: bytes) -> list[list[bytes]]:
    """Returns the entries of each wrapper's container."""
    gpu_sections = in_memory(content).gpu_sections
    assert gpu_sections is not None
    found = {
        section.address + item.offset: [
            content[section.file_offset + entry.offset :][: entry.size_bytes] for entry in item.entries
        ]
        for section, containers in gpu_sections.sections
        for item in containers
    }
    return [found[address] for address in gpu_sections.wrappers.values()]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(libraries(), TARGETS)
def test_plan_prune_keeps_exactly_the_usable_entries(library: LibrarySpec, targets: frozenset[int]) -> None:
    content = library.build()

    plan = prune.plan_prune(in_memory(content), targets)

    if plan is None:
        return
    pruned = apply_rewrite(content, plan.rewrite)
    check_pruned(in_memory(content), in_memory(pruned), targets)
    assert len(pruned) == plan.rewrite.bytes_after < len(content)
    contents = [*library.fatbin[library.unwrapped :], *library.relocatable]
    for before, after in zip(contents, entries_by_wrapper(pruned), strict=True):
        (parsed,) = fatbin.parse_containers(before)
        all_entries = [before[entry.offset :][: entry.size_bytes] for entry in parsed.entries]
        kept = [before[entry.offset :][: entry.size_bytes] for entry in fatbin.usable_entries(parsed, targets)]
        assert after in (kept or all_entries, all_entries)
    assert prune.plan_prune(in_memory(pruned), targets) is None
    strip_rewrite = strip.plan_strip(in_memory(pruned))
    if strip_rewrite is not None:
        check_pruned(in_memory(content), in_memory(apply_rewrite(pruned, strip_rewrite)), targets)


def test_plan_prune_keeps_tables_and_segments() -> None:
    content = typical().build()

    plan = prune.plan_prune(in_memory(content), HOPPER)

    assert plan is not None
    pruned = apply_rewrite(content, plan.rewrite)
    assert len(content) - len(pruned) > 36_000
    assert plan.removed == {"sm_100": (1, 9064), "sm_80": (3, 2 * 9064 + 20_064)}
    parsed, original = elf.parse(pruned), elf.parse(content)
    assert elf.read_dynamic_names(pruned, parsed) == elf.read_dynamic_names(content, original)
    assert len(parsed.loads) == len(original.loads) + 2
    assert [section.name for section in parsed.sections] == [section.name for section in original.sections]
    assert all(load.alignment == 4096 for load in parsed.loads)
    assert entries_by_wrapper(pruned)[1] == [cubin(75).pack()]  # a container without usable code stays complete


def test_plan_prune_twice_equals_pruning_once() -> None:
    content = typical().build()
    both = prune.plan_prune(in_memory(content), frozenset({80, 90}))
    assert both is not None

    first = apply_rewrite(content, both.rewrite)
    then = prune.plan_prune(in_memory(first), HOPPER)

    assert then is not None
    again = apply_rewrite(first, then.rewrite)
    check_pruned(in_memory(content), in_memory(again), HOPPER)


def test_plan_prune_leaves_container_without_wrapper() -> None:
    library = typical()
    library.unwrapped = 1
    content = library.build()

    plan = prune.plan_prune(in_memory(content), HOPPER)

    assert plan is not None
    pruned = apply_rewrite(content, plan.rewrite)
    check_pruned(in_memory(content), in_memory(pruned), HOPPER)
    section = elf.parse(pruned).section(".nv_fatbin")
    assert section is not None
    assert pruned[section.file_offset :].startswith(library.fatbin[0])


@pytest.mark.parametrize("library", [LibrarySpec(), LibrarySpec(fatbin=[container(cubin(90))])])
def test_plan_prune_nothing_to_free_is_none(library: LibrarySpec) -> None:
    assert prune.plan_prune(in_memory(library.build()), HOPPER) is None


def spoiled(**changes: object) -> LibrarySpec:
    library = typical()
    for name, value in changes.items():
        setattr(library, name, value)
    return library


def inside(library: LibrarySpec) -> int:
    section = elf.parse(library.build()).section(".nv_fatbin")
    assert section is not None
    return section.address + 16


def inside_related() -> int:
    """Returns the same address in a library with one more relocation."""
    return inside(spoiled(extra_relocations=[(0, 0, 0)]))


UNEXPECTED: dict[str, tuple[LibrarySpec, str]] = {
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
def test_plan_prune_unsupported_library_raises(case: str) -> None:
    library, reason = UNEXPECTED[case]
    with pytest.raises(UnsupportedBinary) as refusal:
        prune.plan_prune(in_memory(library.build()), HOPPER)

    assert refusal.value.reason == reason


def test_plan_prune_second_pointer_raises() -> None:
    content = bytearray(typical().build())
    section = elf.parse(content).section(WRAPPER_SECTION)
    assert section is not None
    struct.pack_into("<Q", content, section.file_offset + 16, inside(typical()))

    with pytest.raises(UnsupportedBinary, match="prune-wrapper-second-pointer"):
        prune.plan_prune(in_memory(content), HOPPER)


def test_plan_prune_container_named_by_code_raises() -> None:
    library = typical()
    content = bytearray(library.build())
    text, fat = elf.parse(content).section(".text"), elf.parse(content).section(".nv_fatbin")
    assert text is not None
    assert fat is not None

    def plan_with_pointer_to(address: int) -> prune.PrunePlan | None:
        instruction = b"\x48\x8d\x3d" + struct.pack("<i", address - (text.address + 101 + 7))
        content[text.file_offset + 101 : text.file_offset + 108] = instruction
        return prune.plan_prune(in_memory(content), HOPPER)

    assert plan_with_pointer_to(fat.address) is not None  # the first does not move
    with pytest.raises(UnsupportedBinary, match="prune-code-pointer"):
        plan_with_pointer_to(fat.address + len(library.fatbin[0]))


def test_corrupt_libraries_are_pruned_correctly_or_raise() -> None:
    """Each corrupt library is pruned so that the check passes, or raises UnsupportedBinary."""
    intact = typical().build()
    parsed = elf.parse(intact)
    fat = [section for section in parsed.sections if section.name in fatbin.FATBIN_SECTIONS]
    wrappers = parsed.section(WRAPPER_SECTION)
    rela = parsed.section(".rela.dyn")
    assert wrappers is not None
    assert rela is not None
    weak = [
        *range(64 + 56 * len(parsed.segments)),
        *range(parsed.section_table_offset, len(intact)),
        *range(wrappers.file_offset, wrappers.file_end),
        *range(rela.file_offset, rela.file_end),
        *(offset for section in fat for offset in range(section.file_offset, section.file_offset + 96)),
    ]
    outcomes = {"refused": 0, "planned": 0, "nothing": 0, "caught": 0}
    for content in corrupt_copies(intact, CORRUPT_INPUTS, seed=20262, places=weak):
        try:
            plan = prune.plan_prune(in_memory(content), HOPPER)
        except UnsupportedBinary:
            outcomes["refused"] += 1
            continue
        if plan is None:
            outcomes["nothing"] += 1
            continue
        try:
            check_pruned(in_memory(content), in_memory(apply_rewrite(content, plan.rewrite)), HOPPER)
        except UnsupportedBinary:
            outcomes["caught"] += 1  # the check runs before the file is replaced
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
    """Returns the warnings of binutils, another reader of the same tables, about a file."""
    result = subprocess.run(["readelf", "-lSdrW", path], capture_output=True, text=True, check=True)
    return result.stderr


def test_compiled_library_works_after_prune_and_strip(tmp_path: Path, gcc: str) -> None:
    """A library from a compiler and a linker loads and finds its containers after both steps."""
    (tmp_path / "first.bin").write_bytes(container(cubin(80, 40_000), cubin(90, 5000)))
    (tmp_path / "second.bin").write_bytes(container(cubin(80, 30_000), cubin(90, 6000)))
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
    pruned = prune.prune_library(Library.open(path), HOPPER, is_load_checked=True)
    assert pruned is not None
    library, removed = pruned
    assert removed == {"sm_80": (2, 70_128)}
    assert run() == [42, 5064, 6064, 90, 90]
    assert complaints(path) == ""
    assert strip.strip_library(library) is not None
    assert run() == [42, 5064, 6064, 90, 90]
    assert complaints(path) == ""
    assert path.stat().st_size < len(content) - 60_000
