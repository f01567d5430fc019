from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.binary import library as library_module
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.library import Library
from tests.support.elf import EntrySpec, LibrarySpec, container

if TYPE_CHECKING:
    from pathlib import Path


def test_library_parses_each_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(LibrarySpec(fatbin=[container(EntrySpec())]).build())
    calls: list[str] = []

    def count(name: str) -> None:
        real = getattr(library_module, name)

        def counted(*arguments: object) -> object:
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(library_module, name, counted)

    for name in ("map_file", "parse", "read_gpu_sections", "read_exports"):
        count(name)

    library = Library.open(path)
    for _ in range(2):
        assert library.gpu_sections is not None
        assert [export.name for export in library.exports] == ["exported"]
    moved = library.moved_to(tmp_path / "moved.so")

    assert (moved.path.name, moved.elf, moved.gpu_sections) == ("moved.so", library.elf, library.gpu_sections)
    assert calls == ["map_file", "parse", "read_gpu_sections", "read_exports"]


def test_library_open_short_file_raises(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_bytes(b"\x7fELF")

    with pytest.raises(UnsupportedBinary, match="elf-truncated"):
        Library.open(tmp_path / "lib.so")
