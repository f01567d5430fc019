from __future__ import annotations

from buildkit.slim.libraries.packing import pack_gpu_code
from tests.support.elf import LibrarySpec, container, cubin, in_memory

HOPPER = frozenset({90})


def test_pack_gpu_code_places_containers_and_counts_entries() -> None:
    spec = LibrarySpec(fatbin=[container(cubin(80), cubin(90)), container(cubin(75)), container(cubin(80), cubin(90))])

    packing = pack_gpu_code(in_memory(spec.build()), HOPPER)

    assert packing is not None
    (packed,) = packing.sections
    assert [[entry.name for entry in entries] for _, entries in packed.kept] == [["sm_90"], ["sm_75"], ["sm_90"]]
    assert packed.starts == (0, 16 + 9064, 2 * (16 + 9064))
    assert packing.removed_entries() == {"sm_80": (2, 2 * 9064)}
    assert packing.freed_bytes == packed.cut_end - packed.cut_start > 0
    assert packing.freed_bytes % packing.page_bytes == 0
    assert packing.shifted(packed.cut_end) == packed.cut_start
    assert len(packing.moved_containers()) == 2


def test_pack_gpu_code_nothing_to_free_is_none() -> None:
    assert pack_gpu_code(in_memory(LibrarySpec().build()), HOPPER) is None
    assert pack_gpu_code(in_memory(LibrarySpec(fatbin=[container(cubin(90))]).build()), HOPPER) is None
