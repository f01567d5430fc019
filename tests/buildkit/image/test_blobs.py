"""Opens blobs in folders, archives and memory, and never anything outside of them."""

import doctest
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildkit.image import blobs
from buildkit.image.archive import SMALL_BYTES
from buildkit.image.blobs import ArchiveStore, BlobStore, FolderStore, MemoryStore, blob_name, read_document
from buildkit.image.errors import CorruptImage, DigestMismatch, UnsupportedImage
from tests.support.images import LayerMaker, digest, write_archive, write_folder

FILES = {"one": b"1" * 700, "folder/two": b"22", "empty": b""}


@pytest.fixture(params=["folder", "archive", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    if request.param == "folder":
        yield FolderStore(write_folder(FILES, tmp_path / "o"))
    elif request.param == "memory":
        yield MemoryStore(FILES)
    else:
        with io.FileIO(write_archive(FILES, tmp_path / "o.tar")) as archive:
            yield ArchiveStore(archive, "o.tar")


def content(store: BlobStore, name: str) -> bytes | None:
    source = store.open(name)
    if source is None:
        return None
    with source:
        return source.read()


def test_blobs_are_opened_by_name(store: BlobStore) -> None:
    assert {name: content(store, name) for name in FILES} == FILES
    assert content(store, "absent") is None


def test_blobs_in_files_are_mapped(store: BlobStore) -> None:
    mapped = store.map("one")
    if isinstance(store, MemoryStore):
        assert mapped is None
    else:
        assert mapped is not None
        mapped.release_pages()
        assert bytes(mapped.view) == FILES["one"]
    assert store.map("absent") is None


def test_empty_file_is_not_mapped(tmp_path: Path) -> None:
    assert FolderStore(write_folder(FILES, tmp_path)).map("empty") is None


def test_document_is_verified_by_its_digest(store: BlobStore) -> None:
    assert read_document(store, "folder/two", "x", digest=digest(b"22")) == b"22"
    assert read_document(store, "absent", "x", digest=digest(b"22")) is None
    with pytest.raises(DigestMismatch) as raised:
        read_document(store, "one", "x", digest=digest(b"22"))
    assert (raised.value.wanted, raised.value.found) == (digest(b"22"), digest(FILES["one"]))


def test_document_larger_than_any_manifest_is_refused() -> None:
    with pytest.raises(UnsupportedImage, match="is larger than"):
        read_document(MemoryStore({"big": bytes(SMALL_BYTES + 1)}), "big", "x")


def test_folder_gives_no_pipes_devices_or_files_outside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = write_folder(FILES, tmp_path / "o")
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    store = FolderStore(folder)
    for name in ("pipe", "zero", "../secret", str(tmp_path / "secret"), "folder"):
        assert store.open(name) is None, name
        assert store.map(name) is None, name


def test_archive_follows_links(tmp_path: Path) -> None:
    path = tmp_path / "o.tar"
    path.write_bytes(LayerMaker().file("a/one", "1").symlink("b/link", "../a/one").tar())
    with io.FileIO(path) as archive:
        assert content(ArchiveStore(archive, "o.tar"), "b/link") == b"1"


def test_archive_that_ends_early_is_refused(tmp_path: Path) -> None:
    path = write_archive(FILES, tmp_path / "o.tar")
    path.write_bytes(path.read_bytes()[:900])
    with io.FileIO(path) as archive, pytest.raises(CorruptImage, match="the archive ends inside one"):
        ArchiveStore(archive, "o.tar")


@pytest.mark.parametrize("wrong", ["sha512:" + "0" * 128, "sha256:../../x", "sha256:" + "A" * 64, ""])
def test_digest_that_is_not_sha_256_has_no_blob(wrong: str) -> None:
    with pytest.raises(UnsupportedImage, match="not SHA-256"):
        blob_name(wrong, "x")


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(blobs) == doctest.TestResults(failed=0, attempted=1)
