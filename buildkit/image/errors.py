"""Defines the errors of reading an image; each names the image or the layer, and what is wrong with it.

BuildkitError
├── ImageError             the image as a whole
│   ├── ImageNotFound
│   ├── AmbiguousImage
│   ├── UnsupportedImage
│   ├── DigestMismatch
│   └── CorruptImage
│       └── MissingBlob
└── LayerError             the tar archive of one layer
    ├── CorruptLayer
    ├── UnsafePath
    ├── UnsupportedEntry
    └── LayerTooLarge
"""

from collections.abc import Sequence

from buildkit.errors import BuildkitError

__all__ = [
    "AmbiguousImage",
    "CorruptImage",
    "CorruptLayer",
    "DigestMismatch",
    "ImageError",
    "ImageNotFound",
    "LayerError",
    "LayerTooLarge",
    "MissingBlob",
    "UnsafePath",
    "UnsupportedEntry",
    "UnsupportedImage",
]


class ImageError(BuildkitError):
    """An image that cannot be read: `image` is its name, `reason` says what is wrong."""

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(f"{image}: {reason}")
        self.image = image
        self.reason = reason


class ImageNotFound(ImageError):
    """No file, image, tag or platform of this name."""


class AmbiguousImage(ImageError):
    """Several images match; `choices` are their tags or platforms."""

    def __init__(self, image: str, choices: Sequence[str]) -> None:
        super().__init__(image, f"it holds several images; choose one with --tag or --platform: {', '.join(choices)}")
        self.choices = tuple(choices)


class UnsupportedImage(ImageError):
    """A well-formed artifact that is not a container image, or that uses a feature unknown to this program."""


class DigestMismatch(ImageError):
    """Content whose digest is not the expected one; `what` names the content."""

    def __init__(self, image: str, what: str, *, wanted: str, found: str) -> None:
        super().__init__(image, f"{what} should have digest {wanted} and has {found}")
        self.what = what
        self.wanted = wanted
        self.found = found


class CorruptImage(ImageError):
    """A manifest, index, configuration or archive that is missing, truncated or malformed."""


class MissingBlob(CorruptImage):
    """A blob that a manifest names and this store lacks; another store of the same image may have it."""


class LayerError(BuildkitError):
    """A layer that cannot be read: `layer` names its blob, `path` the entry if there is one, `reason` the fault."""

    def __init__(self, reason: str, *, layer: str = "layer", path: str | None = None) -> None:
        super().__init__(f"{layer}: {reason}" if path is None else f"{layer}: {path!r}: {reason}")
        self.reason = reason
        self.layer = layer
        self.path = path


class CorruptLayer(LayerError):
    """The bytes are not a complete, well-formed tar archive in a known compression."""


class UnsafePath(LayerError):
    """An entry or a link points outside the image's root."""


class UnsupportedEntry(LayerError):
    """A well-formed entry of a type that no container engine unpacks."""


class LayerTooLarge(LayerError):
    """More bytes, entries or text than `Limits` allows: a malicious archive, or a limit to raise."""
