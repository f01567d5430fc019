"""Compares pruned libraries with their originals by NVIDIA's tools, which come with torch's wheels and need no GPU.

libnvJitLink selects code from a fat binary of relocatable code for `-arch` as the driver does, so a wrong selection
or a damaged container gives another result or an error. cuobjdump (in triton's wheel) lists the entries of a file:
after a prune, all entries of the original except the removed ones.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Final

from buildkit.binary.fatbin import Container, parse_containers
from buildkit.binary.library import Library
from buildkit.slim.placeholders.kinds import is_placeholder

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
        The number of containers linked, and a line for each that differs; 0 and none without nvJitLink.
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
        for index, (original, shrunk) in enumerate(zip(before, after, strict=True)):
            left, right = linker.link(original, target), linker.link(shrunk, target)
            linked += 1
            if left != right:
                differences.append(f"{path}: container {index} links to {right} instead of {left}")
    return linked, differences


def compare_listings(site: Path, pruned: Path, paths: list[str]) -> tuple[int, list[str]]:
    """Lists the cubins and PTX of each library in both trees with cuobjdump.

    Returns:
        The number of libraries listed, and a line for each that differs; 0 and none without cuobjdump.
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
    """libnvJitLink, called by the newest version of its functions."""

    def __init__(self, library: ctypes.CDLL, version: str) -> None:
        self._library = library
        self._version = version

    def link(self, container: bytes, target: int) -> str:
        """Returns a digest of the linked code, or the error code of the step that failed."""
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
    """Returns the libnvJitLink of a tree, or None if it has none or a stub."""
    for path in sorted(site.glob("nvidia/**/libnvJitLink.so.*")):
        library = Library.open(path)
        matches = [_CREATE.fullmatch(export.name) for export in library.exports]
        versions = [(int(match[1]), int(match[2])) for match in matches if match is not None]
        if versions and not is_placeholder(library.content):
            major, minor = max(versions)
            return _Linker(ctypes.CDLL(str(path)), f"{major}_{minor}")
    return None


def _list(tool: Path, library: Path) -> Counter[str]:
    """Returns the number of entries by kind and architecture; cuobjdump names family-specific ones like plain ones."""
    found: Counter[str] = Counter()
    for option, prefix in (("--list-elf", "sm_"), ("--list-ptx", "compute_")):
        result = subprocess.run([tool, option, library], capture_output=True, text=True, check=False)
        found.update(f"{prefix}{architecture}" for architecture in _LISTED.findall(result.stdout))
    return found


def _count(library: Path) -> Counter[str]:
    """Returns the same numbers as read by buildkit. cuobjdump lists `.nv_fatbin`, and not relocatable code."""
    names = (entry.name for _, container in _containers(library, ".nv_fatbin") for entry in container.entries)
    return Counter(name.rstrip("af") for name in names if not name.startswith("lto_"))


def _relocatable(library: Path) -> list[bytes]:
    """Returns the content of each container of relocatable code."""
    return [
        section[container.offset : container.offset + container.size_bytes]
        for section, container in _containers(library, "__nv_relfatbin")
    ]


def _containers(path: Path, name: str) -> Iterator[tuple[bytes, Container]]:
    """Yields each container of a section, with the section's content."""
    library = Library.open(path)
    section = library.elf.section(name)
    if section is not None:
        content = bytes(library.content[section.file_offset : section.file_end])
        for container in parse_containers(content):
            yield content, container
