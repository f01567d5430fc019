"""The documents that make blobs an image: indexes, manifests and configurations, as far as they are needed here.

Formats: OCI image specification 1.1 (descriptor.md, image-index.md, manifest.md, config.md), Docker's image manifest v2
schema 2, and manifest.json of `docker image save`.
"""

import re
from typing import Final, TypeVar

import msgspec

from buildkit.image.blobs import CorruptImage

__all__ = [
    "ATTESTATION",
    "CONFIG_TYPES",
    "INDEX_TYPES",
    "LAYER_TYPE",
    "MANIFEST_TYPES",
    "Descriptor",
    "DockerManifest",
    "ImageConfig",
    "ImageManifest",
    "Index",
    "MediaType",
    "Platform",
    "RunConfig",
    "decode_json",
    "instructions_of",
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
    """What an image runs on, as "linux/arm64/v8"."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to a blob: its digest, size and kind."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """References that its annotations give it."""
        return tuple((self.annotations or {})[key] for key in _NAME_ANNOTATIONS if key in (self.annotations or {}))


class Index(msgspec.Struct, frozen=True):
    """A list of manifests, one for each platform, with attestations among them."""

    manifests: tuple[Descriptor, ...]


class ImageManifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...] | None
    artifact_type: str | None = None


class DockerManifest(msgspec.Struct, frozen=True, rename="pascal"):
    """One image of an archive of `docker image save`: names of files in the archive."""

    config: str
    layers: tuple[str, ...] | None
    repo_tags: tuple[str, ...] | None = None


class _RootFileSystem(msgspec.Struct, frozen=True):
    type: str
    diff_ids: tuple[str, ...] | None = None  # null where there is none: so Go writes an empty list


class _History(msgspec.Struct, frozen=True):
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


class RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    """What a container of the image is run with."""

    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration: its layers as unpacked, and what made them."""

    rootfs: _RootFileSystem
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    history: tuple[_History, ...] | None = None
    config: RunConfig | None = None


class MediaType(msgspec.Struct, frozen=True, rename="camel"):
    """The kind that a document says it is of."""

    media_type: str = ""


def decode_json(content: bytes, kind: type[_T], image: str, what: str) -> _T:
    """Read a document; CorruptImage names the *image* and *what* was to be read."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise CorruptImage(image, f"{what}: {error}") from error


def instructions_of(config: ImageConfig, layers: int) -> tuple[str | None, ...]:
    """Return what made each layer, from the history's entries that made one; all None where they do not add up."""
    made = [step for step in config.history or () if not step.empty_layer]
    if len(made) != layers:
        return (None,) * layers
    return tuple(_instruction(step.created_by or step.comment) or None for step in made)


def _instruction(created_by: str) -> str:
    text = " ".join(created_by.removesuffix("# buildkit").split())
    text = text.removeprefix("/bin/sh -c #(nop) ").strip()
    return re.sub(r"^(?:RUN )?/bin/sh -c ", "RUN ", text)
