from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.library import Library
from buildkit.slim.libraries.loadcheck import check_loads, load_error
from tests.support.elf import LibrarySpec


@pytest.fixture
def library(tmp_path: Path, gcc: str) -> Path:
    (tmp_path / "lib.c").write_text("int answer(void) { return 42; }")
    subprocess.run([gcc, "-g", "-shared", "-fPIC", "-o", "lib.so", "lib.c"], cwd=tmp_path, check=True)
    return tmp_path / "lib.so"


def test_load_error_loadable_library_is_none(library: Path) -> None:
    assert load_error(Library.open(library)) is None


def test_load_error_executable_is_verified_without_running() -> None:
    assert load_error(Library.open(Path(sys.executable).resolve())) is None


def test_check_loads_missing_dependency_raises(tmp_path: Path, library: Path) -> None:
    changed = tmp_path / "changed.so"
    changed.write_bytes(LibrarySpec().build())  # needs libneeded.so.1, which does not exist

    with pytest.raises(UnsupportedBinary, match=r"load-failed: .*libneeded\.so\.1"):
        check_loads(Library.open(library), Library.open(changed))


def test_check_loads_original_does_not_load_passes(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(LibrarySpec().build())

    check_loads(Library.open(path), Library.open(path))
