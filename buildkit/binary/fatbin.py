"""Reads CUDA fat binaries: the same kernels compiled for several GPUs, and the entries that a GPU can use.

NVIDIA publishes no description of the format. This one was derived from the libraries of torch 2.13.0 and its CUDA
13.0 wheels (20,000 containers) and checked against cuobjdump 13.5, which lists the same entries for each architecture.
A container with anything that those libraries do not have raises `UnsupportedBinary`.

A container is a header of 16 bytes, then entries that abut, each a header and a payload. All numbers are little
endian. The rule of which GPU runs what is the CUDA C++ Programming Guide's ("Binary Compatibility", "PTX
Compatibility", "Architecture-Specific Features", "Family-Specific Features").
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from buildkit.binary.elf import Content, UnsupportedBinary
from buildkit.errors import UsageError

__all__ = [
    "CONTAINER_HEADER_BYTES",
    "CONTAINER_MAGIC",
    "FATBIN_SECTIONS",
    "Container",
    "FatbinEntry",
    "Kind",
    "pack_container_header",
    "parse_containers",
    "parse_target",
    "target_name",
    "usable_entries",
]

CONTAINER_MAGIC: Final = 0xBA55ED50
CONTAINER_HEADER_BYTES: Final = 16
FATBIN_SECTIONS: Final = (".nv_fatbin", "__nv_relfatbin")
"""The ELF sections that nvcc and nvlink put containers into."""
# magic, version, bytes of this header, bytes after it.
_CONTAINER: Final = struct.Struct("<IHHQ")
_CONTAINER_VERSION: Final = 1
# kind, version, header bytes, padded payload bytes, compressed bytes, offset of options in the header, PTX ISA minor
# and major, architecture, name offset and length, flags, identifier, uncompressed bytes.
_ENTRY: Final = struct.Struct("<HHIQIIHHIIIQQQ")
_ENTRY_VERSION: Final = 0x0101
# 64 (cubin), 72 to 96 (PTX), 104 and 112 (cubin from sm_100 on), 120 and 128 (LTO-IR) were seen.
_LARGEST_HEADER_BYTES: Final = 256
_WORD_BYTES: Final = 8
_FLAG_ARCHITECTURE_SPECIFIC: Final = 0x100000  # the `a` of sm_90a
_FLAG_FAMILY_SPECIFIC: Final = 0x200000  # the `f` of sm_100f
# 64-bit, Linux, LZ4, Zstandard, LTO-IR, a, f, and one that every cubin from sm_100 on has.
_KNOWN_FLAGS: Final = 0x1 | 0x10 | 0x2000 | 0x8000 | 0x10000 | 0x100000 | 0x200000 | 0x1000000

# GPUs of Tegra systems run no cubin of another GPU of their generation, nor the reverse (the guide, "Binary
# Compatibility"); 87 is Orin, 110 Thor.
_TEGRA: Final = frozenset({32, 53, 62, 72, 87, 101, 110})
# Which GPUs run a family-specific cubin (the guide, "Family-Specific Features", table of CUDA 13.0).
_FAMILIES: Final = {100: {100, 103}, 101: {101}, 103: {103}, 110: {110}, 120: {120, 121}, 121: {121}}
# Targets: the compute capabilities that CUDA 13.0 compiles for, and those that only CUDA 12 does.
TARGETS: Final = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
# Architectures of entries: the targets, and those of older compilers (101 was Thor's number before 110). It is not
# known which GPUs run any other.
_ARCHITECTURES: Final = frozenset({*TARGETS, 20, 30, 32, 35, 37, 101})
_TARGET: Final = re.compile(r"(?:sm_?)?(?:(\d+)\.(\d)|(\d+))")


class Kind(IntEnum):
    """The kind of code in an entry."""

    PTX = 1
    CUBIN = 2
    LTO_IR = 8


@dataclass(frozen=True, slots=True)
class FatbinEntry:
    """One compiled form of a container's kernels; offsets are within the content parsed."""

    kind: Kind
    architecture: int
    flags: int
    offset: int
    header_bytes: int
    payload_bytes: int

    @property
    def size_bytes(self) -> int:
        """Header and padded payload."""
        return self.header_bytes + self.payload_bytes

    @property
    def name(self) -> str:
        """Its name in NVIDIA's tools: `sm_90a`, `compute_120`, `lto_75`."""
        prefix = {Kind.PTX: "compute_", Kind.CUBIN: "sm_", Kind.LTO_IR: "lto_"}[self.kind]
        return f"{prefix}{self.architecture}{'a' * self.is_architecture_specific}{'f' * self.is_family_specific}"

    @property
    def is_architecture_specific(self) -> bool:
        """Whether it runs on its own architecture only (`a`)."""
        return bool(self.flags & _FLAG_ARCHITECTURE_SPECIFIC)

    @property
    def is_family_specific(self) -> bool:
        """Whether it runs on its own family only (`f`)."""
        return bool(self.flags & _FLAG_FAMILY_SPECIFIC)

    def runs_on(self, target: int) -> bool:
        """Returns whether a GPU of this compute capability can use it, directly or after the driver compiles it."""
        if self.is_architecture_specific:
            return self.architecture == target
        if self.is_family_specific:
            if self.architecture not in _FAMILIES:
                raise UnsupportedBinary("fatbin-unknown-family", self.name)
            return target in _FAMILIES[self.architecture]
        if self.kind is not Kind.CUBIN:
            return self.architecture <= target
        if self.architecture in _TEGRA or target in _TEGRA:
            return self.architecture == target
        return self.architecture // 10 == target // 10 and self.architecture <= target


