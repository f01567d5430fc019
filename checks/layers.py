"""What each layer of an image stores, down to the bytes of each file.

The file system of a container hides what an earlier layer still carries: a deleted file, the first copy of a file that
a later layer changes, a key that a later instruction removes. The layers show them all. They are read where the engine
keeps them when this process may (`read_store`), else from a streamed `docker save` (`read_stream`), which is the same
but costs the engine 20 ms of processor time per MB with the containerd image store (measured, Docker 26.1). Nothing is
written to disk. Docker's layout is understood as well as OCI's (image specification 1.1, "Image TarLayer Filesystem
Changeset"), compressed by gzip, zstd or not at all.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import msgspec

from checks.secrets import Trace

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checks.secrets import SecretScanner

__all__ = ["ImageLayers", "Repeat", "TarLayer", "TarMember", "UnreadableImage", "read_store", "read_stream"]

CHUNK_BYTES = 1 << 20
DOCUMENT_MAXIMUM_BYTES = 16 << 20  # an image configuration has kilobytes; a guess at what is absurd
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
SETUID = 0o6000
RULES = hashlib.sha256(
    b"".join(Path(__file__).with_name(name).read_bytes() for name in ("layers.py", "secrets.py"))
).hexdigest()[:12]
KINDS = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}


class UnreadableImage(Exception):
    """The stream is no image: `reason` says what is missing or unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Readable(Protocol):
    """The one method of a stream that is used."""

    def read(self, size: int = -1, /) -> bytes:
        """At most *size* bytes; fewer only at the end."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member of a layer's archive; `digest` is the SHA-256 of a regular file's bytes, else empty."""

    path: str
    kind: str
    size_bytes: int
    mode: int
    digest: str


@dataclass(frozen=True, slots=True)
class TarLayer:
    """One layer: its number from 0, what made it, and its regular files' bytes."""

    number: int
    instruction: str
    unpacked_bytes: int
    entries: tuple[TarMember, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A file that an earlier layer stores although a later one replaces, changes or deletes it."""

    path: str
    size_bytes: int
    cause: str
    first: int
    again: int


@dataclass(frozen=True, slots=True)
class ImageLayers:
    """All layers in order, and what was found by looking into their files."""

    layers: tuple[TarLayer, ...]
    traces: tuple[Trace, ...]
    home: dict[str, int] = field(repr=False)
    history: tuple[str, ...] = ()

    @property
    def unpacked_bytes(self) -> int:
        """The sum over layers of their regular files' sizes: what the report calls image size."""
        return sum(layer.unpacked_bytes for layer in self.layers)

    def where(self, path: str) -> str:
        """Which layer and instruction *path* comes from, in words."""
        number = self.home.get(path)
        return "no layer" if number is None else self.name(number)

    def name(self, number: int) -> str:
        """TarLayer *number* in words."""
        return f"layer {number}: {shorten(self.layers[number].instruction)}"

    def repeats(self) -> Iterator[Repeat]:
        """Each file whose bytes the image carries in vain, with its cause."""
        present: dict[str, tuple[int, TarMember]] = {}
        children: dict[str, set[str]] = {}
        for layer in self.layers:
            for entry in sorted(layer.entries, key=lambda entry: WHITEOUT not in entry.path):
                folder, _, name = entry.path.rpartition("/")
                if name.startswith(WHITEOUT):
                    target = folder if name == OPAQUE else f"{folder}/{name.removeprefix(WHITEOUT)}"
                    yield from deleted(target, layer.number, present, children, keep_target=name == OPAQUE)
                    continue
                earlier = present.get(entry.path)
                if earlier and earlier[1].size_bytes and earlier[0] != layer.number:
                    yield Repeat(
                        entry.path, earlier[1].size_bytes, cause_of(earlier[1], entry), earlier[0], layer.number
                    )
                present[entry.path] = (layer.number, entry)
                children.setdefault(folder, set()).add(entry.path)


def cause_of(earlier: TarMember, later: TarMember) -> str:
    """Why the bytes of *earlier* are stored in vain once *later* is there."""
    if earlier.digest != later.digest:
        return "overwritten"
    is_disarmed = earlier.mode & SETUID and later.mode == earlier.mode & ~SETUID
    return "stored again without its setuid bit" if is_disarmed else "stored again unchanged"


def deleted(
    target: str,
    again: int,
    present: dict[str, tuple[int, TarMember]],
    children: dict[str, set[str]],
    *,
    keep_target: bool,
) -> Iterator[Repeat]:
    """Forgets *target* and all below it, and names each file that an earlier layer stores in vain."""
    pending = list(children.get(target, ())) if keep_target else [target]
    while pending:
        path = pending.pop()
        pending += children.pop(path, ())
        number, entry = present.pop(path, (again, None))
        if entry and entry.size_bytes and number != again:
            yield Repeat(path, entry.size_bytes, "deleted", number, again)


def shorten(instruction: str) -> str:
    """One line of an instruction, without BuildKit's own words."""
    words = " ".join(instruction.removesuffix("# buildkit").split()).removeprefix("/bin/sh -c #(nop) ")
    return words if len(words) <= 100 else f"{words[:97]}..."


class FileSlice(io.RawIOBase):
    """The next *size_bytes* of a forward-only stream as a file: seeking forward reads and drops."""

    def __init__(self, stream: Readable, size_bytes: int | None) -> None:
        self.stream = stream
        self.left_bytes = size_bytes
        self.position = 0

    def read(self, size: int = -1, /) -> bytes:
        """At most *size* bytes, fewer only at the end of the window."""
        if self.left_bytes is not None:
            size = self.left_bytes if size < 0 else min(size, self.left_bytes)
        data = self.stream.read(size)
        self.position += len(data)
        if self.left_bytes is not None:
            self.left_bytes -= len(data)
        return data

    def tell(self) -> int:
        """Bytes read or dropped so far."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves forward to *offset*; there is no way back."""
        if whence != io.SEEK_SET or offset < self.position:
            raise io.UnsupportedOperation("a stream moves forward only")
        while self.position < offset and self.read(min(CHUNK_BYTES, offset - self.position)):
            pass
        return self.position

    def drain(self) -> None:
        """Drops what is left of the window."""
        while self.read(CHUNK_BYTES):
            pass


class Joined(io.RawIOBase):
    """*head* and then the rest of *stream*."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self.head = head
        self.stream = stream

    def read(self, size: int = -1, /) -> bytes:
        """At most *size* bytes; fewer only at the end."""
        if not self.head:
            return self.stream.read(size)
        taken, self.head = (self.head, b"") if size < 0 else (self.head[:size], self.head[size:])
        return taken + self.stream.read(size - len(taken) if size >= 0 else -1)


def decompressed(window: FileSlice) -> Readable:
    """The layer's archive as it was before compression, told by its first bytes."""
    head = window.read(4)
    rest = Joined(head, window)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=rest, mode="rb")
    if head == b"\x28\xb5\x2f\xfd":
        if sys.version_info >= (3, 14):
            return zstd.ZstdFile(rest)
        return zstandard.ZstdDecompressor().stream_reader(cast("IO[bytes]", rest))
    return rest


