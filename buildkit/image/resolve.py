"""Resolves an image name to one configuration and its layers: through indexes, by platform and by tag.

Formats: OCI image specification 1.1 (image-index.md, manifest.md) and manifest.json of `docker image save`.
"""

import platform as host
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from buildkit.image.blobs import BlobStore, blob_name, read_document, sha256_digest
from buildkit.image.errors import (
    AmbiguousImage,
    CorruptImage,
    DigestMismatch,
    ImageNotFound,
    MissingBlob,
    UnsupportedImage,
)
from buildkit.image.manifest import (
    ATTESTATION,
    CONFIG_TYPES,
    INDEX_TYPES,
    LAYER_TYPE,
    MANIFEST_TYPES,
    ArchivedImage,
    Descriptor,
    ImageIndex,
    ImageManifest,
    MediaType,
    Platform,
    decode_json,
)

__all__ = ["ResolvedImage", "Resolver", "StoredLayer"]

_INDEX_DEPTH: Final = 4


class StoredLayer(msgspec.Struct, frozen=True):
    """A layer as its manifest names it; manifest.json of `docker image save` states neither digest nor size."""

    name: str
    digest: str | None = None
    blob_bytes: int | None = None


class ResolvedImage(msgspec.Struct, frozen=True):
    """One image of a store: its configuration as JSON, and its layers, the lowest first.

    `manifest_digest` is None for an archive without OCI manifest.
    """

    manifest_digest: str | None
    config: bytes
    layers: tuple[StoredLayer, ...]


class _Candidate(msgspec.Struct, frozen=True):
    platform: str
    manifest: ImageManifest
    config: bytes


