from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.build import base as bases
from buildkit.engine.client import Engine
from buildkit.errors import BaseUnavailable, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.docker_stub import DockerStub

REFERENCE = "python:3.13-slim-trixie"
DIGEST = "sha256:" + "a" * 64
ENGINE = Engine("", "26.1.5", None)


def ensure_base_image(cache: Path, origin: bases.Origin = "auto", python: str = "3.13") -> bases.BaseImage:
    return bases.ensure_base_image(
        ENGINE, reference=REFERENCE, python=python, origin=origin, cache=cache, log=lambda _: None
    )


def inspected(digest: str) -> str:
    """The answer of `docker image inspect`."""
    image = {"Id": digest, "RepoDigests": [f"python@{digest}"], "RootFS": {"Layers": ["a", "b", "c"]}}
    return json.dumps([image])


def test_image_in_the_engine_is_used_without_a_registry(docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer(f"image inspect {REFERENCE}", output=inspected(DIGEST))

    found = ensure_base_image(tmp_path)

    assert ("registry", DIGEST, f"docker-image://{REFERENCE}") == (found.origin, found.digest, found.context)
    assert [call for call in docker_stub.calls if "pull" in call] == []


def test_image_made_before_is_used_again(docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer("image inspect truthgraph-base:*", output=inspected(DIGEST))

    found = ensure_base_image(tmp_path)

    assert (found.origin, found.digest, found.layers) == ("debian", DIGEST, 3)
    assert found.local.startswith("truthgraph-base:python3.13-")


def test_required_registry_that_does_not_answer_is_an_error(docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer("buildx imagetools *", errors="no such host", exit_code=1)

    with pytest.raises(BaseUnavailable, match="cannot be pulled: no such host"):
        ensure_base_image(tmp_path, "registry")


def test_archive_in_the_cache_is_loaded_if_no_registry_answers(docker_stub: DockerStub, tmp_path: Path) -> None:
    (tmp_path / f"base-{bases._recipe('3.13')}.tar").write_bytes(b"")
    docker_stub.answer("buildx imagetools *", exit_code=1)  # without a message
    answered = "image inspect truthgraph-base:*"
    docker_stub.answer("buildx build *", script=f"touch {tmp_path}/loaded")
    docker_stub.answer(answered, script=f"[ -e {tmp_path}/loaded ] || exit 1", output=inspected(DIGEST))

    assert ensure_base_image(tmp_path).origin == "debian"


@pytest.mark.usefixtures("docker_stub")
def test_python_that_debian_does_not_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"image\.python = '3\.12'.*other versions need a registry"):
        ensure_base_image(tmp_path, "debian", "3.12")


def test_recipe_differs_by_python_version() -> None:
    assert bases._recipe("3.13") != bases._recipe("3.14")


@pytest.mark.parametrize(("origin", "folder"), [("debian", "dist-packages"), ("registry", "site-packages")])
def test_site_packages_folder_depends_on_the_origin(origin: str, folder: str) -> None:
    base = bases.BaseImage(REFERENCE, DIGEST, "debian" if origin == "debian" else "registry", REFERENCE, 1)

    assert f"/usr/local/lib/python3.13/{folder}" == base.site_packages("3.13")