def read_stream(stream: Readable, traces: SecretScanner) -> ImageLayers:
    """Reads the image that `docker save` writes to *stream*, looking for *traces* in each file on the way.

    Raises:
        UnreadableImage: the stream ends early, holds no manifest, or names a layer that it does not hold.
    """
    archives: dict[str, list[TarMember]] = {}
    found: dict[str, list[Trace]] = {}
    documents: dict[str, bytes] = {}
    aliases: dict[str, str] = {}
    try:
        window = FileSlice(stream, None)
        with tarfile.open(fileobj=window, mode="r:") as outer:
            while (member := outer.next()) is not None:
                if member.issym():
                    aliases[member.name] = member.linkname
                if not member.isreg():
                    continue
                blob = FileSlice(window, member.size)
                if looks_like_document(member):
                    documents[member.name] = blob.read()
                    continue
                content = decompressed(blob)
                first = content.read(1)
                if first == b"{":
                    documents[member.name] = first + content.read(DOCUMENT_MAXIMUM_BYTES)
                else:
                    archives[member.name], found[member.name] = read_archive(Joined(first, content), traces)
                blob.drain()
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise UnreadableImage(f"the image's stream breaks off or is corrupt: {error}") from error
    if "manifest.json" not in documents:
        raise UnreadableImage("the image's stream has no manifest.json")
    manifest = json.loads(documents["manifest.json"])[0]
    names = [aliases.get(name, name).removeprefix("../") for name in manifest["Layers"]]
    missing = [name for name in names if name not in archives]
    if missing:
        raise UnreadableImage(f"the image's stream lacks layers that its manifest names: {', '.join(missing)}")
    config = json.loads(documents[manifest["Config"]])
    return assemble(config, [archives[name] for name in names], [found[name] for name in names])


