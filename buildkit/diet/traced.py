"""What a run of the service imports: the list `imported.txt`, which trace.py makes, and the versions it was made with.

A rule that takes a part of a package spares what is listed. The list is exact for the versions that were traced. In
others, what a listed module imports when it loads is found by reading it, and is spared too.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["imported_paths", "is_as_traced", "traced_versions"]

_LIST: Final = Path(__file__).with_name("imported.txt")
_VERSIONS: Final = "# Traced with: "
_DISTRIBUTION: Final = re.compile(r"([^/]+)-([^-/]+)\.dist-info/")


@cache
def imported_paths() -> frozenset[str]:
    """Paths in site-packages of the modules that are imported."""
    return frozenset(line for line in _LIST.read_text("utf-8").splitlines() if not line.startswith("#"))


@cache
def traced_versions() -> Mapping[str, str]:
    """The version of each distribution that holds one of them, by its name as in the name of its .dist-info folder."""
    lines = (line for line in _LIST.read_text("utf-8").splitlines() if line.startswith(_VERSIONS))
    listed = next(lines).removeprefix(_VERSIONS).split(", ")
    return dict(sorted((name, version) for name, version in (entry.split() for entry in listed)))


def is_as_traced(paths: Iterable[str]) -> bool:
    """Whether what is installed at these paths of a site-packages has the versions that were traced."""
    versions = traced_versions()
    installed = {found.groups() for path in paths if (found := _DISTRIBUTION.match(path)) is not None}
    return all(versions.get(name.lower(), version) == version for name, version in installed)
