"""Reads the GPU code of synthetic libraries; unsupported ones are tested with the prune."""

from __future__ import annotations

from tests.support.elf import EntrySpec, LibrarySpec, container, in_memory

SMALL, LARGE = container(EntrySpec()), container(EntrySpec(payload=bytes(4096)))


def test_gpu_sections_map_wrappers_to_containers() -> None:
    gpu_sections = in_memory(LibrarySpec(fatbin=[SMALL, LARGE], relocatable=[SMALL]).build()).gpu_sections

    assert gpu_sections is not None
    assert [section.name for section, _ in gpu_sections.sections] == ["__nv_relfatbin", ".nv_fatbin"]
    addresses = [section.address + item.offset for section, containers in gpu_sections.sections for item in containers]
    assert sorted(gpu_sections.wrappers.values()) == sorted(addresses)
    pointers = {gpu_sections.pointer_address(offset) for offset in gpu_sections.wrappers}
    assert pointers == gpu_sections.relocations.keys()


def test_gpu_sections_without_gpu_code_is_none() -> None:
    assert in_memory(LibrarySpec().build()).gpu_sections is None
