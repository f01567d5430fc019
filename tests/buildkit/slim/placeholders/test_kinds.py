from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit.slim.placeholders.kinds import (
    Placeholder,
    PlaceholderKind,
    RemovalMessage,
    is_placeholder,
    is_placeholder_file,
    parse_message,
    removal_message,
)

if TYPE_CHECKING:
    from pathlib import Path

MESSAGE = "libx.so.1 was removed from this installation (slim rule stub-x). Lost: x, and y."


def test_parse_message_returns_the_parts_of_a_message() -> None:
    assert removal_message("libx.so.1", "stub-x", "x, and y") == MESSAGE
    assert parse_message(MESSAGE) == RemovalMessage("libx.so.1", "stub-x", "x, and y")
    found = parse_message(f"OSError: {MESSAGE}: cannot open shared object file")
    assert found is not None
    assert (found.rule, found.lost) == ("stub-x", "x, and y")


def test_parse_message_other_text_is_none() -> None:
    assert parse_message("libx.so.1: cannot open shared object file") is None


def test_is_placeholder_finds_the_message_in_small_files_only(tmp_path: Path) -> None:
    assert is_placeholder(b"\0" + MESSAGE.encode() + b"\0")
    assert not is_placeholder(b"another file")
    assert not is_placeholder(MESSAGE.encode() + bytes(1 << 20))
    path = tmp_path / "file"
    path.write_text(MESSAGE)
    (tmp_path / "link").symlink_to(path)
    assert is_placeholder_file(path)
    assert not is_placeholder_file(tmp_path / "link")


def test_placeholder_write_keeps_mode_and_times(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text("old")
    path.chmod(0o640)
    before = path.stat()

    Placeholder(PlaceholderKind.MODULE, "file.py", b"new").write(tmp_path)

    assert path.read_bytes() == b"new"
    assert (path.stat().st_mode, path.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
