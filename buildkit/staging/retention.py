"""Which images of old releases go, and what room that gives back. What runs is never touched."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit.errors import RegistryFailed
from buildkit.staging.release import records
from buildkit.staging.stack.registry import Registry
from buildkit.text import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buildkit.engine.client import Engine
    from buildkit.staging.stack.registry import LocalRegistry
    from buildkit.staging.stack.stack import Stack

__all__ = ["Freed", "prune_images"]


@dataclass(frozen=True, slots=True)
class Freed:
    """What went.

    Attributes:
        images: by repository and digest.
        engine_bytes: that the engine counts less of (`docker system df`).
        registry_bytes: that the local registry's folder takes less; 0 for another registry, whose cleaning is its own.
    """

    images: tuple[str, ...]
    engine_bytes: int
    registry_bytes: int


def prune_images(
    engine: Engine, stack: Stack, state: Path, *, keep: int, local: LocalRegistry | None, log: Callable[[str], None]
) -> Freed:
    """Removes the images of releases beyond the newest *keep* and the last good one, except those that run."""
    known = records.load(state)
    running = _running(stack)
    gone = [each for each in records.removable(known, keep) if each.digest not in running]
    names = _names(engine)
    before_bytes = _image_bytes(engine)
    removed: list[str] = []
    for release in gone:
        repository = release.image.partition("@")[0]
        for name in (name for name, digests in names.items() if release.digest in digests):
            if name.startswith(f"{repository}:"):
                # Containers of replicas that have ended keep their image for a while: hence by force. None runs.
                engine.docker("image", "rm", "--force", name)
                removed.append(release.image)
        if local is not None and repository.startswith(f"{local.address}/"):
            with contextlib.suppress(RegistryFailed):
                if Registry(local.address).delete(repository.partition("/")[2], release.digest):
                    removed.append(release.image)
    if not removed:
        return Freed((), 0, 0)
    registry_bytes = local.collect(log) if local is not None else 0
    return Freed(tuple(dict.fromkeys(removed)), max(0, before_bytes - _image_bytes(engine)), registry_bytes)


def _running(stack: Stack) -> set[str]:
    """The digests that any replica of the stack has or shall have."""
    parts = [part for part in ("api", "database", "proxy", "canary") if stack.exists(part)]
    return {replica.digest for part in parts for replica in stack.replicas(part)}


def _names(engine: Engine) -> dict[str, tuple[str, str]]:
    """Repository and tag -> the image's id and digest; which of them is the manifest's depends on the image store."""
    form = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}"
    lines = engine.docker("image", "ls", "--digests", "--no-trunc", "--format", form).splitlines()
    return {name: (identifier, digest) for name, identifier, digest in (line.split(" ") for line in lines)}


def _image_bytes(engine: Engine) -> int:
    """Bytes of all images, as the engine counts them."""
    for line in engine.docker("system", "df", "--format", "{{json .}}", seconds=120).splitlines():
        row = json.loads(line)
        if row["Type"] == "Images":
            return parse_bytes(row["Size"])
    return 0
