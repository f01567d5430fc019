"""Makes library placeholders and loads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from buildkit.binary.elf import EM_AARCH64, Elf, UnsupportedBinary, parse, read_dynamic_names
from buildkit.slim.placeholders.kinds import parse_message, removal_message
from buildkit.slim.placeholders.libraries import unloadable_library, warning_library
from buildkit.slim.rules.rule_sets import choose_rules
from tests.support.elf import LibrarySpec

CUDNN, SOLVER = choose_rules("cudnn-engines,dense-solver")


def this_machine() -> Elf:
    return parse(Path(sys.executable).read_bytes())


def load(path: Path, then: str = "") -> str:
    """Returns the standard error of a program that loads a library."""
    program = f"import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); {then}"
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_unloadable_library_loader_reports_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "libcusolver.so.12"
    path.write_bytes(unloadable_library(this_machine(), path.name, SOLVER))

    assert f"OSError: {removal_message(path.name, 'dense-solver', SOLVER.lost)}: cannot open" in load(path)
    assert read_dynamic_names(path.read_bytes(), parse(path.read_bytes())).soname == "libcusolver.so.12"


def test_unloadable_library_is_for_the_original_machine() -> None:
    arm = unloadable_library(parse(LibrarySpec(machine=EM_AARCH64).build()), "libx.so", SOLVER)

    assert parse(arm).machine == EM_AARCH64


@pytest.mark.usefixtures("gcc")
def test_warning_library_writes_the_rule_and_has_no_symbols(tmp_path: Path) -> None:
    path = tmp_path / "libcudnn_cnn.so.9"
    path.write_bytes(warning_library(this_machine(), path.name, CUDNN))

    first, *rest = load(path, "library.cudnnCreateConvolutionDescriptor").splitlines()

    message = parse_message(first)
    assert message is not None
    assert (message.subject, message.rule, message.lost) == (path.name, "cudnn-engines", CUDNN.lost)
    assert "undefined symbol: cudnnCreateConvolutionDescriptor" in rest[-1]


@pytest.mark.usefixtures("gcc")
def test_warning_library_for_other_machine_raises() -> None:
    other = EM_AARCH64 if this_machine().machine != EM_AARCH64 else 62

    with pytest.raises(UnsupportedBinary, match="placeholder-machine"):
        warning_library(parse(LibrarySpec(machine=other).build()), "libx.so", CUDNN)
