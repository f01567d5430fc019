"""Signs: what stands in the place of a file that went, so that whoever looks for it is told which rule took it.

An import of what is gone is answered by the finder (finder.py). Two kinds of search never come to it. Transformers
reads the sources in its folders for the names that they give, and says only that it has no attribute CLIPModel. And
libraries that are opened late are looked for by the loader, which knows that there is no such file and no more. A third
must not fail: sentence-transformers imports, when it loads, functions of scikit-learn that it only evaluates with
(demanded.py).

The price: whoever asks transformers whether it has such a name (hasattr) gets the error, not a no, as with a name whose
module does not import for any other reason. And whoever tries such a package to do without it where it is missing
finds it, and the error later, at the call.
"""

from __future__ import annotations

import contextlib
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from buildkit.binary import elf as elf_format
from buildkit.binary.elf import (
    ELF_HEADER_BYTES,
    EM_X86_64,
    ET_DYN,
    PT_DYNAMIC,
    PT_LOAD,
    SEGMENT_HEADER,
    UnsupportedBinary,
    map_file,
)
from buildkit.binary.rewrite import replace_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildkit.binary.elf import Content
    from buildkit.slim.rules.rule_sets import Rule

__all__ = ["Sign", "is_sign", "library_sign", "make_signs", "module_sign", "package_sign"]

_MARK: Final = b" is left out of this installation (slim rule "
_MOST_BYTES: Final = 1 << 16
_DEMANDED: Final = Path(__file__).with_name("package.py")
_NAMES: Final = re.compile(rb"^__all__ = \[(.*?)\]", re.MULTILINE | re.DOTALL)
_NAME: Final = re.compile(rb"""["'](\w+)["']""")
# Transformers reads no names from the sources that start like this (utils/import_utils.py), and gives what it reads
# from others the needs that go with such a file: an image processor's are libraries that are not there either.
_UNREAD: Final = ("__init__", "convert_", "modular_")
_BEST_READ: Final = ("configuration_", "modeling_", "processing_")

# gabi, "Dynamic Section"
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_INIT, _DT_SONAME = 0, 1, 5, 6, 10, 11, 12, 14
_DYNAMIC_ENTRY: Final = struct.Struct("<QQ")
_SYMBOL_BYTES: Final = 24
_PF_EXECUTE, _PF_WRITE, _PF_READ = 1, 2, 4
_PT_GNU_STACK: Final = 0x6474E551
_PAGE_BYTES: Final = 0x10000  # the largest that a machine has; x86-64 has less
_WRITABLE_ADDRESS: Final = _PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Sign:
    """The content for one path."""

    path: str
    content: bytes

    def put_up(self, root: Path) -> None:
        """Writes it over the file that it stands for; owner, mode and times stay."""
        replace_content(root / self.path, self.content)


def is_sign(path: Path) -> bool:
    """Whether a file is a sign that an earlier slim put up."""
    return not path.is_symlink() and path.stat().st_size < _MOST_BYTES and _MARK in path.read_bytes()


def make_signs(root: Path, claimed: Mapping[str, Rule]) -> tuple[Sign, ...]:
    """The signs for what rules take out: one for each late library, folder of modules and demanded package.

    Args:
        root: what the paths are relative to.
        claimed: path to the rule that takes it; none of them is a sign.
    """
    signs = []
    for path, rule in claimed.items():
        if rule.sign in {"refused", "loaded"} and not (root / path).is_symlink():
            with contextlib.suppress(UnsupportedBinary):  # no ELF file, so nobody opens it
                signs.append(Sign(path, library_sign(map_file(root / path), _file_name(path), rule)))
        module = path.removesuffix(".py").removesuffix("/__init__")
        if path.endswith(".py") and module in rule.demanded:
            signs.append(Sign(path, package_sign(module, rule)))
    folders: dict[tuple[str, Rule], list[str]] = {}
    for path, rule in claimed.items():
        if rule.sign == "names" and path.endswith(".py"):
            folders.setdefault((path.rpartition("/")[0], rule), []).append(path)
    for (folder, rule), paths in folders.items():
        readable = [path for path in paths if not _file_name(path).startswith(_UNREAD)]
        if readable:
            content = module_sign(((root / path).read_bytes() for path in readable), folder, rule)
            signs.append(Sign(min(readable, key=_readability), content))
    return tuple(sorted(signs, key=lambda sign: sign.path))


def module_sign(sources: Iterable[bytes], folder: str, rule: Rule) -> bytes:
    """A module with the names of those that went, whose import says that they did."""
    names = sorted({name.decode() for source in sources for name in _exported(source)})
    package = folder.replace("/", ".")
    listed = ", ".join(f'"{name}"' for name in names)
    return (
        f'"""A sign of what was here."""\n\n__all__ = [{listed}]\n\n'
        f"raise ModuleNotFoundError({_sentence(package, rule)!r}, name=__name__)\n"
    ).encode()


