"""What a run of the service imports: the list `imported.txt`, which trace.py makes, and the versions it was made with.

A rule that takes a part of a package spares what is listed. The list is exact for the versions that were traced. In
others, what a listed module imports when it loads is found by reading it, and is spared too. That needs the whole
environment in one tree: where layers are slimmed one by one, as in the image, a module that only another layer's new
version imports goes, and the image's check of what imports fails with the name of the rule.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["imported_paths", "is_as_traced"]

_LIST: Final = Path(__file__).with_name("imported.txt")
_VERSIONS: Final = "# Traced with: "
_SEPARATORS: Final = re.compile(r"[-_.]+")  # all the same in names (PyPA specification "Names and normalization")
_DISTRIBUTION: Final = re.compile(r"([^/]+)-([^-/]+)\.dist-info/")


@cache
def imported_paths() -> frozenset[str]:
    """Paths in site-packages of the modules that are imported."""
    return frozenset(line for line in _LIST.read_text("utf-8").splitlines() if not line.startswith("#"))


@cache
def _traced_versions() -> Mapping[str, str]:
    """The version of each distribution that holds one of them, by its name in small letters with underscores.

    Empty where the list does not say.
    """
    lines = (line for line in _LIST.read_text("utf-8").splitlines() if line.startswith(_VERSIONS))
    listed = next(lines, "").removeprefix(_VERSIONS).split(", ")
    return {name: version for name, _, version in (entry.partition(" ") for entry in listed) if version}


def is_as_traced(paths: Iterable[str]) -> bool:
    """Whether every listed distribution among what is installed at these paths has the version that was traced."""
    versions = _traced_versions()
    installed = {found.groups() for path in paths if (found := _DISTRIBUTION.match(path)) is not None}
    normal = ((_SEPARATORS.sub("_", name).lower(), version) for name, version in installed)
    return bool(versions) and all(versions.get(name, version) == version for name, version in normal)
