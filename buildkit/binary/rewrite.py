"""A file written anew from pieces of itself: which bytes stay, where they go, and what is written over them."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.binary.elf import Content

__all__ = ["CopyRange", "Rewrite", "apply_rewrite", "replace_content", "replace_file", "write_at"]


@dataclass(frozen=True, slots=True)
class CopyRange:
    """A run of bytes of the old file that the new one keeps: from where to where."""

    old_offset: int
    new_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """The new file: zeros, the runs over them in order, then the patches in order.

    Attributes:
        patches: (offset in the new file, bytes).
    """

    bytes_before: int
    bytes_after: int
    runs: tuple[CopyRange, ...]
    patches: tuple[tuple[int, bytes], ...]

    @property
    def moved(self) -> tuple[CopyRange, ...]:
        """The runs that change place."""
        return tuple(run for run in self.runs if run.old_offset != run.new_offset)

    @property
    def zeros(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of what neither a run nor a patch fills: padding, zero in the new file."""
        filled = [(run.new_offset, run.new_offset + run.size_bytes) for run in self.runs]
        filled += [(offset, offset + len(patch)) for offset, patch in self.patches]
        gaps: list[tuple[int, int]] = []
        position = 0
        for start, end in sorted(filled):
            if start > position:
                gaps.append((position, start))
            position = max(position, end)
        return (*gaps, (position, self.bytes_after)) if position < self.bytes_after else tuple(gaps)


def apply_rewrite(content: Content, rewrite: Rewrite) -> bytes:
    """The new file as bytes: the definition that writing it to disk must agree with."""
    view = memoryview(content)
    written = bytearray(rewrite.bytes_after)
    for run in rewrite.runs:
        written[run.new_offset : run.new_offset + run.size_bytes] = view[
            run.old_offset : run.old_offset + run.size_bytes
        ]
    for offset, patch in rewrite.patches:
        written[offset : offset + len(patch)] = patch
    return bytes(written)


def replace_file(path: Path, rewrite: Rewrite, check: Callable[[Path], None]) -> None:
    """Writes the new file beside the old one, checks it, and renames it over the old one.

    Owner, mode and times stay. Whatever `check` raises leaves the old file as it was.
    """
    status = path.stat()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, path.open("rb") as source:
            os.ftruncate(target.fileno(), rewrite.bytes_after)
            for run in rewrite.runs:
                _copy(source.fileno(), target.fileno(), run)
            for offset, patch in rewrite.patches:
                write_at(target.fileno(), patch, offset)
        check(temporary)
        shutil.copystat(path, temporary)
        os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(status.st_mode & 0o7777)
        os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_content(path: Path, content: bytes) -> None:
    """Writes a file anew; owner, mode and times stay, and whoever has it open keeps what it was."""
    rewrite = Rewrite(bytes_before=path.stat().st_size, bytes_after=len(content), runs=(), patches=((0, content),))
    replace_file(path, rewrite, lambda _: None)


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Writes all of `content` at an offset, however many calls that takes."""
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset += written


def _copy(source: int, target: int, run: CopyRange) -> None:
    """Copies a run inside the kernel; where the file system cannot, by reading and writing."""
    offset = 0
    while offset < run.size_bytes:
        left = run.size_bytes - offset
        try:
            copied = os.copy_file_range(source, target, left, run.old_offset + offset, run.new_offset + offset)
        except OSError:
            chunk = os.pread(source, min(left, 1 << 24), run.old_offset + offset)
            write_at(target, chunk, run.new_offset + offset)
            copied = len(chunk)
        if copied == 0:
            raise EOFError(f"{left} bytes are missing at offset {run.old_offset + offset}")
        offset += copied
