"""Resolves images by platform and tag, and refuses documents that are wrong, each with its reason."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from buildkit.image.blobs import MemoryStore
from buildkit.image.errors import (
    AmbiguousImage,
    CorruptImage,
    DigestMismatch,
    ImageError,
    ImageNotFound,
    MissingBlob,
    UnsupportedImage,
)
from buildkit.image.read import ReadOptions, read_image
from buildkit.image.resolve import Resolver
from tests.support.example_image import LAYERS, MANIFEST_TYPE, assert_refused, example_image, with_file, with_manifest
from tests.support.images import (
    Form,
    MadeImage,
    blob_name,
    descriptor,
    digest,
    docker_files,
    make_image,
    oci_files,
    write_archive,
    write_folder,
)

MADE = example_image()
LAYER = descriptor(LAYERS[0], "application/vnd.oci.image.layer.v1.tar")
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def index_of(images: Mapping[tuple[str, str], MadeImage]) -> dict[str, bytes]:
    files: dict[str, bytes] = {"oci-layout": b"{}"}
    roots = []
    for (system, architecture), made in images.items():
        files |= made.blobs
        platform = {"os": system, "architecture": architecture}
        roots.append(descriptor(made.manifest, MANIFEST_TYPE, platform=platform))
    files["index.json"] = json.dumps({"manifests": roots}).encode()
    return files


def test_platform_is_chosen_from_an_index(tmp_path: Path) -> None:
    platforms = [("linux", "amd64"), ("linux", "s390x"), ("linux", "ppc64le")]
    images = {each: make_image([LAYERS[place]], platform=each) for place, each in enumerate(platforms)}
    path = str(write_folder(index_of(images), tmp_path / "o"))
    assert read_image(path, ReadOptions(platform="linux/s390x")).description.platform == "linux/s390x"
    with pytest.raises(ImageNotFound, match="it has no image for linux/riscv64, only for linux/amd64"):
        read_image(path, ReadOptions(platform="linux/riscv64"))


def test_missing_platform_does_not_matter(tmp_path: Path) -> None:
    """An engine that pulled one platform keeps the complete index."""
    files = index_of({("linux", each): make_image([LAYERS[0]], platform=("linux", each)) for each in ("amd64", "arm")})
    missing = make_image([LAYERS[0]], platform=("linux", "arm"))
    del files[blob_name(missing.manifest)]
    assert read_image(str(write_folder(files, tmp_path / "o"))).description.platform == "linux/amd64"


def test_tag_is_chosen_from_several_images(tmp_path: Path) -> None:
    one, two = make_image([LAYERS[0]]), make_image([LAYERS[1]])
    files = oci_files(one, tag="a:1") | oci_files(two, tag="b:2")
    roots = [
        json.loads(oci_files(made, tag=tag)["index.json"])["manifests"][0] for made, tag in ((one, "a:1"), (two, "b:2"))
    ]
    files["index.json"] = json.dumps({"manifests": roots}).encode()
    path = str(write_folder(files, tmp_path / "o"))
    with pytest.raises(AmbiguousImage) as raised:
        read_image(path)
    assert len(raised.value.choices) == 2
    assert read_image(path, ReadOptions(tag="b:2")).description.manifest_digest == digest(two.manifest)
    with pytest.raises(ImageNotFound, match=r"no image named c:3 in index\.json"):
        read_image(path, ReadOptions(tag="c:3"))


def test_tag_is_chosen_from_a_docker_archive(tmp_path: Path) -> None:
    made = make_image([LAYERS[0]])
    (entry,) = json.loads(docker_files(made, tag="a:1")["manifest.json"])
    listing = [entry, entry | {"RepoTags": ["b:2"]}]
    path = str(write_archive(docker_files(made) | {"manifest.json": json.dumps(listing).encode()}, tmp_path / "a.tar"))
    with pytest.raises(AmbiguousImage) as raised:
        read_image(path)
    assert raised.value.choices == ("a:1", "b:2")
    assert len(read_image(path, ReadOptions(tag="b:2")).layers) == 1
    with pytest.raises(ImageNotFound, match=r"no image named c:3 in manifest\.json"):
        read_image(path, ReadOptions(tag="c:3"))


def test_digest_of_an_index_resolves_to_its_image() -> None:
    index = json.dumps({"mediaType": INDEX_TYPE, "manifests": [descriptor(MADE.manifest, MANIFEST_TYPE)]}).encode()
    resolver = Resolver(MemoryStore({**MADE.blobs, blob_name(index): index}), "x", platform=None, tag=None)
    for root in (index, MADE.manifest):
        found = resolver.resolve_digest(digest(root))
        assert found.manifest_digest == digest(MADE.manifest)
        assert [layer.digest for layer in found.layers] == [digest(blob) for blob in MADE.layers]


def test_missing_index_is_a_missing_blob() -> None:
    files = {"index.json": json.dumps({"manifests": [descriptor(b"gone", INDEX_TYPE)]}).encode()}
    with pytest.raises(MissingBlob, match=r"index sha256:.* is missing"):
        Resolver(MemoryStore(files), "x", platform=None, tag=None).resolve()


def test_index_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    """Digests cannot form a cycle, but indexes can be nested without limit."""
    files = oci_files(MADE)
    inner = json.dumps({"manifests": [descriptor(MADE.manifest, MANIFEST_TYPE)]}).encode()
    for _ in range(9):
        files[blob_name(inner)] = inner
        inner = json.dumps({"manifests": [descriptor(inner, INDEX_TYPE)]}).encode()
    files["index.json"] = inner
    with pytest.raises(UnsupportedImage, match="deeper"):
        read_image(str(write_folder(files, tmp_path / "o")))


def test_docker_config_that_is_not_its_digest_is_refused(tmp_path: Path) -> None:
    files = docker_files(MADE)
    name = f"{digest(MADE.config).removeprefix('sha256:')}.json"
    with pytest.raises(DigestMismatch, match="configuration"):
        read_image(str(write_archive(files | {name: b"{}"}, tmp_path / "i.tar")))
    del files[name]
    with pytest.raises(CorruptImage, match="json is missing"):
        read_image(str(write_archive(files, tmp_path / "i.tar")))


def manifests(*roots: dict[str, object]) -> dict[str, bytes]:
    return with_file(MADE, "index.json", json.dumps({"manifests": roots}).encode())


WRONG: dict[str, tuple[dict[str, bytes], type[ImageError], str]] = {
    "no index": (with_file(MADE, "index.json", None), CorruptImage, "neither index.json"),
    "index not JSON": (with_file(MADE, "index.json", b"{"), CorruptImage, "index.json"),
    "index of lists": (with_file(MADE, "index.json", b'{"manifests": {}}'), CorruptImage, "index.json"),
    "empty index": (manifests(), UnsupportedImage, "no image manifest"),
    "no manifest": (with_file(MADE, blob_name(MADE.manifest), None), MissingBlob, "manifest sha256:.* is missing"),
    "no config": (with_file(MADE, blob_name(MADE.config), None), MissingBlob, "manifest sha256:.* is missing"),
    "other manifest": (with_file(MADE, blob_name(MADE.manifest), b"{}"), DigestMismatch, "should have digest"),
    "other config": (with_file(MADE, blob_name(MADE.config), b"{}"), DigestMismatch, "should have digest"),
    "layers missing": (with_manifest(MADE, layers=[LAYER]), CorruptImage, "has 1 layers, the configuration 3"),
    "unknown layer type": (
        with_manifest(MADE, layers=[{**LAYER, "mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}] * 3),
        UnsupportedImage,
        "encrypted",
    ),
    "SHA-512 layer": (
        with_manifest(MADE, layers=[{**LAYER, "digest": "sha512:" + "0" * 128}] * 3),
        UnsupportedImage,
        "not SHA-256",
    ),
    "layer digest with a path": (
        with_manifest(MADE, layers=[{**LAYER, "digest": "sha256:../../../../etc/passwd"}] * 3),
        UnsupportedImage,
        "not SHA-256",
    ),
    "manifest digest with a path": (
        manifests({**descriptor(b"", MANIFEST_TYPE), "digest": "sha256:../../x"}),
        UnsupportedImage,
        "not SHA-256",
    ),
    "helm chart": (
        with_manifest(MADE, config=descriptor(b"{}", "application/vnd.cncf.helm.config.v1+json")),
        UnsupportedImage,
        "not a container image: application/vnd.cncf.helm",
    ),
    "unknown manifest type": (
        manifests(descriptor(b"", "text/plain")),
        UnsupportedImage,
        "not a container image: text/plain",
    ),
}


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_document_is_refused(tmp_path: Path, case: str, form: Form) -> None:
    files, error, message = WRONG[case]
    assert_refused(files, tmp_path / "o", form, error, message)
