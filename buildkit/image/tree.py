"""Breaks the merged file system down: the parts of a CUDA Python image, and the largest folders."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from buildkit.image.model import FileRecord, FolderSize, TreeRow

__all__ = ["folder_sizes", "make_row", "make_tree"]

_SITE: Final = re.compile(
    r"(?P<site>(?:(?P<prefix>.*)/)?lib(?:64)?/python3[^/]*/(?:site|dist)-packages)/(?P<top>[^/]+)"
)
_DEBIAN_SITE: Final = "usr/lib/python3/dist-packages"  # Debian Policy for Python: only dpkg installs there
_SITE_FOLDERS: Final = ("nvidia", "torch", "triton", "others")


def make_row(label: str, parent: str | None, files: Sequence[FileRecord], image_bytes: int) -> TreeRow:
    """Returns the row for *files*, with their share of *image_bytes*."""
    part_bytes = sum(record.size_bytes for record in files)
    return TreeRow(label, parent, part_bytes, part_bytes / image_bytes if image_bytes else 0.0, len(files))


def make_tree(files: Sequence[FileRecord], image_bytes: int, working_dir: str) -> tuple[TreeRow, ...]:
    """Assigns each file to the first part that matches, and returns the parts.

    site-packages: of any Python but Debian's, by top-level folder. bin: programs of the same installations, and
    usr/local/bin. application: the image's working directory. home: /root and /home, where tools leave caches. base
    system: everything else.
    """
    prefixes = {"usr/local"}
    for record in files:
        match = _SITE.match(record.path)
        if match and match["site"] != _DEBIAN_SITE:
            prefixes.add(match["prefix"] or "")
    parts: dict[str, list[FileRecord]] = {
        label: []
        for label in (*(f"site-packages/{name}" for name in _SITE_FOLDERS), "bin", "application", "home", "base system")
    }
    for record in files:
        parts[_part(record.path, prefixes, working_dir)].append(record)
    site_packages = [record for name in _SITE_FOLDERS for record in parts[f"site-packages/{name}"]]
    rows = [make_row("site-packages", None, site_packages, image_bytes)]
    rows += [
        make_row(label, "site-packages" if label.startswith("site-packages/") else None, records, image_bytes)
        for label, records in parts.items()
    ]
    return tuple(rows)


def _part(path: str, prefixes: Iterable[str], working_dir: str) -> str:
    match = _SITE.match(path)
    if match and match["site"] != _DEBIAN_SITE:
        return f"site-packages/{match['top'] if match['top'] in _SITE_FOLDERS else 'others'}"
    if any(path.startswith(f"{prefix}/bin/") for prefix in prefixes):
        return "bin"
    if working_dir and path.startswith(f"{working_dir}/"):
        return "application"
    return "home" if path.startswith(("root/", "home/")) else "base system"


def folder_sizes(files: Iterable[FileRecord], min_bytes: int = 0) -> tuple[FolderSize, ...]:
    """Returns the folders of at least *min_bytes*, subfolders included, the largest first."""
    sizes: dict[str, int] = defaultdict(int)
    counts: dict[str, int] = defaultdict(int)
    for record in files:
        folder = record.path.rpartition("/")[0]
        sizes[folder] += record.size_bytes
        counts[folder] += 1
    for path in list(sizes):
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            sizes[folder] += 0
    for path in sorted(sizes, key=lambda each: -each.count("/")):
        if path:
            parent = path.rpartition("/")[0]
            sizes[parent] += sizes[path]
            counts[parent] += counts[path]
    found = [FolderSize(path, size, counts[path]) for path, size in sizes.items() if size >= min_bytes]
    return tuple(sorted(found, key=lambda folder: (-folder.final_bytes, folder.path)))
