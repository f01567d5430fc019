"""Finds GPU code by architecture in shared objects that the tests make."""

from pathlib import Path

import pytest

from buildkit.image.gpu_code import UNKNOWN, GpuCodeMeasurement
from tests.support.elf import EntrySpec, LibrarySpec, container
from tests.support.images import Form, LayerMaker, measure_layers

CUBIN, PTX = 2, 1
ENTRY_BYTES = 64 + 800


def library(*architectures: tuple[int, int]) -> bytes:
    entries = [EntrySpec(kind=kind, architecture=number, payload=bytes(800)) for kind, number in architectures]
    return LibrarySpec(fatbin=[container(*entries), container(entries[0])]).build()


FIRST = library((CUBIN, 90), (PTX, 120))
SECOND = library((CUBIN, 90))


def layers() -> list[LayerMaker]:
    return [
        LayerMaker().file("lib/liba.so.1", FIRST).file("lib/gone.so", FIRST).file("lib/libplain.so", "no ELF" * 1000),
        LayerMaker().file("lib/libb.so", SECOND).hardlink("lib/libc.so", "lib/libb.so").whiteout("lib/gone.so"),
    ]


def sizes(gpu_code: GpuCodeMeasurement) -> dict[str, tuple[int, int]]:
    return {each.architecture: (each.code_bytes, each.libraries) for each in gpu_code.architectures}


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_code_is_summed_by_architecture_and_library(tmp_path: Path, form: Form) -> None:
    gpu_code = measure_layers(tmp_path, *layers(), form=form).gpu_code
    assert sizes(gpu_code) == {"sm_90": (4 * ENTRY_BYTES, 2), "compute_120": (ENTRY_BYTES, 1)}
    assert [(each.path, each.layer, each.code_bytes) for each in gpu_code.libraries] == [
        ("lib/liba.so.1", 0, 3 * ENTRY_BYTES),
        ("lib/libb.so", 1, 2 * ENTRY_BYTES),
    ]
    assert gpu_code.layers_not_searched == ()


def test_cache_holds_the_code(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = measure_layers(tmp_path, *layers(), cache=cache)
    assert measure_layers(tmp_path, *layers(), cache=cache) == first


def test_compressed_layer_is_reported_as_not_searched(tmp_path: Path) -> None:
    gpu_code = measure_layers(tmp_path, *layers(), compression="zstd").gpu_code
    assert (gpu_code.architectures, gpu_code.layers_not_searched) == ((), (0, 1))


def test_unknown_code_counts_as_unknown(tmp_path: Path) -> None:
    strange = LibrarySpec(fatbin=[container(EntrySpec()), container(EntrySpec(kind=77, payload=bytes(800)))]).build()
    gpu_code = measure_layers(tmp_path, LayerMaker().file("lib/liba.so", strange)).gpu_code
    assert sizes(gpu_code) == {"sm_90": (64 + 64, 1), UNKNOWN: (16 + 64 + 800, 1)}


def test_broken_shared_object_has_no_code(tmp_path: Path) -> None:
    maker = LayerMaker().file("lib/cut.so", FIRST[: len(FIRST) // 2]).file("lib/elf.so", b"\x7fELF" + bytes(9000))
    assert measure_layers(tmp_path, maker).gpu_code.architectures == ()
