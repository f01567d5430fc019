"""Makes the labels of an image: its description and its inputs."""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import TYPE_CHECKING

from buildkit.image.labels import BASE_LAYERS_LABEL

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit.build.base import BaseImage
    from buildkit.spec import ImageSpec, Target

__all__ = ["image_labels", "project_version"]


def image_labels(spec: ImageSpec, target: Target, base: BaseImage, lock_sha256: str) -> dict[str, str]:
    """Returns OCI's pre-defined annotations (image-spec annotations.md), and `io.truthgraph` labels for the inputs."""
    revision, created = _revision(spec.project)
    return {
        "org.opencontainers.image.title": spec.title,
        "org.opencontainers.image.description": spec.description,
        "org.opencontainers.image.licenses": spec.licenses,
        "org.opencontainers.image.version": project_version(spec.project),
        "org.opencontainers.image.revision": revision,
        "org.opencontainers.image.source": _source(spec.project),
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.base.name": base.reference,
        "org.opencontainers.image.base.digest": base.digest,
        "io.truthgraph.base.origin": base.origin,
        BASE_LAYERS_LABEL: str(base.layers),
        "io.truthgraph.lock.sha256": lock_sha256,
        **_slim_labels(target),
    }


def _slim_labels(target: Target) -> dict[str, str]:
    """Returns the slim profile and GPU targets; "not on a device": no GPU has run the image yet (docs/measured)."""
    profile = target.arguments.get("SLIM_PROFILE")
    if profile is None:
        return {}
    return {
        "io.truthgraph.slim.profile": profile,
        "io.truthgraph.slim.targets": target.arguments.get("SLIM_TARGETS", ""),
        "io.truthgraph.slim.verified": "not on a device",
    }


def project_version(project: Path) -> str:
    """Returns the version in pyproject.toml."""
    return str(tomllib.loads((project / "pyproject.toml").read_text())["project"]["version"])


def _git(project: Path, *arguments: str) -> str:
    command = ["git", "-C", str(project), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _revision(project: Path) -> tuple[str, str]:
    """Returns the commit, with `-dirty` if tracked files differ, and its time; "unknown" and 1970 outside a checkout.

    The time is the commit's, not the clock's, so that two builds of one commit give the same image.
    """
    commit, _, created = _git(project, "log", "-1", "--format=%H %cI").partition(" ")
    if not commit:
        return "unknown", "1970-01-01T00:00:00Z"
    dirty = _git(project, "status", "--porcelain", "--untracked-files=no")
    return (f"{commit}-dirty" if dirty else commit), created


def _source(project: Path) -> str:
    """Returns the address of the git remote without credentials; "local" if there is none."""
    remote = _git(project, "config", "--get", "remote.origin.url")
    if not re.match(r"(https?|ssh)://|git@", remote):
        return "local"
    return re.sub(r"(?<=://)[^/@]*@", "", remote)
