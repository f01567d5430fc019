"""One layer's tar: what is read, and what is refused, by name."""

import hashlib
import io
import random
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildkit.image.layer_stream import Limits
from buildkit.image.layer_tar import LayerContents, LayerEntry, read_layer
from buildkit.image.tar_format import CorruptLayer, LayerError, LayerTooLarge, UnsafePath, UnsupportedEntry
from tests.support.images import Compression, LayerMaker, compress, digest, raw_header


def read(blob: bytes, **options: object) -> LayerContents:
    limits = options.pop("limits", None)
    assert not options
    return read_layer(io.BytesIO(blob), name="layer x", limits=limits if isinstance(limits, Limits) else None)


def only(blob: bytes) -> LayerEntry:
    (entry,) = read(blob).entries
    return entry


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
def test_every_kind_is_read_from_every_compression(compression: Compression) -> None:
    blob = compress(ORDINARY, compression)
    contents = read(blob)
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
def test_long_names_owners_and_links_come_from_extended_headers(archive_format: int) -> None:
    name, target = "d/" * 90 + "file", "t/" * 100
    maker = LayerMaker(archive_format).file(name, "x", uid=3_000_000, gid=4_000_000).symlink("s", target)
    first, second = read(maker.tar()).entries
    assert (first.path, first.uid, first.gid) == (name, 3_000_000, 4_000_000)
    assert second.link == target


def test_names_that_are_not_utf_8_are_escaped() -> None:
    assert only(raw_header(b"caf\xe9", b"0", b"0") + bytes(1024)).path == "caf\\xe9"


