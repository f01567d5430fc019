"""Builds the images that run beside the API: PostgreSQL and the proxy."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

from buildkit.build import base, build
from buildkit.build.display import BuildDisplay
from buildkit.build.record import load_record, record_path
from buildkit.errors import CommandFailed
from buildkit.jsonfile import InvalidFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console

    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec

__all__ = ["SIDECARS", "ensure_sidecar"]

SIDECARS: Final[Mapping[str, str]] = {"database": "postgres", "proxy": "proxy"}
"""Service of the stack file -> target of docker/images.toml."""


def ensure_sidecar(
    spec: ImageSpec,
    service: str,
    *,
    engine: Engine,
    folder: Path,
    environment: Mapping[str, str],
    console: Console,
    log: Callable[[str], None],
) -> str:
    """Returns the digest of the service's image in the engine; builds it if its sources changed since the last build.

    A new build for each release would give the image another label, and restart the database for nothing.

    Raises:
        BuildFailed: it does not build.
    """
    target = SIDECARS[service]
    path = record_path(folder, target)
    mark = folder / f"image-{target}.inputs"
    inputs = _inputs(spec, target)
    if mark.exists() and mark.read_text() == inputs:
        with contextlib.suppress(InvalidFile, CommandFailed):
            digest = load_record(path).digest
            engine.docker("image", "inspect", "--format", "{{.Id}}", digest)
            return digest
    log(f"building {target}")
    origin = base.ensure_base_image(
        engine, reference=spec.base, python=spec.python, origin="auto", cache=folder / "cache", log=log
    )
    record = build.build(
        spec,
        spec.target(target),
        engine=engine,
        base=origin,
        environment=environment,
        folder=folder,
        show=lambda events: BuildDisplay(console, events, title=f"building {target}"),
    )
    mark.write_text(inputs)
    return record.digest


def _inputs(spec: ImageSpec, target: str) -> str:
    """Returns the SHA-256 (hex) over names, modes and contents of the target's sources, and its base's name."""
    docker = spec.project / "docker"
    sources = [docker / f"{target}.Dockerfile", docker / "apt-install", *sorted((docker / target).rglob("*"))]
    seen = hashlib.sha256(spec.base.encode())
    for path in sources:
        if path.is_file():
            seen.update(f"{path.relative_to(docker)} {path.stat().st_mode & 0o777:o}\n".encode() + path.read_bytes())
    return seen.hexdigest()
