"""Opens a shared library: maps its content once, and reads its tables, GPU code and exports once, on first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from buildkit.binary.elf import map_file, parse
from buildkit.binary.gpu_sections import read_gpu_sections
from buildkit.binary.symbols import read_exports

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.binary.elf import Content, Elf
    from buildkit.binary.gpu_sections import GpuSections
    from buildkit.binary.symbols import Export

__all__ = ["Library"]


@dataclass(frozen=True)
class Library:
    """A file of machine code: where it is, its content, and the parts of it that were parsed so far.

    Each property raises UnsupportedBinary if the file has a feature that its reader does not support.
    """

    path: Path
    content: Content

    @classmethod
    def open(cls, path: Path) -> Library:
        """Maps a file.

        Raises:
            UnsupportedBinary: it is too short to be an ELF file.
        """
        return cls(path, map_file(path))

    @cached_property
    def elf(self) -> Elf:
        """The file header and both tables."""
        return parse(self.content)

    @cached_property
    def gpu_sections(self) -> GpuSections | None:
        """The GPU code and the pointers to it; None if the library has none."""
        return read_gpu_sections(self.content, self.elf)

    @cached_property
    def exports(self) -> tuple[Export, ...]:
        """The symbols that it defines for others, sorted by name."""
        return read_exports(self.content, self.elf)

    def moved_to(self, path: Path) -> Library:
        """Returns the same library, with all that was parsed, after its file was renamed to `path`."""
        moved = Library(path, self.content)
        moved.__dict__.update({name: value for name, value in self.__dict__.items() if name != "path"})
        return moved