def test_extended_attributes_and_fractions_of_a_second_are_kept() -> None:
    pax = {"SCHILY.xattr.security.capability": "x", "mtime": "1.5"}
    entry = only(LayerMaker().file("ping", "x", pax_headers=pax).tar())
    plain = only(LayerMaker().file("ping", "x").tar())
    assert entry.xattrs_sha256
    assert not plain.xattrs_sha256
    assert entry.mtime_seconds == 1.5


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 3 << 20])
def test_files_of_any_size_are_hashed_whole(size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    blob = LayerMaker().file("before", "1").file("big", content[:size]).file("after", "2").tar()
    entries = read(blob).entries
    assert [entry.sha256 for entry in entries] == [
        hashlib.sha256(each).digest() for each in (b"1", content[:size], b"2")
    ]


def test_captured_files_are_kept_whole_also_across_chunks() -> None:
    content = b"line\n" * 300_000
    blob = LayerMaker().file("a", bytes(900_000)).file("x.dist-info/RECORD", content).tar()
    contents = read_layer(io.BytesIO(blob), name="x", captures=lambda path: path.endswith("RECORD"))
    assert contents.captured == {"x.dist-info/RECORD": content}
    assert contents.entries[1].sha256 == hashlib.sha256(content).digest()


def sparse_old_gnu() -> tuple[bytes, bytes]:
    header = bytearray(raw_header(b"sparse", b"S", b"00000001000\0", magic=b"ustar  \0"))
    header[386:398], header[398:410] = b"00000001000\0", b"00000001000\0"
    header[483:495] = b"00000004000\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"A" * 512 + bytes(1024), bytes(512) + b"A" * 512 + bytes(1024)


def sparse_pax(version: str) -> tuple[bytes, bytes]:
    content = b"A" * 512
    expected = bytes(512) + content + bytes(1024)
    pax = {"GNU.sparse.name": "sparse", "GNU.sparse.realsize": "2048"}
    if version == "1.0":
        pax |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        content = b"1\n512\n512\n".ljust(512, b"\0") + content
    else:
        pax |= {"GNU.sparse.map": "512,512", "GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
    return LayerMaker().file("GNUSparseFile.1/sparse", content, pax_headers=pax).tar(), expected


@pytest.mark.parametrize(
    "made", [sparse_old_gnu(), sparse_pax("0.1"), sparse_pax("1.0")], ids=["old GNU", "pax 0.1", "pax 1.0"]
)
def test_sparse_files_count_with_their_holes(made: tuple[bytes, bytes]) -> None:
    blob, expected = made
    entry = only(blob)
    assert (entry.path, entry.kind, entry.size_bytes) == ("sparse", "file", 2048)
    assert entry.sha256 == hashlib.sha256(expected).digest()


def test_sparse_files_that_gnu_tar_writes_are_read(tmp_path: Path) -> None:
    """The real thing, in each of its formats, against the file itself."""
    with (tmp_path / "holes").open("wb") as file:
        for step in range(200):
            file.seek(step * 65536)
            file.write(b"%d" % step * 50)
        file.truncate(200 * 65536)
    expected = hashlib.sha256((tmp_path / "holes").read_bytes()).digest()
    for options in (["--format=gnu"], *(["--format=pax", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))):
        blob = subprocess.run(
            ["tar", "--sparse", *options, "-C", tmp_path, "-cf", "-", "holes"],
            capture_output=True,
            check=True,
        ).stdout
        assert len(blob) < 3_000_000, "the archive is not sparse: the test would prove nothing"
        entry = only(blob)
        assert (entry.path, entry.size_bytes, entry.sha256) == ("holes", 200 * 65536, expected), options


def pax_header(records: bytes) -> bytes:
    return raw_header(b"pax", b"x", b"%011o\0" % len(records)) + records + bytes(-len(records) % 512)


FILE = raw_header(b"f", b"0", b"00000000000\0") + bytes(1024)
CORRUPT: dict[str, bytes] = {
    "text": b"this is no archive" * 100,
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
    "gzip cut": compress(ORDINARY, "gzip")[:-20],
    "gzip tail": compress(ORDINARY, "gzip") + b"tail",
    "gzip broken": compress(ORDINARY, "gzip")[:40] + b"\xff" * 40,
    "zstd broken": compress(ORDINARY, "zstd")[:20] + b"\xff" * 40,
    "zstd tail": compress(ORDINARY, "zstd") + b"tail",
    "zstd cut": compress(LayerMaker().file("f", bytes(range(256)) * 999).tar(), "zstd")[:-30],
    "sparse overlap": LayerMaker()
    .file("f", b"ab", pax_headers={"GNU.sparse.map": "0,2,1,2", "GNU.sparse.size": "9"})
    .tar(),
    "sparse beyond": LayerMaker().file("f", b"ab", pax_headers={"GNU.sparse.map": "8,2", "GNU.sparse.size": "9"}).tar(),
    "sparse content": LayerMaker()
    .file("f", b"abc", pax_headers={"GNU.sparse.map": "0,2", "GNU.sparse.size": "9"})
    .tar(),
    "sparse odd": LayerMaker().file("f", b"ab", pax_headers={"GNU.sparse.map": "0,2,4", "GNU.sparse.size": "9"}).tar(),
    "sparse endless map": LayerMaker()
    .file("f", b"9" * 1024, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"})
    .tar(),
}


@pytest.fixture(params=["isal", "zlib"])
def _inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test with either of the two that inflate gzip."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")


@pytest.mark.usefixtures("_inflater")
@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_archives_are_refused(case: str) -> None:
    with pytest.raises(CorruptLayer, match=r"^layer x: "):
        read(CORRUPT[case])


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
def test_paths_that_leave_the_root_are_refused(case: str) -> None:
    with pytest.raises(UnsafePath) as raised:
        read(ESCAPES[case])
    assert raised.value.path is not None
    assert raised.value.exit_code == 3


def test_paths_are_normalised_inside_of_the_root() -> None:
    blob = LayerMaker().file("./a").file("/b").file("c//d/./e").file("f/g/../h").directory("./").tar()
    assert [entry.path for entry in read(blob).entries] == ["a", "b", "c/d/e", "f/h", ""]


@pytest.mark.parametrize("kind", [b"D", b"M", b"N", b"V", b"A", b"\xff"])
def test_unknown_entry_types_are_refused(kind: bytes) -> None:
    with pytest.raises(UnsupportedEntry, match="type"):
        read(raw_header(b"f", kind, b"00000000000\0") + bytes(1024))


def test_whiteouts_that_are_no_files_and_aufs_bookkeeping_are_refused() -> None:
    for blob in (LayerMaker().directory(".wh.a").tar(), LayerMaker().file(".wh..wh.plnk").tar()):
        with pytest.raises(UnsupportedEntry):
            read(blob)


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
def test_archives_made_to_exhaust_the_reader_are_refused(blob: bytes, limits: Limits) -> None:
    with pytest.raises(LayerTooLarge):
        read(blob, limits=limits)


def test_a_window_that_would_need_too_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(LayerMaker().file("f", bytes(1 << 20)).tar()) + compressor.flush()
    with pytest.raises(CorruptLayer, match="zstd"):
        read(blob)


COMPRESSED: tuple[Compression, ...] = ("gzip", "zstd")


@pytest.mark.usefixtures("_inflater")
def test_several_gzip_members_and_zstd_frames_are_one_layer() -> None:
    """As eStargz and zstd:chunked write them, the latter with skippable frames."""
    middle = 1024
    for compression in COMPRESSED:
        parts = [compress(part, compression) for part in (ORDINARY[:middle], ORDINARY[middle:])]
        skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip" if compression == "zstd" else b""
        contents = read(skippable + parts[0] + skippable + parts[1] + skippable)
        assert contents.diff_id == digest(ORDINARY)


def test_what_follows_the_end_marker_is_ignored_as_engines_do_but_digested() -> None:
    blob = LayerMaker().file("f", "x").tar() + LayerMaker().file("hidden", "x").tar()
    contents = read(blob)
    assert [entry.path for entry in contents.entries] == ["f"]
    assert contents.blob_digest == digest(blob)


@pytest.mark.usefixtures("_inflater")
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1024, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_gzip_of_any_size_and_content_is_inflated_whole(size: int) -> None:
    for content in (bytes(size), random.Random(size).randbytes(size)):  # noqa: S311 (content that does not compress)
        tar = LayerMaker().file("f", content).tar()
        contents = read(compress(tar, "gzip"))
        assert contents.diff_id == digest(tar)
        assert contents.entries[0].sha256 == hashlib.sha256(content).digest()


def test_an_empty_layer_is_fine() -> None:
    assert read(bytes(1024)).entries == ()


class Failing:
    def __init__(self, blob: bytes) -> None:
        self._file = io.BytesIO(blob)

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._file.readinto(buffer)
        if not count:
            raise OSError(5, "Input/output error")
        return count


def test_an_error_of_the_source_reaches_the_caller() -> None:
    with pytest.raises(OSError, match="Input/output"):
        read_layer(Failing(ORDINARY), name="x")


def test_memory_does_not_grow_with_the_layer() -> None:
    blob = LayerMaker().file("f", bytes(200 << 20)).tar()
    tracemalloc.start()
    try:
        read(blob)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 32 << 20


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_damage_is_either_refused_or_changes_the_digest(data: st.DataObject) -> None:
    """Flip a byte anywhere: never another exception, never the same digest."""
    compression: Compression = data.draw(st.sampled_from(["none", "gzip", "zstd"]))
    blob = bytearray(compress(ORDINARY, compression))
    position = data.draw(st.integers(0, len(blob) - 1))
    blob[position] ^= data.draw(st.integers(1, 255))
    try:
        contents = read(bytes(blob))
    except LayerError:
        return
    assert contents.blob_digest != digest(compress(ORDINARY, compression))


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
def test_names_and_sizes_agree_with_the_standard_library(files: list[tuple[str, bytes]], archive_format: str) -> None:
    maker = LayerMaker(tarfile.PAX_FORMAT if archive_format == "pax" else tarfile.GNU_FORMAT)
    for name, content in files:
        maker.file(f"folder/{name}", content)
    blob = maker.tar()
    assert [(entry.path, entry.size_bytes, entry.link) for entry in read(blob).entries] == tarfile_entries(blob)
