"""Reads the files of image archives: names, links, extended headers, and archives that are damaged."""

import io
import random
import tarfile

import pytest

from buildkit.image.archive import ArchiveEntry, Section, archive_entries
from buildkit.image.errors import CorruptImage
from tests.support.images import LayerMaker, raw_header


def entries(archive: bytes) -> list[ArchiveEntry]:
    found = []
    source = io.BytesIO(archive)
    for entry in archive_entries(source, "x.tar"):
        found.append(entry)
        source.seek(entry.size_bytes, io.SEEK_CUR)
    return found


def test_entries_are_files_and_links_with_normalized_names() -> None:
    maker = LayerMaker().directory("a").file("./a/one", "1" * 700).file("/two", "")
    maker.symlink("a/link", "../two").hardlink("hard", "./a/one")
    assert entries(maker.tar()) == [
        ArchiveEntry("a/one", 700),
        ArchiveEntry("two", 0),
        ArchiveEntry("a/link", 0, link="two"),
        ArchiveEntry("hard", 0, link="a/one"),
    ]


@pytest.mark.parametrize("archive_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_come_from_extended_headers(archive_format: int) -> None:
    name = "d/" * 90 + "file"
    maker = LayerMaker(archive_format).file(name, "x").symlink("link", name)
    assert [(entry.name, entry.link) for entry in entries(maker.tar())] == [(name, ""), ("link", name)]


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (random.Random(1).randbytes(4096), "not an image archive"),  # noqa: S311 (any bytes)
        (LayerMaker().file("f", "x").tar()[:100], "it ends inside a header"),
        (raw_header(b"f", b"x", b"77777777777\0"), "an extended header of"),
        (LayerMaker().add("p", tarfile.FIFOTYPE).tar(), "p in the archive is of type"),
    ],
    ids=["not a tar", "truncated", "8 GB header", "pipe"],
)
def test_damaged_archive_is_refused(archive: bytes, reason: str) -> None:
    with pytest.raises(CorruptImage, match=reason):
        entries(archive)


def test_section_ends_where_its_entry_ends() -> None:
    source = io.BytesIO(b"0123456789")
    section = Section(source, 6)
    assert section.peek(3) == b"012"
    assert section.take(2) == b"01"
    assert section.read() == b"2345"
    assert section.left_bytes == 0
    assert source.read() == b"6789"


def test_section_skips_to_its_end_and_shows_missing_bytes() -> None:
    section = Section(io.BytesIO(b"0123"), 6)
    section.skip()
    assert section.left_bytes == 2


def test_section_seeks_once_before_its_first_read() -> None:
    source = io.BytesIO(b"0123456789")
    section = Section(source, 3, seek=lambda: source.seek(5))
    assert section.read() == b"567"
