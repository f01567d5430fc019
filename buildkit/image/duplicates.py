"""Finds contents that an image stores more than once, and shared libraries that it holds in several copies."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from buildkit.image.merge import MergedFileSystem, StoredFile
from buildkit.image.model import DuplicateContent, DuplicateLibrary, FileRecord, LibraryCopy, StoredCopy
from buildkit.image.packages import Package

__all__ = ["find_duplicate_libraries", "find_duplicates"]

_MAX_EXAMPLES: Final = 20
# `libcudart-d0da41ae.so.11.0`, renamed by auditwheel, is a copy of libcudart.so.11.0
_LIBRARY: Final = re.compile(r"(?P<stem>lib[\w+.]+?)(?:-[0-9a-f]{8})?\.so\.(?P<major>\d+)(?:\.[\d.]+)?")
# the libraries that CUDA's installer and NVIDIA's wheels both carry: nvidia/cuda's runtime image, cu12 and cu13 wheels
_CUDA_LIBRARY: Final = re.compile(
    r"lib(cudart|cublas|cublasLt|nvblas|cudnn\w*|cufft|cufftw|curand|cusolver|cusolverMg|cusparse|cusparseLt|cufile\w*"
    r"|cupti|nccl|nvrtc|nvrtc-builtins|nvJitLink|nvToolsExt|nvperf\w*|nvshmem\w*|npp\w+|nvjpeg|nvinfer\w*|OpenCL)"
)


def find_duplicates(file_system: MergedFileSystem) -> tuple[DuplicateContent, ...]:
    """Returns the contents that layers store more than once, hidden files included, the most extra bytes first."""
    first: dict[bytes, StoredFile] = {}
    groups: dict[bytes, list[StoredFile]] = {}
    for stored in file_system.stored:
        if stored.entry.size_bytes:
            other = first.setdefault(stored.entry.sha256, stored)
            if other is not stored:
                groups.setdefault(stored.entry.sha256, [other]).append(stored)
    del first
    repeated = {id(stored) for members in groups.values() for stored in members}
    path_of = {id(node.file): path for path, node in file_system.walk() if id(node.file) in repeated}
    found = []
    for sha256, members in groups.items():
        size_bytes = members[0].entry.size_bytes
        copies = sorted(
            (StoredCopy(each.layer, path_of.get(id(each), each.entry.path), each.names > 0) for each in members),
            key=lambda copy: (copy.layer, copy.path),
        )
        extra_bytes = size_bytes * (len(members) - 1)
        examples = tuple(copies[:_MAX_EXAMPLES])
        found.append(DuplicateContent(sha256.hex(), size_bytes, extra_bytes, len(members), examples))
    return tuple(sorted(found, key=lambda each: (-each.extra_bytes, each.sha256)))


def find_duplicate_libraries(files: Iterable[FileRecord], packages: Sequence[Package]) -> tuple[DuplicateLibrary, ...]:
    """Returns the shared libraries with several visible copies: CUDA's first, then by extra bytes."""
    groups: dict[tuple[str, bool], list[FileRecord]] = defaultdict(list)
    for record in files:
        match = _LIBRARY.fullmatch(record.path.rpartition("/")[2])
        if match:
            is_cuda = _CUDA_LIBRARY.fullmatch(match["stem"]) is not None
            soname = f"{match['stem']}.so" if is_cuda else f"{match['stem']}.so.{match['major']}"
            groups[soname, is_cuda].append(record)
    found = [
        _duplicate_library(soname, members, packages, is_cuda=is_cuda)
        for (soname, is_cuda), members in groups.items()
        if len(members) > 1
    ]
    return tuple(sorted(found, key=lambda each: (not each.is_cuda, -each.extra_bytes, each.soname)))


def _duplicate_library(
    soname: str, members: Sequence[FileRecord], packages: Sequence[Package], *, is_cuda: bool
) -> DuplicateLibrary:
    copies = [
        LibraryCopy(each.path, each.size_bytes, each.layer, None if each.package < 0 else packages[each.package].name)
        for each in sorted(members, key=lambda record: (-record.size_bytes, record.path))
    ]
    return DuplicateLibrary(
        soname=soname,
        is_cuda=is_cuda,
        extra_bytes=sum(copy.size_bytes for copy in copies[1:]),
        copies=tuple(copies),
    )
