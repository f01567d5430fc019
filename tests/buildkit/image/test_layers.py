"""Reads layers from the cache, from stores and from streams, and verifies them against the manifest."""

import io
from pathlib import Path

import pytest

from buildkit.errors import BuildkitError
from buildkit.image.blobs import MemoryStore
from buildkit.image.errors import CorruptImage, CorruptLayer, DigestMismatch, LayerTooLarge, MissingBlob
from buildkit.image.layer_stream import Limits
from buildkit.image.layers import LayerReader
from buildkit.image.read import ReadOptions, read_image
from buildkit.image.resolve import StoredLayer
from tests.support.example_image import LAYERS, assert_refused, example_image, with_file, with_manifest
from tests.support.images import (
    Form,
    LayerMaker,
    blob_name,
    compress,
    descriptor,
    digest,
    oci_files,
    write_folder,
)

MADE = example_image()
LAYER = descriptor(LAYERS[0], "application/vnd.oci.image.layer.v1.tar")
WRONG: dict[str, tuple[dict[str, bytes], type[BuildkitError], str]] = {
    "missing": (with_file(MADE, blob_name(LAYERS[0]), None), MissingBlob, "layer sha256:.* is missing"),
    "other content": (with_file(MADE, blob_name(LAYERS[0]), LAYERS[1]), DigestMismatch, "should have digest"),
    "truncated": (with_file(MADE, blob_name(LAYERS[0]), LAYERS[0][:4000]), CorruptLayer, "ends inside a"),
    "of another image": (with_manifest(MADE, layers=[LAYER] * 3), DigestMismatch, "unpacked"),
    "other size": (with_manifest(MADE, layers=[{**LAYER, "size": 7}] * 3), CorruptImage, "its manifest says 7"),
}


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_layer_is_refused(tmp_path: Path, case: str, form: Form) -> None:
    assert_refused(WRONG[case][0], tmp_path / "o", form, *WRONG[case][1:])


def test_limits_apply_to_each_layer_and_to_all_entries(tmp_path: Path) -> None:
    path = str(write_folder(oci_files(MADE), tmp_path / "o"))
    with pytest.raises(LayerTooLarge):
        read_image(path, ReadOptions(limits=Limits(unpacked_bytes=50_000)))
    with pytest.raises(LayerTooLarge, match="entries in its layers"):
        read_image(path, ReadOptions(limits=Limits(entries=4)))


def archive_of(**files: bytes) -> io.BytesIO:
    maker = LayerMaker()
    for name, content in files.items():
        maker.file(name, content)
    return io.BytesIO(maker.tar())


def test_stream_is_split_into_layers_and_small_files() -> None:
    layer = compress(LAYERS[0], "gzip")
    reader = LayerReader("x", None, Limits())
    store = reader.read_archive(archive_of(one=layer, two=LAYERS[1], three=b"{}"))
    assert store.open("one") is None
    small = store.open("three")
    assert small is not None
    assert small.read() == b"{}"
    stored = [StoredLayer("one"), StoredLayer("two")]
    contents = reader.read_all(stored, [digest(LAYERS[0]), digest(LAYERS[1])], store)
    assert [each.blob_digest for each in contents] == [digest(layer), digest(LAYERS[1])]


def test_stream_skips_layers_that_are_cached(tmp_path: Path) -> None:
    layer = compress(LAYERS[0], "gzip")
    name = digest(layer).removeprefix("sha256:")
    LayerReader("x", tmp_path, Limits()).read_archive(archive_of(**{name: layer}))
    damaged = bytes(len(layer))
    reader = LayerReader("x", tmp_path, Limits())
    store = reader.read_archive(archive_of(**{name: damaged}))
    (contents,) = reader.read_all([StoredLayer(name)], [digest(LAYERS[0])], store)
    assert contents.blob_digest == digest(layer)


def test_truncated_stream_is_refused() -> None:
    archive = archive_of(big=bytes(range(1, 256)) * 100).getvalue()[:4000]
    with pytest.raises(CorruptImage, match="the archive ends inside big"):
        LayerReader("x", None, Limits()).read_archive(io.BytesIO(archive))


def test_repeated_layer_is_read_once_and_counted_twice() -> None:
    store = MemoryStore({"a": LAYERS[0]})
    diff_id = digest(LAYERS[0])
    first, second = LayerReader("x", None, Limits()).read_all(
        [StoredLayer("a"), StoredLayer("gone")], [diff_id] * 2, store
    )
    assert first is second
    with pytest.raises(LayerTooLarge, match="more than 5 entries"):
        LayerReader("x", None, Limits(entries=5)).read_all([StoredLayer("a")] * 2, [diff_id] * 2, store)
