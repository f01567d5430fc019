"""Decodes image documents: names in annotations, platforms, and instructions from the history."""

import pytest

from buildkit.image.errors import CorruptImage
from buildkit.image.manifest import (
    LAYER_TYPE,
    Descriptor,
    ImageConfig,
    ImageManifest,
    Platform,
    decode_json,
    layer_instructions,
)


def config(*history: str) -> ImageConfig:
    steps = ",".join(history)
    text = f'{{"rootfs": {{"type": "layers", "diff_ids": ["a", "b"]}}, "history": [{steps}]}}'
    return decode_json(text.encode(), ImageConfig, "x", "configuration")


def test_platform_is_joined_by_slashes() -> None:
    assert str(Platform("linux", "arm64", "v8")) == "linux/arm64/v8"
    assert str(Platform("linux", "amd64")) == "linux/amd64"


def test_names_come_from_annotations() -> None:
    annotations = {"io.containerd.image.name": "a:1", "org.opencontainers.image.ref.name": "1", "other": "x"}
    assert Descriptor("d", 1, annotations=annotations).names == ("a:1", "1")
    assert Descriptor("d", 1).names == ()


def test_instructions_lose_the_shell_and_the_builder() -> None:
    found = config(
        '{"created_by": "ENV A=B", "empty_layer": true}',
        '{"created_by": "RUN /bin/sh -c  make   all # buildkit"}',
        '{"created_by": "/bin/sh -c #(nop) COPY file:1 in /app "}',
    )
    assert layer_instructions(found) == ("RUN make all", "COPY file:1 in /app")


def test_instruction_may_be_in_the_comment() -> None:
    assert layer_instructions(config('{"comment": "imported"}', "{}")) == ("imported", None)


def test_history_of_another_length_gives_no_instructions() -> None:
    assert layer_instructions(config('{"created_by": "RUN a"}')) == (None, None)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_layer_types_of_engines_are_known(media_type: str) -> None:
    assert LAYER_TYPE.fullmatch(media_type)


def test_wrong_document_is_named() -> None:
    with pytest.raises(CorruptImage, match=r"^x: manifest: .*config"):
        decode_json(b"{}", ImageManifest, "x", "manifest")
