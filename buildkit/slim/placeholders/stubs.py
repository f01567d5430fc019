"""Stand-ins for libraries that the loader demands and inference with transformers never calls.

A stub has the library's soname and every C symbol that it exports, each under its own version, so whatever was linked
with the library loads. A function says once, on standard error, which function was called and which rule left the
library out, and returns the library's own error code. It is made with the C compiler of the build stage.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import EM_X86_64, ET_DYN, SHT_DYNSYM, Content, Elf, Section, UnsupportedBinary

__all__ = [
    "STUB_RULES",
    "CompilerMissing",
    "Export",
    "StubRule",
    "UnknownStub",
    "choose_stubs",
    "find_compiler",
    "is_stub",
    "make_stub",
    "read_exports",
]

_MARK: Final = ".slim_stub"
_SHT_GNU_VERDEF: Final = 0x6FFFFFFD
_SHT_GNU_VERSYM: Final = 0x6FFFFFFF
_SHN_ABS: Final = 0xFFF1
_STT_OBJECT: Final = 1
_STT_FUNC: Final = 2
_STT_GNU_IFUNC: Final = 10
_STB_LOCAL: Final = 0
_VERSION_MASK: Final = 0x7FFF  # the highest bit marks a version that is not the default
_VER_FLG_BASE: Final = 1
_LEAST_VERSION: Final = 2  # 0 is local, 1 the base
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_VERDEF: Final = struct.Struct("<HHHHIII")
# What the linker or crti.o defines itself.
_LINKERS_OWN: Final = frozenset({"_init", "_fini", "_edata", "_end", "__bss_start", "__end__", "_start"})
# C++ names are no part of these libraries' interfaces. What is exported under them are copies of the C++ runtime
# (libcufile.so.0 has `operator delete` and std::string), and a stub of one would take the real one's place everywhere.
_MANGLED: Final = "_Z"
_SYMBOL_NAME: Final = re.compile(r"[A-Za-z_.$][\w.$]*", re.ASCII)


class CompilerMissing(RuntimeError):
    """Stubs are asked for where no C compiler is.

    Attributes:
        command: what was looked for.
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"stubs are made with {command}, which is not installed: run this step in the builder stage")
        self.command = command


class UnknownStub(ValueError):
    """A stub that the table does not hold.

    Attributes:
        value: the name given.
        allowed: the names that exist.
    """

    def __init__(self, value: str) -> None:
        self.value = value
        self.allowed = tuple(rule.name for rule in STUB_RULES)
        super().__init__(f"no stub is called {value!r}; there are {', '.join(self.allowed)}")


@dataclass(frozen=True, slots=True)
class StubRule:
    """A library that may be replaced.

    Attributes:
        path: shell pattern over the path in site-packages.
        error_code: what its functions return, from the header named.
        texts: names of functions that return a text instead, as shell patterns.
        lost: what fails.
    """

    name: str
    path: str
    error_code: int
    source: str
    lost: str
    texts: tuple[str, ...] = ()


# Error codes: the headers of the CUDA 13.0 wheels of torch 2.13.0.
STUB_RULES: Final = (
    StubRule(
        name="stub-cufft",
        path="nvidia/*/libcufft.so.*",
        error_code=0x10,
        source="CUFFT_NOT_SUPPORTED, cufft.h",
        lost="torch.fft on the GPU",
    ),
    StubRule(
        name="stub-cusparse",
        path="nvidia/*/libcusparse.so.*",
        error_code=10,
        source="CUSPARSE_STATUS_NOT_SUPPORTED, cusparse.h",
        lost="sparse matrices on the GPU",
        texts=("cusparseGetErrorName", "cusparseGetErrorString"),
    ),
    StubRule(
        name="stub-cusparselt",
        path="nvidia/*/libcusparseLt.so.*",
        error_code=10,
        source="CUSPARSE_STATUS_NOT_SUPPORTED, cusparse.h",
        lost="2:4 structured sparsity",
        texts=("cusparseLtGetErrorName", "cusparseLtGetErrorString"),
    ),
    StubRule(
        name="stub-curand",
        path="nvidia/*/libcurand.so.*",
        error_code=999,
        source="CURAND_STATUS_INTERNAL_ERROR, curand.h",
        lost="programs that call cuRAND; torch has its own generators",
    ),
    StubRule(
        name="stub-nccl",
        path="nvidia/nccl/*/libnccl.so.*",
        error_code=5,
        source="ncclInvalidUsage, nccl.h",
        lost="torch.distributed over several GPUs",
        texts=("ncclGetErrorString", "ncclGetLastError", "pncclGetErrorString", "pncclGetLastError"),
    ),
    StubRule(
        name="stub-nvshmem",
        path="nvidia/nvshmem/*/libnvshmem_host.so.*",
        error_code=0,
        source="most functions return nothing or a pointer: none is given",
        lost="symmetric memory over NVSHMEM",
    ),
    StubRule(
        name="stub-cufile",
        path="nvidia/*/libcufile.so.*",
        error_code=5007,
        source="CU_FILE_PLATFORM_NOT_SUPPORTED, cufile.h",
        lost="GPUDirect Storage (torch.cuda.gds)",
        texts=("cufileop_status_error",),
    ),
    StubRule(
        name="stub-nvrtc",
        path="nvidia/*/libnvrtc.so.*",
        error_code=11,
        source="NVRTC_ERROR_INTERNAL_ERROR, nvrtc.h",
        lost="kernels that torch compiles at run time (jiterator: some special functions), fusers",
        texts=("nvrtcGetErrorString",),
    ),
    StubRule(
        name="stub-nvjitlink",
        path="nvidia/*/libnvJitLink.so.*",
        error_code=6,
        source="NVJITLINK_ERROR_INTERNAL, nvJitLink.h",
        lost="linking of device code at run time, which cuSPARSE and cuFFT callbacks use",
    ),
)


