from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from buildkit.build import base as bases
from buildkit.engine.client import Engine
from buildkit.errors import BaseUnavailable, UsageError

if TYPE_CHECKING:
    from pathlib import Path

REFERENCE = "python:3.13-slim-trixie"
DIGEST = "sha256:" + "a" * 64
ENGINE = Engine("", "26.1.5", None)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for `docker` whose answers a test writes into `answers`; the calls are kept in `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n'
        f"for answer in {tmp_path}/answers/*; do\n"
        '  case "$*" in $(basename "$answer" | tr _ " ")*) . "$answer";; esac\ndone\nexit 1\n'
    )
    program.chmod(0o755)
    (tmp_path / "answers").mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def answer(calls: Path, command: str, script: str) -> None:
    (calls / "answers" / command.replace(" ", "_")).write_text(script)


def ensure_base_image(cache: Path, origin: bases.Origin = "auto", python: str = "3.13") -> bases.Base:
    return bases.ensure_base_image(
        ENGINE, reference=REFERENCE, python=python, origin=origin, cache=cache, log=lambda _: None
    )


def inspected(digest: str) -> str:
    image = {"Id": digest, "RepoDigests": [f"python@{digest}"], "RootFS": {"Layers": ["a", "b", "c"]}}
    return f"echo '{json.dumps([image])}'; exit 0"


def test_a_base_that_the_engine_holds_is_taken_without_asking_a_registry(calls: Path) -> None:
    answer(calls, f"image inspect {REFERENCE}".replace(":", "?"), inspected(DIGEST))

    found = ensure_base_image(calls)

    assert ("registry", DIGEST, f"docker-image://{REFERENCE}") == (found.origin, found.digest, found.context)
    assert "pull" not in (calls / "calls").read_text()


def test_a_base_made_here_before_is_not_made_again(calls: Path) -> None:
    answer(calls, "image inspect truthgraph-base", inspected(DIGEST))

    found = ensure_base_image(calls)

    assert (found.origin, found.digest, found.layers) == ("debian", DIGEST, 3)
    assert found.local.startswith("truthgraph-base:python3.13-")


def test_a_registry_that_must_be_used_and_cannot_is_an_error(calls: Path) -> None:
    answer(calls, "buildx imagetools", "echo no such host >&2; exit 1")

    with pytest.raises(BaseUnavailable, match="cannot be pulled: no such host"):
        ensure_base_image(calls, "registry")


def test_a_python_that_debian_does_not_package_is_refused(calls: Path) -> None:
    with pytest.raises(UsageError, match=r"image\.python = '3\.12'.*others need a registry"):
        ensure_base_image(calls, "debian", "3.12")


def test_another_recipe_is_another_base() -> None:
    assert bases._recipe("3.13") != bases._recipe("3.14")


@pytest.mark.parametrize(("origin", "folder"), [("debian", "dist-packages"), ("registry", "site-packages")])
def test_each_origin_installs_to_its_own_folder(origin: str, folder: str) -> None:
    base = bases.Base(REFERENCE, DIGEST, "debian" if origin == "debian" else "registry", REFERENCE, 1)

    assert f"/usr/local/lib/python3.13/{folder}" == base.site_packages("3.13")
