"""Removes the images of old releases from the engine and the local registry. Images in use stay."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit.errors import RegistryFailed
from buildkit.staging.release import records
from buildkit.staging.stack.registry import Registry
from buildkit.staging.stack.services import SERVICES
from buildkit.text import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buildkit.engine.client import Engine
    from buildkit.staging.stack.registry import LocalRegistry
    from buildkit.staging.stack.stack import Stack

__all__ = ["Removed", "prune_images"]


@dataclass(frozen=True, slots=True)
class Removed:
    """The removed images, and the bytes that this freed.

    Attributes:
        images: repository with digest of each.
        engine_bytes: freed in the engine, by `docker system df`.
        registry_bytes: freed in the local registry's folder; 0 for another registry, which is not cleaned here.
    """

    images: tuple[str, ...]
    engine_bytes: int
    registry_bytes: int


def prune_images(
    engine: Engine, stack: Stack, state: Path, *, keep: int, local: LocalRegistry | None, log: Callable[[str], None]
) -> Removed:
    """Removes the images of releases beyond the newest *keep*; see `records.removable` for those that stay anyway."""
    running = _running_digests(stack)
    tags = _tags(engine)
    before_bytes = _image_bytes(engine)
    removed: list[str] = []
    for release in records.removable(records.load(state), keep):
        if release.digest in running:
            continue
        repository = release.image.partition("@")[0]
        for tag in (tag for tag, digests in tags.items() if release.digest in digests):
            if tag.startswith(f"{repository}:"):
                # Ended containers of old replicas refer to the image for a while, hence --force. None of them runs.
                engine.docker("image", "rm", "--force", tag)
                removed.append(release.image)
        if local is not None and repository.startswith(f"{local.address}/"):
            with contextlib.suppress(RegistryFailed):
                if Registry(local.address).delete(repository.partition("/")[2], release.digest):
                    removed.append(release.image)
    if not removed:
        return Removed((), 0, 0)
    registry_bytes = local.collect_garbage(log) if local is not None else 0
    return Removed(tuple(dict.fromkeys(removed)), max(0, before_bytes - _image_bytes(engine)), registry_bytes)


def _running_digests(stack: Stack) -> set[str]:
    """Returns the digests that any replica of the stack runs or is about to run."""
    services = [service for service in (*SERVICES, "canary") if stack.exists(service)]
    return {replica.digest for service in services for replica in stack.replicas(service)}


def _tags(engine: Engine) -> dict[str, tuple[str, str]]:
    """Returns repository:tag -> id and digest; the image store decides which of them a release record holds."""
    form = "{{.Repository}}:{{.Tag}} {{.ID}} {{.Digest}}"
    lines = engine.docker("image", "ls", "--digests", "--no-trunc", "--format", form).splitlines()
    return {tag: (identifier, digest) for tag, identifier, digest in (line.split(" ") for line in lines)}


def _image_bytes(engine: Engine) -> int:
    """Returns the bytes of all images by `docker system df`."""
    for line in engine.docker("system", "df", "--format", "{{json .}}", seconds=120).splitlines():
        row = json.loads(line)
        if row["Type"] == "Images":
            return parse_bytes(row["Size"])
    return 0