@dataclass(frozen=True, slots=True)
class Resolver:
    """Finds one image in a store.

    Attributes:
        store: the blobs.
        image: the name of the image, for error messages.
        platform: the platform wanted, as "linux/arm64"; None for this machine's if there are several.
        tag: the tag wanted; None if the store holds one image.
    """

    store: BlobStore
    image: str
    platform: str | None
    tag: str | None

    def resolve(self) -> ResolvedImage:
        """Resolves the image that index.json names, or manifest.json if there is no index.

        Raises:
            ImageError: no image matches, several do, or a document is wrong.
        """
        index = read_document(self.store, "index.json", self.image)
        if index is not None:
            return self._resolve_manifests(decode_json(index, ImageIndex, self.image, "index.json").manifests)
        listing = read_document(self.store, "manifest.json", self.image)
        if listing is None:
            raise CorruptImage(self.image, "it has neither index.json (OCI) nor manifest.json (docker)")
        return self._resolve_archived(decode_json(listing, tuple[ArchivedImage, ...], self.image, "manifest.json"))

    def resolve_digest(self, digest: str) -> ResolvedImage:
        """Resolves the image whose index or manifest has this digest; raises ImageError as `resolve` does."""
        return self._resolve_manifests([Descriptor(digest=digest, size=0)])  # its size is unknown, and never used

    def _resolve_archived(self, images: tuple[ArchivedImage, ...]) -> ResolvedImage:
        if self.tag is not None:
            images = tuple(each for each in images if _has_tag(each.repo_tags or (), self.tag))
        if len(images) != 1:
            choices = [tag for each in images for tag in each.repo_tags or ("untagged",)]
            if not choices:
                raise ImageNotFound(self.image, f"no image named {self.tag} in manifest.json")
            raise AmbiguousImage(self.image, choices)
        (found,) = images
        config = read_document(self.store, posixpath.normpath(found.config), self.image)
        if config is None:
            raise CorruptImage(self.image, f"{found.config} is missing")
        stem = Path(found.config).stem
        if re.fullmatch(r"[0-9a-f]{64}", stem) and sha256_digest(config) != f"sha256:{stem}":
            raise DigestMismatch(self.image, "configuration", wanted=f"sha256:{stem}", found=sha256_digest(config))
        layers = tuple(StoredLayer(posixpath.normpath(name)) for name in found.layers or ())
        return ResolvedImage(manifest_digest=None, config=config, layers=layers)

    def _resolve_manifests(self, roots: Sequence[Descriptor]) -> ResolvedImage:
        if self.tag is not None:
            roots = [root for root in roots if _has_tag(root.names, self.tag)]
            if not roots:
                raise ImageNotFound(self.image, f"no image named {self.tag} in index.json")
        candidates, missing = self._candidates(roots)
        names = {root.digest: root.names[0] for root in roots if root.names}
        digest = self._choose({digest: each.platform for digest, each in candidates.items()}, missing, names)
        found = candidates[digest]
        layers = tuple(self._stored_layer(layer) for layer in found.manifest.layers or ())
        return ResolvedImage(manifest_digest=digest, config=found.config, layers=layers)

    def _candidates(self, roots: Iterable[Descriptor]) -> tuple[dict[str, _Candidate], list[str]]:
        """Returns the images below *roots* by their manifest's digest, and the manifests that are not complete here."""
        candidates: dict[str, _Candidate] = {}
        missing: list[str] = []
        for descriptor in self._manifests(roots, depth=0):
            raw = self._read(descriptor)
            manifest = None if raw is None else self._decode_manifest(raw)
            config = None if manifest is None else self._read(manifest.config)
            if manifest is None or config is None:
                missing.append(descriptor.digest)
            else:
                platform = str(decode_json(config, Platform, self.image, "configuration"))
                candidates[descriptor.digest] = _Candidate(platform, manifest, config)
        return candidates, missing

    def _decode_manifest(self, raw: bytes) -> ImageManifest:
        manifest = decode_json(raw, ImageManifest, self.image, "manifest")
        if manifest.config.media_type not in CONFIG_TYPES:
            kind = manifest.artifact_type or manifest.config.media_type
            raise UnsupportedImage(self.image, f"not a container image: {kind}")
        return manifest

    def _manifests(self, descriptors: Iterable[Descriptor], *, depth: int) -> Iterator[Descriptor]:
        """Yields the manifests of images below *descriptors*, through indexes, without attestations."""
        if depth > _INDEX_DEPTH:
            raise UnsupportedImage(self.image, f"indexes nested deeper than {_INDEX_DEPTH}")
        for descriptor in descriptors:
            if ATTESTATION in (descriptor.annotations or {}):
                continue
            media_type = descriptor.media_type
            if not media_type:  # an engine's image ID comes without one
                raw = self._read(descriptor) or b"{}"
                media_type = decode_json(raw, MediaType, self.image, "manifest").media_type
            if media_type in INDEX_TYPES:
                index = self._read(descriptor)
                if index is None:
                    raise MissingBlob(self.image, f"index {descriptor.digest} is missing")
                inner = decode_json(index, ImageIndex, self.image, "index")
                yield from self._manifests(inner.manifests, depth=depth + 1)
            elif media_type in MANIFEST_TYPES:
                yield descriptor
            else:
                raise UnsupportedImage(self.image, f"not a container image: {media_type}")

    def _choose(self, platforms: Mapping[str, str], missing: Sequence[str], names: Mapping[str, str]) -> str:
        """Returns the digest of the manifest for the wanted platform."""
        wanted = self.platform
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
            raise MissingBlob(self.image, f"manifest {missing[0]} is missing")
        if not found and platforms:
            available = ", ".join(sorted(platforms.values()))
            raise ImageNotFound(self.image, f"it has no image for {wanted}, only for {available}")
        if not found:
            raise UnsupportedImage(self.image, "it has no image manifest")
        raise AmbiguousImage(self.image, [f"{platforms[digest]} ({names.get(digest, digest)})" for digest in found])

    def _stored_layer(self, layer: Descriptor) -> StoredLayer:
        if layer.media_type and not LAYER_TYPE.fullmatch(layer.media_type):
            raise UnsupportedImage(self.image, f"layer of unknown type {layer.media_type}")
        return StoredLayer(blob_name(layer.digest, self.image), layer.digest, layer.size)

    def _read(self, descriptor: Descriptor) -> bytes | None:
        return read_document(self.store, blob_name(descriptor.digest, self.image), self.image, digest=descriptor.digest)


def _has_tag(names: Iterable[str], tag: str) -> bool:
    return any(name == tag or name.endswith((f":{tag}", f"/{tag}")) for name in names)


def _host_platform() -> str:
    machine = host.machine()
    return "linux/" + {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
