"""Caches layers by digest; a damaged cache counts as empty, and the least recently used files are removed."""

import io
import os
from pathlib import Path

import msgspec
import pytest

from buildkit.image import layer_cache
from buildkit.image.layer_cache import LayerCache
from buildkit.image.layer_tar import LayerContents, read_layer
from tests.support.images import LayerMaker, compress, digest

TAR = LayerMaker().file("a", "1").tar()


def layer(tar: bytes = TAR) -> LayerContents:
    return read_layer(io.BytesIO(compress(tar, "gzip")), name="x")


def test_layer_is_found_by_both_of_its_digests(tmp_path: Path) -> None:
    LayerCache(tmp_path / "deep" / "cache").save(layer())
    cache = LayerCache(tmp_path / "deep" / "cache")
    assert cache.has(digest(TAR))
    assert cache.load(digest(TAR)) == layer()
    assert cache.load_blob(digest(compress(TAR, "gzip"))) == layer()
    assert cache.load_blob(digest(TAR)) == layer()


def test_unknown_digest_is_absent(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path)
    assert not cache.has(digest(b"x"))
    assert cache.load(digest(b"x")) is None
    assert cache.load_blob(digest(b"x")) is None
    assert cache.load_note("note", digest(b"x")) == b""


@pytest.mark.parametrize("damage", [b"", b"\xff\xff\xff", b"\x98\x01"])
def test_damaged_file_is_absent(tmp_path: Path, damage: bytes) -> None:
    cache = LayerCache(tmp_path)
    cache.save(layer())
    for file in tmp_path.iterdir():
        file.write_bytes(damage)
    assert cache.load(digest(TAR)) is None
    assert cache.load_blob(digest(compress(TAR, "gzip"))) is None


def test_layer_of_another_format_version_is_absent(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path)
    cache.save(msgspec.structs.replace(layer(), format_version=1))
    assert cache.load(digest(TAR)) is None


def test_layer_under_a_wrong_name_is_absent(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path)
    cache.save(layer())
    (file,) = tmp_path.glob("layer-*")
    other = digest(b"other")
    file.rename(tmp_path / f"layer-{other.removeprefix('sha256:')}")
    assert cache.load(other) is None


@pytest.mark.parametrize("wrong", ["sha512:00", "sha256:../../x", "x"])
def test_digest_never_leads_out_of_the_folder(tmp_path: Path, wrong: str) -> None:
    cache = LayerCache(tmp_path / "cache")
    cache.save_note("note", wrong, b"x")
    assert cache.load_note("note", wrong) == b""
    assert list(tmp_path.rglob("*")) == [tmp_path / "cache"]


def test_notes_are_kept_by_kind(tmp_path: Path) -> None:
    cache = LayerCache(tmp_path)
    cache.save_note("one", digest(b"x"), b"1")
    cache.save_note("two", digest(b"x"), b"2")
    assert (cache.load_note("one", digest(b"x")), cache.load_note("two", digest(b"x"))) == (b"1", b"2")


def test_cache_without_folder_is_always_empty() -> None:
    cache = LayerCache(None)
    cache.save(layer())
    assert not cache.has(digest(TAR))
    assert cache.load(digest(TAR)) is None


def test_least_recently_used_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = LayerCache(tmp_path)
    tars = [LayerMaker().file(name, "1").tar() for name in "abc"]
    for age, tar in zip((300, 200), tars, strict=False):
        cache.save(layer(tar))
        for file in tmp_path.iterdir():
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
    cache.load(digest(tars[0]))
    total_bytes = sum(file.stat().st_size for file in tmp_path.iterdir())
    monkeypatch.setattr(layer_cache, "_CACHE_BYTES", total_bytes)
    cache.save(layer(tars[2]))
    assert [cache.has(digest(tar)) for tar in tars] == [True, False, True]
