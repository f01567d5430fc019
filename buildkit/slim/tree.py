"""An installed tree: its files, its site-packages folders, and the RECORD of each distribution in them.

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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["InstalledFile", "NotATree", "Tree", "hash_file", "read_tree", "remove_files", "update_records"]

# Where a distribution may lie: in the tree itself or where a virtual environment has it. Nowhere deeper, so that a
# wrong folder (one that has an environment somewhere below) is refused instead of slimmed.
_RECORD: Final = re.compile(r"(?:lib/python3\.\d+/site-packages/)?[^/]+\.dist-info/RECORD")
_HASH_CHUNK_BYTES: Final = 1 << 20


class NotATree(ValueError):
    """A folder without installed distributions, or one that must not be slimmed.

    Attributes:
        path: the folder given.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is neither a virtual environment nor a site-packages folder: {why}")
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
        sites: the site-packages folders, relative to the root; `.` where the root is one itself.
        records: the RECORD of each distribution in them; copies that packages vendor are files like any other.
        recorded: path to the SHA-256 (hexadecimal) that its distribution's RECORD gives.
    """

    root: Path
    files: tuple[InstalledFile, ...]
    sites: tuple[str, ...]
    records: tuple[str, ...]
    recorded: Mapping[str, str]

    def by_site(self) -> Iterator[tuple[str, list[str]]]:
        """(folder, paths inside it) for each site-packages, and (`.`, paths) for what lies in none."""
        rest = [file.path for file in self.files]
        for site in sorted(self.sites, key=len, reverse=True):
            prefix = "" if site == "." else f"{site}/"
            yield site, [path.removeprefix(prefix) for path in rest if path.startswith(prefix)]
            rest = [path for path in rest if not path.startswith(prefix)]
        if rest:
            yield ".", rest


def read_tree(root: Path, *, ignored: Path | None = None) -> Tree:
    """Lists a tree and reads its RECORD files; `ignored` is a file that is no part of it wherever it lies.

    Raises:
        NotATree: it holds no distribution where a virtual environment or a site-packages folder has them.
    """
    if not root.is_dir() or root.resolve() == Path("/"):
        raise NotATree(root, "not a folder of its own")
    listed = sorted(_walk(root, ""), key=lambda file: file.path)
    left_out = None if ignored is None else os.path.relpath(ignored.resolve(), root.resolve())
    files = tuple(file for file in listed if file.path != left_out)
    records = tuple(file.path for file in files if _RECORD.fullmatch(file.path))
    if not records:
        raise NotATree(root, "no distribution lies in it or in its lib/python3.*/site-packages")
    sites = {str(PurePosixPath(record).parent.parent) for record in records}
    recorded: dict[str, str] = {}
    for record in records:
        for row in csv.reader(io.StringIO((root / record).read_text("utf-8"))):
            algorithm, _, digest = row[1].partition("=") if len(row) > 1 else ("", "", "")
            if algorithm == "sha256":
                recorded[_installed_path(record, row[0])] = _from_base64(digest)
    return Tree(root=root, files=files, sites=tuple(sorted(sites)), records=records, recorded=recorded)


def remove_files(root: Path, paths: list[str]) -> None:
    """Deletes files, and the folders that this leaves empty."""
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
    """Takes removed files out of each RECORD and writes the new hash and size of changed ones.

    Lines that do not change stay byte for byte.

    Args:
        tree: as it was before the change.
        removed: paths that are gone.
        changed: path to (SHA-256 in hexadecimal, bytes).

    Returns:
        The RECORD files rewritten, each with the SHA-256 of what it was.
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
    """The SHA-256 of a file's content, in hexadecimal."""
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
    """The path below the tree that a row of a RECORD means; one that leaves the tree keeps its `..`."""
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
