"""Reads the layers of an image: every file of each layer, its digest, and the secrets in it.

The file system of a container hides what earlier layers still have: a deleted file, the first version of a changed
file, a key that a later instruction removes.

`read_store` reads the layers from the engine's own folder, if this process may. `read_stream` reads them from
`docker save`; with the containerd image store that costs the engine 20 ms of processor time per MB (measured,
Docker 26.1). Neither extracts a layer to disk. Both read Docker's layout and OCI's (image
specification 1.1, "Image Layer Filesystem Changeset"), compressed with gzip, zstd or not at all.
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

from checks.secrets import SecretMatch

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from checks.secrets import SecretScanner

__all__ = ["ImageLayers", "TarLayer", "TarMember", "UnreadableImage", "WastedFile", "read_store", "read_stream"]

CHUNK_BYTES = 1 << 20
DOCUMENT_MAXIMUM_BYTES = 16 << 20  # an image configuration has kilobytes; a guess
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
SETUID = 0o6000
RULES = hashlib.sha256(
    b"".join(Path(__file__).with_name(name).read_bytes() for name in ("layers.py", "secrets.py"))
).hexdigest()[:12]
KINDS = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.LNKTYPE: "hard link"}


class UnreadableImage(Exception):
    """The image cannot be read; `reason` says what is missing or unknown."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Returns *size* bytes, fewer only at the end."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of a layer's tar archive; `digest` is the SHA-256 of a regular file, or empty."""

    path: str
    kind: str
    size_bytes: int
    mode: int
    digest: str


@dataclass(frozen=True, slots=True)
class TarLayer:
    """A layer: its number from 0, the instruction that made it, the bytes of its regular files, its members."""

    number: int
    instruction: str
    unpacked_bytes: int
    entries: tuple[TarMember, ...]


@dataclass(frozen=True, slots=True)
class WastedFile:
    """A file of the layer `first` that the layer `later` deletes or replaces; `cause` says how."""

    path: str
    size_bytes: int
    cause: str
    first: int
    later: int


@dataclass(frozen=True, slots=True)
class ImageLayers:
    """All layers of an image in order, the secrets in their files, and the layer that each path comes from."""

    layers: tuple[TarLayer, ...]
    secrets: tuple[SecretMatch, ...]
    layer_of: dict[str, int] = field(repr=False)
    history: tuple[str, ...] = ()

    @property
    def unpacked_bytes(self) -> int:
        """The bytes of all regular files, summed over the layers: the size of the image."""
        return sum(layer.unpacked_bytes for layer in self.layers)

    def where(self, path: str) -> str:
        """Returns the layer and instruction that *path* comes from, for a message."""
        number = self.layer_of.get(path)
        return "no layer" if number is None else self.name(number)

    def name(self, number: int) -> str:
        """Returns number and instruction of a layer, for a message."""
        return f"layer {number}: {shorten(self.layers[number].instruction)}"

    def wasted_files(self) -> Iterator[WastedFile]:
        """Yields each file that a later layer deletes or replaces."""
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
                    yield WastedFile(
                        entry.path, earlier[1].size_bytes, cause_of(earlier[1], entry), earlier[0], layer.number
                    )
                present[entry.path] = (layer.number, entry)
                children.setdefault(folder, set()).add(entry.path)


def cause_of(earlier: TarMember, later: TarMember) -> str:
    """Returns the cause of the waste: the way in which *later* replaces *earlier*."""
    if earlier.digest != later.digest:
        return "overwritten"
    is_disarmed = earlier.mode & SETUID and later.mode == earlier.mode & ~SETUID
    return "stored again without its setuid bit" if is_disarmed else "stored again unchanged"


def deleted(
    target: str,
    later: int,
    present: dict[str, tuple[int, TarMember]],
    children: dict[str, set[str]],
    *,
    keep_target: bool,
) -> Iterator[WastedFile]:
    """Removes *target* and everything below it from *present*, and yields the removed files of earlier layers."""
    pending = list(children.get(target, ())) if keep_target else [target]
    while pending:
        path = pending.pop()
        pending += children.pop(path, ())
        number, entry = present.pop(path, (later, None))
        if entry and entry.size_bytes and number != later:
            yield WastedFile(path, entry.size_bytes, "deleted", number, later)


