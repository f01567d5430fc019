"""Makes stub libraries and loads them into programs that were linked with the original."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.library import Library
from buildkit.slim.placeholders.compiler import CompilerMissing
from buildkit.slim.placeholders.kinds import is_placeholder
from buildkit.slim.placeholders.stubs import StubRule, stub_library
from buildkit.slim.rules.options import SlimOptions
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import slim_tree
from tests.support.elf import LibrarySpec, in_memory
from tests.support.installed import SITE, install, snapshot, untrue_rows

if TYPE_CHECKING:
    from pathlib import Path

RULE = StubRule(
    name="stub-made-up",
    path="nvidia/*/libmade.so.*",
    error_code=77,
    source="this test",
    lost="all its functions",
    texts=("madeErrorString",),
)
SOURCE = r"""
int madePlan(int size) { return size + 1; }
int madeRun(void) { return 5; }
const char *madeErrorString(int code) { return code ? "bad" : "good"; }
int made_table[25] = {1, 2, 3};
__attribute__((weak)) void *_Znwm(unsigned long size) { return (void *)size; }
"""
VERSIONS = "MADE_1 { global: madePlan; madeErrorString; }; MADE_2 { global: madeRun; made_table; };"
PROGRAM = r"""
#include <stdio.h>
int madePlan(int), madeRun(void);
const char *madeErrorString(int);
extern int made_table[25];
int main(void) {
    printf("%d %d %d %s %d\n", madePlan(1), madePlan(2), madeRun(), madeErrorString(1), made_table[1]);
    return 0;
}
"""


@pytest.fixture
def library(tmp_path: Path, gcc: str) -> Path:
    """libmade.so.1, its versions, and a program that was linked with it."""
    (tmp_path / "made.c").write_text(SOURCE)
    (tmp_path / "made.map").write_text(VERSIONS)
    (tmp_path / "program.c").write_text(PROGRAM)
    shared = ["-shared", "-fPIC", "-Wl,-soname,libmade.so.1", "-Wl,--version-script=made.map"]
    subprocess.run([gcc, *shared, "-o", "libmade.so.1", "made.c"], cwd=tmp_path, check=True)
    subprocess.run(
        [gcc, "-o", "program", "program.c", "./libmade.so.1", "-Wl,-rpath,$ORIGIN"], cwd=tmp_path, check=True
    )
    return tmp_path / "libmade.so.1"


def run(folder: Path) -> tuple[str, str]:
    """Returns the standard output and error of the program."""
    result = subprocess.run([folder / "program"], capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


def test_stub_library_linked_program_runs(library: Path) -> None:
    assert run(library.parent) == ("2 3 5 bad 2\n", "")

    library.write_bytes(stub_library(in_memory(library.read_bytes()), RULE))

    message = "libmade.so.1 was removed from this installation (slim rule stub-made-up). Lost: all its functions."
    output, error = run(library.parent)
    assert output == f"77 77 77 {message} 0\n"
    names = ("madeErrorString", "madePlan", "madeRun")
    assert sorted(error.splitlines()) == [f"{name} was called, but {message}" for name in names]


def test_stub_library_exports_versioned_c_symbols_only(library: Path) -> None:
    original = Library.open(library)
    assert "_Znwm" in {export.name for export in original.exports}

    stub = in_memory(stub_library(original, RULE))

    assert {(export.name, export.is_function, export.version) for export in stub.exports} == {
        ("madePlan", True, "MADE_1"),
        ("madeErrorString", True, "MADE_1"),
        ("madeRun", True, "MADE_2"),
        ("made_table", False, "MADE_2"),
    }
    assert next(export.size_bytes for export in stub.exports if not export.is_function) == 100


def test_stub_library_same_library_gives_same_bytes(library: Path) -> None:
    original = Library.open(library)

    stub = stub_library(original, RULE)

    assert stub_library(original, RULE) == stub
    assert is_placeholder(stub)
    assert not is_placeholder(original.content)


def test_stub_library_thread_local_data_raises(tmp_path: Path, gcc: str) -> None:
    (tmp_path / "lib.c").write_text("__thread int here; int answer(void) { return here; }")
    subprocess.run([gcc, "-shared", "-fPIC", "-Wl,-soname,lib.so", "-o", "lib.so", "lib.c"], cwd=tmp_path, check=True)

    with pytest.raises(UnsupportedBinary, match="stub-symbol-type"):
        stub_library(Library.open(tmp_path / "lib.so"), RULE)


def test_slim_tree_without_compiler_raises_only_for_stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "venv"
    install(root, "other", {"other/lib/libother.so.1": LibrarySpec().build(), "other/tests/test_x.py": b""})
    choice = SlimOptions(rules=choose_rules("tests"), strips=True, stubs=(RULE,))
    monkeypatch.setenv("PATH", str(tmp_path))

    slim_tree(root, choice)
    install(root, "nvidia", {"nvidia/cu13/lib/libmade.so.1": LibrarySpec().build(), "nvidia/tests/test_x.py": b""})
    before = snapshot(root)
    with pytest.raises(CompilerMissing):
        slim_tree(root, choice)

    assert snapshot(root) == before


def test_slim_tree_second_run_keeps_the_stub(library: Path, tmp_path: Path) -> None:
    root = tmp_path / "venv"
    install(root, "nvidia", {"nvidia/cu13/lib/libmade.so.1": library.read_bytes(), "nvidia/x.py": b""})
    choice = SlimOptions(rules=(), strips=True, stubs=(RULE,))

    first = slim_tree(root, choice, manifest_path=tmp_path / "slim.json")

    assert {change.path: change.steps for change in first.changes} == {
        f"{SITE}/nvidia/cu13/lib/libmade.so.1": ("stub",),
        f"{SITE}/nvidia-1.0.dist-info/RECORD": ("record",),
    }
    assert untrue_rows(root) == []
    before = snapshot(root)
    assert slim_tree(root, choice, manifest_path=tmp_path / "slim.json") == first
    assert snapshot(root) == before
