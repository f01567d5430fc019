"""Stubs are made and loaded for real: a library with versions, data and C++ copies, a program linked with it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from buildkit.binary.elf import UnsupportedBinary
from buildkit.slim.placeholders import stubs
from buildkit.slim.rules.rule_sets import choose_rules
from buildkit.slim.slim import SlimOptions, slim_tree
from tests.support.elf import Library
from tests.support.installed import SITE, install, snapshot, untrue_rows

if TYPE_CHECKING:
    from pathlib import Path

RULE = stubs.StubRule(
    name="stub-made-up",
    path="nvidia/*/libmade.so.*",
    error_code=77,
    source="this test",
    lost="all that it was",
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
    result = subprocess.run([folder / "program"], capture_output=True, text=True, check=True)
    return result.stdout, result.stderr


def test_a_program_linked_with_the_library_runs_with_its_stub(library: Path) -> None:
    assert run(library.parent) == ("2 3 5 bad 2\n", "")

    stubs.make_stub(library.read_bytes(), RULE, library)

    said = "called, but this image's profile leaves libmade.so.1 out (slim rule stub-made-up). Lost: all that it was."
    output, error = run(library.parent)
    assert output == "77 77 77 libmade.so.1 is left out of this image (slim rule stub-made-up) 0\n"
    names = ("madeErrorString", "madePlan", "madeRun")
    assert sorted(error.splitlines()) == [f"libmade.so.1: {name}: {said}" for name in names]


def test_a_stub_exports_the_c_symbols_under_their_versions_and_no_copy_of_the_runtime(library: Path) -> None:
    whole = stubs.read_exports(library.read_bytes())
    assert "_Znwm" in {export.name for export in whole}

    stubs.make_stub(library.read_bytes(), RULE, library)

    assert {
        (export.name, export.is_function, export.version) for export in stubs.read_exports(library.read_bytes())
    } == {
        ("madePlan", True, "MADE_1"),
        ("madeErrorString", True, "MADE_1"),
        ("madeRun", True, "MADE_2"),
        ("made_table", False, "MADE_2"),
    }
    assert next(e.size_bytes for e in stubs.read_exports(library.read_bytes()) if not e.is_function) == 100


def test_the_same_library_gives_the_same_stub(library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()

    stubs.make_stub(content, RULE, tmp_path / "one")
    stubs.make_stub(content, RULE, tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert stubs.is_stub((tmp_path / "one").read_bytes())
    assert not stubs.is_stub(content)


@pytest.mark.usefixtures("gcc")
def test_thread_local_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lib.c").write_text("__thread int here; int answer(void) { return here; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wl,-soname,lib.so", "-o", "lib.so", "lib.c"], cwd=tmp_path, check=True)

    with pytest.raises(UnsupportedBinary, match="stub-symbol-type"):
        stubs.make_stub((tmp_path / "lib.so").read_bytes(), RULE, tmp_path / "stub.so")

    assert not (tmp_path / "stub.so").exists()


def test_without_a_compiler_the_message_says_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(stubs.CompilerMissing, match="builder stage"):
        stubs.make_stub(Library().build(), RULE, tmp_path / "stub.so")


def test_a_slim_wants_a_compiler_only_where_there_is_something_to_stand_in_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "venv"
    install(root, "other", {"other/lib/libother.so.1": Library().build(), "other/tests/test_x.py": b""})
    choice = SlimOptions(rules=choose_rules("tests"), strips=True, stubs=(RULE,))
    monkeypatch.setenv("PATH", str(tmp_path))

    slim_tree(root, choice)
    install(root, "nvidia", {"nvidia/cu13/lib/libmade.so.1": Library().build(), "nvidia/tests/test_x.py": b""})
    before = snapshot(root)
    with pytest.raises(stubs.CompilerMissing):
        slim_tree(root, choice)

    assert snapshot(root) == before


def test_a_slim_puts_the_stub_in_place_once(library: Path, tmp_path: Path) -> None:
    root = tmp_path / "venv"
    install(root, "nvidia", {"nvidia/cu13/lib/libmade.so.1": library.read_bytes(), "nvidia/x.py": b""})
    choice = SlimOptions(rules=(), strips=True, stubs=(RULE,))

    first = slim_tree(root, choice, manifest_path=tmp_path / "slim.json")

    assert {change.path: change.steps for change in first.alterations} == {
        f"{SITE}/nvidia/cu13/lib/libmade.so.1": ("stub",),
        f"{SITE}/nvidia-1.0.dist-info/RECORD": ("record",),
    }
    assert untrue_rows(root) == []
    before = snapshot(root)
    assert slim_tree(root, choice, manifest_path=tmp_path / "slim.json") == first
    assert snapshot(root) == before


def test_every_stub_rule_says_what_is_lost_and_whence_its_code() -> None:
    assert len({rule.name for rule in stubs.STUB_RULES}) == len(stubs.STUB_RULES)
    assert all(rule.lost and rule.source for rule in stubs.STUB_RULES)
    assert stubs.choose_stubs("all") == stubs.STUB_RULES
    assert stubs.choose_stubs("none") == ()
    with pytest.raises(stubs.UnknownStub) as error:
        stubs.choose_stubs("stub-cudnn")
    assert "stub-cufft" in error.value.allowed
