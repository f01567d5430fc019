"""Plants each fault that a wrong prune could make; the check must report it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from buildkit.binary import elf
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.rewrite import apply_rewrite
from buildkit.slim.libraries import prune
from buildkit.slim.libraries.check import check_pruned
from tests.support.elf import LibrarySpec, container, cubin, in_memory

if TYPE_CHECKING:
    from collections.abc import Callable

HOPPER = frozenset({90})


LIBRARY = LibrarySpec(
    fatbin=[
        container(cubin(75, 64)),
        container(cubin(80, 9000), cubin(90, 3000)),
        container(cubin(80, 9000), cubin(90, 2000)),
    ],
    unwrapped=1,
    has_table_segment=True,
)
ORIGINAL = LIBRARY.build()


def pruned() -> bytearray:
    plan = prune.plan_prune(in_memory(ORIGINAL), HOPPER)
    assert plan is not None
    return bytearray(apply_rewrite(ORIGINAL, plan.rewrite))


def at(content: bytearray, name: str) -> int:
    section = elf.parse(content).section(name)
    assert section is not None
    return section.file_offset


def slot(content: bytearray, index: int) -> int:
    return elf.parse(content).segment_table_offset + 56 * index


def flip(name: str, offset: int) -> Callable[[bytearray], None]:
    def plant(content: bytearray) -> None:
        content[at(content, name) + offset] ^= 0xFF

    return plant


def swap_wrappers(content: bytearray) -> None:
    start, rela = at(content, ".nvFatBinSegment"), at(content, ".rela.dyn")
    for first, second in ((start + 8, start + 32), (rela + 16, rela + 40)):
        content[first : first + 8], content[second : second + 8] = (
            content[second : second + 8],
            content[first : first + 8],
        )


def forget_addend(content: bytearray) -> None:
    offset = at(content, ".rela.dyn") + 16
    other = at(content, ".rela.dyn") + 40
    content[offset : offset + 8] = content[other : other + 8]


def change_rights(content: bytearray) -> None:
    struct.pack_into("<I", content, slot(content, 1) + 4, 7)


def lose_table(content: bytearray) -> None:
    struct.pack_into("<Q", content, slot(content, 0) + 16, 64)


def shorten_segment(content: bytearray) -> None:
    offset = slot(content, 2)
    file_bytes, memory_bytes = struct.unpack_from("<QQ", content, offset + 32)
    struct.pack_into("<QQ", content, offset + 32, file_bytes - 8, memory_bytes)


def forget_stack(content: bytearray) -> None:
    struct.pack_into("<I", content, slot(content, 5) + 4, 7)


def test_correct_prune_passes() -> None:
    check_pruned(in_memory(ORIGINAL), in_memory(pruned()), HOPPER)


FAULTS: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "a changed byte before the containers": (flip(".text", 5), "compare-bytes"),
    "a changed byte behind the containers": (flip(".rodata", 900), "compare-bytes"),
    "a changed byte of data": (flip(".data", 0), "compare-bytes"),
    "a changed library name": (flip(".dynstr", 3), "compare-bytes"),
    "a changed container without a wrapper": (flip(".nv_fatbin", 16 + 64 + 3), "compare-entries"),
    "a changed kernel": (flip(".nv_fatbin", 16 + 128 + 16 + 64 + 100), "compare-entries"),
    "two wrappers swapped": (swap_wrappers, "compare-entries"),
    "an addend not rewritten": (forget_addend, "compare-addend"),
    "a segment writable and executable": (change_rights, "compare-segments"),
    "a wrong address of the segment table": (lose_table, "compare-segment-table"),
    "a segment cut short": (shorten_segment, "compare-unmapped"),
    "an executable stack": (forget_stack, "compare-segments"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_raises(fault: str) -> None:
    plant, reason = FAULTS[fault]
    content = pruned()
    plant(content)

    with pytest.raises(UnsupportedBinary) as refusal:
        check_pruned(in_memory(ORIGINAL), in_memory(content), HOPPER)

    assert refusal.value.reason == reason


def test_missing_kernels_raise() -> None:
    with pytest.raises(UnsupportedBinary, match="compare-entries"):
        check_pruned(in_memory(ORIGINAL), in_memory(pruned()), frozenset({80}))
