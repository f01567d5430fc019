from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from service.models import MANIFEST, ModelFolderError, add, check

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    (folder / "1_Pooling").mkdir(parents=True)
    for name, content in {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors": "weights",
        "pytorch_model.bin": "a pickle",
        "modeling_custom.py": "code",
        "README.md": "card",
        "1_Pooling/config.json": "{}",
        ".gitattributes": "x",
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_an_added_model_passes_its_own_check(origin: Path, tmp_path: Path) -> None:
    added = add(tmp_path / "models", "m", str(origin))
    assert check(tmp_path / "models", "m") == added


def test_only_data_is_taken_never_pickles_or_code(origin: Path, tmp_path: Path) -> None:
    folder = add(tmp_path / "models", "m", str(origin)).path
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "README.md",
        "1_Pooling/config.json",
        MANIFEST,
    }


def test_the_same_input_gives_the_same_bytes_and_times(origin: Path, tmp_path: Path) -> None:
    first = add(tmp_path / "one", "m", str(origin)).path
    os.utime(origin / "config.json", (1, 1))
    second = add(tmp_path / "two", "m", str(origin)).path
    for path in sorted(first.rglob("*")):
        twin = second / path.relative_to(first)
        assert path.stat().st_mtime == twin.stat().st_mtime
        assert path.stat().st_mode == twin.stat().st_mode
        assert path.is_dir() or path.read_bytes() == twin.read_bytes()


def test_a_changed_file_is_refused_by_name(origin: Path, tmp_path: Path) -> None:
    folder = add(tmp_path, "m", str(origin)).path
    (folder / "model.safetensors").write_text("weightz", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"model\.safetensors"):
        check(tmp_path, "m")


def test_a_missing_and_an_unlisted_file_are_refused(origin: Path, tmp_path: Path) -> None:
    folder = add(tmp_path, "m", str(origin)).path
    (folder / "extra.json").write_text("{}", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"extra\.json, tokenizer\.json"):
        check(tmp_path, "m")


def test_an_unknown_manifest_version_is_refused(origin: Path, tmp_path: Path) -> None:
    manifest = add(tmp_path, "m", str(origin)).path / MANIFEST
    content = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**content, "schema_version": 2}), encoding="utf-8")
    with pytest.raises(ModelFolderError, match="version 2"):
        check(tmp_path, "m")


@pytest.mark.parametrize("name", ["../m", "", "a/b", ".."])
def test_a_name_cannot_leave_the_directory(name: str, origin: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError):
        add(tmp_path, name, str(origin))


@pytest.mark.parametrize("needed", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_source_without_what_a_model_needs_is_refused(needed: str, origin: Path, tmp_path: Path) -> None:
    (origin / needed).unlink()
    with pytest.raises(ModelFolderError):
        add(tmp_path, "m", str(origin))


def test_a_missing_model_says_how_to_add_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="python -m service models add m --from"):
        check(tmp_path, "m")


@pytest.mark.parametrize("source", ["owner/model", "owner/model@main", "owner/model@abc123"])
def test_a_hub_model_that_is_not_pinned_by_its_commit_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a folder"):
        add(tmp_path, "m", source)
