"""An image as the layers that it is made of, whatever it is read from: engine, OCI layout or archive.

The steps are the same for each source: find the manifest for the wanted platform, read the layers that the cache does
not hold, and hold every digest against what was read. `docker image save` puts the manifest last, so from its pipe the
layers are read first and chosen afterwards; nothing is copied to the disk.

Formats: OCI image specification 1.1 (image-index.md, manifest.md, config.md) and manifest.json of `docker image save`.
"""

import hashlib
import io
import platform as host
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from buildkit.errors import CommandFailed
from buildkit.image.blobs import (
    SMALL_BYTES,
    ArchiveStore,
    BlobStore,
    CorruptImage,
    FolderStore,
    ImageError,
    MemoryStore,
    Section,
    archive_entries,
    engine_content_store,
    engine_export,
    run_client,
)
from buildkit.image.gpu_code import find_gpu_code
from buildkit.image.layer_cache import LayerCache
from buildkit.image.layer_stream import ByteSource, Limits, is_compressed
from buildkit.image.layer_tar import LayerContents, read_layer
from buildkit.image.manifest import (
    ATTESTATION,
    CONFIG_TYPES,
    INDEX_TYPES,
    LAYER_TYPE,
    MANIFEST_TYPES,
    Descriptor,
    DockerManifest,
    ImageConfig,
    ImageManifest,
    Index,
    MediaType,
    Platform,
    RunConfig,
    decode_json,
    instructions_of,
)
from buildkit.image.tar_format import LayerTooLarge

__all__ = [
    "AmbiguousImage",
    "DigestMismatch",
    "Image",
    "ImageNotFound",
    "Layer",
    "UnsupportedImage",
    "layer_blobs",
    "read_image",
]


Source = Literal["engine", "oci-layout", "archive"]
_INDEX_DEPTH: Final = 4
_MAGIC_BYTES: Final = 512
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
# The lists that say which package a file belongs to, and the ones that only name the system.
_PACKAGE_LISTS: Final = re.compile(
    r"(?:.*/)?[^/]+\.dist-info/RECORD"
    r"|var/lib/dpkg/status"
    r"|var/lib/dpkg/status\.d/[^/]+"
    r"|var/lib/dpkg/info/[^/]+\.list"
    r"|(?:usr/lib|etc)/os-release"
)


class ImageNotFound(ImageError):
    """No such file, and no such image in the engine."""


class UnsupportedImage(ImageError):
    """A well-formed artefact of a kind that is no container image, or that uses what is not known here."""


class AmbiguousImage(ImageError):
    """Several images where one was asked for; `choices` are the names or platforms to choose from."""

    def __init__(self, image: str, choices: Sequence[str]) -> None:
        super().__init__(image, f"holds several images, choose one of: {', '.join(choices)}")
        self.choices = tuple(choices)


