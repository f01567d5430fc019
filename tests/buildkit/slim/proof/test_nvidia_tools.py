"""Compares libraries with a fake cuobjdump, and with nvJitLink missing or replaced by a stub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit.slim.proof.nvidia_tools import compare_links, compare_listings
from tests.support.elf import EntrySpec, LibrarySpec, container

if TYPE_CHECKING:
    from pathlib import Path

PATH = "torch/lib/libtorch_cuda.so"
# Lists a cubin for each architecture whose payload is in the file.
CUOBJDUMP = """#!/bin/sh
[ "$1" = --list-elf ] || exit 0
for architecture in 80 90; do grep -q "code$architecture" "$2" && echo "ELF file 1: x.sm_$architecture.cubin"; done
exit 0
"""


def plant(root: Path, *architectures: int, listed: tuple[int, ...]) -> Path:
    """Installs a library with code for `architectures`; the fake cuobjdump finds those in `listed`."""
    entries = [EntrySpec(architecture=target) for target in architectures]
    (root / PATH).parent.mkdir(parents=True)
    text = b"".join(f"code{target}".encode() for target in listed)
    (root / PATH).write_bytes(LibrarySpec(fatbin=[container(*entries)], text=text).build())
    tool = root / "triton/bin/cuobjdump"
    tool.parent.mkdir(parents=True)
    tool.write_text(CUOBJDUMP)
    tool.chmod(0o755)
    return root


def test_compare_listings_equal_after_a_prune(tmp_path: Path) -> None:
    before = plant(tmp_path / "before", 80, 90, listed=(80, 90))
    after = plant(tmp_path / "after", 90, listed=(90,))

    assert compare_listings(before, after, [PATH]) == (1, [])


def test_compare_listings_missing_entry_is_a_difference(tmp_path: Path) -> None:
    before = plant(tmp_path / "before", 80, 90, listed=(80, 90))
    after = plant(tmp_path / "after", 90, listed=())

    listed, (difference,) = compare_listings(before, after, [PATH])

    assert listed == 1
    assert difference == f"{PATH}: cuobjdump lists {{}}, expected {{'sm_90': 1}}"


def test_missing_tools_compare_nothing(tmp_path: Path) -> None:
    assert compare_listings(tmp_path, tmp_path, [PATH]) == (0, [])
    assert compare_links(tmp_path, tmp_path, [PATH], 90) == (0, [])
