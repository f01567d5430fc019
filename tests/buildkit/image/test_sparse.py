"""Reads sparse files in each format of GNU tar, and refuses maps that are wrong."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from buildkit.image.errors import CorruptLayer, UnsupportedEntry
from buildkit.image.layer_tar import LayerEntry
from buildkit.image.sparse import SparseMap
from tests.support.images import LayerMaker, raw_header, read_blob


def only_entry(blob: bytes) -> LayerEntry:
    (entry,) = read_blob(blob).entries
    return entry


def old_gnu() -> tuple[bytes, bytes]:
    header = bytearray(raw_header(b"sparse", b"S", b"00000001000\0", magic=b"ustar  \0"))
    header[386:398], header[398:410] = b"00000001000\0", b"00000001000\0"
    header[483:495] = b"00000004000\0"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"A" * 512 + bytes(1024), bytes(512) + b"A" * 512 + bytes(1024)


def pax(version: str) -> tuple[bytes, bytes]:
    content = b"A" * 512
    expected = bytes(512) + content + bytes(1024)
    records = {"GNU.sparse.name": "sparse", "GNU.sparse.realsize": "2048"}
    if version == "1.0":
        records |= {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        content = b"1\n512\n512\n".ljust(512, b"\0") + content
    else:
        records |= {"GNU.sparse.map": "512,512", "GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
    return LayerMaker().file("GNUSparseFile.1/sparse", content, pax_headers=records).tar(), expected


@pytest.mark.parametrize("made", [old_gnu(), pax("0.1"), pax("1.0")], ids=["old GNU", "pax 0.1", "pax 1.0"])
def test_sparse_file_has_its_size_with_holes(made: tuple[bytes, bytes]) -> None:
    blob, expected = made
    entry = only_entry(blob)
    assert (entry.path, entry.kind, entry.size_bytes) == ("sparse", "file", 2048)
    assert entry.sha256 == hashlib.sha256(expected).digest()
    assert entry.content_offset == -1


@pytest.mark.parametrize(
    "options", [["--format=gnu"], *(["--format=pax", f"--sparse-version={each}"] for each in ("0.0", "0.1", "1.0"))]
)
def test_sparse_file_of_gnu_tar_is_read(tmp_path: Path, options: list[str]) -> None:
    with (tmp_path / "holes").open("wb") as file:
        for step in range(200):
            file.seek(step * 65536)
            file.write(b"%d" % step * 50)
        file.truncate(200 * 65536)
    expected = hashlib.sha256((tmp_path / "holes").read_bytes()).digest()
    command = ["tar", "--sparse", *options, "-C", str(tmp_path), "-cf", "-", "holes"]
    blob = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(blob) < 3_000_000, "the archive is not sparse, so it tests nothing"
    entry = only_entry(blob)
    assert (entry.path, entry.size_bytes, entry.sha256) == ("holes", 200 * 65536, expected)


def sparse_file(content: bytes, **records: str) -> bytes:
    return (
        LayerMaker().file("f", content, pax_headers={f"GNU.sparse.{key}": text for key, text in records.items()}).tar()
    )


CORRUPT: dict[str, bytes] = {
    "overlap": sparse_file(b"ab", map="0,2,1,2", size="9"),
    "beyond the file": sparse_file(b"ab", map="8,2", size="9"),
    "other content": sparse_file(b"abc", map="0,2", size="9"),
    "odd": sparse_file(b"ab", map="0,2,4", size="9"),
    "endless": sparse_file(b"9" * 1024, major="1", minor="0", realsize="9"),
    "no numbers": sparse_file(b"ab", map="x,y", size="9"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_sparse_map_is_refused(case: str) -> None:
    with pytest.raises(CorruptLayer, match=r"^x: .*sparse map"):
        read_blob(CORRUPT[case])


def test_unknown_version_is_refused() -> None:
    with pytest.raises(UnsupportedEntry, match="unknown version"):
        read_blob(sparse_file(b"ab", major="2", minor="0"))


def test_map_pairs_offsets_and_lengths() -> None:
    assert SparseMap.of([0, 2, 5, 3], 10) == SparseMap(((0, 2), (5, 3)), real_bytes=10, data_bytes=5, map_bytes=0)
