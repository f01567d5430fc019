"""Saves and loads JSON files, and refuses every other file with one sentence."""

import json
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit.jsonfile import InvalidFile, load, save, schema_of


@dataclass(frozen=True)
class Example:
    """An example.

    It has a second paragraph.
    """

    name: str
    sizes: tuple[int, ...] = ()
    schema_version: int = 2


VALUE = Example("a", (1, 2))


def load_example(path: Path) -> Example:
    return load(path, Example, version=2, what="an example", fix="make it again")


@pytest.mark.parametrize("indent", [None, 1])
def test_saved_value_is_loaded(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "deep" / "folder" / "x.json"
    save(VALUE, path, indent=indent)
    assert load_example(path) == VALUE
    assert path.read_text().endswith("}\n")


def test_file_is_replaced_without_leftovers(tmp_path: Path) -> None:
    save(Example("a much longer value than the next one"), tmp_path / "x.json")
    save(VALUE, tmp_path / "x.json")
    assert load_example(tmp_path / "x.json") == VALUE
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    save(VALUE, tmp_path / "x.json")
    with pytest.raises(TypeError):
        save({"not": object()}, tmp_path / "x.json")
    assert load_example(tmp_path / "x.json") == VALUE


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema_version": 1, "name": "a"}', "schema version 1, but this program reads version 2"),
        ('{"schema_version": 3}', "schema version 3, but this program reads version 2"),
        ('{"name": "a"}', "not an example \\(.*schema_version"),
        ('{"schema_version": 2, "name": 1}', "not an example \\(.*name"),
        ('{"schema_version": 2, "na', "not an example"),
        ("[]", "not an example"),
        ("", "not an example"),
    ],
    ids=["older", "newer", "without version", "other value", "truncated", "list", "empty"],
)
def test_other_file_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InvalidFile, match=reason) as raised:
        load_example(path)
    assert raised.value.path == path
    assert raised.value.exit_code == 2
    assert str(raised.value).startswith(f"cannot read {path}: ")
    assert str(raised.value).endswith("; make it again")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile) as raised:
        load_example(tmp_path / "x.json")
    assert str(raised.value) == f"cannot read {tmp_path / 'x.json'}: No such file or directory; make it again"


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="directory"):
        load_example(tmp_path)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(InvalidFile):
        load_example(path)


def test_schema_describes_the_saved_value(tmp_path: Path) -> None:
    schema = schema_of(Example, "Example, version 2")
    save(VALUE, tmp_path / "x.json")
    jsonschema.Draft202012Validator(schema).validate(json.loads((tmp_path / "x.json").read_text()))
    assert schema["title"] == "Example, version 2"


def test_schema_has_dedented_descriptions() -> None:
    definitions = schema_of(Example, "x")["$defs"]
    assert isinstance(definitions, dict)
    assert definitions["Example"]["description"] == "An example.\n\nIt has a second paragraph."