def choose_stubs(names: str) -> tuple[StubRule, ...]:
    """The rules of a comma-separated list of names, or all of them for `all`, in the table's order.

    Raises:
        UnknownStub: a name is no rule's.
    """
    chosen = {part.strip() for part in names.split(",") if part.strip()}
    unknown = chosen.difference(rule.name for rule in STUB_RULES) - {"all", "none"}
    if unknown:
        raise UnknownStub(min(unknown))
    return tuple(rule for rule in STUB_RULES if rule.name in chosen or "all" in chosen)


@dataclass(frozen=True, slots=True)
class Export:
    """A symbol that a library defines for others; `version` is None where it has none."""

    name: str
    is_function: bool
    size_bytes: int
    version: str | None
    is_default: bool


def is_stub(content: Content) -> bool:
    """Whether a library is a stub already."""
    return elf_format.parse(content).section(_MARK) is not None


def read_exports(content: Content) -> tuple[Export, ...]:
    """Every symbol that a shared object defines, with its version, in order of name.

    Raises:
        UnsupportedBinary: it exports something that a stub cannot stand in for, such as thread-local data.
    """
    elf = elf_format.parse(content)
    view = memoryview(content)
    table = _only(elf, SHT_DYNSYM)
    if table is None or table.size_bytes % _SYMBOL.size:
        raise UnsupportedBinary("stub-symbols", "no table of dynamic symbols")
    names = _strings(view, elf, table)
    versions = _versions(view, elf)
    version_table = _only(elf, _SHT_GNU_VERSYM)
    indexes = (
        [index for (index,) in struct.iter_unpack("<H", view[version_table.file_offset : version_table.file_end])]
        if version_table is not None
        else [1] * (table.size_bytes // _SYMBOL.size)
    )
    exports: dict[str, Export] = {}
    symbols = _SYMBOL.iter_unpack(view[table.file_offset : table.file_end])
    for (name_offset, info, _, section_index, _, size_bytes), index in zip(symbols, indexes, strict=True):
        name = names[name_offset : names.index(b"\0", name_offset)].decode("utf-8", "surrogateescape")
        if section_index in {0, _SHN_ABS} or info >> 4 == _STB_LOCAL or name in _LINKERS_OWN:
            continue
        kind = info & 0xF
        if kind not in {_STT_OBJECT, _STT_FUNC, _STT_GNU_IFUNC}:
            raise UnsupportedBinary("stub-symbol-type", f"{kind} of {name}")
        if _SYMBOL_NAME.fullmatch(name) is None or name in exports:
            raise UnsupportedBinary("stub-symbol-name", name)
        version = index & _VERSION_MASK
        exports[name] = Export(
            name=name,
            is_function=kind != _STT_OBJECT,
            size_bytes=size_bytes,
            version=versions[version] if version >= _LEAST_VERSION else None,
            is_default=index <= _VERSION_MASK,
        )
    return tuple(export for _, export in sorted(exports.items()))


def find_compiler() -> str:
    """The C compiler that makes stubs.

    Raises:
        CompilerMissing: there is none.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CompilerMissing("gcc")
    return compiler


def make_stub(content: Content, rule: StubRule, target: Path) -> None:
    """Writes a stub for the library `content` to `target`; the same library gives the same bytes.

    Raises:
        CompilerMissing: there is no gcc.
        UnsupportedBinary: the library cannot be stood in for, or what was made does not export what it does.
    """
    compiler = find_compiler()
    elf = elf_format.parse(content)
    if elf.machine != EM_X86_64 or elf.type != ET_DYN:
        raise UnsupportedBinary("stub-machine", f"machine {elf.machine}, type {elf.type}")
    soname = elf_format.read_dynamic_names(content, elf).soname
    if soname is None:
        raise UnsupportedBinary("stub-soname", "the library has none")
    exports = tuple(export for export in read_exports(content) if not export.name.startswith(_MANGLED))
    if any(not export.is_default for export in exports):
        raise UnsupportedBinary("stub-symbol-version", "a symbol has a version that is not its default")
    with tempfile.TemporaryDirectory(prefix="slim-stub-") as name:
        folder = Path(name)
        (folder / "stub.c").write_text(_c_source(exports, rule, soname), "utf-8")
        (folder / "stub.s").write_text(_assembly(exports), "utf-8")
        (folder / "stub.map").write_text(_version_script(exports), "utf-8")
        command = [compiler, "-shared", "-fPIC", "-O1", "-fno-ident", "-nostartfiles", "-s", "-o", "stub.so"]
        command += ["stub.c", "stub.s", f"-Wl,-soname,{soname}", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
        if any(export.version for export in exports):
            command.append("-Wl,--version-script=stub.map")
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise UnsupportedBinary(
                "stub-compile", result.stderr.strip().splitlines()[-1] if result.stderr else "gcc failed"
            )
        made = (folder / "stub.so").read_bytes()
    made_exports = [(export.name, export.is_function, export.version) for export in read_exports(made)]
    if made_exports != [(export.name, export.is_function, export.version) for export in exports]:
        raise UnsupportedBinary("stub-check", "the stub exports other symbols than the library")
    target.write_bytes(made)


def _only(elf: Elf, kind: int) -> Section | None:
    found = [section for section in elf.sections if section.type == kind]
    if len(found) > 1:
        raise UnsupportedBinary("elf-duplicate-section", found[1].name)
    return found[0] if found else None


def _strings(view: memoryview, elf: Elf, section: Section) -> bytes:
    if section.link >= len(elf.sections):
        raise UnsupportedBinary("stub-symbols", f"strings in section {section.link}")
    strings = elf.sections[section.link]
    return bytes(view[strings.file_offset : strings.file_end]) + b"\0"


def _versions(view: memoryview, elf: Elf) -> dict[int, str]:
    """Index to name of each version that the library defines (gabi supplement "Symbol Versioning", LSB 10.7.2)."""
    section = _only(elf, _SHT_GNU_VERDEF)
    versions: dict[int, str] = {}
    if section is None:
        return versions
    names = _strings(view, elf, section)
    offset = section.file_offset
    for _ in range(section.info):
        _, flags, index, _, _, first_name, following = _VERDEF.unpack_from(view, offset)
        (name_offset,) = struct.unpack_from("<I", view, offset + first_name)
        if not flags & _VER_FLG_BASE:
            versions[index] = names[name_offset : names.index(b"\0", name_offset)].decode()
        offset += following
    return versions


def _c_source(exports: tuple[Export, ...], rule: StubRule, soname: str) -> str:
    """The one function behind all stubs: it says what was called, once each, and returns the code."""
    told = f": called, but this image's profile leaves {soname} out (slim rule {rule.name}). Lost: {rule.lost}.\\n"
    text = f"{soname} is left out of this image (slim rule {rule.name})"
    rows = []
    for export in exports:
        if export.is_function:
            is_text = any(fnmatchcase(export.name, pattern) for pattern in rule.texts)
            rows.append(f'    {{"{export.name}", {"(long)text" if is_text else rule.error_code}}},')
    return "\n".join(
        [
            "#include <sys/uio.h>",
            "#include <string.h>",
            f'__attribute__((section("{_MARK}"), used)) static const char mark[] = "{rule.name}";',
            f'static const char text[] = "{text}";',
            f'static const char told[] = "{told}";',
            f'static const char library[] = "{soname}: ";',
            "static const struct { const char *name; long code; } functions[] = {",
            *rows,
            "    {0, (long)text},",
            "};",
            "static unsigned char said[sizeof functions / sizeof *functions];",
            '__attribute__((visibility("hidden"))) long slim_stub_called(unsigned index) {',
            "    if (!__atomic_exchange_n(&said[index], 1, __ATOMIC_RELAXED)) {",
            "        const struct iovec parts[] = {{(void *)library, sizeof library - 1},",
            "            {(void *)functions[index].name, strlen(functions[index].name)},",
            "            {(void *)told, sizeof told - 1}};",
            "        if (writev(2, parts, 3) < 0) return functions[index].code;",
            "    }",
            "    return functions[index].code;",
            "}",
            "",
        ]
    )


def _assembly(exports: tuple[Export, ...]) -> str:
    """One label per function, each a jump with its number; one reservation per object."""
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
    """Puts each symbol under the version that it had."""
    nodes: dict[str, list[str]] = {}
    for export in exports:
        if export.version is not None:
            nodes.setdefault(export.version, []).append(export.name)
    quoted = {version: " ".join(f'"{name}";' for name in names) for version, names in sorted(nodes.items())}
    return "\n".join(f"{version} {{ global: {names} }};" for version, names in quoted.items())