def shorten(instruction: str) -> str:
    """Returns an instruction in one line of at most 100 characters, without the words that BuildKit adds."""
    words = " ".join(instruction.removesuffix("# buildkit").split()).removeprefix("/bin/sh -c #(nop) ")
    return words if len(words) <= 100 else f"{words[:97]}..."


class FileSlice(io.RawIOBase):
    """The next *size_bytes* of a stream as a file that can only seek forward; None means all of it."""

    def __init__(self, stream: Readable, size_bytes: int | None) -> None:
        self.stream = stream
        self.left_bytes = size_bytes
        self.position = 0

    def read(self, size: int = -1, /) -> bytes:
        """Returns *size* bytes, fewer only at the end of the slice."""
        if self.left_bytes is not None:
            size = self.left_bytes if size < 0 else min(size, self.left_bytes)
        data = self.stream.read(size)
        self.position += len(data)
        if self.left_bytes is not None:
            self.left_bytes -= len(data)
        return data

    def tell(self) -> int:
        """Returns the number of bytes read or skipped."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Skips forward to *offset*; raises UnsupportedOperation for any other direction."""
        if whence != io.SEEK_SET or offset < self.position:
            raise io.UnsupportedOperation("this stream can only seek forward")
        while self.position < offset and self.read(min(CHUNK_BYTES, offset - self.position)):
            pass
        return self.position

    def drain(self) -> None:
        """Skips the rest of the slice."""
        while self.read(CHUNK_BYTES):
            pass


class Prefixed(io.RawIOBase):
    """A stream that begins with the bytes *head* and continues with *stream*."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self.head = head
        self.stream = stream

    def read(self, size: int = -1, /) -> bytes:
        """Returns *size* bytes, fewer only at the end."""
        if not self.head:
            return self.stream.read(size)
        taken, self.head = (self.head, b"") if size < 0 else (self.head[:size], self.head[size:])
        return taken + self.stream.read(size - len(taken) if size >= 0 else -1)


def decompress(window: FileSlice) -> Readable:
    """Returns the decompressed archive of a layer; the first bytes show the compression."""
    head = window.read(4)
    rest = Prefixed(head, window)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=rest, mode="rb")
    if head == b"\x28\xb5\x2f\xfd":
        if sys.version_info >= (3, 14):
            return zstd.ZstdFile(rest)
        return zstandard.ZstdDecompressor().stream_reader(cast("IO[bytes]", rest))
    return rest


def read_stream(stream: Readable, scanner: SecretScanner) -> ImageLayers:
    """Reads the image that `docker save` writes to *stream*, and scans each file.

    Raises:
        UnreadableImage: the stream ends early, or lacks a manifest or a layer.
    """
    archives: dict[str, list[TarMember]] = {}
    found: dict[str, list[SecretMatch]] = {}
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
                content = decompress(blob)
                first = content.read(1)
                if first == b"{":
                    documents[member.name] = first + content.read(DOCUMENT_MAXIMUM_BYTES)
                else:
                    archives[member.name], found[member.name] = read_archive(Prefixed(first, content), scanner)
                blob.drain()
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise UnreadableImage(f"the output of `docker save` ends early or is corrupt: {error}") from error
    if "manifest.json" not in documents:
        raise UnreadableImage("the output of `docker save` has no manifest.json")
    manifest = json.loads(documents["manifest.json"])[0]
    names = [aliases.get(name, name).removeprefix("../") for name in manifest["Layers"]]
    missing = [name for name in names if name not in archives]
    if missing:
        raise UnreadableImage(f"the output of `docker save` lacks layers of its manifest: {', '.join(missing)}")
    config = json.loads(documents[manifest["Config"]])
    return assemble(config, [archives[name] for name in names], [found[name] for name in names])


def read_store(blobs: Path, digest: str, architecture: str, scanner: SecretScanner, cache: Path | None) -> ImageLayers:
    """Reads the image with this *digest* from a folder of content-addressed *blobs*, and scans each file.

    Stores the result of each layer in the folder *cache*, if given, and reads known layers from there.

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
            entries, secrets = read_blob(blob_path(blobs, descriptor["digest"]), scanner, cache)
            archives.append(entries)
            found.append(secrets)
    except (OSError, KeyError, ValueError, tarfile.TarError, EOFError) as error:
        raise UnreadableImage(f"cannot read {digest} from the engine's folder {blobs}: {error}") from error
    return assemble(config, archives, found)