@dataclass(frozen=True, slots=True)
class Container:
    """One fat binary: its offset and size in the content parsed, and its entries in order."""

    offset: int
    size_bytes: int
    entries: tuple[FatbinEntry, ...]


def parse_containers(content: Content) -> tuple[Container, ...]:
    """Returns every container of a section that holds nothing else.

    Raises:
        UnsupportedBinary: there are bytes between or behind the containers, or a container has an unknown feature.
    """
    view = memoryview(content)
    containers: list[Container] = []
    offset = 0
    while offset < len(view):
        container = _parse_container(view, offset)
        containers.append(container)
        offset += container.size_bytes
    return tuple(containers)


def pack_container_header(entry_bytes: int) -> bytes:
    """Returns the header of a container whose entries have this many bytes in total."""
    return _CONTAINER.pack(CONTAINER_MAGIC, _CONTAINER_VERSION, CONTAINER_HEADER_BYTES, entry_bytes)


def parse_target(value: str) -> int:
    """Returns a compute capability, written `9.0`, `90` or `sm_90`, as the number 90.

    Raises:
        UsageError: it is not a compute capability that this module has rules for.
    """
    match = _TARGET.fullmatch(value.strip())
    if match is not None:
        target = int(match[3]) if match[3] else int(match[1]) * 10 + int(match[2])
        if target in TARGETS:
            return target
    known = ", ".join(map(target_name, TARGETS))
    raise UsageError("target", value, f"not a known compute capability; use one of {known}")


def target_name(target: int) -> str:
    """Returns a compute capability in CUDA's notation: `9.0` for 90."""
    return f"{target // 10}.{target % 10}"


def usable_entries(container: Container, targets: frozenset[int]) -> tuple[FatbinEntry, ...]:
    """Returns the entries that GPUs of these compute capabilities would use, in order; none if no target can use any.

    For each target the driver takes the cubin of the highest architecture that runs on it, or else compiles the
    highest PTX that it can. All entries of that architecture are returned, plain, `a` or `f`: some containers hold
    several. LTO-IR is input for a link at run time. It is returned if any other entry is.
    """
    kept: set[FatbinEntry] = set()
    for target in targets:
        for kind in (Kind.CUBIN, Kind.PTX):
            usable = [entry for entry in container.entries if entry.kind is kind and entry.runs_on(target)]
            if usable:
                best = max(entry.architecture for entry in usable)
                kept.update(entry for entry in usable if entry.architecture == best)
                break
    if not kept:
        return ()
    return tuple(entry for entry in container.entries if entry in kept or entry.kind is Kind.LTO_IR)


