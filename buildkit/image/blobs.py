"""Where the blobs of an image are: an OCI layout, an archive, the engine's content store, or a stream from the engine.

Formats: OCI image specification 1.1, image-layout.md; the archive of `docker image save`, with or without the OCI files
that engines write beside its manifest.json since 25.0.
"""

import fcntl
import io
import mmap
import os
import posixpath
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from buildkit.errors import BuildkitError, CommandFailed
from buildkit.image.layer_stream import ByteSource
from buildkit.image.tar_format import BLOCK_BYTES, CorruptLayer, LayerError, TarHeader, decimal, parse_pax, text_of

__all__ = [
    "SMALL_BYTES",
    "ArchiveEntry",
    "ArchiveStore",
    "BlobStore",
    "CorruptImage",
    "FolderStore",
    "ImageError",
    "MappedBlob",
    "MemoryStore",
    "Section",
    "archive_entries",
    "engine_content_store",
    "engine_export",
    "run_client",
]

SMALL_BYTES: Final = 16 << 20  # the most for one JSON file: registries refuse manifests of more than 4 MiB
_PIPE_BYTES: Final = 1 << 20  # Linux's default limit for an ordinary user, /proc/sys/fs/pipe-max-size
_ENGINE_EXIT_SECONDS: Final = 5.0
_NOT_FOUND: Final = 127  # the shell's exit code for a program that is not there


class ImageError(BuildkitError):
    """An image that cannot be measured: `image` is what was asked for, `reason` what is wrong with it."""

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(f"{image}: {reason}")
        self.image = image
        self.reason = reason


class CorruptImage(ImageError):
    """A manifest, index, configuration or archive that is missing, truncated or not what its specification says."""


class Section(io.RawIOBase):
    """The bytes of one entry of an archive; reads no further than its end.

    *place* is called before the first read, for archives that can seek.
    """

    def __init__(self, source: ByteSource, size_bytes: int, *, place: Callable[[], object] | None = None) -> None:
        super().__init__()
        self._source = source
        self._place = place
        self._prefix = b""
        self.left_bytes = size_bytes

    def readable(self) -> bool:
        """Say yes: the protocol of files asks."""
        return True

    def peek(self, count: int) -> bytes:
        """Return the first bytes, fewer at the end, and leave them to be read."""
        self._prefix = self.take(min(count, self.left_bytes))
        self.left_bytes += len(self._prefix)
        return self._prefix

    def take(self, count: int) -> bytes:
        """Return *count* bytes, fewer at the end."""
        buffer = memoryview(bytearray(min(count, self.left_bytes)))
        filled = 0
        while got := self.readinto(buffer[filled:]):
            filled += got
        return bytes(buffer[:filled])

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """Fill *buffer* from its start as far as one read of the archive goes."""
        if self._place is not None:
            self._place()
            self._place = None
        with memoryview(buffer) as view, view[: self.left_bytes] as wanted:
            count = min(len(self._prefix), len(wanted))
            if count:
                wanted[:count] = self._prefix[:count]
                self._prefix = self._prefix[count:]
            elif wanted:
                count = self._source.readinto(wanted) or 0
        self.left_bytes -= count
        return count

    def skip(self) -> None:
        """Read to the end of the entry."""
        buffer = memoryview(bytearray(_PIPE_BYTES))
        while self.readinto(buffer):
            pass


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A file of an outer archive, or with `link` another name for one."""

    name: str
    size_bytes: int
    link: str = ""


def archive_entries(archive: ByteSource, image: str) -> Iterator[ArchiveEntry]:
    """Walk over an outer archive; the caller uses up exactly an entry's bytes before it asks for the next."""
    pax: dict[str, bytes] = {}
    while (block := _read_exactly(archive, BLOCK_BYTES)).strip(b"\0"):
        if len(block) < BLOCK_BYTES:
            raise CorruptImage(image, "no image archive: it ends inside a header")
        try:
            header = TarHeader.parse(block)
            if header.type_flag in {b"x", b"g", b"L", b"K"}:
                pax |= _extended(header, archive)
                continue
            size_bytes = decimal(pax["size"], "size") if "size" in pax else header.size_bytes
        except LayerError as error:
            raise CorruptImage(image, f"no image archive: {error.reason}") from error
        name = posixpath.normpath(text_of(pax.get("path", header.name))).lstrip("/")
        target = text_of(pax.get("linkpath", header.link_name))
        pax = {}
        match header.type_flag:
            case b"5":
                continue
            case b"1":
                yield ArchiveEntry(name, 0, posixpath.normpath(target))
            case b"2":
                yield ArchiveEntry(name, 0, posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))
            case b"0" | b"\0":
                yield ArchiveEntry(name, size_bytes)
                _read_exactly(archive, -size_bytes % BLOCK_BYTES)
            case _:
                raise CorruptImage(image, f"{name} in the archive is of type {header.type_flag!r}")


def _extended(header: TarHeader, archive: ByteSource) -> dict[str, bytes]:
    if header.size_bytes > SMALL_BYTES:
        raise CorruptLayer(f"an extended header of {header.size_bytes} bytes")
    text = _read_exactly(archive, header.size_bytes + -header.size_bytes % BLOCK_BYTES)[: header.size_bytes]
    match header.type_flag:
        case b"L":
            return {"path": text.rstrip(b"\0")}
        case b"K":
            return {"linkpath": text.rstrip(b"\0")}
        case b"x":
            return parse_pax(text)
    return {}