def read_store(blobs: Path, digest: str, architecture: str, traces: SecretScanner, cache: Path | None) -> ImageLayers:
    """Reads the image with this *digest* from a folder of content-addressed *blobs*, looking for *traces* in each file.

    What was found in a layer is kept in the folder *cache*, if there is one.

    Raises:
        UnreadableImage: a blob is missing, or no manifest is for linux on *architecture*.
    """
    try:
        document = json.loads(blob_path(blobs, digest).read_bytes())
        if "manifests" in document:
            document = json.loads(blob_path(blobs, platform_digest(document, architecture)).read_bytes())
        config = json.loads(blob_path(blobs, document["config"]["digest"]).read_bytes())
        archives, found = [], []
        for descriptor in document["layers"]:
            entries, betrayed = read_blob(blob_path(blobs, descriptor["digest"]), traces, cache)
            archives.append(entries)
            found.append(betrayed)
    except (OSError, KeyError, ValueError, tarfile.TarError, EOFError) as error:
        raise UnreadableImage(f"the engine's store does not hold {digest} as expected: {error}") from error
    return assemble(config, archives, found)


def read_blob(blob: Path, traces: SecretScanner, cache: Path | None) -> tuple[list[TarMember], list[Trace]]:
    """The members of one layer and what they betray, from *cache* where it was read before.

    The same bytes under the same rules give the same result. Values handed in are looked for each time: a note of
    them, even a hash, must not lie about.
    """
    kept = cache / f"{blob.name}-{RULES}.json" if cache and not traces.patterns else None
    if kept and kept.exists():
        return msgspec.json.decode(kept.read_bytes(), type=tuple[list[TarMember], list[Trace]])
    with blob.open("rb") as stream:
        result = read_archive(decompressed(FileSlice(stream, None)), traces)
    if kept:
        part = kept.with_suffix(f".{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(result))
        part.replace(kept)
    return result


def blob_path(blobs: Path, digest: str) -> Path:
    """Where the blob of *digest* lies."""
    algorithm, _, value = digest.partition(":")
    return blobs / algorithm / value


def platform_digest(index: Any, architecture: str) -> str:  # noqa: ANN401 - JSON as it comes
    """The manifest for this machine among those of an index; attestations are of platform unknown."""
    for descriptor in index["manifests"]:
        platform = descriptor.get("platform", {"os": "linux", "architecture": architecture})
        if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
            return str(descriptor["digest"])
    raise UnreadableImage(f"the image has no manifest for linux/{architecture}")


def looks_like_document(member: tarfile.TarInfo) -> bool:
    """Whether the name alone says that this is JSON or text."""
    return member.name.endswith((".json", "/json", "VERSION", "oci-layout", "repositories"))


def read_archive(content: Readable, traces: SecretScanner) -> tuple[list[TarMember], list[Trace]]:
    """The members of one layer and what they betray; `layer` of each trace is still to be told."""
    entries: list[TarMember] = []
    found: list[Trace] = []
    window = FileSlice(content, None)
    with tarfile.open(fileobj=window, mode="r:") as archive:
        while (member := archive.next()) is not None:
            path = "/" + member.name.removeprefix("./").strip("/")
            digest = ""
            if member.isreg():
                digest = read_body(path, window, member.size, traces, found)
            kind = "file" if member.isreg() else KINDS.get(member.type, "other")
            entries.append(TarMember(path, kind, member.size if digest else 0, member.mode, digest))
    return entries, found


def read_body(path: str, body: Readable, size_bytes: int, traces: SecretScanner, found: list[Trace]) -> str:
    """The SHA-256 of one file, adding what it betrays to *found*."""
    digest = hashlib.sha256()
    overlap = b""
    first = True
    left_bytes = size_bytes
    while left_bytes:
        data = body.read(min(CHUNK_BYTES, left_bytes))
        if not data:
            raise EOFError(f"{path} is cut short")
        left_bytes -= len(data)
        digest.update(data)
        is_whole = first and not left_bytes
        found += traces.of_file(path, data) if is_whole else traces.of_piece(path, overlap + data)
        overlap = data[-traces.overlap_bytes :] if traces.overlap_bytes else b""
        first = False
    if not size_bytes:
        found += traces.of_file(path, b"")
    return digest.hexdigest()


def assemble(config: Any, archives: list[list[TarMember]], found: list[list[Trace]]) -> ImageLayers:  # noqa: ANN401 - JSON
    """Names each layer by the instruction that made it."""
    steps = config.get("history", [])
    history = tuple(step.get("created_by", "") or step.get("comment", "") for step in steps)
    makers = [text for text, step in zip(history, steps, strict=True) if not step.get("empty_layer")]
    makers += ["(no history)"] * (len(archives) - len(makers))
    layers = tuple(
        TarLayer(number, maker, sum(entry.size_bytes for entry in entries), tuple(entries))
        for number, (entries, maker) in enumerate(zip(archives, makers, strict=False))
    )
    home = {entry.path: layer.number for layer in layers for entry in layer.entries}
    traces = tuple(replace(trace, layer=number) for number, betrayed in enumerate(found) for trace in betrayed)
    return ImageLayers(layers, traces, home, history)