def _parse_container(view: memoryview, offset: int) -> Container:
    if offset + CONTAINER_HEADER_BYTES > len(view):
        raise UnsupportedBinary("fatbin-truncated", f"container header at {offset:#x}")
    magic, version, header_bytes, entry_bytes = _CONTAINER.unpack_from(view, offset)
    if magic != CONTAINER_MAGIC:
        raise UnsupportedBinary("fatbin-magic", f"{magic:#x} at {offset:#x}")
    if version != _CONTAINER_VERSION or header_bytes != CONTAINER_HEADER_BYTES:
        raise UnsupportedBinary("fatbin-version", f"{version}, header of {header_bytes} bytes at {offset:#x}")
    if entry_bytes == 0:
        raise UnsupportedBinary("fatbin-empty", f"container at {offset:#x}")
    start = offset + CONTAINER_HEADER_BYTES
    end = start + entry_bytes
    if end > len(view) or entry_bytes % _WORD_BYTES:
        raise UnsupportedBinary("fatbin-truncated", f"container at {offset:#x} of {entry_bytes} bytes")
    entries: list[FatbinEntry] = []
    while start < end:
        entry = _parse_entry(view, start, end)
        entries.append(entry)
        start += entry.size_bytes
    return Container(offset=offset, size_bytes=end - offset, entries=tuple(entries))


def _parse_entry(view: memoryview, offset: int, end: int) -> FatbinEntry:
    if offset + _ENTRY.size > end:
        raise UnsupportedBinary("fatbin-truncated", f"entry header at {offset:#x}")
    (
        kind,
        version,
        header_bytes,
        payload_bytes,
        compressed_bytes,
        _options_offset,
        _isa_minor,
        _isa_major,
        architecture,
        name_offset,
        name_bytes,
        flags,
        _identifier,
        _uncompressed_bytes,
    ) = _ENTRY.unpack_from(view, offset)
    if kind not in Kind.__members__.values():
        raise UnsupportedBinary("fatbin-unknown-kind", f"{kind} at {offset:#x}")
    if version != _ENTRY_VERSION:
        raise UnsupportedBinary("fatbin-entry-version", f"{version:#x} at {offset:#x}")
    if not _ENTRY.size <= header_bytes <= _LARGEST_HEADER_BYTES or header_bytes % _WORD_BYTES:
        raise UnsupportedBinary("fatbin-entry-header", f"{header_bytes} bytes at {offset:#x}")
    if payload_bytes == 0 or payload_bytes % _WORD_BYTES or offset + header_bytes + payload_bytes > end:
        raise UnsupportedBinary("fatbin-truncated", f"payload of {payload_bytes} bytes at {offset:#x}")
    if compressed_bytes > payload_bytes:
        raise UnsupportedBinary("fatbin-entry-size", f"{compressed_bytes} of {payload_bytes} bytes at {offset:#x}")
    if name_offset or name_bytes:
        raise UnsupportedBinary("fatbin-named-entry", f"{name_bytes} bytes at {offset:#x}")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedBinary("fatbin-unknown-architecture", f"{architecture} at {offset:#x}")
    if flags & ~_KNOWN_FLAGS or (flags & _FLAG_ARCHITECTURE_SPECIFIC and flags & _FLAG_FAMILY_SPECIFIC):
        raise UnsupportedBinary("fatbin-unknown-flags", f"{flags:#x} at {offset:#x}")
    return FatbinEntry(Kind(kind), architecture, flags, offset, header_bytes, payload_bytes)
