"""Takes bytes across the chunks of a stream, and refuses an archive that ends early."""

import io

import pytest

from buildkit.image.errors import CorruptLayer, LayerTooLarge
from buildkit.image.layer_stream import LayerStream, Limits
from buildkit.image.tar_cursor import TarCursor
from buildkit.image.tar_format import TarHeader
from tests.support.images import raw_header

CHUNK_BYTES = 1 << 20


def cursor(content: bytes) -> TarCursor:
    return TarCursor(LayerStream(io.BytesIO(content), limits=Limits()))


def test_bytes_are_taken_across_chunks() -> None:
    content = b"a" * (CHUNK_BYTES - 2) + b"bcde" + b"f" * CHUNK_BYTES
    found = cursor(content)
    found.skip(CHUNK_BYTES - 2)
    assert found.take(4) == b"bcde"
    assert found.offset == CHUNK_BYTES + 2
    parts: list[bytes] = []
    found.feed(CHUNK_BYTES, lambda part: parts.append(bytes(part)))
    assert b"".join(parts) == b"f" * CHUNK_BYTES


def test_header_block_may_span_chunks() -> None:
    block = raw_header(b"f", b"0", b"0")
    found = cursor(bytes(1) * (CHUNK_BYTES - 100) + block)
    found.skip(CHUNK_BYTES - 100)
    assert found.take_header() == block
    assert found.take_header() is None
    assert not found.has_end_marker


def test_two_zero_blocks_are_the_end_marker() -> None:
    found = cursor(bytes(1024))
    assert found.take_header() is None
    assert found.has_end_marker


def test_zero_block_before_an_entry_is_refused() -> None:
    with pytest.raises(CorruptLayer, match="a zero block precedes an entry"):
        cursor(bytes(512) + raw_header(b"f", b"0", b"0")).take_header()


def test_archive_that_ends_early_is_refused() -> None:
    with pytest.raises(CorruptLayer, match="ends inside a header"):
        cursor(bytes(100)).take_header()
    with pytest.raises(CorruptLayer, match="ends inside an entry"):
        cursor(b"abc").take(4)
    with pytest.raises(CorruptLayer, match="ends inside a file"):
        cursor(b"abc").skip(4)


def test_extended_header_is_taken_with_its_padding() -> None:
    found = cursor(b"text".ljust(512, b"\0") + b"next")
    assert found.take_text(TarHeader.parse(raw_header(b"x", b"x", b"00000000004\0"))) == b"text"
    assert found.take(4) == b"next"


def test_extended_header_of_gigabytes_is_refused() -> None:
    with pytest.raises(LayerTooLarge):
        cursor(b"").take_text(TarHeader.parse(raw_header(b"x", b"x", b"77777777777\0")))
