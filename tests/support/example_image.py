"""An image with three layers, and its expected contents, for tests that read it from different sources."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from buildkit.image.read import read_image
from tests.support.images import LayerMaker, blob_name, digest, make_image, oci_files, write_layout

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.errors import BuildkitError
    from buildkit.image.model import Image
    from tests.support.images import Compression, Form, MadeImage

LAYERS = [
    LayerMaker().directory("etc").file("etc/motd", "hello").file("etc/big", bytes(100_000)).tar(),
    LayerMaker().whiteout("etc/motd").file("app/run", "x", mode=0o755).tar(),
    bytes(1024),
]
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_INSTRUCTIONS = ["/bin/sh -c #(nop) ADD file:1 in / ", "RUN /bin/sh -c rm /etc/motd # buildkit", "WORKDIR /app"]


def example_image(compression: Compression = "none") -> MadeImage:
    run = {"WorkingDir": "/app", "User": "1000", "Labels": {"a": "b"}}
    return make_image(LAYERS, compression=compression, instructions=_INSTRUCTIONS, run=run)


def assert_is_example(image: Image, made: MadeImage) -> None:
    """Asserts that *image* is the example image, with the blobs of *made*."""
    assert [layer.diff_id for layer in image.layers] == [digest(layer) for layer in LAYERS]
    assert [layer.blob_bytes for layer in image.layers] == [len(blob) for blob in made.layers]
    assert [layer.blob_digest for layer in image.layers] == [digest(blob) for blob in made.layers]
    assert [layer.instruction for layer in image.layers] == ["ADD file:1 in /", "RUN rm /etc/motd", "WORKDIR /app"]
    assert [layer.contents.unpacked_bytes for layer in image.layers] == [100_005, 1, 0]
    found = image.description
    assert (found.platform, found.working_dir, found.user) == ("linux/amd64", "/app", "1000")
    assert found.labels == {"a": "b"}
    assert found.config_digest == digest(made.config)


def assert_refused(files: dict[str, bytes], path: Path, form: Form, error: type[BuildkitError], message: str) -> None:
    """Asserts that an image of these files, written to *path*, is refused with *error*, which names the path."""
    written = str(write_layout(files, path, form))
    with pytest.raises(error, match=message) as raised:
        read_image(written)
    assert str(raised.value).startswith(f"{written}: ") or str(raised.value).startswith(f"{written}, layer ")
    assert raised.value.exit_code == 3


def with_file(made: MadeImage, name: str, content: bytes | None) -> dict[str, bytes]:
    """Returns the files of an OCI layout with another content of one file, or without it."""
    files = oci_files(made)
    if content is None:
        del files[name]
    else:
        files[name] = content
    return files


def with_manifest(made: MadeImage, **changes: object) -> dict[str, bytes]:
    """Returns the files of an OCI layout with other values in the manifest."""
    manifest = json.dumps(json.loads(made.manifest) | changes).encode()
    return oci_files(replace(made, manifest=manifest, blobs={**made.blobs, blob_name(manifest): manifest}))
