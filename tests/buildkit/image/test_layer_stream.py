"""Streams compressed layers: all members and frames, digests, limits, damage, and errors of the source."""

import hashlib
import io
import random
import sys

import pytest
import zstandard

from buildkit.image.errors import CorruptLayer, LayerTooLarge
from buildkit.image.layer_stream import LayerStream, Limits, check_expansion, is_compressed
from buildkit.image.layer_tar import read_layer
from tests.support.images import Compression, LayerMaker, compress, digest, read_blob

TAR = LayerMaker().directory("etc").file("etc/motd", "hello").file("f", bytes(range(256)) * 20).tar()
COMPRESSED: tuple[Compression, ...] = ("gzip", "zstd")


@pytest.fixture(params=["isal", "zlib"])
def _inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the test with each of the two libraries that inflate gzip."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_stream_gives_the_archive_and_both_digests(compression: Compression) -> None:
    blob = compress(TAR, compression)
    stream = LayerStream(io.BytesIO(blob), limits=Limits())
    content = b""
    while chunk := stream.next_chunk():
        content += chunk
    stream.drain()
    assert content == TAR
    assert (stream.compression, stream.blob_bytes) == (compression, len(blob))
    assert (stream.diff_id, stream.blob_digest) == (digest(TAR), digest(blob))


def test_closed_stream_is_at_its_end() -> None:
    stream = LayerStream(io.BytesIO(TAR * 3000), limits=Limits())
    stream.close()
    assert len(stream.next_chunk()) == 0


@pytest.mark.parametrize("compression", COMPRESSED)
def test_compression_is_recognized_by_four_bytes(compression: Compression) -> None:
    assert is_compressed(compress(TAR, compression)[:4])
    assert not is_compressed(TAR[:4])
    assert is_compressed(b"\x50\x2a\x4d\x18"), "a skippable zstd frame"


@pytest.mark.usefixtures("_inflater")
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1024, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_gzip_of_any_size_is_inflated(size: int) -> None:
    for content in (bytes(size), random.Random(size).randbytes(size)):  # noqa: S311 (content that does not compress)
        tar = LayerMaker().file("f", content).tar()
        contents = read_blob(compress(tar, "gzip"))
        assert contents.diff_id == digest(tar)
        assert contents.entries[0].sha256 == hashlib.sha256(content).digest()


@pytest.mark.usefixtures("_inflater")
def test_several_members_and_frames_are_one_layer() -> None:
    """As eStargz and zstd:chunked write them, the latter with skippable frames."""
    for compression in COMPRESSED:
        parts = [compress(part, compression) for part in (TAR[:1024], TAR[1024:])]
        skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip" if compression == "zstd" else b""
        assert read_blob(skippable + parts[0] + skippable + parts[1] + skippable).diff_id == digest(TAR)


CORRUPT: dict[str, bytes] = {
    "gzip truncated": compress(TAR, "gzip")[:-20],
    "gzip with tail": compress(TAR, "gzip") + b"tail",
    "gzip broken": compress(TAR, "gzip")[:40] + b"\xff" * 40,
    "zstd broken": compress(TAR, "zstd")[:20] + b"\xff" * 40,
    "zstd with tail": compress(TAR, "zstd") + b"tail",
    "zstd truncated": compress(LayerMaker().file("f", bytes(range(256)) * 999).tar(), "zstd")[:-30],
}


@pytest.mark.usefixtures("_inflater")
@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_compression_is_refused(case: str) -> None:
    with pytest.raises(CorruptLayer, match=r"^x: "):
        read_blob(CORRUPT[case])


def test_zstd_window_beyond_the_memory_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(LayerMaker().file("f", bytes(1 << 20)).tar()) + compressor.flush()
    with pytest.raises(CorruptLayer, match="zstd"):
        read_blob(blob)


class FailingSource:
    """A source that fails at its end."""

    def __init__(self, blob: bytes) -> None:
        self._file = io.BytesIO(blob)

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._file.readinto(buffer)
        if not count:
            raise OSError(5, "Input/output error")
        return count


def test_error_of_the_source_is_raised_in_the_caller() -> None:
    with pytest.raises(OSError, match="Input/output"):
        read_layer(FailingSource(TAR), name="x")


def test_expansion_is_limited_in_bytes_and_as_a_ratio() -> None:
    limits = Limits(unpacked_bytes=1000, expansion_ratio=10, expansion_free_bytes=100)
    check_expansion(100, 1, limits)
    check_expansion(1000, 100, limits)
    with pytest.raises(LayerTooLarge, match="more than 1000 bytes"):
        check_expansion(1001, 1001, limits)
    with pytest.raises(LayerTooLarge, match="1 stored bytes unpack to 101, more than 10 times as many"):
        check_expansion(101, 1, limits)
