from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from buildkit.binary.rewrite import CopyRange, Rewrite, apply_rewrite, replace_content, replace_file

if TYPE_CHECKING:
    from pathlib import Path

OLD = bytes(range(100))
REWRITE = Rewrite(
    bytes_before=100,
    bytes_after=60,
    ranges=(CopyRange(0, 0, 10), CopyRange(50, 20, 30)),
    patches=((5, b"patch"), (55, b"end")),
)
NEW = bytes(range(5)) + b"patch" + bytes(10) + OLD[50:80] + bytes(5) + b"end" + bytes(2)


def test_apply_rewrite_copies_ranges_and_writes_patches() -> None:
    assert apply_rewrite(OLD, REWRITE) == NEW
    assert REWRITE.moved == (CopyRange(50, 20, 30),)
    assert REWRITE.zeros == ((10, 20), (50, 55), (58, 60))


def test_replace_file_writes_the_same_bytes_and_keeps_mode_and_times(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    path.chmod(0o750)
    os.utime(path, ns=(1, 1_600_000_000_000_000_001))
    before = path.stat()

    assert replace_file(path, REWRITE, lambda written: written.read_bytes()) == NEW

    after = path.stat()
    assert path.read_bytes() == NEW
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert after.st_ino != before.st_ino


def test_replace_file_failed_check_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)

    def fail(_: Path) -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        replace_file(path, REWRITE, fail)

    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_replace_content_open_file_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with path.open("rb") as opened:
        replace_content(path, b"new")

        assert opened.read() == OLD
    assert path.read_bytes() == b"new"
