"""Reads and updates an installed tree: its files, its site-packages folders, and the RECORD of each distribution.

RECORD is the list of installed files with hash and size (PyPA specification "Recording installed projects").
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from buildkit.binary.rewrite import replace_content
from buildkit.errors import BuildkitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["InstalledFile", "NotInstalledTree", "Tree", "hash_file", "read_tree", "remove_files", "update_records"]

# Distributions are in the tree itself or in the site-packages of a virtual environment. They are not searched for
# deeper, so that a wrong folder (for example a project with an environment below it) is refused.
_RECORD: Final = re.compile(r"(?:lib/python3\.\d+/site-packages/)?[^/]+\.dist-info/RECORD")
_HASH_CHUNK_BYTES: Final = 1 << 20


class NotInstalledTree(BuildkitError):
    """A folder that is neither a virtual environment nor a site-packages folder.

    Attributes:
        path: the folder.
    """

    exit_code = 2

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is neither a virtual environment nor a site-packages folder: {reason}")
        self.path = path


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A regular file or symbolic link below the tree; `path` is relative, with `/`."""

    path: str
    size_bytes: int
    is_link: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything below a root, sorted by path.

    Attributes:
        sites: the site-packages folders, relative to the root; `.` if the root is one itself.
        records: the RECORD of each distribution in them; not those of distributions that packages vendor.
        recorded: path to the SHA-256 (hexadecimal) in its distribution's RECORD.
    """

    root: Path
    files: tuple[InstalledFile, ...]
    sites: tuple[str, ...]
    records: tuple[str, ...]
    recorded: Mapping[str, str]

    def by_site(self) -> Iterator[tuple[str, list[str]]]:
        """Yields (folder, paths inside it) for each site-packages folder, and (`.`, paths) for the other files."""
        rest = [file.path for file in self.files]
        for site in sorted(self.sites, key=len, reverse=True):
            prefix = "" if site == "." else f"{site}/"
            yield site, [path.removeprefix(prefix) for path in rest if path.startswith(prefix)]
            rest = [path for path in rest if not path.startswith(prefix)]
        if rest:
            yield ".", rest


def read_tree(root: Path, *, ignored: Path | None = None) -> Tree:
    """Lists a tree and reads its RECORD files; `ignored` is a file that does not belong to it, even if it is inside.

    Raises:
        NotInstalledTree: it is neither a virtual environment nor a site-packages folder.
    """
    if not root.is_dir() or root.resolve() == Path("/"):
        raise NotInstalledTree(root, "it is not a folder, or it is /")
    listed = sorted(_walk(root, ""), key=lambda file: file.path)
    ignored_path = None if ignored is None else os.path.relpath(ignored.resolve(), root.resolve())
    files = tuple(file for file in listed if file.path != ignored_path)
    records = tuple(file.path for file in files if _RECORD.fullmatch(file.path))
    if not records:
        raise NotInstalledTree(root, "there is no distribution in it or in its lib/python3.*/site-packages")
    sites = {str(PurePosixPath(record).parent.parent) for record in records}
    recorded: dict[str, str] = {}
    for record in records:
        for row in csv.reader(io.StringIO((root / record).read_text("utf-8"))):
            algorithm, _, digest = row[1].partition("=") if len(row) > 1 else ("", "", "")
            if algorithm == "sha256":
                recorded[_installed_path(record, row[0])] = _from_base64(digest)
    return Tree(root=root, files=files, sites=tuple(sorted(sites)), records=records, recorded=recorded)


def remove_files(root: Path, paths: list[str]) -> None:
    """Deletes files, and the folders that become empty."""
    emptied: set[Path] = set()
    for path in paths:
        (root / path).unlink()
        emptied.add((root / path).parent)
    for folder in sorted(emptied, key=lambda folder: len(folder.parts), reverse=True):
        current = folder
        while current != root and current.is_dir() and not any(current.iterdir()):
            current.rmdir()
            current = current.parent


def update_records(tree: Tree, *, removed: set[str], changed: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Deletes removed files from each RECORD, and writes the new hash and size of changed ones.

    Other lines stay byte for byte.

    Args:
        tree: the tree before the change.
        removed: paths of deleted files.
        changed: path to (SHA-256 in hexadecimal, bytes).

    Returns:
        The RECORD files that were rewritten, each with the SHA-256 of its old content.
    """
    rewritten: dict[str, str] = {}
    for record in tree.records:
        path = tree.root / record
        before = path.read_bytes().decode("utf-8")
        after = "".join(_updated_lines(before, record, removed, changed))
        if after != before:
            replace_content(path, after.encode("utf-8"))
            rewritten[record] = hashlib.sha256(before.encode("utf-8")).hexdigest()
    return rewritten


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _walk(root: Path, prefix: str) -> Iterator[InstalledFile]:
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, f"{path}/")
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                size_bytes = entry.stat(follow_symlinks=False).st_size
                yield InstalledFile(path=path, size_bytes=size_bytes, is_link=entry.is_symlink())


def _installed_path(record: str, row_path: str) -> str:
    """Returns the path below the tree for a row of a RECORD; a path outside the tree keeps its `..`."""
    site = record.rsplit("/", 2)[0] if record.count("/") > 1 else ""
    path = f"{site}/{row_path}" if site else row_path
    return os.path.normpath(path) if ".." in row_path else path


def _updated_lines(text: str, record: str, removed: set[str], changed: Mapping[str, tuple[str, int]]) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        row = next(csv.reader([line]), [])
        path = _installed_path(record, row[0]) if row else ""
        if path in removed:
            continue
        if path in changed:
            digest, size_bytes = changed[path]
            ending = line[len(line.rstrip("\r\n")) :]
            buffer = io.StringIO()
            csv.writer(buffer, lineterminator=ending).writerow([row[0], f"sha256={_to_base64(digest)}", size_bytes])
            yield buffer.getvalue()
        else:
            yield line


def _to_base64(digest: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digest)).rstrip(b"=").decode("ascii")


def _from_base64(digest: str) -> str:
    return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
