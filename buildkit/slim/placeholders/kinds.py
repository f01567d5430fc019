"""Defines placeholders for removed files: their kinds, the one format of their message, and how to recognise them.

A failed import of a removed module is explained by the import hook, without a placeholder. Placeholders are for the
searches that never reach it: transformers reads the names of models from source files and reports only a missing
attribute; the loader reports only a missing file; sentence-transformers imports functions of scikit-learn that it
calls only to evaluate models.

The price: `hasattr(transformers, "CLIPModel")` raises instead of returning False, as for any name whose module fails
to import. A program that does without an optional package finds the placeholder, and fails at the first call instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from buildkit.binary.rewrite import replace_content

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.binary.elf import Content

__all__ = [
    "Placeholder",
    "PlaceholderKind",
    "RemovalMessage",
    "RemovalRule",
    "is_placeholder",
    "is_placeholder_file",
    "parse_message",
    "removal_message",
]

_MARK: Final = " was removed from this installation (slim rule "
_MESSAGE: Final = re.compile(rf"(?P<subject>.*?){re.escape(_MARK)}(?P<rule>[\w-]+)\)\. Lost: (?P<lost>.*)\.")
# The largest placeholder is the stub library of NVSHMEM, 223 kB.
_MOST_BYTES: Final = 1 << 20


class PlaceholderKind(Enum):
    """The form of a placeholder, and the moment at which its user reads the message."""

    MODULE = "module"
    """A module with the names that the modules of its folder exported; importing it raises ModuleNotFoundError."""
    PACKAGE = "package"
    """A package from which every name can be imported; using a name raises ImportError."""
    UNLOADABLE_LIBRARY = "unloadable library"
    """A library that the loader refuses to load; the message is the loader's error."""
    WARNING_LIBRARY = "warning library"
    """A library without symbols that writes the message to standard error when it is loaded.

    For programs that do not report the loader's errors, such as cuDNN.
    """
    STUB_LIBRARY = "stub library"
    """A library with all symbols of the original; a function writes the message and returns an error code."""


class RemovalRule(Protocol):
    """A rule that removes files, as far as placeholders need it; see `buildkit.slim.rules.rule_sets.Rule`."""

    @property
    def name(self) -> str:
        """The name in the message."""

    @property
    def lost(self) -> str:
        """The features that no longer work, for the message."""

    @property
    def placeholder(self) -> PlaceholderKind | None:
        """The kind of placeholder to leave, or None."""

    @property
    def placeholder_packages(self) -> tuple[str, ...]:
        """The paths of the packages that get a placeholder."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The content that replaces one removed file; `path` is relative to the tree."""

    kind: PlaceholderKind
    path: str
    content: bytes

    def write(self, root: Path) -> None:
        """Replaces the file below `root`; owner, mode and times stay."""
        replace_content(root / self.path, self.content)


@dataclass(frozen=True, slots=True)
class RemovalMessage:
    """The parts of a message: the name that was removed, the rule that removed it, and the features that are lost."""

    subject: str
    rule: str
    lost: str


def removal_message(subject: str, rule: str, lost: str) -> str:
    """Returns the sentence for a removed module, package or library, in the one format of all placeholders."""
    return f"{subject}{_MARK}{rule}). Lost: {lost}."


def parse_message(text: str) -> RemovalMessage | None:
    """Returns the parts of the first message in a line, or None if it has none."""
    found = _MESSAGE.search(text)
    return None if found is None else RemovalMessage(found["subject"], found["rule"], found["lost"])


def is_placeholder(content: Content) -> bool:
    """Returns whether a file is a placeholder of any kind."""
    return len(content) < _MOST_BYTES and _MARK.encode() in bytes(content)


def is_placeholder_file(path: Path) -> bool:
    """Returns whether the file at this path is a placeholder of any kind."""
    return not path.is_symlink() and path.stat().st_size < _MOST_BYTES and is_placeholder(path.read_bytes())
