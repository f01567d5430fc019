"""Reads `imported.txt`: the modules that a run of the service imports, and the versions of their distributions.

`record_imports.py` makes the list. A rule that removes a part of a package keeps the listed modules. The list is exact
for the versions that it was recorded with. For other versions, the modules that a listed module imports when it loads
are found in its source and stay too. That needs the complete environment in one tree. The image's layers are slimmed
one by one: a module that only a new version in another layer imports is removed, and the image's import check then
fails with the name of the rule.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["has_recorded_versions", "imported_paths"]

_LIST: Final = Path(__file__).with_name("imported.txt")
_VERSIONS: Final = "# Recorded with: "
_SEPARATORS: Final = re.compile(r"[-_.]+")  # equivalent in names (PyPA specification "Names and normalization")
_DISTRIBUTION: Final = re.compile(r"([^/]+)-([^-/]+)\.dist-info/")


@cache
def imported_paths() -> frozenset[str]:
    """Returns the paths in site-packages of the listed modules."""
    return frozenset(line for line in _LIST.read_text("utf-8").splitlines() if not line.startswith("#"))


@cache
def _recorded_versions() -> Mapping[str, str]:
    """Returns the versions of their distributions, by name in lower case with underscores; empty if not recorded."""
    lines = (line for line in _LIST.read_text("utf-8").splitlines() if line.startswith(_VERSIONS))
    listed = next(lines, "").removeprefix(_VERSIONS).split(", ")
    return {name: version for name, _, version in (entry.partition(" ") for entry in listed) if version}


def has_recorded_versions(paths: Iterable[str]) -> bool:
    """Returns whether every recorded distribution that is installed at these paths has its recorded version."""
    versions = _recorded_versions()
    installed = {found.groups() for path in paths if (found := _DISTRIBUTION.match(path)) is not None}
    normal = ((_SEPARATORS.sub("_", name).lower(), version) for name, version in installed)
    return bool(versions) and all(versions.get(name, version) == version for name, version in normal)
