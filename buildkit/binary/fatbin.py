"""CUDA fat binaries: containers of the same kernels compiled for many GPUs, and which of them a GPU can use.

NVIDIA publishes no description of the format. What stands here was read off the libraries of torch 2.13.0 and its
CUDA 13.0 wheels (20,000 containers) and checked against cuobjdump 13.5: the entries of each architecture that this
module finds are those that cuobjdump lists. Whatever those libraries do not contain is refused by name.

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

__all__ = [
    "CONTAINER_HEADER_BYTES",
    "CONTAINER_MAGIC",
    "FATBIN_SECTIONS",
    "Container",
    "FatbinEntry",
    "Kind",
    "UnknownTarget",
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
# What a target may be: the compute capabilities that CUDA 13.0 compiles for, with those that CUDA 12 still does.
TARGETS: Final = (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
# What an entry may be compiled for: those, and what older compilers did (101 was Thor's number before 110). Of any
# other, nobody here knows which GPUs run it.
_ARCHITECTURES: Final = frozenset({*TARGETS, 20, 30, 32, 35, 37, 101})
_TARGET: Final = re.compile(r"(?:sm_?)?(?:(\d+)\.(\d)|(\d+))")


class Kind(IntEnum):
    """What an entry holds."""

    PTX = 1
    CUBIN = 2
    LTO_IR = 8


class UnknownTarget(ValueError):
    """A compute capability that this module has no rule for.

    Attributes:
        value: as it was given.
        allowed: the capabilities known, as `9.0`.
    """

    def __init__(self, value: str) -> None:
        self.value = value
        self.allowed = tuple(target_name(target) for target in TARGETS)
        super().__init__(f"no GPU of compute capability {value!r} is known, only {', '.join(self.allowed)}")


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
        """As NVIDIA's tools write it: `sm_90a`, `compute_120`, `lto_75`."""
        prefix = {Kind.PTX: "compute_", Kind.CUBIN: "sm_", Kind.LTO_IR: "lto_"}[self.kind]
        return f"{prefix}{self.architecture}{'a' * self.is_architecture_specific}{'f' * self.is_family_specific}"

    @property
    def is_architecture_specific(self) -> bool:
        """Whether it runs on exactly its own architecture (`a`)."""
        return bool(self.flags & _FLAG_ARCHITECTURE_SPECIFIC)

    @property
    def is_family_specific(self) -> bool:
        """Whether it runs on its own family only (`f`)."""
        return bool(self.flags & _FLAG_FAMILY_SPECIFIC)

    def runs_on(self, target: int) -> bool:
        """Whether a GPU of this compute capability can use it, as it is or after compilation by the driver."""
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
    """One fat binary: where it lies, and its entries in order."""

    offset: int
    size_bytes: int
    entries: tuple[FatbinEntry, ...]


def parse_containers(content: Content) -> tuple[Container, ...]:
    """Every container of a section that holds nothing else.

    Raises:
        UnsupportedBinary: the containers do not abut from the first byte to the last, or hold anything unknown.
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
    """The header of a container whose entries take up this many bytes."""
    return _CONTAINER.pack(CONTAINER_MAGIC, _CONTAINER_VERSION, CONTAINER_HEADER_BYTES, entry_bytes)


def parse_target(value: str) -> int:
    """A compute capability, `9.0`, `90` or `sm_90`, as the number 90.

    Raises:
        UnknownTarget: it is not one, or not one that is known here.
    """
    match = _TARGET.fullmatch(value.strip())
    if match is None:
        raise UnknownTarget(value)
    target = int(match[3]) if match[3] else int(match[1]) * 10 + int(match[2])
    if target not in TARGETS:
        raise UnknownTarget(value)
    return target


def target_name(target: int) -> str:
    """A compute capability as CUDA writes it: 90 is `9.0`."""
    return f"{target // 10}.{target % 10}"


def usable_entries(container: Container, targets: frozenset[int]) -> tuple[FatbinEntry, ...]:
    """The entries that GPUs of these compute capabilities would use, in their order; none if none can use any.

    For each target the driver takes the cubin of the highest architecture that runs on it, else compiles the highest
    PTX that it can. Every entry at that architecture counts, plain, `a` or `f`: some containers hold several. LTO-IR
    is input for a link at run time and counts always, but does not make a container usable by itself alone where
    others are there that no target can use.
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
