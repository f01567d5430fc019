from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

from tests.support.elf import make_elf

if TYPE_CHECKING:
    from pathlib import Path


def test_make_elf_loads(tmp_path: Path) -> None:
    path = tmp_path / "libmade.so"
    path.write_bytes(make_elf(soname="libmade.so", needed=["libc.so.6"], sections=[(".symtab", bytes(24))]))
    ctypes.CDLL(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (make_elf(needed=["libnowhere.so.1"]), "libnowhere.so.1: cannot open"),
        (make_elf(undefined=["nowhere"]), "undefined symbol: nowhere"),
        (make_elf()[:100], "file too short|cannot read file data"),
    ],
    ids=["missing library", "missing symbol", "cut short"],
)
def test_make_elf_broken_file_does_not_load(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "libbroken.so"
    path.write_bytes(content)
    with pytest.raises(OSError, match=message):
        ctypes.CDLL(str(path))
