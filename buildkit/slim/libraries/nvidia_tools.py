"""NVIDIA's own tools as judges of a pruned library; both come with torch's wheels and need no GPU.

libnvJitLink, given a fat binary of relocatable code, selects what fits `-arch` just as the driver does, so a wrong
selection or a damaged container shows as another result or an error. cuobjdump (in triton's wheel) lists every entry
that it finds in a file: after a prune, all that it found before but those left out.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import map_file, parse
from buildkit.binary.fatbin import Container, parse_containers
from buildkit.slim.placeholders.stubs import is_stub, read_exports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["compare_links", "compare_listings"]

_INPUT_FATBIN: Final = 4  # NVJITLINK_INPUT_FATBIN, nvJitLink.h
_LISTED: Final = re.compile(r"\.sm_(\d+)[af]?\.(?:cubin|ptx)$", re.MULTILINE)
_CREATE: Final = re.compile(r"__nvJitLinkCreate_(\d+)_(\d+)")


def compare_links(site: Path, pruned: Path, paths: list[str], target: int) -> tuple[int, list[str]]:
    """Links every relocatable container of these libraries from both trees for `target`.

    Returns:
        How many containers were linked, and a line for each that differs; none where nvJitLink is not there.
    """
    linker = _find(site)
    if linker is None:
        return 0, []
    linked = 0
    differences: list[str] = []
    for path in paths:
        before, after = _relocatable(site / path), _relocatable(pruned / path)
        if len(before) != len(after):
            differences.append(f"{path}: {len(before)} relocatable containers became {len(after)}")
            continue
        for index, (whole, small) in enumerate(zip(before, after, strict=True)):
            left, right = linker.link(whole, target), linker.link(small, target)
            linked += 1
            if left != right:
                differences.append(f"{path}: container {index} links to {right}, was {left}")
    return linked, differences


def compare_listings(site: Path, pruned: Path, paths: list[str]) -> tuple[int, list[str]]:
    """Has cuobjdump list the cubins and PTX of each library in both trees.

    Returns:
        How many libraries were listed, and a line for each that differs; none where cuobjdump is not there.
    """
    tool = next((path for path in sorted(site.glob("**/bin/cuobjdump")) if os.access(path, os.X_OK)), None)
    if tool is None:
        return 0, []
    differences: list[str] = []
    for path in paths:
        before, after = _list(tool, site / path), _list(tool, pruned / path)
        expected = before - (_count(site / path) - _count(pruned / path))
        if after != expected or not before:
            differences.append(f"{path}: cuobjdump lists {dict(after)}, expected {dict(expected)}")
    return len(paths), differences


class _Linker:
    """libnvJitLink, through the functions of the newest version that it exports."""

    def __init__(self, library: ctypes.CDLL, version: str) -> None:
        self._library = library
        self._version = version

    def link(self, container: bytes, target: int) -> str:
        """A digest of the linked code, or the error code of the step that failed."""
        handle = ctypes.c_void_p()
        options = (ctypes.c_char_p * 1)(f"-arch=sm_{target}".encode())
        status = self._call("Create", ctypes.byref(handle), ctypes.c_uint32(1), options)
        if status:
            return f"create error {status}"
        try:
            status = self._call(
                "AddData", handle, ctypes.c_int(_INPUT_FATBIN), container, ctypes.c_size_t(len(container)), b"input"
            )
            if status:
                return f"input error {status}"
            status = self._call("Complete", handle)
            if status:
                return f"link error {status}"
            size = ctypes.c_size_t()
            self._call("GetLinkedCubinSize", handle, ctypes.byref(size))
            code = ctypes.create_string_buffer(size.value)
            self._call("GetLinkedCubin", handle, code)
            return f"{size.value} bytes {hashlib.sha256(code.raw).hexdigest()}"
        finally:
            self._call("Destroy", ctypes.byref(handle))

    def _call(self, name: str, *arguments: object) -> int:
        return int(getattr(self._library, f"__nvJitLink{name}_{self._version}")(*arguments))


def _find(site: Path) -> _Linker | None:
    for path in sorted(site.glob("nvidia/**/libnvJitLink.so.*")):
        content = map_file(path)
        names = [export.name for export in read_exports(content)]
        versions = [(int(match[1]), int(match[2])) for name in names if (match := _CREATE.fullmatch(name))]
        if versions and not is_stub(content):
            major, minor = max(versions)
            return _Linker(ctypes.CDLL(str(path)), f"{major}_{minor}")
    return None


def _list(tool: Path, library: Path) -> Counter[str]:
    """Entries by kind and architecture; cuobjdump names family-specific ones like plain ones."""
    found: Counter[str] = Counter()
    for option, prefix in (("--list-elf", "sm_"), ("--list-ptx", "compute_")):
        result = subprocess.run([tool, option, library], capture_output=True, text=True, check=False)
        found.update(f"{prefix}{architecture}" for architecture in _LISTED.findall(result.stdout))
    return found


def _count(library: Path) -> Counter[str]:
    """The same as this package reads it. cuobjdump looks into `.nv_fatbin` and not into relocatable code."""
    names = (entry.name for item in _containers(library, ".nv_fatbin") for entry in item[1].entries)
    return Counter(name.rstrip("af") for name in names if not name.startswith("lto_"))


def _relocatable(library: Path) -> list[bytes]:
    return [
        whole[item.offset : item.offset + item.size_bytes] for whole, item in _containers(library, "__nv_relfatbin")
    ]


def _containers(library: Path, name: str) -> Iterator[tuple[bytes, Container]]:
    """Each container of a section, with the bytes that its offset is in."""
    content = map_file(library)
    section = parse(content).section(name)
    if section is not None:
        whole = content[section.file_offset : section.file_end]
        for item in parse_containers(whole):
            yield whole, item
