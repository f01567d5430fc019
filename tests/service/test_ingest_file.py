from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING

from service.ingest_file import read_lines
from service.schemas import NewEvidenceItem

if TYPE_CHECKING:
    from pathlib import Path


def test_json_lines_are_numbered_and_invalid_ones_reported(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    file.write_bytes(
        b'{"content": "one"}\n\n{"content": 2}\n{"content": "four", "colour": "red"}\n{"content": "\xff"}\n'
    )
    lines = list(read_lines(file, 0))
    assert [number for number, _, _ in lines] == [1, 3, 4, 5]
    assert lines[0][1] == NewEvidenceItem("one")
    assert [isinstance(piece, str) for _, piece, _ in lines] == [False, True, True, True]
    assert lines[-1][2] == 1.0


def test_the_header_of_a_csv_file_names_the_fields(tmp_path: Path) -> None:
    file = tmp_path / "e.csv"
    file.write_text(
        'content,source_url,published_on\n"one, with\na line break",https://x.example,2020-01-02\n,https://y.example,\n',
        encoding="utf-8",
    )
    (first, piece, _), (second, problem, _) = read_lines(file, 0)
    assert (first, second) == (1, 2)
    assert piece == NewEvidenceItem("one, with\na line break", "https://x.example", None, date(2020, 1, 2))
    assert "content" in str(problem)


def test_finished_lines_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "e.jsonl"
    file.write_text("".join(f'{{"content": "{number}"}}\n' for number in range(1, 6)), encoding="utf-8")
    assert [number for number, _, _ in read_lines(file, 3)] == [4, 5]
