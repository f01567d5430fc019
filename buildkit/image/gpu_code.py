"""Finds GPU code in the shared objects of an image: bytes by library and architecture.

The search reads the ELF sections for fat binaries, so it needs the layer's tar archive uncompressed and in a file. Code
that `buildkit.binary.fatbin` does not understand counts as "unknown"; it is never left out.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from buildkit.binary import elf
from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.fatbin import CONTAINER_HEADER_BYTES, FATBIN_SECTIONS, parse_containers
from buildkit.image.layer_tar import GpuCode, LayerContents, LayerEntry
from buildkit.image.merge import MergedFileSystem

__all__ = ["UNKNOWN", "GpuArchitecture", "GpuCodeMeasurement", "GpuLibrary", "find_gpu_code", "measure_gpu_code"]

UNKNOWN: Final = "unknown"
"""The architecture of code that could not be decoded."""

_RELEASE_BYTES: Final = 64 << 20
_MIN_LIBRARY_BYTES: Final = 4096  # any shared object with a kernel is larger


@dataclass(frozen=True, slots=True)
class GpuArchitecture:
    """The code of all visible libraries for one architecture.

    Attributes:
        architecture: as NVIDIA's tools name it: "sm_90".
        code_bytes: including the headers of the code.
        libraries: the number of libraries with such code.
    """

    architecture: str
    code_bytes: int
    libraries: int


@dataclass(frozen=True, slots=True)
class GpuLibrary:
    """A shared object with GPU code.

    Attributes:
        path: in the merged file system.
        layer: the position of the layer that stores it.
        package: the name of the package that owns it, None if none does.
        code_bytes: of all architectures.
        architectures: bytes by architecture.
    """

    path: str
    layer: int
    package: str | None
    code_bytes: int
    architectures: dict[str, int]


@dataclass(frozen=True, slots=True)
class GpuCodeMeasurement:
    """The GPU code of the merged file system, the largest first.

    `layers_not_searched` are layers that were compressed or came through a pipe: their code is not in the figures.
    """

    architectures: tuple[GpuArchitecture, ...]
    libraries: tuple[GpuLibrary, ...]
    layers_not_searched: tuple[int, ...]


def measure_gpu_code(
    layers: Sequence[LayerContents], file_system: MergedFileSystem, package_of: Callable[[str], str | None]
) -> GpuCodeMeasurement:
    """Sums the code of the visible files; a hard-linked library counts at its first name."""
    codes: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    for position, layer in enumerate(layers):
        for code in layer.gpu_code or ():
            codes[position, code.path][code.architecture] = code.code_bytes
    libraries = []
    if codes:
        for path, node in file_system.walk():
            stored = node.file
            sizes = None if stored is None else codes.pop((stored.layer, stored.entry.path), None)
            if stored is not None and sizes:
                libraries.append(GpuLibrary(path, stored.layer, package_of(path), sum(sizes.values()), sizes))
    totals: dict[str, list[int]] = defaultdict(list)
    for library in libraries:
        for architecture, code_bytes in library.architectures.items():
            totals[architecture].append(code_bytes)
    architectures = [GpuArchitecture(name, sum(sizes), len(sizes)) for name, sizes in totals.items()]
    return GpuCodeMeasurement(
        architectures=tuple(sorted(architectures, key=lambda each: (-each.code_bytes, each.architecture))),
        libraries=tuple(sorted(libraries, key=lambda each: (-each.code_bytes, each.path))),
        layers_not_searched=tuple(position for position, layer in enumerate(layers) if layer.gpu_code is None),
    )


def find_gpu_code(entries: Sequence[LayerEntry], tar: memoryview, release: Callable[[], None]) -> tuple[GpuCode, ...]:
    """Returns the GPU code in the shared objects among *entries*, whose contents are at their offsets in *tar*.

    *release* is called from time to time, so that a mapped *tar* does not fill the memory.
    """
    found = []
    for entry in entries:
        is_candidate = entry.content_offset >= 0 and entry.size_bytes >= _MIN_LIBRARY_BYTES
        if is_candidate and ".so" in entry.path.rpartition("/")[2]:
            content = tar[entry.content_offset : entry.content_offset + entry.size_bytes]
            sizes = _code_of(content, release)
            found += [GpuCode(entry.path, architecture, size_bytes) for architecture, size_bytes in sizes]
    return tuple(found)


def _code_of(content: memoryview, release: Callable[[], None]) -> list[tuple[str, int]]:
    if bytes(content[:4]) != elf.MAGIC:
        return []
    try:
        sections = elf.parse(content).sections
    except UnsupportedBinary:
        return []  # not for a host with CUDA: another class, byte order or machine
    sizes: dict[str, int] = defaultdict(int)
    for section in sections:
        if section.name in FATBIN_SECTIONS and section.stored_bytes:
            for architecture, size_bytes in _code_of_section(content[section.file_offset : section.file_end], release):
                sizes[architecture] += size_bytes
    return sorted(sizes.items())


def _code_of_section(section: memoryview, release: Callable[[], None]) -> Iterator[tuple[str, int]]:
    """Yields the architecture and bytes of each entry; the rest of a section that cannot be decoded is "unknown"."""
    offset = read_bytes = 0
    while offset < len(section):
        stated_bytes = int.from_bytes(section[offset + 8 : offset + 16], "little")  # the header's last field
        end = offset + CONTAINER_HEADER_BYTES + stated_bytes
        try:
            containers = parse_containers(section[offset:end])
        except UnsupportedBinary:
            yield UNKNOWN, len(section) - offset
            return
        for container in containers:
            for entry in container.entries:
                yield entry.name, entry.size_bytes
        read_bytes += end - offset
        offset = end
        if read_bytes > _RELEASE_BYTES:
            release()
            read_bytes = 0
    release()
