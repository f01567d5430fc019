"""The facts of one image, as values: what `programs/` print inside it and what the engine says about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Configuration",
    "Content",
    "Copies",
    "DebianPackage",
    "Distribution",
    "File",
    "FileSystem",
    "Interpreter",
    "SharedObject",
]


@dataclass(frozen=True, slots=True)
class File:
    """One path of the image: `kind` is file, folder, link or other."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int
    leads_to: str = ""
    has_capabilities: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SharedObject:
    """An ELF file: its names, what it needs, and what of that ld.so would not find."""

    path: str
    is_corrupt: bool = False
    is_executable: bool = False
    symbol_sections: tuple[str, ...] = ()
    symbol_bytes: int = 0
    cubin_targets: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    soname: str | None = None
    rpath: str | None = None
    runpath: str | None = None
    unresolved: tuple[str, ...] = ()

    @property
    def is_library(self) -> bool:
        """Whether it is loaded by others rather than started."""
        return not self.is_executable or ".so" in self.path.rpartition("/")[2]

    @property
    def is_refused_sign(self) -> bool:
        """Whether it is a placeholder that the loader refuses (buildkit/slim/placeholders/libraries.py).

        The other kind of sign loads, and needs nothing.
        """
        return len(self.needed) == 1 and " is left out of this installation (slim rule " in self.needed[0]


@dataclass(frozen=True, slots=True)
class Content:
    """Something that the bytes of a file betray, whatever its name."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Copies:
    """Several paths with the same bytes."""

    size_bytes: int
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """An entry of the operating system's package database."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed Python distribution; `path` is its metadata folder."""

    name: str
    version: str
    path: str


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that the image's PATH leads to."""

    version: str
    executable: str
    prefix: str


@dataclass(frozen=True)
class FileSystem:
    """What `programs/filesystem.py` prints."""

    python: Interpreter
    site_packages: tuple[str, ...]
    files: tuple[File, ...]
    objects: tuple[SharedObject, ...]
    contents: tuple[Content, ...]
    copies: tuple[Copies, ...]
    bytecode_problems: tuple[Content, ...]
    packages: tuple[DebianPackage, ...]
    distributions: tuple[Distribution, ...]

    @cached_property
    def by_path(self) -> dict[str, File]:
        """Each file by its path."""
        return {file.path: file for file in self.files}

    def below(self, *folders: str) -> Iterator[File]:
        """All that lies in *folders*, at any depth."""
        prefixes = tuple(f"{folder.rstrip('/')}/" for folder in folders)
        return (file for file in self.files if file.path.startswith(prefixes))


@dataclass(frozen=True, slots=True)
class Configuration:
    """How the image says it is to be run; fields are those of the OCI image configuration."""

    user: str = ""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    working_folder: str = ""
    stop_signal: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    architecture: str = "amd64"
    shell: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What is started: the entry point and then the command."""
        return self.entrypoint + self.command
