from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from checks.layers import ImageLayers, UnreadableImage, read_store, read_stream
from checks.secrets import SecretScanner
from tests.checks.faults import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

NOTHING = SecretScanner({})
Content = bytes | None  # None: a folder


def archive(members: Mapping[str, Content], *, mode: int = 0o644) -> bytes:
    """A layer."""
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
    """The blobs of an image in OCI's form, and the digest of its manifest."""
    steps: list[dict[str, object]] = [{"created_by": "LABEL a=b", "empty_layer": True}]
    steps += [{"created_by": f"RUN step {number} # buildkit"} for number in range(len(layers))]
    config = json.dumps({"history": steps}).encode()
    manifest = json.dumps(
        {"config": {"digest": digest(config)}, "layers": [{"digest": digest(layer)} for layer in layers]}
    ).encode()
    return {digest(blob): blob for blob in (*layers, config, manifest)}, digest(manifest)


def saved(layers: Sequence[bytes]) -> io.BytesIO:
    """The stream of a `docker save`; its blobs come in the order of their digests, its manifest last."""
    content, _ = blobs(layers)
    config = next(name for name, blob in content.items() if b"history" in blob)
    manifest = [{"Config": path(config), "Layers": [path(digest(layer)) for layer in layers]}]
    members: dict[str, Content] = {path(name): content[name] for name in sorted(content)}
    return io.BytesIO(archive({**members, "manifest.json": json.dumps(manifest).encode()}))


def path(name: str) -> str:
    return f"blobs/{name.replace(':', '/')}"


def stored(folder: Path, layers: Sequence[bytes]) -> str:
    """Lays the blobs out as an engine does, and returns the manifest's digest."""
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
def test_layers_are_read_however_compressed(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    layers = [
        compress(archive({"srv": None, "srv/a": b"12345", "srv/big": b"x" * 3_000_000})),
        compress(archive({"b": b"1"})),
    ]
    streamed = read_stream(saved(layers), NOTHING)
    kept = read_store(tmp_path, stored(tmp_path, layers), "amd64", NOTHING, None)
    assert streamed == kept
    assert [layer.unpacked_bytes for layer in streamed.layers] == [3_000_005, 1]
    assert streamed.unpacked_bytes == 3_000_006
    assert streamed.where("/srv/a") == "layer 0: RUN step 0"
    assert streamed.where("/nowhere") == "no layer"
    assert streamed.history == ("LABEL a=b", "RUN step 0 # buildkit", "RUN step 1 # buildkit")


def repeats(*layers: Mapping[str, Content], modes: Sequence[int] = (0o644, 0o644)) -> dict[str, str]:
    """Path -> cause of each file stored in vain."""
    packed = [archive(layer, mode=mode) for layer, mode in zip(layers, modes, strict=False)]
    return {item.path: item.cause for item in read_stream(saved(packed), NOTHING).repeats()}


def test_each_cause_of_waste_is_told() -> None:
    assert repeats({"a": b"1", "b": b"2"}, {"a": b"1", "b": b"3"}) == {
        "/a": "stored again unchanged",
        "/b": "overwritten",
    }


def test_taking_the_setuid_bit_is_told_apart() -> None:
    assert repeats({"a": b"1"}, {"a": b"1"}, modes=(0o4755, 0o755)) == {"/a": "stored again without its setuid bit"}


@pytest.mark.parametrize("marker", ["d/.wh.e", ".wh.d", "d/.wh..wh..opq"])
def test_deleting_a_folder_wastes_all_below_it(marker: str) -> None:
    below: dict[str, Content] = {"d": None, "d/e": None, "d/e/f": None, "d/e/f/a": b"1", "d/e/b": b"2"}
    assert repeats(below, {marker: b""}) == {"/d/e/f/a": "deleted", "/d/e/b": "deleted"}


def test_what_replaces_a_deleted_folder_is_not_deleted() -> None:
    assert repeats({"d": None, "d/a": b"1"}, {"d": None, "d/.wh..wh..opq": b"", "d/b": b"2"}) == {"/d/a": "deleted"}


def test_folders_and_empty_files_waste_nothing() -> None:
    assert repeats({"d": None, "d/a": b""}, {"d": None, "d/a": b""}) == {}


def test_secret_is_found_in_the_layer_that_a_later_one_hides() -> None:
    layers = [archive({"a": TOKEN.encode()}), archive({".wh.a": b""})]
    assert [(trace.path, trace.layer) for trace in read_stream(saved(layers), NOTHING).traces] == [("/a", 0)]


@pytest.mark.parametrize("shift", range(1048560, 1048580))
def test_value_handed_in_is_found_across_the_border_of_two_pieces(shift: int) -> None:
    layers = [archive({"a": b"\0" * shift + b"s3cr3t-w0rd" + b"\0" * 99})]
    assert read_stream(saved(layers), SecretScanner({"a": "s3cr3t-w0rd"})).traces


def test_cache_gives_the_same_and_is_not_used_for_values_handed_in(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    manifest = stored(tmp_path / "blobs", [archive({"a": TOKEN.encode()})])

    def read(traces: SecretScanner) -> ImageLayers:
        return read_store(tmp_path / "blobs", manifest, "amd64", traces, tmp_path / "cache")

    first = read(NOTHING)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert read(NOTHING) == first
    assert [trace.rule for trace in read(SecretScanner({"a": TOKEN})).traces] == ["handed-in", "token"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_stream_that_breaks_off_is_refused() -> None:
    whole = saved([archive({"a": b"1" * 100_000})]).getvalue()
    for size in (0, 700, len(whole) // 2):
        with pytest.raises(UnreadableImage):
            read_stream(io.BytesIO(whole[:size]), NOTHING)


def test_missing_layer_is_refused(tmp_path: Path) -> None:
    layer = archive({"a": b"1"})
    manifest = stored(tmp_path, [layer])
    (tmp_path / digest(layer).replace(":", "/")).unlink()
    with pytest.raises(UnreadableImage, match="does not hold"):
        read_store(tmp_path, manifest, "amd64", NOTHING, None)


def test_index_leads_to_the_manifest_of_the_platform(tmp_path: Path) -> None:
    manifest = stored(tmp_path, [archive({"a": b"1"})])
    entries = [
        {"digest": "sha256:00", "platform": {"os": "unknown", "architecture": "unknown"}},
        {"digest": manifest, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    index = json.dumps({"manifests": entries}).encode()
    (tmp_path / digest(index).replace(":", "/")).write_bytes(index)
    assert read_store(tmp_path, digest(index), "amd64", NOTHING, None).unpacked_bytes == 1
    with pytest.raises(UnreadableImage, match="linux/arm64"):
        read_store(tmp_path, digest(index), "arm64", NOTHING, None)
