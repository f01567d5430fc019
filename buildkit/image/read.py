"""Reads an image with all of its layers from a container engine, an OCI layout, or an archive.

For each source: find the image's configuration and layers (`resolve`), read the layers that the cache does not hold
(`layers`), and verify every digest.

Formats: OCI image specification 1.1 (image-layout.md, config.md) and the archive of `docker image save`.
"""

import io
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from buildkit.image.blobs import ArchiveStore, BlobStore, FolderStore, MemoryStore, sha256_digest
from buildkit.image.engine_images import content_store, export, image_id
from buildkit.image.errors import CorruptImage, MissingBlob
from buildkit.image.layer_stream import ByteSource, Limits
from buildkit.image.layers import LayerReader
from buildkit.image.manifest import ImageConfig, Platform, RunConfig, decode_json, layer_instructions
from buildkit.image.model import Image, ImageDescription, ImageLayer, Source
from buildkit.image.resolve import ResolvedImage, Resolver

__all__ = ["ReadOptions", "layer_blobs", "read_image"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read an image.

    Attributes:
        cache: a folder for the contents of layers; a layer that is in it is not read again. None for no cache.
        platform: the platform to choose from an index ("linux/arm64"); None for this machine's if there are several.
        tag: the tag to choose from an archive with several images.
        limits: larger layers and images are refused.
        engine_host: the engine's DOCKER_HOST; "" for the one that `docker` finds itself.
    """

    cache: Path | None = None
    platform: str | None = None
    tag: str | None = None
    limits: Limits = field(default_factory=Limits)
    engine_host: str = ""


_DEFAULTS: Final = ReadOptions()


def read_image(name: str, options: ReadOptions = _DEFAULTS) -> Image:
    """Reads the image called *name*: a path, "-" for an archive on standard input, or a reference of the engine.

    A path is an OCI layout (folder or tar) or an archive of `docker image save`. If a file and a reference have the
    same name, `docker:NAME` is the reference and `./NAME` the file.

    Raises:
        ImageError, LayerError: the image cannot be read; the message names it and says what is wrong.
        CommandFailed: the engine did not answer, or its export failed.
    """
    layers = LayerReader(name, options.cache, options.limits)
    path = Path(name.removeprefix("oci:").removeprefix("docker-archive:").removeprefix("oci-archive:"))
    if name == "-":
        return _read_stream(io.FileIO(sys.stdin.fileno(), closefd=False), layers, options)
    if name.startswith("docker:") or not path.exists():
        return _read_from_engine(name.removeprefix("docker:"), layers, options)
    if path.is_dir():
        return _read_store(FolderStore(path), "oci-layout", layers, options)
    with path.open("rb", buffering=0) as archive:
        if not path.is_file():  # a pipe
            return _read_stream(archive, layers, options)
        return _read_store(ArchiveStore(archive, name), "archive", layers, options)


def layer_blobs(reference: str, options: ReadOptions = _DEFAULTS) -> dict[str, int]:
    """Returns the digest and size in bytes of each layer of an engine's image, as the engine stores it.

    Only the manifest is read if the engine's store is on this machine, otherwise the whole image.

    Raises:
        ImageError, LayerError, CommandFailed: as `read_image` does.
    """
    digest = image_id(options.engine_host, reference)
    store = content_store(options.engine_host, digest)
    if store is not None:
        with suppress(MissingBlob):
            resolved = Resolver(store, reference, options.platform, options.tag).resolve_digest(digest)
            return {layer.digest: layer.blob_bytes or 0 for layer in resolved.layers if layer.digest}
    layers = LayerReader(reference, options.cache, options.limits)
    return {layer.blob_digest: layer.blob_bytes for layer in _read_from_engine(reference, layers, options).layers}


def _read_stream(stream: ByteSource, layers: LayerReader, options: ReadOptions) -> Image:
    """Reads an archive that comes through a pipe."""
    return _read_store(layers.read_archive(stream), "archive", layers, options)


def _read_store(store: BlobStore, source: Source, layers: LayerReader, options: ReadOptions) -> Image:
    """Reads an image whose files can be opened in any order."""
    resolved = Resolver(store, layers.image, options.platform, options.tag).resolve()
    return _assemble(resolved, store, source, layers)


def _read_from_engine(reference: str, layers: LayerReader, options: ReadOptions) -> Image:
    """Reads an image of the engine in the fastest way that works: cache only, blobs in place, or export.

    Blobs are read in place if the engine keeps them in containerd's content store on this machine and this user may
    read it. The cache holds the resolved image, by the engine's image ID.
    """
    digest = image_id(options.engine_host, reference)
    note = f"image-{(options.platform or '').replace('/', '_')}"
    resolved = _cached_resolution(layers, note, digest)
    if resolved is not None:
        with suppress(MissingBlob):
            return _assemble(resolved, MemoryStore(), "engine", layers)
    resolved, image = _read_in_place(digest, layers, options) or _read_export(reference, layers, options)
    layers.cache.save_note(note, digest, msgspec.msgpack.encode(resolved))
    return image


def _cached_resolution(layers: LayerReader, note: str, digest: str) -> ResolvedImage | None:
    """Returns the resolved image from the cache if all of its layers are there too."""
    try:
        resolved = msgspec.msgpack.decode(layers.cache.load_note(note, digest), type=ResolvedImage)
        config = decode_json(resolved.config, ImageConfig, layers.image, "configuration")
    except (msgspec.DecodeError, CorruptImage):
        return None
    return resolved if all(layers.cache.has(diff_id) for diff_id in config.rootfs.diff_ids or ()) else None


def _read_in_place(digest: str, layers: LayerReader, options: ReadOptions) -> tuple[ResolvedImage, Image] | None:
    """Reads the engine's own blobs; returns None if they are not on this machine, or not all of them."""
    store = content_store(options.engine_host, digest)
    if store is None:
        return None
    with suppress(MissingBlob):
        resolved = Resolver(store, layers.image, options.platform, options.tag).resolve_digest(digest)
        return resolved, _assemble(resolved, store, "engine", layers)
    return None


def _read_export(reference: str, layers: LayerReader, options: ReadOptions) -> tuple[ResolvedImage, Image]:
    """Reads the output of `docker image save`."""
    with export(options.engine_host, reference) as stream:
        store = layers.read_archive(stream)
    resolved = Resolver(store, layers.image, options.platform, options.tag).resolve()
    return resolved, _assemble(resolved, store, "engine", layers)


def _assemble(resolved: ResolvedImage, store: BlobStore, source: Source, layers: LayerReader) -> Image:
    """Reads the layers of a resolved image and puts them together with its configuration."""
    name = layers.image
    config = decode_json(resolved.config, ImageConfig, name, "configuration")
    diff_ids = config.rootfs.diff_ids or ()
    if len(diff_ids) != len(resolved.layers):
        raise CorruptImage(name, f"the manifest has {len(resolved.layers)} layers, the configuration {len(diff_ids)}")
    contents = layers.read_all(resolved.layers, diff_ids, store)
    run = config.config or RunConfig()
    return Image(
        description=ImageDescription(
            name=name,
            source=source,
            manifest_digest=resolved.manifest_digest,
            config_digest=sha256_digest(resolved.config),
            platform=str(Platform(config.os, config.architecture, config.variant)),
            created=config.created,
            working_dir=run.working_dir or "/",
            user=run.user,
            labels=dict(sorted((run.labels or {}).items())),
        ),
        layers=tuple(
            ImageLayer(
                diff_id=diff_id,
                blob_digest=stored.digest or read.blob_digest,
                blob_bytes=read.blob_bytes if stored.blob_bytes is None else stored.blob_bytes,
                instruction=instruction,
                contents=read,
            )
            for diff_id, stored, read, instruction in zip(
                diff_ids, resolved.layers, contents, layer_instructions(config), strict=True
            )
        ),
    )
