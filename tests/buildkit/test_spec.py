from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from buildkit import spec
from buildkit.errors import UsageError

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project's docker folder that a test may change."""
    shutil.copytree(PROJECT / "docker", tmp_path / "docker")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


def replace(project: Path, old: str, new: str) -> None:
    path = project / "docker" / "images.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_project_file_is_valid() -> None:
    loaded = spec.load(PROJECT)

    assert loaded.name == "truthgraph-api"
    assert {"api", "core", "dev", "phase1", "phase2"} <= {target.name for target in loaded.targets}


def test_arguments_replace_base_and_python() -> None:
    loaded = spec.load(PROJECT, base="python:3.12-slim", python="3.12")

    assert (loaded.base, loaded.python) == ("python:3.12-slim", "3.12")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('title = "TruthGraph API"', 'titel = "TruthGraph API"', "images.toml $.image"),
        ('python = "3.13"', 'python = "3.10"', "image.python"),
        ("schema_version = 2", "schema_version = 1", "schema_version"),
        ('name = "science"', 'name = "torch"', "layers.name"),
        ('name = "science"', 'name = "Science!"', "layers.name"),
        ('layers = ["web"]', 'layers = ["wib"]', "targets.core.layers"),
        ("disk_bytes = 2_000_000_000", 'disk_bytes = "2 GB"', "images.toml $.targets[1].disk_bytes"),
    ],
)
def test_invalid_value_is_refused_with_its_field(project: Path, old: str, new: str, field: str) -> None:
    replace(project, old, new)

    with pytest.raises(UsageError) as caught:
        spec.load(project)

    assert field == caught.value.field
    assert caught.value.exit_code == 2


def test_folder_without_images_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no docker/images\.toml"):
        spec.load(tmp_path)


def test_invalid_toml_is_refused(project: Path) -> None:
    replace(project, "schema_version = 2", "schema_version = ")

    with pytest.raises(UsageError, match="not valid TOML"):
        spec.load(project)


def test_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="expected one of api, core"):
        spec.load(PROJECT).target("apo")