def _read_exactly(source: ByteSource, count: int) -> bytes:
    buffer = memoryview(bytearray(count))
    filled = 0
    while filled < count and (got := source.readinto(buffer[filled:])):
        filled += got
    return bytes(buffer[:filled])


@dataclass(frozen=True, slots=True)
class MappedBlob:
    """A blob as memory, read on demand; unmapped when the last view of it is gone."""

    view: memoryview
    _mapping: mmap.mmap

    @classmethod
    def of(cls, descriptor: int, start: int = 0, size_bytes: int | None = None) -> "MappedBlob | None":
        """Map a part of a file, by default all of it; None for an empty one, which cannot be mapped."""
        if not os.fstat(descriptor).st_size:
            return None
        mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        end = None if size_bytes is None else start + size_bytes
        return cls(memoryview(mapping)[start:end], mapping)

    def forget(self) -> None:
        """Give the pages that were read back to the system; reading on is fine."""
        if sys.platform == "linux":
            self._mapping.madvise(mmap.MADV_DONTNEED)


class BlobStore(Protocol):
    """Where blobs are: by digest, or by name for the older archives."""

    def open(self, name: str) -> io.RawIOBase | None:
        """Return a reader of one blob, None where there is none."""

    def map(self, name: str) -> "MappedBlob | None":
        """Return one blob as memory where it is in a file, None elsewhere."""


class FolderStore:
    """An OCI layout, or the content store of containerd, which keeps its blobs under the same names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> io.RawIOBase | None:
        """Open a file of the layout; None for a name that leads out of it, and for a pipe or a device."""
        path = self._folder / name
        if name.startswith(("/", "..")) or not path.is_file():
            return None
        return path.open("rb", buffering=0)

    def map(self, name: str) -> "MappedBlob | None":
        """Map a file of the layout."""
        file = self.open(name)
        if file is None:
            return None
        with file:
            return MappedBlob.of(file.fileno())


class ArchiveStore:
    """A tar file with blobs in it, indexed once and read in place: one blob at a time."""

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
        """Return the part of the archive that holds the blob."""
        start, size_bytes = self._places.get(self._links.get(name, name), (-1, 0))
        if start < 0:
            return None
        return Section(self._archive, size_bytes, place=lambda: self._archive.seek(start))

    def map(self, name: str) -> "MappedBlob | None":
        """Map the archive and return the part that holds the blob."""
        start, size_bytes = self._places.get(self._links.get(name, name), (-1, 0))
        return None if start < 0 else MappedBlob.of(self._archive.fileno(), start, size_bytes)


class MemoryStore:
    """Small blobs that a stream held."""

    def __init__(self, blobs: dict[str, bytes] | None = None) -> None:
        self._blobs = blobs or {}

    def open(self, name: str) -> io.RawIOBase | None:
        """Return a reader over the bytes."""
        content = self._blobs.get(name)
        return None if content is None else Section(io.BytesIO(content), len(content))

    def map(self, _name: str) -> "MappedBlob | None":
        """Say that layers of a stream are gone once they have passed."""
        return None


def run_client(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run the engine's client and return what it says, whatever its exit code; CommandFailed where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CommandFailed(command, _NOT_FOUND, f"{command[0]} is not installed") from error


@contextmanager
def engine_export(docker: Sequence[str], reference: str) -> Iterator[ByteSource]:
    """Run `docker image save` for the length of the block and hand out its pipe.

    Raises:
        CommandFailed: the engine gave up, also where its reader noticed first that the stream ends early.
    """
    command = [*docker, "image", "save", reference]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 (a pipe was asked for)
        assert process.stderr is not None  # noqa: S101
        if sys.platform == "linux":
            with suppress(OSError):  # a smaller pipe is only slower
                fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            with io.FileIO(process.stdout.fileno(), closefd=False) as pipe:
                yield pipe
                while pipe.read(_PIPE_BYTES):
                    pass
        except BuildkitError as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_ENGINE_EXIT_SECONDS)
            if process.returncode:
                raise CommandFailed(command, process.returncode, process.stderr.read().decode().strip()) from error
            process.kill()
            raise
        except BaseException:
            process.kill()
            raise
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise CommandFailed(command, process.returncode, message)


def engine_content_store(docker: Sequence[str]) -> Path | None:
    """Return the folder of containerd's blobs where the engine uses it and it is this machine's, else None."""
    command = [*docker, "info", "--format", "{{.DockerRootDir}}\n{{json .DriverStatus}}"]
    completed = run_client(command)
    root, _, status = completed.stdout.partition("\n")
    if completed.returncode or "io.containerd.snapshotter" not in status:
        return None
    # where dockerd keeps the state of the containerd that it starts itself (moby, cmd/dockerd, since 24.0)
    folder = Path(root) / "containerd" / "daemon" / "io.containerd.content.v1.content"
    return folder if os.access(folder / "blobs" / "sha256", os.R_OK | os.X_OK) else None
