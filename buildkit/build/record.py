"""Defines the build record: one build's inputs, its image and the times of its steps, saved as JSON.

The record holds the image's digest. Checks and releases take the digest from it, never from a tag.
"""

from pathlib import Path
from typing import Final

import msgspec

from buildkit import jsonfile
from buildkit.build.events import Step

__all__ = ["SCHEMA_VERSION", "BuildRecord", "load_record", "record_path"]

SCHEMA_VERSION: Final = 2


class BuildRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One build: its inputs, its image, its steps.

    Attributes:
        digest: the digest of the image in the engine, `sha256:…`.
        tags: the names of the image after the build.
        arguments: build arguments without proxies, which may hold credentials.
        base: reference, digest and origin ("registry" or "debian") of the base image.
        lock_sha256: the digest of the locked names and versions in the target's layers.
        revision: the git commit, with `-dirty` if files differ from it; "unknown" outside a checkout.
        versions: the versions of engine, client, buildx, buildkit (the builder) and toolkit (this program).
        started: RFC 3339, UTC.
        seconds: wall time of the build.
        steps: the steps in the order in which they started.
    """

    schema_version: int
    target: str
    digest: str
    tags: tuple[str, ...]
    arguments: dict[str, str]
    base: dict[str, str]
    labels: dict[str, str]
    lock_sha256: str
    revision: str
    versions: dict[str, str]
    started: str
    seconds: float
    steps: tuple[Step, ...]


def record_path(folder: Path, target: str) -> Path:
    """Returns the file of the record of the last build of *target*: `image.json` for the default target `api`."""
    return folder / ("image.json" if target == "api" else f"image-{target}.json")


def load_record(path: Path) -> BuildRecord:
    """Reads a record that a build wrote.

    Raises:
        InvalidFile: the file is missing, has another schema version, or is not a build record.
    """
    fix = "run `nox -s build-image` first"
    return jsonfile.load(path, BuildRecord, version=SCHEMA_VERSION, what="a build record", fix=fix)
