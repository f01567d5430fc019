"""Decodes headers, numbers, names and extended headers of tar archives."""

import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit.image.errors import CorruptLayer, LayerTooLarge, UnsafePath, UnsupportedEntry
from buildkit.image.tar_format import (
    TarHeader,
    decode_name,
    entry_kind,
    normalize_path,
    padded_bytes,
    parse_decimal,
    parse_number,
    parse_pax,
    parse_seconds,
    xattrs_sha256,
)
from tests.support.images import raw_header


@given(st.integers(0, 8**11 - 1))
def test_octal_numbers_are_parsed(value: int) -> None:
    assert parse_number(b"%011o\0" % value) == value


@given(st.integers(0, 1 << 62))
def test_base_256_sizes_are_parsed_as_tarfile_writes_them(value: int) -> None:
    info = tarfile.TarInfo("f")
    info.size = value
    assert TarHeader.parse(info.tobuf(tarfile.GNU_FORMAT)).size_bytes == value


def test_base_256_number_may_be_negative() -> None:
    assert parse_number(b"\xff" * 12) == -1
    assert parse_number(b"\xff" * 11 + b"\xfe") == -2


def test_numbers_may_be_empty_or_padded() -> None:
    assert [parse_number(field) for field in (b"\0" * 8, b"   644 \0", b"644     ")] == [0, 0o644, 0o644]


@pytest.mark.parametrize("field", [b"0000009\0", b"abc\0\0\0\0\0"])
def test_header_field_without_number_is_refused(field: bytes) -> None:
    with pytest.raises(CorruptLayer, match="for a number"):
        parse_number(field)


@pytest.mark.parametrize("text", [b"", b"-1", b"1x", b"1" * 41])
def test_decimal_without_number_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptLayer, match="size is"):
        parse_decimal(text, "size")


def test_seconds_have_sign_and_fraction() -> None:
    assert [parse_seconds(text) for text in (b"1.5", b"-2", b"0")] == [1.5, -2.0, 0.0]
    with pytest.raises(CorruptLayer, match="mtime"):
        parse_seconds(b"nan")


def test_header_gives_its_fields_and_its_prefix() -> None:
    block = bytearray(raw_header(b"name", b"0", b"00000000017\0", link=b"target"))
    block[345:350] = b"path1"
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    header = TarHeader.parse(bytes(block))
    assert (header.name, header.size_bytes, header.mode, header.link_name) == (b"path1/name", 15, 0o644, b"target")


def test_header_with_wrong_checksum_is_refused() -> None:
    block = raw_header(b"f", b"0", b"0")
    with pytest.raises(CorruptLayer, match="checksum"):
        TarHeader.parse(b"g" + block[1:])


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"./a", "a"),
        (b"/b", "b"),
        (b"c//d/./e", "c/d/e"),
        (b"f/g/../h", "f/h"),
        (b"./", ""),
        (b"folder/", "folder"),
        (b"a..b/.hidden", "a..b/.hidden"),
    ],
)
def test_path_is_normalized(raw: bytes, path: str) -> None:
    assert normalize_path(raw) == path


@pytest.mark.parametrize("raw", [b"..", b"../x", b"a/../../x", b"/../x", b"a/../.."])
def test_path_that_leaves_the_root_is_refused(raw: bytes) -> None:
    with pytest.raises(UnsafePath):
        normalize_path(raw)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "b.."]), max_size=6).map("/".join))
def test_normalized_path_stays_the_same(text: str) -> None:
    try:
        path = normalize_path(text.encode())
    except UnsafePath:
        return
    assert normalize_path(path.encode()) == path
    assert not set(path.split("/")) & {".", ".."}


def test_path_with_zero_byte_or_beyond_path_max_is_refused() -> None:
    with pytest.raises(CorruptLayer, match="zero byte"):
        normalize_path(b"a\0b")
    with pytest.raises(LayerTooLarge, match="5000 bytes"):
        normalize_path(b"n" * 5000)


def test_name_that_is_not_utf_8_is_escaped() -> None:
    assert decode_name(b"caf\xe9") == "caf\\xe9"


def kind(name: bytes, type_flag: bytes = b"0") -> str:
    header = TarHeader.parse(raw_header(name, type_flag, b"0"))
    return entry_kind(header, name, normalize_path(name))


def test_kind_is_that_of_the_type_flag_or_the_name() -> None:
    assert kind(b"a/f") == "file"
    assert kind(b"a/", b"\0") == "directory"
    assert kind(b"a/.wh.f") == "whiteout"
    assert kind(b"a/.wh..wh..opq") == "opaque"


@pytest.mark.parametrize("name", [b".wh.", b"a/.wh..", b"a/.wh..."])
def test_whiteout_of_a_directory_itself_is_refused(name: bytes) -> None:
    with pytest.raises(UnsafePath):
        kind(name)


@pytest.mark.parametrize(("name", "type_flag"), [(b".wh.a", b"5"), (b".wh..wh.plnk", b"0"), (b"f", b"V")])
def test_entry_that_no_engine_unpacks_is_refused(name: bytes, type_flag: bytes) -> None:
    with pytest.raises(UnsupportedEntry):
        kind(name, type_flag)


def test_pax_records_are_split() -> None:
    assert parse_pax(b"12 path=a=b\n13 mtime=1.5\n") == {"path": b"a=b", "mtime": b"1.5"}


def test_sparse_records_of_version_0_0_become_a_map() -> None:
    text = b"24 GNU.sparse.offset=10\n25 GNU.sparse.numbytes=7\n"
    assert parse_pax(text) == {"GNU.sparse.map": b"10,7"}


@pytest.mark.parametrize("text", [b"99 path=x\n", b"7 path\n", b"0 a=b\n", b"8 a=bcde", b"x a=b\n"])
def test_malformed_pax_record_is_refused(text: bytes) -> None:
    with pytest.raises(CorruptLayer):
        parse_pax(text)


def test_xattrs_digest_depends_on_attributes_only() -> None:
    one = {"SCHILY.xattr.a": b"1", "path": b"x"}
    assert xattrs_sha256(one) == xattrs_sha256({"SCHILY.xattr.a": b"1"}) != xattrs_sha256({"SCHILY.xattr.a": b"2"})
    assert xattrs_sha256({"path": b"x"}) == b""


def test_content_is_padded_to_blocks() -> None:
    assert [padded_bytes(count) for count in (0, 1, 512, 513)] == [0, 512, 512, 1024]