class DigestMismatch(ImageError):
    """Bytes that are not those that their digest promises."""

    def __init__(self, image: str, what: str, *, wanted: str, found: str) -> None:
        super().__init__(image, f"{what} should have digest {wanted} and has {found}")
        self.what = what
        self.wanted = wanted
        self.found = found


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as stored and as unpacked; `instruction` made it, None where the image has no history."""

    diff_id: str
    blob_digest: str
    blob_bytes: int
    instruction: str | None
    contents: LayerContents


@dataclass(frozen=True, slots=True)
class Image:
    """An image with all of its layers, the lowest first, every digest verified when its bytes were read.

    `manifest_digest` is None for an archive that has no OCI manifest.
    """

    name: str
    source: Source
    manifest_digest: str | None
    config_digest: str
    platform: str
    created: str | None
    working_dir: str
    user: str
    labels: tuple[tuple[str, str], ...]
    layers: tuple[Layer, ...]


def read_image(
    name: str,
    *,
    cache: Path | None = None,
    platform: str | None = None,
    tag: str | None = None,
    limits: Limits | None = None,
    docker: Sequence[str] = ("docker",),
) -> Image:
    """Read an image; *name* is a path, or a reference or digest that the engine knows.

    A path is an OCI layout (folder or tar) or an archive of `docker image save`, "-" such an archive on standard input.
    Where a file and a reference share a name, `docker:NAME` means the engine's and `./NAME` the file. *tag* chooses
    among the images of an archive, *platform* ("linux/arm64") among those of an index; without it the machine's own is
    taken where there are several. *docker* is the engine's client with its options. The layers that the folder *cache*
    holds by their diff id are not read again; those that were read are put there.

    Raises:
        ImageError, LayerError: each names the image and what is wrong.
        CommandFailed: the engine did not answer or gave up.
    """
    reader = _Reader(name, LayerCache(cache), platform=platform, tag=tag, limits=limits or Limits(), docker=docker)
    path = Path(name.removeprefix("oci:").removeprefix("docker-archive:").removeprefix("oci-archive:"))
    if name == "-":
        return reader.from_stream(io.FileIO(sys.stdin.fileno(), closefd=False))
    if name.startswith("docker:") or not path.exists():
        return reader.from_engine(name.removeprefix("docker:"))
    if path.is_dir():
        return reader.from_store(FolderStore(path), source="oci-layout")
    with path.open("rb", buffering=0) as archive:
        if not path.is_file():  # a pipe
            return reader.from_stream(archive)
        return reader.from_store(ArchiveStore(archive, name), source="archive")


def layer_blobs(reference: str, *, docker: Sequence[str] = ("docker",), cache: Path | None = None) -> dict[str, int]:
    """Return digest and bytes of each layer of an image of the engine, as the engine stores it.

    Where the engine's store is on this machine only the manifest is read; elsewhere all of the image is.

    Raises:
        ImageError, LayerError, CommandFailed: as `read_image` does.
    """
    reader = _Reader(reference, LayerCache(cache), platform=None, tag=None, limits=Limits(), docker=docker)
    return reader.blobs_in_engine(reference)


class _EngineImage(msgspec.Struct, frozen=True, rename="pascal"):
    id: str


class _Chosen(msgspec.Struct, frozen=True):
    """Which image was chosen, and how its layers are stored: what the cache keeps of an engine's image."""

    manifest_digest: str | None
    config: bytes
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    chosen: _Chosen
    image: Image


