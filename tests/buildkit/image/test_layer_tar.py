"""Reads the tar archive of a layer: all kinds of entries, and refusals with a reason."""

import hashlib
import io
import tarfile
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit.image.errors import CorruptLayer, LayerError, LayerTooLarge, UnsafePath, UnsupportedEntry
from buildkit.image.layer_stream import Limits
from tests.support.images import Compression, LayerMaker, compress, digest, raw_header, read_blob

ORDINARY = (
    LayerMaker()
    .directory("etc")
    .file("etc/motd", "hello", mode=0o600, uid=7, gid=8, mtime=12)
    .symlink("etc/link", "../motd")
    .hardlink("etc/again", "etc/motd")
    .add("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
    .add("dev/sda", tarfile.BLKTYPE, devmajor=8, devminor=0)
    .add("run/pipe", tarfile.FIFOTYPE)
    .whiteout("etc/gone")
    .opaque("opt")
    .tar()
)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_every_kind_of_entry_is_read(compression: Compression) -> None:
    blob = compress(ORDINARY, compression)
    contents = read_blob(blob)
    assert [(entry.path, entry.kind, entry.link) for entry in contents.entries] == [
        ("etc", "directory", ""),
        ("etc/motd", "file", ""),
        ("etc/link", "symlink", "../motd"),
        ("etc/again", "hardlink", "etc/motd"),
        ("dev/null", "character", "1:3"),
        ("dev/sda", "block", "8:0"),
        ("run/pipe", "fifo", ""),
        ("etc/.wh.gone", "whiteout", ""),
        ("opt/.wh..wh..opq", "opaque", ""),
    ]
    motd = contents.entries[1]
    assert (motd.size_bytes, motd.mode, motd.uid, motd.gid, motd.mtime_seconds) == (5, 0o600, 7, 8, 12)
    assert motd.sha256 == hashlib.sha256(b"hello").digest()
    assert (contents.compression, contents.unpacked_bytes) == (compression, 5)
    assert (contents.diff_id, contents.blob_digest) == (digest(ORDINARY), digest(blob))
    assert contents.blob_bytes == len(blob)


@pytest.mark.parametrize("archive_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_large_ids_are_read(archive_format: int) -> None:
    name, target = "d/" * 90 + "file", "t/" * 100
    maker = LayerMaker(archive_format).file(name, "x", uid=3_000_000, gid=4_000_000).symlink("s", target)
    first, second = read_blob(maker.tar()).entries
    assert (first.path, first.uid, first.gid) == (name, 3_000_000, 4_000_000)
    assert second.link == target


def test_name_that_is_not_utf_8_is_escaped() -> None:
    assert read_blob(raw_header(b"caf\xe9", b"0", b"0") + bytes(1024)).entries[0].path == "caf\\xe9"


def test_extended_attributes_and_fractions_of_seconds_are_read() -> None:
    pax = {"SCHILY.xattr.security.capability": "x", "mtime": "1.5"}
    entry, plain = read_blob(LayerMaker().file("ping", "x", pax_headers=pax).file("pong", "x").tar()).entries
    assert entry.xattrs_sha256
    assert not plain.xattrs_sha256
    assert entry.mtime_seconds == 1.5


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 3 << 20])
def test_file_of_any_size_is_hashed(size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    blob = LayerMaker().file("before", "1").file("big", content[:size]).file("after", "2").tar()
    entries = read_blob(blob).entries
    assert [entry.sha256 for entry in entries] == [
        hashlib.sha256(each).digest() for each in (b"1", content[:size], b"2")
    ]


def test_captured_file_may_span_chunks() -> None:
    content = b"line\n" * 300_000
    blob = LayerMaker().file("a", bytes(900_000)).file("x.dist-info/RECORD", content).tar()
    contents = read_blob(blob, captures=lambda path: path.endswith("RECORD"))
    assert contents.captured == {"x.dist-info/RECORD": content}
    assert contents.entries[1].sha256 == hashlib.sha256(content).digest()


def pax_header(records: bytes) -> bytes:
    return raw_header(b"pax", b"x", b"%011o\0" % len(records)) + records + bytes(-len(records) % 512)


FILE = raw_header(b"f", b"0", b"00000000000\0") + bytes(1024)
CORRUPT: dict[str, bytes] = {
    "text": b"this is not an archive" * 100,
    "ends in a header": FILE[:300],
    "ends in a file": LayerMaker().file("f", b"x" * 2000).tar()[:1536],
    "checksum": bytes([FILE[0] ^ 1]) + FILE[1:],
    "number": raw_header(b"f", b"0", b"0000000009x\0") + bytes(1024),
    "negative size": raw_header(b"f", b"0", b"\xff" * 12) + bytes(1024),
    "lone zero block": bytes(512) + FILE,
    "pax length too long": pax_header(b"99 path=x\n") + FILE,
    "pax without equals": pax_header(b"7 path\n") + FILE,
    "pax length zero": pax_header(b"0 a=b\n") + FILE,
    "pax without newline": pax_header(b"8 a=bcde") + FILE,
    "pax size": pax_header(b"12 size=abc\n") + FILE,
    "pax mtime": pax_header(b"13 mtime=nan\n") + FILE,
    "pax header last": pax_header(b"10 path=x\n") + bytes(1024),
    "name with zero": pax_header(b"12 path=a\0b\n") + FILE,
    "hard link to root": LayerMaker().hardlink("f", "/").tar(),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_archive_is_refused(case: str) -> None:
    with pytest.raises(CorruptLayer, match=r"^x: "):
        read_blob(CORRUPT[case])


ESCAPES = {
    "parent": LayerMaker().file("../etc/passwd", "x").tar(),
    "deep parent": LayerMaker().file("a/../../etc/passwd", "x").tar(),
    "absolute parent": LayerMaker().file("/../etc/passwd", "x").tar(),
    "pax path": LayerMaker().file("x", "x", pax_headers={"path": "a/../../b"}).tar(),
    "hard link": LayerMaker().hardlink("x", "../../etc/shadow").tar(),
    "whiteout of all": LayerMaker().file("etc/.wh.").tar(),
    "whiteout of the directory": LayerMaker().file("etc/.wh..").tar(),
    "whiteout of the parent": LayerMaker().file("etc/.wh...").tar(),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_path_that_leaves_the_root_is_refused(case: str) -> None:
    with pytest.raises(UnsafePath) as raised:
        read_blob(ESCAPES[case])
    assert raised.value.path is not None
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("kind", [b"D", b"M", b"N", b"V", b"A", b"\xff"])
def test_unknown_entry_type_is_refused(kind: bytes) -> None:
    with pytest.raises(UnsupportedEntry, match="type"):
        read_blob(raw_header(b"f", kind, b"00000000000\0") + bytes(1024))


@pytest.mark.parametrize(
    ("blob", "limits"),
    [
        (LayerMaker().file("f", bytes(5000)).tar(), Limits(unpacked_bytes=4096)),
        (LayerMaker().file("a").file("b").tar(), Limits(entries=1)),
        (compress(LayerMaker().file("f", bytes(9 << 20)).tar(), "gzip"), Limits(expansion_free_bytes=1 << 20)),
        (compress(LayerMaker().file("f", bytes(9 << 20)).tar(), "zstd"), Limits(expansion_free_bytes=1 << 20)),
        (
            LayerMaker().file("f", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 60)}).tar(),
            Limits(),
        ),
        (raw_header(b"long", b"L", b"77777777777\0") + bytes(1024), Limits()),
        (LayerMaker().file("n" * 5000).tar(), Limits()),
    ],
    ids=["bytes", "entries", "gzip bomb", "zstd bomb", "hole of an exabyte", "8 GB name", "path beyond PATH_MAX"],
)
def test_layer_beyond_the_limits_is_refused(blob: bytes, limits: Limits) -> None:
    with pytest.raises(LayerTooLarge):
        read_blob(blob, limits=limits)


def test_bytes_after_the_end_marker_count_for_the_digest_only() -> None:
    blob = LayerMaker().file("f", "x").tar() + LayerMaker().file("hidden", "x").tar()
    contents = read_blob(blob)
    assert [entry.path for entry in contents.entries] == ["f"]
    assert contents.blob_digest == digest(blob)


def test_empty_layer_has_no_entries() -> None:
    assert read_blob(bytes(1024)).entries == ()


def test_memory_does_not_grow_with_the_layer() -> None:
    blob = LayerMaker().file("f", bytes(200 << 20)).tar()
    tracemalloc.start()
    try:
        read_blob(blob)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 32 << 20


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_layer_is_refused_or_has_its_own_digest(data: st.DataObject) -> None:
    """A byte is changed anywhere: the layer is refused by a typed error, or read with its own digest."""
    compression: Compression = data.draw(st.sampled_from(["none", "gzip", "zstd"]))
    blob = bytearray(compress(ORDINARY, compression))
    position = data.draw(st.integers(0, len(blob) - 1))
    blob[position] ^= data.draw(st.integers(1, 255))
    try:
        contents = read_blob(bytes(blob))
    except LayerError:
        return
    assert contents.blob_digest == digest(bytes(blob))


def tarfile_entries(blob: bytes) -> list[tuple[str, int, str]]:
    with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
        return [
            (member.name, member.size if member.isfile() else 0, member.linkname) for member in archive.getmembers()
        ]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=140).filter(
    lambda name: name not in {".", ".."} and not name.startswith(".wh.")
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(NAMES, st.binary(max_size=2000)), max_size=6), st.sampled_from(["pax", "gnu"]))
def test_entries_agree_with_tarfile(files: list[tuple[str, bytes]], archive_format: str) -> None:
    maker = LayerMaker(tarfile.PAX_FORMAT if archive_format == "pax" else tarfile.GNU_FORMAT)
    for name, content in files:
        maker.file(f"folder/{name}", content)
    blob = maker.tar()
    assert [(entry.path, entry.size_bytes, entry.link) for entry in read_blob(blob).entries] == tarfile_entries(blob)
