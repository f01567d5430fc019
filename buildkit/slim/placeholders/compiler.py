"""Compiles placeholder libraries with the C compiler of the build stage."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.binary.elf import UnsupportedBinary
from buildkit.errors import BuildkitError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CompilerMissing", "c_string", "compile_library", "find_compiler"]


class CompilerMissing(BuildkitError):
    """A placeholder must be compiled, and there is no C compiler.

    Attributes:
        command: the compiler that was not found.
    """

    def __init__(self, command: str) -> None:
        super().__init__(
            f"{command} is not installed, and some placeholder libraries are compiled with it: "
            "install it, or slim in the builder stage"
        )
        self.command = command


def find_compiler() -> str:
    """Returns the path of the C compiler.

    Raises:
        CompilerMissing: there is none.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CompilerMissing("gcc")
    return compiler


def compile_library(sources: Mapping[str, str], *, soname: str, version_script: str = "") -> bytes:
    """Returns a small shared object made from C and assembly sources; the same sources give the same bytes.

    Args:
        sources: file name (`stub.c`, `stub.s`) to content.
        soname: the name of the library.
        version_script: the linker's version script; none if it is empty.

    Raises:
        CompilerMissing: there is no C compiler.
        UnsupportedBinary: the compiler failed.
    """
    command = [find_compiler(), "-shared", "-fPIC", "-O1", "-fno-ident", "-nostartfiles", "-s", "-o", "made.so"]
    command += [*sources, f"-Wl,-soname,{soname}", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    if version_script:
        command.append("-Wl,--version-script=exports.map")
    with tempfile.TemporaryDirectory(prefix="slim-compile-") as name:
        folder = Path(name)
        for file_name, content in {**sources, "exports.map": version_script}.items():
            (folder / file_name).write_text(content, "utf-8")
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            error = result.stderr.strip().splitlines()[-1] if result.stderr else "gcc failed"
            raise UnsupportedBinary("stub-compile", error)
        return (folder / "made.so").read_bytes()


def c_string(text: str) -> str:
    """Returns a string literal of C."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