class _Reader:
    """Reads one image: `from_engine` or `from_store` is called once."""

    def __init__(
        self,
        image: str,
        cache: "LayerCache",
        *,
        platform: str | None,
        tag: str | None,
        limits: Limits,
        docker: Sequence[str],
    ) -> None:
        self._image = image
        self._cache = cache
        self._platform = platform
        self._tag = tag
        self._limits = limits
        self._docker = docker
        self._streamed: dict[str, LayerContents] = {}

    def from_engine(self, reference: str) -> Image:
        """Read by the shortest way that works: the cache alone, the engine's blobs in place, its export.

        Blobs are read in place where the engine keeps them in containerd's content store on this machine and this user
        may read it; the digests are verified all the same.
        """
        identity = self._engine_identity(reference)
        note = f"image-{(self._platform or '').replace('/', '_')}"
        chosen = self._remembered(self._cache.load_note(note, identity))
        if chosen is not None:
            with suppress(_BlobMissing):
                return self._assemble(chosen, MemoryStore(), source="engine")
        image = self._from_content_store(identity) or self._from_export(reference)
        self._cache.keep_note(note, identity, msgspec.msgpack.encode(image.chosen))
        return image.image

    def blobs_in_engine(self, reference: str) -> dict[str, int]:
        """Return digest and bytes of each layer, by the shortest way that works."""
        identity = self._engine_identity(reference)
        store = self._content_store(identity)
        if store is not None:
            with suppress(_BlobMissing):
                chosen = self._choose([Descriptor(digest=identity, size=-1)], store)
                return {layer.digest: layer.size for layer in chosen.layers}
        return {layer.blob_digest: layer.blob_bytes for layer in self.from_engine(reference).layers}

    def _content_store(self, identity: str) -> FolderStore | None:
        """Return the engine's blobs where they are on this machine and the image is among them."""
        folder = engine_content_store(self._docker)
        store = None if folder is None else FolderStore(folder)
        root = None if store is None else store.open(self._blob(identity))
        if root is None:
            return None
        root.close()
        return store

    def _from_content_store(self, identity: str) -> "_Found | None":
        store = self._content_store(identity)
        if store is None:
            return None
        with suppress(_BlobMissing):
            chosen = self._choose([Descriptor(digest=identity, size=-1)], store)
            return _Found(chosen, self._assemble(chosen, store, source="engine"))
        return None

    def _from_export(self, reference: str) -> "_Found":
        with engine_export(self._docker, reference) as stream:
            store = self._read_stream(stream)
        chosen = self._choose_any(store)
        return _Found(chosen, self._assemble(chosen, store, source="engine"))

    def _remembered(self, note: bytes) -> "_Chosen | None":
        try:
            chosen = msgspec.msgpack.decode(note, type=_Chosen)
            diff_ids = decode_json(chosen.config, ImageConfig, self._image, "configuration").rootfs.diff_ids or ()
        except (msgspec.DecodeError, CorruptImage):
            return None
        return chosen if all(self._cache.has(diff_id) for diff_id in diff_ids) else None

    def from_store(self, store: BlobStore, *, source: Source) -> Image:
        """Read from files that can be opened in any order."""
        return self._assemble(self._choose_any(store), store, source=source)

    def from_stream(self, stream: ByteSource) -> Image:
        """Read an archive that comes through a pipe."""
        store = self._read_stream(stream)
        return self._assemble(self._choose_any(store), store, source="archive")

    def _engine_identity(self, reference: str) -> str:
        command = [*self._docker, "image", "inspect", reference]
        completed = run_client(command)
        if completed.returncode:
            message = completed.stderr.strip()
            if "no such image" in message.lower() or "invalid reference" in message.lower():
                raise ImageNotFound(self._image, f"neither a file nor an image of the engine ({message})")
            raise CommandFailed(command, completed.returncode, message)
        found = decode_json(completed.stdout.encode(), tuple[_EngineImage, ...], self._image, "engine's description")
        return found[0].id

    def _read_stream(self, stream: ByteSource) -> MemoryStore:
        """Read everything that looks like a layer, and keep every small blob."""
        small: dict[str, bytes] = {}
        links: dict[str, str] = {}
        for entry in archive_entries(stream, self._image):
            if entry.link:
                links[entry.name] = entry.link
                continue
            section = Section(stream, entry.size_bytes)
            cached = self._cache.load_blob(f"sha256:{posixpath.basename(entry.name)}")
            if cached is not None:
                self._streamed[entry.name] = cached
            elif is_compressed(section.peek(_MAGIC_BYTES)) or _is_tar(section.peek(_MAGIC_BYTES)):
                self._streamed[entry.name] = self._kept(self._read_layer(section, entry.name))
            elif entry.size_bytes <= SMALL_BYTES:
                small[entry.name] = section.take(entry.size_bytes)
            section.skip()
            if section.left_bytes:
                raise CorruptImage(self._image, f"the archive ends inside {entry.name}")
        self._streamed |= {name: self._streamed[link] for name, link in links.items() if link in self._streamed}
        return MemoryStore(small)

    def _read_layer(self, source: ByteSource, name: str) -> LayerContents:
        return read_layer(
            source,
            name=f"{self._image}, layer {name}",
            captures=lambda path: _PACKAGE_LISTS.fullmatch(path) is not None,
            limits=self._limits,
        )

    def _kept(self, contents: LayerContents) -> LayerContents:
        self._cache.keep(contents)
        return contents

    def _choose_any(self, store: BlobStore) -> _Chosen:
        index = self._read_small(store, "index.json")
        if index is not None:
            return self._choose(decode_json(index, Index, self._image, "index.json").manifests, store)
        listing = self._read_small(store, "manifest.json")
        if listing is None:
            raise CorruptImage(self._image, "neither index.json (OCI) nor manifest.json (docker) in it")
        manifests = decode_json(listing, tuple[DockerManifest, ...], self._image, "manifest.json")
        if self._tag is not None:
            manifests = tuple(each for each in manifests if _has_tag(each.repo_tags or (), self._tag))
        if len(manifests) != 1:
            choices = [tag for manifest in manifests for tag in manifest.repo_tags or ("untagged",)]
            if not choices:
                raise ImageNotFound(self._image, f"no image named {self._tag} in manifest.json")
            raise AmbiguousImage(self._image, choices)
        (manifest,) = manifests
        config = self._read_small(store, posixpath.normpath(manifest.config))
        if config is None:
            raise CorruptImage(self._image, f"{manifest.config} is not in it")
        stem = Path(manifest.config).stem
        if re.fullmatch(r"[0-9a-f]{64}", stem):
            self._verify("configuration", config, f"sha256:{stem}")
        layers = tuple(Descriptor(digest=posixpath.normpath(layer), size=-1) for layer in manifest.layers or ())
        return _Chosen(manifest_digest=None, config=config, layers=layers)

    def _choose(self, roots: Sequence[Descriptor], store: BlobStore) -> _Chosen:
        if self._tag is not None:
            named = [root for root in roots if _has_tag(root.names, self._tag)]
            if not named:
                raise ImageNotFound(self._image, f"no image named {self._tag} in index.json")
            roots = named
        candidates: dict[str, tuple[Descriptor, bytes]] = {}
        missing: list[Descriptor] = []
        for descriptor in self._manifests(roots, store, depth=0):
            raw = self._read_small(store, self._blob(descriptor.digest), descriptor)
            if raw is None:
                missing.append(descriptor)
            else:
                candidates[descriptor.digest] = (descriptor, raw)
        choices: dict[str, tuple[str, ImageManifest, bytes]] = {}
        for digest, (descriptor, raw) in candidates.items():
            manifest = decode_json(raw, ImageManifest, self._image, "manifest")
            if manifest.config.media_type not in CONFIG_TYPES:
                what = manifest.artifact_type or manifest.config.media_type
                raise UnsupportedImage(self._image, f"not a container image: {what}")
            config = self._read_small(store, self._blob(manifest.config.digest), manifest.config)
            if config is None:
                missing.append(descriptor)
                continue
            choices[digest] = (str(_platform_of(config, self._image)), manifest, config)
        names = {root.digest: root.names[0] for root in roots if root.names}
        digest = self._choose_platform({key: value[0] for key, value in choices.items()}, missing, names)
        _, manifest, config = choices[digest]
        return _Chosen(manifest_digest=digest, config=config, layers=manifest.layers or ())

    def _choose_platform(
        self, platforms: Mapping[str, str], missing: Sequence[Descriptor], names: Mapping[str, str]
    ) -> str:
        wanted = self._platform
        if wanted is None and len(platforms) > 1:
            wanted = _host_platform()
        found = [
            digest
            for digest, platform in platforms.items()
            if wanted is None or platform == wanted or platform.startswith(f"{wanted}/")
        ]
        if len(found) == 1:
            return found[0]
        if not platforms and missing:
            raise _BlobMissing(self._image, f"manifest {missing[0].digest} is not in it")
        if not found and platforms:
            there = ", ".join(sorted(platforms.values()))
            raise ImageNotFound(self._image, f"no image for {wanted} in it, only for {there}")
        if not found:
            raise UnsupportedImage(self._image, "no image manifest in it")
        raise AmbiguousImage(self._image, [f"{platforms[digest]} ({names.get(digest, digest)})" for digest in found])

    def _manifests(self, descriptors: Iterable[Descriptor], store: BlobStore, *, depth: int) -> Iterator[Descriptor]:
        """Walk down indexes to the manifests of images, leaving attestations out."""
        if depth > _INDEX_DEPTH:
            raise UnsupportedImage(self._image, f"indexes nested deeper than {_INDEX_DEPTH}")
        for descriptor in descriptors:
            if ATTESTATION in (descriptor.annotations or {}):
                continue
            media_type = descriptor.media_type
            if not media_type:  # the engine's identity comes without one
                media_type = self._media_type(descriptor, store)
            if media_type in INDEX_TYPES:
                raw = self._read_small(store, self._blob(descriptor.digest), descriptor)
                if raw is None:
                    raise _BlobMissing(self._image, f"index {descriptor.digest} is not in it")
                inner = decode_json(raw, Index, self._image, "index")
                yield from self._manifests(inner.manifests, store, depth=depth + 1)
            elif media_type in MANIFEST_TYPES:
                yield descriptor
            else:
                raise UnsupportedImage(self._image, f"not a container image: {media_type}")

    def _blob(self, digest: str) -> str:
        """Return where a layout keeps the blob of this digest, which is checked to be one."""
        return "blobs/" + _digest(digest, self._image).replace(":", "/", 1)

    def _media_type(self, descriptor: Descriptor, store: BlobStore) -> str:
        raw = self._read_small(store, self._blob(descriptor.digest), descriptor) or b"{}"
        return decode_json(raw, MediaType, self._image, "manifest").media_type

    def _read_small(self, store: BlobStore, name: str, descriptor: Descriptor | None = None) -> bytes | None:
        """Return a JSON blob, verified where its digest is known; None where it is not there."""
        source = store.open(name)
        if source is None:
            return None
        with source:
            content = source.read(SMALL_BYTES + 1)
        if len(content) > SMALL_BYTES:
            raise UnsupportedImage(self._image, f"{name} is larger than {SMALL_BYTES} bytes")
        if descriptor is not None:
            self._verify(name, content, descriptor.digest)
        return content

    def _verify(self, what: str, content: bytes, wanted: str) -> None:
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if found != wanted:
            raise DigestMismatch(self._image, what, wanted=wanted, found=found)

    def _assemble(self, chosen: _Chosen, store: BlobStore, *, source: Source) -> Image:
        config = decode_json(chosen.config, ImageConfig, self._image, "configuration")
        diff_ids = config.rootfs.diff_ids or ()
        if len(diff_ids) != len(chosen.layers):
            raise CorruptImage(
                self._image, f"the manifest has {len(chosen.layers)} layers, the configuration {len(diff_ids)}"
            )
        read: dict[str, LayerContents] = {}
        layers = []
        entries = 0
        for diff_id, descriptor, instruction in zip(
            diff_ids, chosen.layers, instructions_of(config, len(diff_ids)), strict=True
        ):
            contents = read.get(diff_id) or self._layer(descriptor, diff_id, store)
            read[diff_id] = contents
            entries += len(contents.entries)
            if entries > self._limits.entries:
                raise LayerTooLarge(f"more than {self._limits.entries} entries in its layers", layer=self._image)
            has_digest = descriptor.size >= 0
            layers.append(
                Layer(
                    diff_id=diff_id,
                    blob_digest=descriptor.digest if has_digest else contents.blob_digest,
                    blob_bytes=descriptor.size if has_digest else contents.blob_bytes,
                    instruction=instruction,
                    contents=contents,
                )
            )
        run = config.config or RunConfig()
        return Image(
            name=self._image,
            source=source,
            manifest_digest=chosen.manifest_digest,
            config_digest=f"sha256:{hashlib.sha256(chosen.config).hexdigest()}",
            platform=str(Platform(config.os, config.architecture, config.variant)),
            created=config.created,
            working_dir=run.working_dir or "/",
            user=run.user,
            labels=tuple(sorted((run.labels or {}).items())),
            layers=tuple(layers),
        )

    def _layer(self, descriptor: Descriptor, diff_id: str, store: BlobStore) -> LayerContents:
        if descriptor.media_type and not LAYER_TYPE.fullmatch(descriptor.media_type):
            raise UnsupportedImage(self._image, f"layer of unknown type {descriptor.media_type}")
        cached = self._cache.load(_digest(diff_id, self._image))
        if cached is not None:
            return cached
        has_digest = descriptor.size >= 0
        name = self._blob(descriptor.digest) if has_digest else descriptor.digest
        contents = self._streamed.get(name)
        if contents is None:
            source = store.open(name)
            if source is None:
                raise _BlobMissing(self._image, f"layer {descriptor.digest} is not in it")
            with source:
                contents = self._read_layer(source, descriptor.digest)
            mapped = store.map(name) if contents.compression == "none" else None
            if mapped is not None:
                gpu_code = find_gpu_code(contents.entries, mapped.view, mapped.forget)
                contents = msgspec.structs.replace(contents, gpu_code=gpu_code)
            self._kept(contents)
        if has_digest and contents.blob_digest != descriptor.digest:
            raise DigestMismatch(self._image, "a layer", wanted=descriptor.digest, found=contents.blob_digest)
        if has_digest and contents.blob_bytes != descriptor.size:
            what = f"layer {descriptor.digest} has {contents.blob_bytes} bytes, its manifest says {descriptor.size}"
            raise CorruptImage(self._image, what)
        if contents.diff_id != diff_id:
            raise DigestMismatch(self._image, "a layer, unpacked,", wanted=diff_id, found=contents.diff_id)
        return contents


class _BlobMissing(CorruptImage):
    """A blob that a manifest names is not there; another way to the image may still have it."""


def _digest(digest: str, image: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise UnsupportedImage(image, f"digest {digest[:80]!r} is not SHA-256")
    return digest


def _has_tag(names: Iterable[str], tag: str) -> bool:
    return any(name == tag or name.endswith((f":{tag}", f"/{tag}")) for name in names)


def _is_tar(prefix: bytes) -> bool:
    """Recognise a tar archive, an empty one too, by its first block."""
    return prefix[257:262] == b"ustar" or (len(prefix) == _MAGIC_BYTES and not prefix.strip(b"\0"))


def _platform_of(config: bytes, image: str) -> Platform:
    return decode_json(config, Platform, image, "configuration")


def _host_platform() -> str:
    machine = host.machine()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
