"""Tests the programs that run inside an image, on generated files and on programs of this machine."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from checks.facts import SharedObject
from checks.programs import filesystem
from tests.checks.faults import PLACEHOLDERS
from tests.support.elf import gpu_code, make_elf

PROGRAMS = Path(filesystem.__file__).parent


def facts_of(path: Path) -> dict[str, object]:
    with path.open("rb") as source:
        return filesystem.elf_facts(source)


def test_facts_of_a_shared_object_are_read(tmp_path: Path) -> None:
    path = tmp_path / "liba.so"
    sections = [(".symtab", bytes(48)), (".debug_info", bytes(10)), (".nv_fatbin", gpu_code(90, 80) + gpu_code(120))]
    path.write_bytes(
        make_elf(soname="liba.so.1", needed=["libc.so.6", "libb.so"], runpath="$ORIGIN", sections=sections)
    )
    assert facts_of(path) == {
        "is_executable": False,
        "symbol_sections": [".symtab", ".debug_info"],
        "symbol_bytes": 58,
        "cubin_targets": ["sm_120", "sm_80", "sm_90"],
        "needed": ["libc.so.6", "libb.so"],
        "soname": "liba.so.1",
        "rpath": None,
        "runpath": "$ORIGIN",
    }


def test_unloadable_placeholder_is_recognized(tmp_path: Path) -> None:
    recognized = {}
    for name, content in PLACEHOLDERS.items():
        path = tmp_path / Path(name).name
        path.write_bytes(content)
        facts = facts_of(path)
        recognized[path.name] = SharedObject(str(path), needed=tuple(facts["needed"])).is_unloadable_placeholder  # type: ignore[arg-type]
    assert recognized == {name.rpartition("/")[2]: "refused" in name for name in PLACEHOLDERS}
    assert not SharedObject("libx.so", needed=("libnowhere.so.1",)).is_unloadable_placeholder


def test_truncated_file_is_corrupt(tmp_path: Path) -> None:
    whole = make_elf(soname="liba.so.1", needed=["libc.so.6"], sections=[(".nv_fatbin", gpu_code(90))])
    path = tmp_path / "liba.so"
    for size in range(64, len(whole)):
        path.write_bytes(whole[:size])
        objects: list[dict[str, object]] = []
        filesystem.inspect(str(path), size, objects, {})
        assert objects[0].get("is_corrupt"), f"cut at {size} of {len(whole)}"


def test_fat_binary_entry_without_length_is_corrupt(tmp_path: Path) -> None:
    """An entry without length must not cause an infinite loop."""
    container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + bytes(64)
    path = tmp_path / "liba.so"
    path.write_bytes(make_elf(sections=[(".nv_fatbin", container)]))
    with pytest.raises(filesystem.Corrupt):
        facts_of(path)


def test_debugger_scripts_are_not_symbols(tmp_path: Path) -> None:
    path = tmp_path / "liba.so"
    path.write_bytes(make_elf(sections=[(".debug_gdb_scripts", bytes(34))]))
    assert facts_of(path)["symbol_sections"] == []


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf is not installed")
def test_needed_and_soname_equal_those_of_readelf() -> None:
    libraries = [path for path in Path(sysconfig.get_path("platlib")).rglob("*.so*") if path.is_file()][:40]
    assert libraries
    for path in libraries:
        shown = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
        facts = facts_of(path)
        assert facts["needed"] == re.findall(r"\(NEEDED\).*\[(.*)\]", shown)
        assert [facts["soname"]] == (re.findall(r"\(SONAME\).*\[(.*)\]", shown) or [None])


@pytest.mark.parametrize(
    ("program", "tool"),
    [
        ("gcc", "a part of GCC"),
        ("g++", "a part of GCC"),
        ("ld.bfd", "the linker ld"),
        ("as", "the assembler"),
        ("make", "make"),
    ],
)
def test_tool_is_recognized_by_its_contents(program: str, tool: str) -> None:
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    path = Path(found).resolve()
    with path.open("rb") as source:
        assert (filesystem.signature_of(source, path.stat().st_size) or "").startswith(tool)


@pytest.mark.parametrize("program", ["python3", "bash", "ls", "tar", "perl", "git", "readelf"])
def test_other_program_is_not_recognized(program: str) -> None:
    found = shutil.which(program)
    if not found:
        pytest.skip(f"{program} is not installed")
    path = Path(found).resolve()
    with path.open("rb") as source:
        assert filesystem.signature_of(source, path.stat().st_size) is None


def test_library_loads_alone_or_with_a_dependent(tmp_path: Path) -> None:
    contents = {
        "libgood.so": make_elf(needed=["libc.so.6"]),
        "libmissing.so": make_elf(needed=["libnowhere.so.1"]),
        "libhalf.so": make_elf(undefined=["printf"]),
        "libwhole.so": make_elf(needed=["libc.so.6"]),
        "libdead.so": make_elf(undefined=["nowhere_to_be_found"]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    request: dict[str, list[str]] = {str(tmp_path / name): [] for name in contents}
    with (PROGRAMS / "libraries.py").open() as text:
        ended = subprocess.run(
            [sys.executable, "-I", "-", json.dumps(request)], stdin=text, capture_output=True, text=True, check=True
        )
    failed = {Path(path).name: message for path, message in json.loads(ended.stdout).items()}
    assert failed.keys() == {"libmissing.so", "libdead.so"}
    assert failed["libmissing.so"].startswith("libnowhere.so.1: cannot open")
    assert "undefined symbol: nowhere_to_be_found" in failed["libdead.so"]


def test_bytecode_problems_are_named(tmp_path: Path) -> None:
    names = ("good", "none", "stale", "foreign", "broken")
    for name in names:
        (tmp_path / f"{name}.py").write_text("A = 1\n" if name != "broken" else "class {{ name }}:\n")
    command = [sys.executable, "-m", "compileall", "-q", str(tmp_path), "-x", "none|broken"]
    subprocess.run(command, check=True)
    (tmp_path / "stale.py").write_text("A = 22\n")
    foreign = next((tmp_path / "__pycache__").glob("foreign.*"))
    foreign.write_bytes(b"\0\0\r\n" + foreign.read_bytes()[4:])
    files = [{"path": str(tmp_path / f"{name}.py"), "kind": "file"} for name in names]
    problems = {Path(path).stem: why for path, why in filesystem.bytecode_problems(files, [str(tmp_path)]).items()}
    assert problems.keys() == {"none", "stale", "foreign"}
    assert "stale" in problems["stale"]
    assert "another Python" in problems["foreign"]
    uncompiled = filesystem.bytecode_problems(files, [str(tmp_path)], (f"{tmp_path}/",))
    assert {Path(path).stem for path in uncompiled} == {"stale", "foreign"}
