"""Finds the package that owns each file of an image: Python distributions by RECORD, Debian packages by file lists.

Python: the PyPA specification "Recording installed projects". Debian: dpkg's `status` and `info/*.list`, and in
distroless images `status.d/` with its md5sums.
"""

import csv
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from buildkit.image.errors import CorruptLayer
from buildkit.image.merge import MergedFileSystem, StoredFile
from buildkit.text import canonical_name

__all__ = ["Ownership", "Package", "PackageManager", "find_owners"]

PackageManager = Literal["python", "debian"]

_DPKG: Final = "var/lib/dpkg"
_BYTECODE: Final = re.compile(r"(?P<folder>.*/)?__pycache__/(?P<name>[^/]+?)\.[a-z]+-[0-9a-z]+(\.opt-[0-9a-z]+)?\.pyc")


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package, and its files in the merged file system.

    Attributes:
        manager: the tool that installed it.
        name: canonical, for a Python distribution.
        version: as its metadata says.
        location: the folder of a Python distribution; empty for a Debian package.
        layer: the position of the layer with its list of files.
        files: the number of its files; a file that several packages list counts for the first by name.
        final_bytes: the size of those files.
    """

    manager: PackageManager
    name: str
    version: str
    location: str
    layer: int
    files: int
    final_bytes: int


@dataclass(frozen=True, slots=True)
class Ownership:
    """All packages, and for each owned path the position of its package in `packages`."""

    packages: tuple[Package, ...]
    owner_of: Mapping[str, int]

    def name_of(self, path: str) -> str | None:
        """Returns the name of the package that owns *path*, None if none does."""
        owner = self.owner_of.get(path)
        return None if owner is None else self.packages[owner].name


def find_owners(file_system: MergedFileSystem, captured: Sequence[Mapping[str, bytes]]) -> Ownership:
    """Finds the owner of each file by the package lists that a container sees; *captured* has their content by layer.

    Bytecode belongs to the package of its source, listed or not. Hard-linked content counts once.

    Raises:
        CorruptLayer: a RECORD is not a list of files.
    """
    files = {path: node.file for path, node in file_system.walk() if node.file is not None}
    lists = [each for find in (_python_lists, _debian_lists, _distroless_lists) for each in find(files, captured)]
    owner_of: dict[str, int] = {}
    counts = [0] * len(lists)
    sizes = [0] * len(lists)
    counted: set[int] = set()
    resolve = _Resolver(file_system, files)

    def claim(path: str, owner: int) -> None:
        owner_of[path] = owner
        counts[owner] += 1
        if id(files[path]) not in counted:
            counted.add(id(files[path]))
            sizes[owner] += files[path].entry.size_bytes

    for owner, listed in enumerate(lists):
        for name in listed.paths:
            path = resolve(name)
            if path is not None and path not in owner_of:
                claim(path, owner)
    for path in files:
        if path.endswith(".pyc") and path not in owner_of:
            match = _BYTECODE.fullmatch(path)
            source = f"{match['folder'] or ''}{match['name']}.py" if match else ""
            if source in owner_of:
                claim(path, owner_of[source])
    packages = tuple(
        Package(each.manager, each.name, each.version, each.location, each.layer, count, size_bytes)
        for each, count, size_bytes in zip(lists, counts, sizes, strict=True)
    )
    return Ownership(packages, owner_of)


@dataclass(frozen=True, slots=True)
class _FileList:
    manager: PackageManager
    name: str
    version: str
    location: str
    layer: int
    paths: Sequence[str]


class _Resolver:
    """Resolves listed names to files, also through symbolic links such as /lib to usr/lib."""

    def __init__(self, file_system: MergedFileSystem, files: Mapping[str, StoredFile]) -> None:
        self._file_system = file_system
        self._files = files
        self._folders: dict[str, str | None] = {}

    def __call__(self, name: str) -> str | None:
        if name in self._files:
            return name
        folder, _, base = name.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._file_system.real_path(folder)
        real = self._folders[folder]
        path = None if real is None else posixpath.join(real, base)
        return path if path in self._files else None


def _python_lists(files: Mapping[str, StoredFile], captured: Sequence[Mapping[str, bytes]]) -> Iterator[_FileList]:
    for path in sorted(path for path in files if path.endswith(".dist-info/RECORD")):
        record = _content(path, files, captured)
        location, _, folder = path.removesuffix("/RECORD").rpartition("/")
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        try:
            rows = [row for row in csv.reader(record.decode("utf-8", "backslashreplace").splitlines()) if row]
        except csv.Error as error:
            raise CorruptLayer(f"not a list of files ({error})", path=path) from error
        paths = [posixpath.normpath(posixpath.join(location, row[0])).lstrip("/") for row in rows]
        yield _FileList("python", canonical_name(name), version, location, files[path].layer, paths)


def _debian_lists(files: Mapping[str, StoredFile], captured: Sequence[Mapping[str, bytes]]) -> Iterator[_FileList]:
    status = _content(f"{_DPKG}/status", files, captured).decode("utf-8", "replace")
    for fields in sorted(_paragraphs(status), key=lambda each: (each.get("Package", ""), each.get("Architecture", ""))):
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields.get("Version", "")
        candidates = (f"{_DPKG}/info/{stem}.list" for stem in (f"{name}:{fields.get('Architecture')}", name))
        path = next((each for each in candidates if each in files), None)
        if path is None:
            yield _FileList("debian", name, version, "", files[f"{_DPKG}/status"].layer, ())
        else:
            lines = _content(path, files, captured).decode("utf-8", "backslashreplace").splitlines()
            yield _FileList("debian", name, version, "", files[path].layer, [line.lstrip("/") for line in lines])


def _distroless_lists(files: Mapping[str, StoredFile], captured: Sequence[Mapping[str, bytes]]) -> Iterator[_FileList]:
    for path in sorted(path for path in files if path.startswith(f"{_DPKG}/status.d/")):
        if path.endswith(".md5sums"):
            continue
        for fields in _paragraphs(_content(path, files, captured).decode("utf-8", "replace")):
            sums = _content(f"{path}.md5sums", files, captured).decode("utf-8", "backslashreplace").splitlines()
            paths = [line.partition(" ")[2].strip().removeprefix("./").lstrip("/") for line in sums]
            yield _FileList("debian", fields["Package"], fields.get("Version", ""), "", files[path].layer, paths)


def _content(path: str, files: Mapping[str, StoredFile], captured: Sequence[Mapping[str, bytes]]) -> bytes:
    stored = files.get(path)
    return b"" if stored is None else captured[stored.layer].get(stored.entry.path, b"")


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yields the fields of each paragraph of a Debian control file, without continuation lines."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^([!-9;-~]+):[ \t]*(.*)$", paragraph, flags=re.MULTILINE))
        if "Package" in fields:
            yield fields