def read_blob(blob: Path, scanner: SecretScanner, cache: Path | None) -> tuple[list[TarMember], list[SecretMatch]]:
    """Returns the members of one layer and the secrets in them, from *cache* if it has the layer.

    The same bytes and the same rules give the same result. With build secrets, the cache is neither read nor written:
    no file may show that a layer has one.
    """
    cached = cache / f"{blob.name}-{RULES}.json" if cache and not scanner.patterns else None
    if cached and cached.exists():
        return msgspec.json.decode(cached.read_bytes(), type=tuple[list[TarMember], list[SecretMatch]])
    with blob.open("rb") as stream:
        result = read_archive(decompress(FileSlice(stream, None)), scanner)
    if cached:
        part = cached.with_suffix(f".{os.getpid()}")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.encode(result))
        part.replace(cached)
    return result


def blob_path(blobs: Path, digest: str) -> Path:
    """Returns the path of the blob *digest*."""
    algorithm, _, value = digest.partition(":")
    return blobs / algorithm / value


def platform_digest(index: Any, architecture: str) -> str:  # noqa: ANN401 - any JSON
    """Returns the digest of the manifest for linux on *architecture* in an index, not that of an attestation."""
    for descriptor in index["manifests"]:
        platform = descriptor.get("platform", {"os": "linux", "architecture": architecture})
        if (platform.get("os"), platform.get("architecture")) == ("linux", architecture):
            return str(descriptor["digest"])
    raise UnreadableImage(f"the image has no manifest for linux/{architecture}")


def looks_like_document(member: tarfile.TarInfo) -> bool:
    """Whether the name shows that the member is JSON or text."""
    return member.name.endswith((".json", "/json", "VERSION", "oci-layout", "repositories"))


def read_archive(content: Readable, scanner: SecretScanner) -> tuple[list[TarMember], list[SecretMatch]]:
    """Returns the members of one layer and the secrets in them; the `layer` of each match is not set yet."""
    entries: list[TarMember] = []
    found: list[SecretMatch] = []
    window = FileSlice(content, None)
    with tarfile.open(fileobj=window, mode="r:") as archive:
        while (member := archive.next()) is not None:
            path = "/" + member.name.removeprefix("./").strip("/")
            digest = ""
            if member.isreg():
                digest = read_body(path, window, member.size, scanner, found)
            kind = "file" if member.isreg() else KINDS.get(member.type, "other")
            entries.append(TarMember(path, kind, member.size if digest else 0, member.mode, digest))
    return entries, found


def read_body(path: str, body: Readable, size_bytes: int, scanner: SecretScanner, found: list[SecretMatch]) -> str:
    """Returns the SHA-256 of one file, and adds the secrets in it to *found*."""
    digest = hashlib.sha256()
    overlap = b""
    first = True
    left_bytes = size_bytes
    while left_bytes:
        data = body.read(min(CHUNK_BYTES, left_bytes))
        if not data:
            raise EOFError(f"{path} is truncated")
        left_bytes -= len(data)
        digest.update(data)
        is_complete = first and not left_bytes
        found += scanner.scan_file(path, data) if is_complete else scanner.scan_piece(path, overlap + data)
        overlap = data[-scanner.overlap_bytes :] if scanner.overlap_bytes else b""
        first = False
    if not size_bytes:
        found += scanner.scan_file(path, b"")
    return digest.hexdigest()


def assemble(config: Any, archives: list[list[TarMember]], found: list[list[SecretMatch]]) -> ImageLayers:  # noqa: ANN401 - JSON
    """Combines the layers with the instructions that made them, from the history in *config*."""
    steps = config.get("history", [])
    history = tuple(step.get("created_by", "") or step.get("comment", "") for step in steps)
    makers = [text for text, step in zip(history, steps, strict=True) if not step.get("empty_layer")]
    makers += ["(no history)"] * (len(archives) - len(makers))
    layers = tuple(
        TarLayer(number, maker, sum(entry.size_bytes for entry in entries), tuple(entries))
        for number, (entries, maker) in enumerate(zip(archives, makers, strict=False))
    )
    layer_of = {entry.path: layer.number for layer in layers for entry in layer.entries}
    secrets = tuple(replace(match, layer=number) for number, matches in enumerate(found) for match in matches)
    return ImageLayers(layers, secrets, layer_of, history)
