"""Rewrites a file from ranges of its own content and patches, in a new file that replaces it after a check."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.binary.elf import Content

__all__ = ["CopyRange", "Rewrite", "apply_rewrite", "replace_content", "replace_file", "write_at"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CopyRange:
    """A range of the old file that is copied to the new one."""

    old_offset: int
    new_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The content of the new file: zeros, then the ranges copied over them, then the patches, each in order.

    Attributes:
        ranges: copied from the old file.
        patches: (offset in the new file, bytes).
    """

    bytes_before: int
    bytes_after: int
    ranges: tuple[CopyRange, ...]
    patches: tuple[tuple[int, bytes], ...]

    @property
    def moved(self) -> tuple[CopyRange, ...]:
        """The ranges that change their offset."""
        return tuple(piece for piece in self.ranges if piece.old_offset != piece.new_offset)

    @property
    def zeros(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of the padding of the new file, which neither a range nor a patch fills."""
        filled = [(piece.new_offset, piece.new_offset + piece.size_bytes) for piece in self.ranges]
        filled += [(offset, offset + len(patch)) for offset, patch in self.patches]
        gaps: list[tuple[int, int]] = []
        position = 0
        for start, end in sorted(filled):
            if start > position:
                gaps.append((position, start))
            position = max(position, end)
        return (*gaps, (position, self.bytes_after)) if position < self.bytes_after else tuple(gaps)


def apply_rewrite(content: Content, rewrite: Rewrite) -> bytes:
    """Returns the new file's content; `replace_file` must write the same bytes."""
    view = memoryview(content)
    written = bytearray(rewrite.bytes_after)
    for piece in rewrite.ranges:
        source = view[piece.old_offset : piece.old_offset + piece.size_bytes]
        written[piece.new_offset : piece.new_offset + piece.size_bytes] = source
    for offset, patch in rewrite.patches:
        written[offset : offset + len(patch)] = patch
    return bytes(written)


def replace_file(path: Path, rewrite: Rewrite, check: Callable[[Path], _T]) -> _T:
    """Writes the new file beside the old one, checks it, renames it over the old one, and returns the check's result.

    Owner, mode and times stay. If `check` raises, the old file stays.
    """
    status = path.stat()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, path.open("rb") as source:
            os.ftruncate(target.fileno(), rewrite.bytes_after)
            for piece in rewrite.ranges:
                _copy(source.fileno(), target.fileno(), piece)
            for offset, patch in rewrite.patches:
                write_at(target.fileno(), patch, offset)
        result = check(temporary)
        shutil.copystat(path, temporary)
        os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return result


def replace_content(path: Path, content: bytes) -> None:
    """Replaces a file by a new one with this content. Owner, mode and times stay; open handles keep the old content."""
    rewrite = Rewrite(bytes_before=path.stat().st_size, bytes_after=len(content), ranges=(), patches=((0, content),))
    replace_file(path, rewrite, lambda _: None)


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Writes all of `content` at an offset, in as many calls as that takes."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _copy(source: int, target: int, piece: CopyRange) -> None:
    """Copies a range inside the kernel, or by reading and writing if the file system does not support that."""
    offset = 0
    while offset < piece.size_bytes:
        left = piece.size_bytes - offset
        try:
            copied = os.copy_file_range(source, target, left, piece.old_offset + offset, piece.new_offset + offset)
        except OSError:
            chunk = os.pread(source, min(left, 1 << 24), piece.old_offset + offset)
            write_at(target, chunk, piece.new_offset + offset)
            copied = len(chunk)
        if copied == 0:
            raise EOFError(f"{left} bytes are missing at offset {piece.old_offset + offset}")
        offset += copied
