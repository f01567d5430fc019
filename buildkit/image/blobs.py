"""Opens the blobs of an image by name: in a folder, in an archive, or in memory; verifies those with a known digest.

Formats: OCI image specification 1.1, image-layout.md; the archive of `docker image save`, with or without the OCI files
that engines write beside its manifest.json since 25.0.
"""

import hashlib
import io
import mmap
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from buildkit.image.archive import SMALL_BYTES, Section, archive_entries
from buildkit.image.errors import CorruptImage, DigestMismatch, UnsupportedImage

__all__ = [
    "ArchiveStore",
    "BlobStore",
    "FolderStore",
    "MappedBlob",
    "MemoryStore",
    "blob_name",
    "read_document",
    "require_sha256",
    "sha256_digest",
]

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class MappedBlob:
    """A blob as memory, read on demand; unmapped when the last view of it is gone."""

    view: memoryview
    _mapping: mmap.mmap

    @classmethod
    def of(cls, descriptor: int, start: int = 0, size_bytes: int | None = None) -> "MappedBlob | None":
        """Maps a part of a file, by default all of it; returns None for an empty file, which cannot be mapped."""
        if not os.fstat(descriptor).st_size:
            return None
        mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        end = None if size_bytes is None else start + size_bytes
        return cls(memoryview(mapping)[start:end], mapping)

    def release_pages(self) -> None:
        """Frees the memory of the pages read so far; they are read again if needed."""
        if sys.platform == "linux":
            self._mapping.madvise(mmap.MADV_DONTNEED)


class BlobStore(Protocol):
    """A place with blobs: `blobs/sha256/...` as in an OCI layout, other names in older archives."""

    def open(self, name: str) -> io.RawIOBase | None:
        """Returns a reader of one blob, or None if the store does not have it."""

    def map(self, name: str) -> MappedBlob | None:
        """Returns one blob as memory, or None if it is not in a file."""


class FolderStore:
    """An OCI layout, or the content store of containerd, which names its blobs the same way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> io.RawIOBase | None:
        """Opens a file of the layout; returns None for a pipe, a device, or a name that leads out of the folder."""
        path = self._folder / name
        if name.startswith(("/", "..")) or not path.is_file():
            return None
        return path.open("rb", buffering=0)

    def map(self, name: str) -> MappedBlob | None:
        """Maps a file of the layout."""
        file = self.open(name)
        if file is None:
            return None
        with file:
            return MappedBlob.of(file.fileno())


class ArchiveStore:
    """A tar file with blobs in it, indexed once and read in place, one blob at a time."""

    def __init__(self, archive: io.FileIO, image: str) -> None:
        self._archive = archive
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        archive_bytes = os.fstat(archive.fileno()).st_size
        for entry in archive_entries(archive, image):
            if entry.link:
                self._links[entry.name] = entry.link
                continue
            start = archive.tell()
            if start + entry.size_bytes > archive_bytes:
                raise CorruptImage(image, f"the archive ends inside {entry.name}")
            self._places[entry.name] = (start, entry.size_bytes)
            archive.seek(start + entry.size_bytes)

    def open(self, name: str) -> io.RawIOBase | None:
        """Returns a reader of the part of the archive that holds the blob."""
        start, size_bytes = self._place(name)
        return None if start < 0 else Section(self._archive, size_bytes, seek=lambda: self._archive.seek(start))

    def map(self, name: str) -> MappedBlob | None:
        """Maps the archive and returns the part that holds the blob."""
        start, size_bytes = self._place(name)
        return None if start < 0 else MappedBlob.of(self._archive.fileno(), start, size_bytes)

    def _place(self, name: str) -> tuple[int, int]:
        """Returns start and size of a blob; the start is -1 if the archive does not have it."""
        return self._places.get(self._links.get(name, name), (-1, 0))


class MemoryStore:
    """The small blobs of an archive that came through a pipe."""

    def __init__(self, blobs: dict[str, bytes] | None = None) -> None:
        self._blobs = blobs or {}

    def open(self, name: str) -> io.RawIOBase | None:
        """Returns a reader of the bytes."""
        content = self._blobs.get(name)
        return None if content is None else Section(io.BytesIO(content), len(content))

    def map(self, _name: str) -> MappedBlob | None:
        """Returns None: the layers of a stream are not kept."""
        return None


def read_document(store: BlobStore, name: str, image: str, *, digest: str | None = None) -> bytes | None:
    """Returns a JSON document, or None if the store does not have it.

    Raises:
        DigestMismatch: it does not have *digest*.
        UnsupportedImage: it is larger than any document that a registry accepts.
    """
    source = store.open(name)
    if source is None:
        return None
    with source:
        content = source.read(SMALL_BYTES + 1)
    if len(content) > SMALL_BYTES:
        raise UnsupportedImage(image, f"{name} is larger than {SMALL_BYTES} bytes")
    if digest is not None and sha256_digest(content) != digest:
        raise DigestMismatch(image, name, wanted=digest, found=sha256_digest(content))
    return content


def sha256_digest(content: bytes) -> str:
    """Returns the digest of *content* in the notation of image manifests: "sha256:...".

    >>> sha256_digest(b"")[:20]
    'sha256:e3b0c44298fc1'
    """
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def require_sha256(digest: str, image: str) -> str:
    """Returns *digest* if it is a SHA-256 one, the only kind that engines write; raises UnsupportedImage otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise UnsupportedImage(image, f"digest {digest[:80]!r} is not SHA-256")
    return digest


def blob_name(digest: str, image: str) -> str:
    """Returns the name of a blob in an OCI layout; raises UnsupportedImage for a digest that is not SHA-256."""
    return "blobs/" + require_sha256(digest, image).replace(":", "/", 1)
