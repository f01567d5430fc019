"""What stands beside the API in the stack: PostgreSQL and the proxy, built here unless they were."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from buildkit.build import base, build
from buildkit.build.display import BuildDisplay
from buildkit.build.record import load_record, record_path
from buildkit.errors import CommandFailed
from buildkit.jsonfile import InvalidFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console

    from buildkit.build.events import Events
    from buildkit.engine.client import Engine
    from buildkit.spec import ImageSpec

__all__ = ["PARTS", "ensure_sidecar"]

PARTS = ("postgres", "proxy")


def ensure_sidecar(
    spec: ImageSpec,
    part: str,
    *,
    engine: Engine,
    folder: Path,
    environment: Mapping[str, str],
    console: Console,
    log: Callable[[str], None],
) -> str:
    """The digest of *part*'s image in the engine: the last one built, as long as what it is made from is the same.

    Building it anew for each release would give it another label, and restart the database for nothing.

    Raises:
        BuildFailed: it does not build.
    """
    path = record_path(folder, part)
    mark = folder / f"image-{part}.inputs"
    inputs = _inputs(spec, part)
    if mark.exists() and mark.read_text() == inputs:
        with contextlib.suppress(InvalidFile, CommandFailed):
            digest = load_record(path).digest
            engine.docker("image", "inspect", "--format", "{{.Id}}", digest)
            return digest
    log(f"building {part}")

    def show(events: Events) -> BuildDisplay:
        return BuildDisplay(console, events, title=f"building {part}")

    origin = base.ensure_base_image(
        engine, reference=spec.base, python=spec.python, origin="auto", cache=folder / "cache", log=log
    )
    record = build.build(
        spec,
        spec.target(part),
        engine=engine,
        base=origin,
        environment=environment,
        folder=folder,
        show=show,
    )
    mark.write_text(inputs)
    return record.digest


def _inputs(spec: ImageSpec, part: str) -> str:
    """SHA-256 (hex) over the names and contents of all that *part* is built from, the base's name included."""
    docker = spec.project / "docker"
    sources = [docker / f"{part}.Dockerfile", docker / "apt-install", *sorted((docker / part).rglob("*"))]
    seen = hashlib.sha256(spec.base.encode())
    for path in sources:
        if path.is_file():
            seen.update(f"{path.relative_to(docker)} {path.stat().st_mode & 0o777:o}\n".encode() + path.read_bytes())
    return seen.hexdigest()
