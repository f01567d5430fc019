from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from buildkit import spec as specs
from buildkit.build.base import BaseImage
from buildkit.build.labels import image_labels, project_version
from buildkit.image.labels import BASE_LAYERS_LABEL

PROJECT = Path(__file__).resolve().parents[3]
BASE = BaseImage("python:3.13-slim", "sha256:1", "debian", "local:1", 3)
REVISION, CREATED, SOURCE = (f"org.opencontainers.image.{name}" for name in ("revision", "created", "source"))


def labels(project: Path, target: str = "api") -> dict[str, str]:
    spec = specs.load(PROJECT)
    loaded = specs.ImageSpec(**{field: getattr(spec, field) for field in spec.__struct_fields__} | {"project": project})
    return image_labels(loaded, spec.target(target), BASE, "ab12")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git repository with one commit."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (("init", "--quiet"), ("add", "."), (*identity, "commit", "--quiet", "--message", "first")):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    return tmp_path


def test_labels_name_the_inputs_of_the_image(checkout: Path) -> None:
    found = labels(checkout)

    assert found["org.opencontainers.image.version"] == project_version(checkout) == "1.2.3"
    assert found["org.opencontainers.image.base.digest"] == "sha256:1"
    assert (found[BASE_LAYERS_LABEL], found["io.truthgraph.lock.sha256"]) == ("3", "ab12")
    assert found[SOURCE] == "local"


def test_slim_labels_name_profile_and_targets(checkout: Path) -> None:
    assert labels(checkout, "single")["io.truthgraph.slim.profile"] == "single"
    assert "io.truthgraph.slim.profile" not in labels(checkout, "api")


def test_revision_of_changed_files_is_dirty(checkout: Path) -> None:
    clean = labels(checkout)
    (checkout / "pyproject.toml").write_text('[project]\nversion = "1.2.4"\n')
    changed = labels(checkout)

    assert len(clean[REVISION]) == 40
    assert changed[REVISION] == f"{clean[REVISION]}-dirty"
    assert changed[CREATED] == clean[CREATED]


def test_outside_a_checkout_the_revision_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')

    assert (labels(tmp_path)[REVISION], labels(tmp_path)[CREATED]) == ("unknown", "1970-01-01T00:00:00Z")


def test_source_is_the_remote_without_credentials(checkout: Path) -> None:
    remote = "https://anna:word@example.org/a/b.git"
    subprocess.run(["git", "-C", checkout, "remote", "add", "origin", remote], check=True)

    assert labels(checkout)[SOURCE] == "https://example.org/a/b.git"
