from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checks.expectations import SCHEMA_VERSION, Expectations, UnknownExpectations

if TYPE_CHECKING:
    from pathlib import Path


def test_saved_expectations_are_loaded(tmp_path: Path) -> None:
    expected = Expectations(target="api", locked={"torch": "2.13.0"}, labels={"a": None})

    expected.save(tmp_path / "expect.json")

    assert Expectations.load(tmp_path / "expect.json") == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "Input data was truncated"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 1, "target": "a"}', "schema_version is 1, expected 2"),
        (f'{{"schema_version": {SCHEMA_VERSION}, "target": "a", "has_modles": true}}', "unknown keys: has_modles"),
        (f'{{"schema_version": {SCHEMA_VERSION}}}', "target"),
        (f'{{"schema_version": {SCHEMA_VERSION}, "target": "a", "port": "many"}}', "port"),
    ],
)
def test_unreadable_expectations_are_refused(document: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "expect.json"
    path.write_text(document)

    with pytest.raises(UnknownExpectations, match=message):
        Expectations.load(path)
