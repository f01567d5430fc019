"""Chooses the placeholders for the files that rules remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from buildkit.binary.elf import UnsupportedBinary
from buildkit.binary.library import Library
from buildkit.slim.placeholders.kinds import Placeholder, PlaceholderKind
from buildkit.slim.placeholders.libraries import unloadable_library, warning_library
from buildkit.slim.placeholders.modules import module_placeholder, package_placeholder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from buildkit.slim.placeholders.kinds import RemovalRule


__all__ = ["make_placeholders"]

# Transformers does not read the names in sources that start like this (utils/import_utils.py).
_UNREAD: Final = ("__init__", "convert_", "modular_")
# The sources that transformers reads names from without adding a requirement: for an image processor, for example, it
# adds libraries that are not installed either.
_BEST_READ: Final = ("configuration_", "modeling_", "processing_")


def make_placeholders(root: Path, claimed: Mapping[str, RemovalRule]) -> tuple[Placeholder, ...]:
    """Returns the placeholders, sorted by path: for libraries that are loaded late, folders of modules, and packages.

    Args:
        root: the folder that the paths are relative to.
        claimed: path to the rule that removes it; none of them is a placeholder yet.

    Raises:
        CompilerMissing: a library needs a placeholder that is compiled, and there is no compiler.
        UnsupportedBinary: the compiler cannot make a placeholder.
    """
    placeholders = [*_libraries(root, claimed), *_packages(claimed), *_modules(root, claimed)]
    return tuple(sorted(placeholders, key=lambda placeholder: placeholder.path))


def _libraries(root: Path, claimed: Mapping[str, RemovalRule]) -> Iterator[Placeholder]:
    makers = {
        PlaceholderKind.UNLOADABLE_LIBRARY: unloadable_library,
        PlaceholderKind.WARNING_LIBRARY: warning_library,
    }
    for path, rule in claimed.items():
        if rule.placeholder not in makers or (root / path).is_symlink():
            continue
        try:
            original = Library.open(root / path)
            elf = original.elf
        except UnsupportedBinary:
            continue  # not a library, so no program loads it
        yield Placeholder(rule.placeholder, path, makers[rule.placeholder](elf, _file_name(path), rule))


def _packages(claimed: Mapping[str, RemovalRule]) -> Iterator[Placeholder]:
    for path, rule in claimed.items():
        module = path.removesuffix(".py").removesuffix("/__init__")
        if path.endswith(".py") and module in rule.placeholder_packages:
            yield Placeholder(PlaceholderKind.PACKAGE, path, package_placeholder(module, rule))


def _modules(root: Path, claimed: Mapping[str, RemovalRule]) -> Iterator[Placeholder]:
    """Yields one module for each folder: transformers looks for the names in any module of a folder."""
    folders: dict[tuple[str, RemovalRule], list[str]] = {}
    for path, rule in claimed.items():
        if rule.placeholder is PlaceholderKind.MODULE and path.endswith(".py"):
            folders.setdefault((path.rpartition("/")[0], rule), []).append(path)
    for (folder, rule), paths in folders.items():
        readable = [path for path in paths if not _file_name(path).startswith(_UNREAD)]
        if readable:
            content = module_placeholder(((root / path).read_bytes() for path in readable), folder, rule)
            yield Placeholder(PlaceholderKind.MODULE, min(readable, key=_readability), content)


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _readability(path: str) -> tuple[int, str]:
    """Sorts the sources that transformers reads names from without a requirement first."""
    starts = [place for place, start in enumerate(_BEST_READ) if _file_name(path).startswith(start)]
    return (starts[0] if starts else len(_BEST_READ), path)
