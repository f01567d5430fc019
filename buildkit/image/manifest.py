"""Decodes the JSON documents of an image: indexes, manifests and configurations, with the fields that are used here.

Formats: OCI image specification 1.1 (descriptor.md, image-index.md, manifest.md, config.md), Docker's image manifest v2
schema 2, and manifest.json of `docker image save`.
"""

import re
from typing import Final, TypeVar

import msgspec

from buildkit.image.errors import CorruptImage

__all__ = [
    "ATTESTATION",
    "CONFIG_TYPES",
    "INDEX_TYPES",
    "LAYER_TYPE",
    "MANIFEST_TYPES",
    "ArchivedImage",
    "Descriptor",
    "ImageConfig",
    "ImageIndex",
    "ImageManifest",
    "MediaType",
    "Platform",
    "RunConfig",
    "decode_json",
    "layer_instructions",
]

_T = TypeVar("_T")
ATTESTATION: Final = "vnd.docker.reference.type"  # BuildKit, docs/attestations/attestation-storage.md
_NAME_ANNOTATIONS: Final = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
INDEX_TYPES: Final = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
MANIFEST_TYPES: Final = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
CONFIG_TYPES: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
LAYER_TYPE: Final = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.gzip|\.zstd)?)"
)


class Platform(msgspec.Struct, frozen=True):
    """The platform of an image; its text is "linux/arm64/v8"."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to a blob: digest, size in bytes and media type."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The image names among the annotations."""
        return tuple((self.annotations or {})[key] for key in _NAME_ANNOTATIONS if key in (self.annotations or {}))


class ImageIndex(msgspec.Struct, frozen=True):
    """A list of manifests: one for each platform, and attestations."""

    manifests: tuple[Descriptor, ...]


class ImageManifest(msgspec.Struct, frozen=True, rename="camel"):
    """The manifest of one image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...] | None
    artifact_type: str | None = None


class ArchivedImage(msgspec.Struct, frozen=True, rename="pascal"):
    """An entry of the manifest.json of `docker image save`; `config` and `layers` are names of files in the archive."""

    config: str
    layers: tuple[str, ...] | None
    repo_tags: tuple[str, ...] | None = None


class _RootFileSystem(msgspec.Struct, frozen=True):
    type: str
    diff_ids: tuple[str, ...] | None = None  # Go writes an empty list as null


class _History(msgspec.Struct, frozen=True):
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


class RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """The settings of a container that is started from the image."""

    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """The configuration of an image: digests of the unpacked layers, and the instructions that made them."""

    rootfs: _RootFileSystem
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    history: tuple[_History, ...] | None = None
    config: RunConfig | None = None


class MediaType(msgspec.Struct, frozen=True, rename="camel"):
    """The media type that a document states."""

    media_type: str = ""


def decode_json(content: bytes, kind: type[_T], image: str, what: str) -> _T:
    """Decodes a document.

    Raises:
        CorruptImage: it is not a *kind*; the message names the *image* and *what* the document is.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise CorruptImage(image, f"{what}: {error}") from error


def layer_instructions(config: ImageConfig) -> tuple[str | None, ...]:
    """Returns the instruction of each layer, from the history; all None if the history has another number of layers."""
    layers = len(config.rootfs.diff_ids or ())
    steps = [step for step in config.history or () if not step.empty_layer]
    if len(steps) != layers:
        return (None,) * layers
    return tuple(_instruction(step.created_by or step.comment) or None for step in steps)


def _instruction(created_by: str) -> str:
    text = " ".join(created_by.removesuffix("# buildkit").split())
    text = text.removeprefix("/bin/sh -c #(nop) ").strip()
    return re.sub(r"^(?:RUN )?/bin/sh -c ", "RUN ", text)
