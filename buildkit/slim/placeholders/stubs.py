"""Makes stub libraries: all symbols of a library, without its code.

A stub has the library's soname and every C symbol that it exports, each with its version, so programs linked with the
library load. A function writes a message to standard error at its first call, and returns the library's error code.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import EM_X86_64, ET_DYN, UnsupportedBinary
from buildkit.binary.library import Library
from buildkit.slim.placeholders.compiler import c_string, compile_library
from buildkit.slim.placeholders.kinds import removal_message

if TYPE_CHECKING:
    from buildkit.binary.symbols import Export

__all__ = ["StubRule", "stub_library"]

# C++ names are not part of these libraries' interfaces. Those that are exported are copies of the C++ runtime
# (libcufile.so.0 has `operator delete` and std::string), and a stub of one would replace the real one everywhere.
_MANGLED: Final = "_Z"


@dataclass(frozen=True, slots=True)
class StubRule:
    """A library that may be replaced by a stub.

    Attributes:
        path: shell pattern for the path in site-packages.
        error_code: the return value of its functions.
        source: the header that defines the error code.
        lost: the features that fail.
        texts: shell patterns for the names of functions that return a text instead.
    """

    name: str
    path: str
    error_code: int
    source: str
    lost: str
    texts: tuple[str, ...] = ()

    def claims(self, path: str) -> bool:
        """Returns whether the rule replaces the library at this path."""
        return fnmatchcase(path, f"*{self.path}")


def stub_library(library: Library, rule: StubRule) -> bytes:
    """Returns a stub for a library; the same library gives the same bytes.

    Raises:
        CompilerMissing: there is no C compiler.
        UnsupportedBinary: the library has a feature that a stub cannot have, or the result exports other symbols.
    """
    if library.elf.machine != EM_X86_64 or library.elf.type != ET_DYN:
        raise UnsupportedBinary("stub-machine", f"machine {library.elf.machine}, type {library.elf.type}")
    soname = elf_format.read_dynamic_names(library.content, library.elf).soname
    if soname is None:
        raise UnsupportedBinary("stub-soname", "the library has none")
    exports = tuple(export for export in library.exports if not export.name.startswith(_MANGLED))
    if any(not export.is_default for export in exports):
        raise UnsupportedBinary("stub-symbol-version", "a symbol has a version that is not its default")
    sources = {"stub.c": _c_source(exports, rule, soname), "stub.s": _assembly(exports)}
    made = compile_library(sources, soname=soname, version_script=_version_script(exports))
    if _signatures(Library(Path("stub.so"), made).exports) != _signatures(exports):
        raise UnsupportedBinary("stub-check", "the stub exports other symbols than the library")
    return made


def _signatures(exports: tuple[Export, ...]) -> list[tuple[str, bool, str | None]]:
    return [(export.name, export.is_function, export.version) for export in exports]


def _c_source(exports: tuple[Export, ...], rule: StubRule, soname: str) -> str:
    """Returns the one function behind all stubs: it writes the message once for each function, and returns the code."""
    message = removal_message(soname, rule.name, rule.lost)
    rows = []
    for export in exports:
        if export.is_function:
            is_text = any(fnmatchcase(export.name, pattern) for pattern in rule.texts)
            rows.append(f'    {{"{export.name}", {"(long)text" if is_text else rule.error_code}}},')
    return "\n".join(
        [
            "#include <sys/uio.h>",
            "#include <string.h>",
            f"static const char text[] = {c_string(message)};",
            f"static const char line_end[] = {c_string(f' was called, but {message}' + chr(10))};",
            "static const struct { const char *name; long code; } functions[] = {",
            *rows,
            "    {0, (long)text},",
            "};",
            "static unsigned char is_written[sizeof functions / sizeof *functions];",
            '__attribute__((visibility("hidden"))) long slim_stub_called(unsigned index) {',
            "    if (!__atomic_exchange_n(&is_written[index], 1, __ATOMIC_RELAXED)) {",
            "        const struct iovec parts[] = {",
            "            {(void *)functions[index].name, strlen(functions[index].name)},",
            "            {(void *)line_end, sizeof line_end - 1}};",
            "        if (writev(2, parts, 2) < 0) return functions[index].code;",
            "    }",
            "    return functions[index].code;",
            "}",
            "",
        ]
    )


def _assembly(exports: tuple[Export, ...]) -> str:
    """Returns a label and a jump for each function, with its number; and space for each object."""
    lines = ["    .text"]
    index = 0
    for export in exports:
        name = f'"{export.name}"'
        if export.is_function:
            lines += [f"    .globl {name}", f"    .type {name}, @function", f"{name}:"]
            lines += [f"    movl ${index}, %edi", "    jmp slim_stub_called"]
            index += 1
    lines.append("    .bss")
    for export in exports:
        name = f'"{export.name}"'
        if not export.is_function:
            lines += [f"    .globl {name}", f"    .type {name}, @object", f"    .size {name}, {export.size_bytes}"]
            lines += ["    .balign 64", f"{name}:", f"    .zero {max(export.size_bytes, 1)}"]
    return "\n".join([*lines, '    .section .note.GNU-stack, "", @progbits', ""])


def _version_script(exports: tuple[Export, ...]) -> str:
    """Returns the linker's script that gives each symbol its old version; empty if none had one."""
    nodes: dict[str, list[str]] = {}
    for export in exports:
        if export.version is not None:
            nodes.setdefault(export.version, []).append(export.name)
    quoted = {version: " ".join(f'"{name}";' for name in names) for version, names in sorted(nodes.items())}
    return "\n".join(f"{version} {{ global: {names} }};" for version, names in quoted.items())
