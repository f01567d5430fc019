from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checks.expectations import Expectations, SecretFingerprint, UnknownExpectations

if TYPE_CHECKING:
    from pathlib import Path


def test_saved_expectations_are_loaded_unchanged(tmp_path: Path) -> None:
    expected = Expectations(
        target="api",
        locked={"torch": "2.13.0"},
        labels={"a": None, "b": "c"},
        handed_in=SecretFingerprint.of({"index": "https://a:b@c.invalid"}),
    )
    expected.save(tmp_path / "new" / "expect.json")

    assert Expectations.load(tmp_path / "new" / "expect.json") == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "schema_version is None"),
        (b'{"schema_version": 2, "target": "a"}', "schema_version is 2"),
        (b'{"schema_version": 1, "target": "a", "has_modles": true}', "unknown keys: has_modles"),
        (b'{"schema_version": 1}', "target"),
        (b'{"schema_version": 1, "target": "a", "port": "many"}', "port"),
    ],
)
def test_invalid_expectations_are_refused(document: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "expect.json"
    path.write_bytes(document)

    with pytest.raises(UnknownExpectations, match=message):
        Expectations.load(path)
