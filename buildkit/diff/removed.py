"""Groups the files that an image no longer has: build tools, caches, tests, symbols of libraries."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from buildkit.diff.matching import FilePair
from buildkit.image.model import FileRecord, Measurement

__all__ = ["CONCERNS", "RemovedComponent", "concern_bytes", "removed_components"]

CONCERNS: Final = (
    "build tool",
    "development headers",
    "package manager",
    "package index",
    "development tool",
    "tests and examples",
)
"""Kinds of files that a runtime image should not have, judged by package names and paths."""

_OTHER: Final = "not needed"
# Debian and PyPI packages by purpose; the first match counts.
_PACKAGE_REASONS: Final = (
    (
        re.compile(
            r"build-essential|(gcc|g\+\+|cpp|binutils|make|dpkg-dev|patch|libgcc-\d+-dev|libstdc\+\+-\d+-dev)(-(?!.*base).*)?"
            r"|lib(binutils|ctf\d*|ctf-nobfd\d*|gprofng\d*|sframe\d*|cc1-\d*|[alt]san\d*|ubsan\d*|hwasan\d*|itm\d*"
            r"|quadmath\d*|isl\d*|mpc\d*|mpfr\d*|jansson\d*|dpkg-perl|fakeroot|algorithm-.*)"
        ),
        "build tool",
    ),
    (re.compile(r".*-dev|linux-libc-dev|rpcsvc-proto"), "development headers"),
    (
        re.compile(r"(pytest|coverage|ruff|mypy|hypothesis|black|isort|pluggy|iniconfig)(-.*)?"),
        "development tool",
    ),
    (re.compile(r"uv|pip|pipx|poetry|conda"), "package manager"),
)
# Files without a package, by path; the match group is the name of the component.
_PLACES: Final = (
    (re.compile(r"((?:root|home/[^/]+)/\.cache/[^/]+|(?:root|home/[^/]+)/\.local)/"), "package manager"),
    (re.compile(r"(var/lib/apt/lists|var/cache/apt)/"), "package index"),
    (re.compile(r"((?:.*/)?(?:tests?|scripts|examples|benchmarks))/"), "tests and examples"),
    (re.compile(r"((?:.*/)?include|usr/share/(?:doc|man|locale))/"), "headers and documentation"),
    (re.compile(r"((?:[^/]+/){1,3})"), _OTHER),
)
_BYTECODE: Final = re.compile(r".*\.pyc")
_SHARED_OBJECT: Final = re.compile(r".*\.so(\.[0-9.]+)?")


@dataclass(frozen=True, slots=True)
class RemovedComponent:
    """A package or folder that only the image before has.

    Attributes:
        name: of the package, or the path of the folder.
        reason: why a runtime image does not need it.
        removed_bytes: its files.
        files: their number.
    """

    name: str
    reason: str
    removed_bytes: int
    files: int


def removed_components(
    pairs: Iterable[FilePair], before: Measurement, after: Measurement
) -> tuple[RemovedComponent, ...]:
    """Returns the removed components, the largest first: packages by name, other files by path, parts of libraries.

    *pairs* are the files of both images as `match_files` yields them, so a moved file does not count as removed.
    """
    packages_left = {(str(package.manager), package.name) for package in after.packages}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for old, new in pairs:
        if old is None or old.kind != "file" or (new is not None and new.kind != "file"):
            continue
        if new is None:
            groups[_component(old, before, packages_left)].append(old.size_bytes)
        elif _SHARED_OBJECT.fullmatch(old.path) and new.size_bytes < old.size_bytes:
            key = "symbols and other parts of shared objects", "not needed to run"
            groups[key].append(old.size_bytes - new.size_bytes)
    found = [RemovedComponent(name, reason, sum(sizes), len(sizes)) for (name, reason), sizes in groups.items()]
    return tuple(sorted(found, key=lambda each: (-each.removed_bytes, each.name)))


def concern_bytes(measurement: Measurement) -> dict[str, int]:
    """Returns the bytes of each of `CONCERNS` in an image; all zero without a list of files."""
    sizes = dict.fromkeys(CONCERNS, 0)
    for record in measurement.files or ():
        if record.kind == "file":
            _, reason = _component(record, measurement, ())
            if reason in sizes:
                sizes[reason] += record.size_bytes
    return sizes


def _component(record: FileRecord, before: Measurement, packages_left: Collection[tuple[str, str]]) -> tuple[str, str]:
    if record.package >= 0:
        package = before.packages[record.package]
        if (package.manager, package.name) not in packages_left:
            return f"{package.name} ({package.manager})", _reason(package.name)
        return f"parts of {package.name} ({package.manager})", _part_reason(record.path)
    if _BYTECODE.fullmatch(record.path):
        return "bytecode of no package", "compiled again from its source"
    for pattern, reason in _PLACES:
        match = pattern.match(record.path)
        if match:
            return match[1].rstrip("/"), reason
    return "files in the root directory", _OTHER


def _part_reason(path: str) -> str:
    if _SHARED_OBJECT.fullmatch(path) or path.endswith((".a", ".bc")):
        return "libraries that are not loaded"
    if _BYTECODE.fullmatch(path):
        return "bytecode"
    return next((reason for pattern, reason in _PLACES if pattern.match(path)), _OTHER)


def _reason(name: str) -> str:
    return next((reason for pattern, reason in _PACKAGE_REASONS if pattern.fullmatch(name)), _OTHER)
