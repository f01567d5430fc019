"""Defines the facts of an image: the output of `programs/`, and the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Configuration",
    "Distribution",
    "File",
    "FileSystem",
    "Interpreter",
    "SharedObject",
]


@dataclass(frozen=True, slots=True)
class File:
    """A path of the image. `kind` is "file", "folder", "link" or "other"; a link has its `link_target`."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int
    link_target: str = ""
    has_capabilities: bool = False

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class SharedObject:
    """An ELF file.

    Attributes:
        symbol_sections: sections with symbols or debug information.
        cubin_targets: GPUs that it has device code for, such as `sm_90`.
        needed: libraries that it depends on (DT_NEEDED).
        unresolved: those of `needed` that the loader would not find.
    """

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
        """Whether it is a library rather than a program."""
        return not self.is_executable or ".so" in self.path.rpartition("/")[2]

    @property
    def is_unloadable_placeholder(self) -> bool:
        """Whether it is a placeholder of `slim` that fails to load (buildkit/slim/placeholders/libraries.py).

        Such a placeholder needs one library with the message as its name. Other placeholders load.
        """
        return len(self.needed) == 1 and " was removed from this installation (slim rule " in self.needed[0]


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed Python distribution.

    Attributes:
        name: the spelling of its metadata.
        path: its folder `*.dist-info` or `*.egg-info`.
    """

    name: str
    version: str
    path: str


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that the image's PATH finds first."""

    version: str
    executable: str
    prefix: str


@dataclass(frozen=True)
class FileSystem:
    """The merged file system of an image, as `programs/filesystem.py` prints it.

    Attributes:
        recognized: path -> the kind of file that its contents show, such as "make" or "a static library".
        duplicates: groups of paths of large files with equal contents.
        bytecode_problems: path of a Python source -> why its bytecode cannot be used.
        packages: name -> version of each installed Debian package.
    """

    python: Interpreter
    site_packages: tuple[str, ...]
    files: tuple[File, ...]
    objects: tuple[SharedObject, ...]
    recognized: dict[str, str]
    duplicates: tuple[tuple[str, ...], ...]
    bytecode_problems: dict[str, str]
    packages: dict[str, str]
    distributions: tuple[Distribution, ...]

    @cached_property
    def by_path(self) -> dict[str, File]:
        """The files by path."""
        return {file.path: file for file in self.files}

    def recognized_as(self, kind: str) -> set[str]:
        """Returns the paths of the files that `recognized` lists as *kind*."""
        return {path for path, recognized in self.recognized.items() if recognized == kind}

    def below(self, *folders: str) -> Iterator[File]:
        """Yields the files in *folders*, at any depth."""
        prefixes = tuple(f"{folder.rstrip('/')}/" for folder in folders)
        return (file for file in self.files if file.path.startswith(prefixes))


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of an image; the fields are those of the OCI image configuration."""

    user: str = ""
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    working_directory: str = ""
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
        """The program that a container starts: entry point and command."""
        return self.entrypoint + self.command
