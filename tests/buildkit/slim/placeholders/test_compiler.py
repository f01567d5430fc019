from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

from buildkit.binary.elf import UnsupportedBinary, parse, read_dynamic_names
from buildkit.slim.placeholders.compiler import CompilerMissing, c_string, compile_library, find_compiler

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.usefixtures("gcc")
def test_compile_library_has_its_soname_and_strings(tmp_path: Path) -> None:
    text = 'a "quoted" \\ text'
    source = f"const char *text(void) {{ return {c_string(text)}; }}"

    made = compile_library({"text.c": source}, soname="libtext.so.1")

    assert read_dynamic_names(made, parse(made)).soname == "libtext.so.1"
    (tmp_path / "libtext.so").write_bytes(made)
    function = ctypes.CDLL(str(tmp_path / "libtext.so")).text
    function.restype = ctypes.c_char_p
    assert function() == text.encode()
    assert compile_library({"text.c": source}, soname="libtext.so.1") == made


@pytest.mark.usefixtures("gcc")
def test_compile_library_invalid_source_raises() -> None:
    with pytest.raises(UnsupportedBinary, match="stub-compile"):
        compile_library({"bad.c": "int x = ;"}, soname="libbad.so")


def test_find_compiler_without_one_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CompilerMissing, match="builder stage") as error:
        find_compiler()

    assert error.value.exit_code == 3
