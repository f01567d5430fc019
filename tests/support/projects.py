"""Makes a small project to build: docker/images.toml, a Dockerfile, an empty lock, pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["PROJECT", "images_toml", "make_project"]

PROJECT = Path(__file__).resolve().parents[2]
_IMAGE = """\
schema_version = 2
layers = []

[image]
name = "{name}"
title = "t"
description = "d"
licenses = "Apache-2.0"
python = "3.13"
base = "python:3.13-slim-trixie"
venv = "/opt/venv"
app = "/app"
model = "m"
cuda_targets = []
"""
_TARGET = """
[[targets]]
name = "{target}"
dockerfile = "docker/Dockerfile"
stage = "runtime"
disk_bytes = {disk_bytes}
"""


def images_toml(name: str, *targets: str, disk_bytes: int = 1000) -> str:
    """Returns the text of docker/images.toml for an image *name* with *targets* that are all the stage `runtime`."""
    tables = [_TARGET.format(target=target, disk_bytes=disk_bytes) for target in targets]
    return "".join([_IMAGE.format(name=name), *tables])


def make_project(folder: Path, images: str, dockerfile: str) -> Path:
    """Writes the project to *folder*, with the pyproject.toml of this one, and returns it."""
    (folder / "docker" / "lock").mkdir(parents=True)
    (folder / "docker" / "images.toml").write_text(images)
    (folder / "docker" / "Dockerfile").write_text(dockerfile)
    shutil.copy(PROJECT / "pyproject.toml", folder)
    return folder
