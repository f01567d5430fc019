from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit import console

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_log_writes_a_marked_line_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.log("reading api")

    assert capsys.readouterr() == ("", "· reading api\n")


def test_write_without_path_writes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.write("report", None)

    assert capsys.readouterr() == ("report\n", "")


def test_write_makes_the_folders_of_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a" / "report.md"

    console.write("report", path)

    assert path.read_text() == "report"
    assert capsys.readouterr().err == f"· wrote {path}\n"


def test_console_has_no_colours_if_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert console.make_console().no_color
    assert console.make_console(stderr=True).stderr
