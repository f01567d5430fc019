from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from buildkit.binary.library import Library
from buildkit.binary.symbols import Export

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = "int table[4] = {1}; int answer(void) { return 42; } static int hidden(void) { return answer(); }"


@pytest.mark.parametrize("version", [None, "MADE_1"])
def test_read_exports_returns_symbols_with_versions(tmp_path: Path, gcc: str, version: str | None) -> None:
    (tmp_path / "lib.c").write_text(SOURCE)
    (tmp_path / "lib.map").write_text(f"{version} {{ global: answer; table; }};")
    command = [gcc, "-shared", "-fPIC", "-o", "lib.so", "lib.c"]
    command += ["-Wl,--version-script=lib.map"] if version else []
    subprocess.run(command, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)

    exports = {export.name: export for export in Library.open(tmp_path / "lib.so").exports}

    assert exports.keys() == {"answer", "table"}
    assert exports["table"] == Export("table", is_function=False, size_bytes=16, version=version, is_default=True)
    assert (exports["answer"].is_function, exports["answer"].version) == (True, version)
