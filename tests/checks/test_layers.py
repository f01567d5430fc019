from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from checks import test_layers as layer_checks
from checks.expectations import Expectations, SizeLimits
from checks.facts import File, FileSystem, Interpreter
from checks.layers import ImageLayers, UnreadableImage, read_store, read_stream
from checks.results import Findings, NotApplicable
from checks.secrets import SecretScanner
from tests.checks.faults import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

NOTHING = SecretScanner({})
Content = bytes | None  # None: a folder


def archive(members: Mapping[str, Content], *, mode: int = 0o644) -> bytes:
    """Returns a layer's tar archive."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as layer:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if content is None:
                entry.type = tarfile.DIRTYPE
            else:
                entry.size = len(content)
            layer.addfile(entry, io.BytesIO(content or b""))
    return target.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blobs(layers: Sequence[bytes]) -> tuple[dict[str, bytes], str]:
    """Returns the blobs of an image in OCI's layout, and the digest of its manifest."""
    steps: list[dict[str, object]] = [{"created_by": "LABEL a=b", "empty_layer": True}]
    steps += [{"created_by": f"RUN step {number} # buildkit"} for number in range(len(layers))]
    config = json.dumps({"history": steps}).encode()
    manifest = json.dumps(
        {"config": {"digest": digest(config)}, "layers": [{"digest": digest(layer)} for layer in layers]}
    ).encode()
    return {digest(blob): blob for blob in (*layers, config, manifest)}, digest(manifest)


def saved(layers: Sequence[bytes]) -> io.BytesIO:
    """Returns the output of `docker save`: the blobs in the order of their digests, then the manifest."""
    content, _ = blobs(layers)
    config = next(name for name, blob in content.items() if b"history" in blob)
    manifest = [{"Config": path(config), "Layers": [path(digest(layer)) for layer in layers]}]
    members: dict[str, Content] = {path(name): content[name] for name in sorted(content)}
    return io.BytesIO(archive({**members, "manifest.json": json.dumps(manifest).encode()}))


def path(name: str) -> str:
    return f"blobs/{name.replace(':', '/')}"