def package_sign(package: str, rule: Rule) -> bytes:
    """A package with every name, each of which says that it went when it is called.

    Args:
        package: one of those that the rule says are demanded, as a path.
        rule: the rule.
    """
    parts = tuple(part.removeprefix(f"{package}/") for part in rule.demanded if part.startswith(f"{package}/"))
    constants = f"\n\nWHERE = {_sentence('', rule)!r}\nPARTS = {parts!r}\n"
    return _DEMANDED.read_bytes() + constants.encode()


def _exported(source: bytes) -> list[bytes]:
    return [name for listed in _NAMES.findall(source) for name in _NAME.findall(listed)]


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _readability(path: str) -> tuple[int, str]:
    """Sorts the module whose names ask for nothing else first."""
    starts = [place for place, start in enumerate(_BEST_READ) if _file_name(path).startswith(start)]
    return (starts[0] if starts else len(_BEST_READ), path)


def library_sign(original: Content, name: str, rule: Rule) -> bytes:
    """A shared object without symbols, for the machine of `original`, that names the rule when it is opened.

    One that is refused needs a library whose name is the sentence: the loader's error begins with what is missing. One
    that is loaded writes the sentence to standard error. Whoever looks for a symbol in it finds none, as before.

    Raises:
        UnsupportedBinary: the original is no ELF file.
    """
    elf = elf_format.parse(original)
    sentence = _sentence(name, rule)
    is_refused = rule.sign == "refused"
    needed = sentence.replace("/", "-").encode() if is_refused else b""  # what has a slash would be taken for a path
    strings = b"\0" + needed + b"\0" + name.encode() + b"\0"
    strings_offset = ELF_HEADER_BYTES + 4 * SEGMENT_HEADER.size
    symbols_offset = _aligned(strings_offset + len(strings))
    code_offset = symbols_offset + _SYMBOL_BYTES
    code = b"" if is_refused else _code(elf.machine, f"{sentence}\n".encode())
    dynamic_offset = _aligned(code_offset + len(code))
    entries = (
        (_DT_NEEDED, 1) if is_refused else (_DT_INIT, code_offset),
        (_DT_SONAME, len(needed) + 2),
        (_DT_STRTAB, strings_offset),
        (_DT_SYMTAB, symbols_offset),
        (_DT_STRSZ, len(strings)),
        (_DT_SYMENT, _SYMBOL_BYTES),
        (_DT_NULL, 0),
    )
    dynamic = b"".join(_DYNAMIC_ENTRY.pack(*entry) for entry in entries)
    dynamic_address = _WRITABLE_ADDRESS + dynamic_offset
    end = dynamic_offset + len(dynamic)
    header = elf_format.pack_header(
        replace(elf, type=ET_DYN, entry_address=0),
        segment_table_offset=ELF_HEADER_BYTES,
        segment_count=4,
        section_table_offset=0,
        section_count=0,
        name_section_index=0,
    )
    segments = (  # the whole file twice: once to run, once for the loader, which writes into the dynamic section
        SEGMENT_HEADER.pack(PT_LOAD, _PF_READ | _PF_EXECUTE, 0, 0, 0, end, end, _PAGE_BYTES),
        SEGMENT_HEADER.pack(
            PT_LOAD, _PF_READ | _PF_WRITE, 0, _WRITABLE_ADDRESS, _WRITABLE_ADDRESS, end, end, _PAGE_BYTES
        ),
        SEGMENT_HEADER.pack(
            *(PT_DYNAMIC, _PF_READ | _PF_WRITE, dynamic_offset, dynamic_address, dynamic_address),
            *(len(dynamic), len(dynamic), 8),
        ),
        SEGMENT_HEADER.pack(_PT_GNU_STACK, _PF_READ | _PF_WRITE, 0, 0, 0, 0, 0, 16),
    )
    body = b"".join((header, *segments, strings)).ljust(symbols_offset, b"\0") + bytes(_SYMBOL_BYTES) + code
    return body.ljust(dynamic_offset, b"\0") + dynamic


def _code(machine: int, text: bytes) -> bytes:
    """A function that writes the text behind it to standard error by the kernel's own call, and returns."""
    if machine == EM_X86_64:
        instructions = (
            b"\xb8\x01\0\0\0"  # mov eax, 1 (write)
            b"\xbf\x02\0\0\0"  # mov edi, 2
            b"\x48\x8d\x35\x08\0\0\0"  # lea rsi, [rip + 8]: behind the last instruction
            b"\xba" + struct.pack("<I", len(text)) + b"\x0f\x05"  # mov edx, length; syscall
            b"\xc3"  # ret
        )
    else:
        instructions = struct.pack(
            "<6I",
            0xD2800808,  # mov x8, 64 (write)
            0xD2800040,  # mov x0, 2
            0x10000081,  # adr x1, . + 16: behind the last instruction
            0xD2800002 | len(text) << 5,  # mov x2, length
            0xD4000001,  # svc 0
            0xD65F03C0,  # ret
        )
    return instructions + text


def _sentence(name: str, rule: Rule) -> str:
    return f"{name}{_MARK.decode()}{rule.name}). Lost by that rule: {rule.lost}."


def _aligned(offset: int) -> int:
    return (offset + 7) & ~7