def write_blobs(folder: Path, layers: Sequence[bytes]) -> str:
    """Writes the blobs as an engine stores them, and returns the manifest's digest."""
    content, manifest = blobs(layers)
    for name, blob in content.items():
        target = folder / name.replace(":", "/")
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(blob)
    return manifest


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    compressed: bytes = zstandard.ZstdCompressor().compress(data)
    return compressed


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_layers_are_read_in_each_compression(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    layers = [
        compress(archive({"srv": None, "srv/a": b"12345", "srv/big": b"x" * 3_000_000})),
        compress(archive({"b": b"1"})),
    ]
    streamed = read_stream(saved(layers), NOTHING)
    from_store = read_store(tmp_path, write_blobs(tmp_path, layers), "amd64", NOTHING, None)
    assert streamed == from_store
    assert [layer.unpacked_bytes for layer in streamed.layers] == [3_000_005, 1]
    assert streamed.unpacked_bytes == 3_000_006
    assert streamed.where("/srv/a") == "layer 0: RUN step 0"
    assert streamed.where("/nowhere") == "no layer"
    assert streamed.history == ("LABEL a=b", "RUN step 0 # buildkit", "RUN step 1 # buildkit")


def wasted(*layers: Mapping[str, Content], modes: Sequence[int] = (0o644, 0o644)) -> dict[str, str]:
    """Returns path -> cause of each wasted file."""
    packed = [archive(layer, mode=mode) for layer, mode in zip(layers, modes, strict=False)]
    return {item.path: item.cause for item in read_stream(saved(packed), NOTHING).wasted_files()}


def test_wasted_files_have_their_cause() -> None:
    assert wasted({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"}) == {
        "/a": "stored again unchanged",
        "/b": "overwritten",
    }


def test_removed_setuid_bit_has_its_own_cause() -> None:
    assert wasted({"a": b"1"}, {"a": b"1"}, modes=(0o4755, 0o755)) == {"/a": "stored again without its setuid bit"}


@pytest.mark.parametrize("marker", ["d/.wh.e", ".wh.d", "d/.wh..wh..opq"])
def test_deleted_folder_wastes_its_files(marker: str) -> None:
    below: dict[str, Content] = {"d": None, "d/e": None, "d/e/f": None, "d/e/f/a": b"1", "d/e/b": b"2"}
    assert wasted(below, {marker: b""}) == {"/d/e/f/a": "deleted", "/d/e/b": "deleted"}


def test_files_of_a_replaced_folder_are_not_wasted() -> None:
    assert wasted({"d": None, "d/a": b"1"}, {"d": None, "d/.wh..wh..opq": b"", "d/b": b"2"}) == {"/d/a": "deleted"}


def test_folders_and_empty_files_waste_nothing() -> None:
    assert wasted({"d": None, "d/a": b""}, {"d": None, "d/a": b""}) == {}


def test_secret_in_a_hidden_layer_is_found() -> None:
    layers = [archive({"a": TOKEN.encode()}), archive({".wh.a": b""})]
    assert [(match.path, match.layer) for match in read_stream(saved(layers), NOTHING).secrets] == [("/a", 0)]


@pytest.mark.parametrize("shift", range(1048560, 1048580))
def test_build_secret_across_two_pieces_is_found(shift: int) -> None:
    layers = [archive({"a": b"\0" * shift + b"s3cr3t-w0rd" + b"\0" * 99})]
    assert read_stream(saved(layers), SecretScanner({"a": "s3cr3t-w0rd"})).secrets


def test_cache_is_not_used_with_build_secrets(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    manifest = write_blobs(tmp_path / "blobs", [archive({"a": TOKEN.encode()})])

    def read(scanner: SecretScanner) -> ImageLayers:
        return read_store(tmp_path / "blobs", manifest, "amd64", scanner, tmp_path / "cache")

    first = read(NOTHING)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert read(NOTHING) == first
    assert [match.rule for match in read(SecretScanner({"a": TOKEN})).secrets] == ["build secret", "token"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_truncated_stream_is_refused() -> None:
    whole = saved([archive({"a": b"1" * 100_000})]).getvalue()
    for size in (0, 700, len(whole) // 2):
        with pytest.raises(UnreadableImage):
            read_stream(io.BytesIO(whole[:size]), NOTHING)


def test_missing_layer_is_refused(tmp_path: Path) -> None:
    layer = archive({"a": b"1"})
    manifest = write_blobs(tmp_path, [layer])
    (tmp_path / digest(layer).replace(":", "/")).unlink()
    with pytest.raises(UnreadableImage, match="cannot read"):
        read_store(tmp_path, manifest, "amd64", NOTHING, None)


def test_index_leads_to_the_manifest_of_the_platform(tmp_path: Path) -> None:
    manifest = write_blobs(tmp_path, [archive({"a": b"1"})])
    entries = [
        {"digest": "sha256:00", "platform": {"os": "unknown", "architecture": "unknown"}},
        {"digest": manifest, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    index = json.dumps({"manifests": entries}).encode()
    (tmp_path / digest(index).replace(":", "/")).write_bytes(index)
    assert read_store(tmp_path, digest(index), "amd64", NOTHING, None).unpacked_bytes == 1
    with pytest.raises(UnreadableImage, match="linux/arm64"):
        read_store(tmp_path, digest(index), "arm64", NOTHING, None)


@pytest.mark.parametrize(("size_bytes", "found"), [(999_999, False), (1_000_000, True)])
def test_large_duplicates_are_found(size_bytes: int, *, found: bool) -> None:
    files = tuple(File(path, "file", 0o644, 0, 0, size_bytes) for path in ("/a", "/b"))
    file_system = FileSystem(
        Interpreter("3.13.5", "/opt/venv/bin/python3", "/opt/venv"), (), files, (), {}, (("/a", "/b"),), {}, {}, ()
    )

    with pytest.raises(Findings, match="1000000 bytes at /a, /b") if found else contextlib.nullcontext():
        layer_checks.test_no_duplicate_files(file_system, ImageLayers((), (), {}))


@pytest.mark.parametrize("check", ["size", "each_layer", "layer_count"])
def test_missing_budget_is_not_applicable(check: str) -> None:
    expected = Expectations(target="api", budgets=SizeLimits())

    with pytest.raises(NotApplicable, match=r"images\.toml"):
        getattr(layer_checks, f"test_{check}_is_within_budget")(ImageLayers((), (), {}), expected)
