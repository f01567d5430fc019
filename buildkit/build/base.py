"""Provides the Python base image: pulled from a registry, or made from Debian's packages if no registry answers.

BuildKit gets either by the name in the Dockerfile (a named context), so one Dockerfile works with both. The build
record and the image's labels hold its origin.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from buildkit.engine import install
from buildkit.errors import BaseUnavailable, CommandFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.engine.client import Engine

__all__ = ["BaseImage", "Origin", "ensure_base_image"]

Origin = Literal["auto", "registry", "debian"]

DEBIAN_PYTHONS: Final = {"3.13": "trixie"}
"""The Debian suite that packages this version as `python3` (packages.debian.org; no suite had 3.12)."""

_PACKAGES: Final = ("python3", "ca-certificates", "netbase", "tzdata")
"""The contents of python:slim images: Python, root certificates, service names, time zones."""

_DPKG_OPTIONS: Final = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/i18n/*",
    "path-exclude=/usr/share/pixmaps/*",
    "path-exclude=/usr/share/bash-completion/*",
    "force-unsafe-io",
)
"""dpkg.cfg, also for packages that are installed later: no documentation except licences, no waiting for the disk."""

_HOOK: Final = """find "$1" -xdev -perm /6000 -type f -exec chmod a-s {} + \
&& rm -f "$1"/var/lib/dpkg/*-old "$1"/var/cache/debconf/*-old "$1"/etc/*-"""
"""Shell script for the finished tree. It removes files that later layers would change or delete, and so store again."""

_EPOCH_SECONDS: Final = 315532800
"""1980-01-01, mmdebstrap's SOURCE_DATE_EPOCH: the same packages give the same bytes."""

_PULL_SECONDS: Final = 900.0
_REACH_SECONDS: Final = 30.0
"""The longest time for a registry's first answer."""


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base image in the engine's store.

    Attributes:
        reference: its name in the Dockerfile, for example `python:3.13-slim-trixie`.
        digest: the digest of the image in the engine, `sha256:…`.
        origin: "registry" or "debian".
        local: its name in the engine.
        layers: the number of its layers; they are the lowest layers of each image that is built on it.
    """

    reference: str
    digest: str
    origin: Literal["registry", "debian"]
    local: str
    layers: int

    def site_packages(self, python: str) -> str:
        """Returns the folder into which its Python installs; Debian's differs from others (Debian Python Policy)."""
        return f"/usr/local/lib/python{python}/{'dist' if self.origin == 'debian' else 'site'}-packages"

    @property
    def context(self) -> str:
        """BuildKit's named context for `reference`."""
        return f"docker-image://{self.local}"


def ensure_base_image(
    engine: Engine,
    *,
    reference: str,
    python: str,
    origin: Origin,
    cache: Path,
    log: Callable[[str], None],
) -> BaseImage:
    """Returns the base image, from the engine's store, a registry or Debian's packages, in that order.

    Args:
        engine: stores the image.
        reference: the name of the image in a registry and in the Dockerfile.
        python: its Python version.
        origin: "registry" and "debian" allow only that origin.
        cache: the folder for archives made from Debian's packages, which a new engine can load.
        log: gets a line for each slow action.

    Raises:
        BaseUnavailable: it can be neither pulled nor made.
        UsageError: it must be made from Debian's packages, but no Debian release has this Python.
    """
    local = f"truthgraph-base:python{python}-{_recipe(python)[:12]}"
    if origin != "registry" and (base := _find(engine, reference, "debian", local)):
        return base
    if origin != "debian":
        if base := _find(engine, reference, "registry", reference):
            return base
        try:
            return _pull(engine, reference, log)
        except CommandFailed as error:
            if origin == "registry":
                raise BaseUnavailable(reference, f"cannot be pulled: {error.log_tail}") from error
            reason = error.log_tail.rpartition("\n")[2] or f"exit code {error.exit_code_of_command}"
            log(f"{reference} cannot be pulled ({reason}); making it from Debian's packages")
    archive = cache / f"base-{_recipe(python)}.tar"
    if not archive.exists():
        _make(python, archive, log)
    _load(engine, archive, local)
    base = _find(engine, reference, "debian", local)
    if base is None:
        raise BaseUnavailable(local, "the engine loaded it, but does not list it")
    return base


def _find(engine: Engine, reference: str, origin: Literal["registry", "debian"], local: str) -> BaseImage | None:
    """Returns the base image with the name *local* in the engine; None if there is none."""
    try:
        inspected = json.loads(engine.docker("image", "inspect", local))[0]
    except CommandFailed:
        return None
    repository_digests: list[str] = inspected.get("RepoDigests") or []
    digest = repository_digests[0].partition("@")[2] if repository_digests else str(inspected["Id"])
    return BaseImage(reference, digest, origin, local, len(inspected["RootFS"].get("Layers") or ()))


def _pull(engine: Engine, reference: str, log: Callable[[str], None]) -> BaseImage:
    """Pulls the image; fails if the registry does not answer within `_REACH_SECONDS`."""
    engine.docker("buildx", "imagetools", "inspect", "--raw", reference, seconds=_REACH_SECONDS)
    log(f"pulling {reference}")
    engine.docker("pull", "--quiet", reference, seconds=_PULL_SECONDS)
    base = _find(engine, reference, "registry", reference)
    if base is None:
        raise CommandFailed(["docker", "pull", reference], 0, "pulled, but the engine does not list it")
    return base


def _recipe(python: str) -> str:
    """Returns the SHA-256 (hex) of everything that determines a base image made from Debian's packages."""
    parts = [python, DEBIAN_PYTHONS.get(python, ""), *_PACKAGES, *_DPKG_OPTIONS, _HOOK, str(_EPOCH_SECONDS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _make(python: str, archive: Path, log: Callable[[str], None]) -> None:
    """Makes the root file system as a tar file with mmdebstrap, from the machine's Debian mirror."""
    suite = DEBIAN_PYTHONS.get(python)
    if suite is None:
        raise UsageError(
            "image.python", python, f"Debian has {', '.join(DEBIAN_PYTHONS)} only; other versions need a registry"
        )
    if shutil.which("mmdebstrap") is None:
        install.install_packages(("mmdebstrap",), log)
    mirror = install.debian_mirror()
    archive.parent.mkdir(parents=True, exist_ok=True)
    log(f"making a Debian {suite} base image with Python {python} (about 20 s with a fast mirror)")
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        part = Path(scratch) / "base.tar"
        command = ["mmdebstrap", "--variant=apt", f"--include={','.join(_PACKAGES)}"]
        command += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
        command += ['--aptopt=APT::Install-Recommends "false"', f"--customize-hook={_HOOK}", suite, str(part)]
        command += [
            f"deb {uri} {release} main"
            for uri, release in (
                (mirror.uri, suite),
                (mirror.uri, f"{suite}-updates"),
                *([(mirror.security_uri, f"{suite}-security")] if mirror.security_uri else []),
            )
        ]
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(_EPOCH_SECONDS)}
        tail: deque[str] = deque(maxlen=12)
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():
                tail.append(line.rstrip())
                if line.startswith("I: ") and line.rstrip().endswith("..."):
                    log(f"  {line[3:].rstrip()}")
        if process.returncode != 0:
            raise CommandFailed(command[:2], process.returncode, "\n".join(tail))
        part.replace(archive)


def _load(engine: Engine, archive: Path, local: str) -> None:
    """Loads *archive* into the engine as the image *local*: one uncompressed layer that keeps owners and times."""
    with tempfile.TemporaryDirectory() as context:
        try:
            os.link(archive, Path(context) / "base.tar")
        except OSError:
            shutil.copyfile(archive, Path(context) / "base.tar")
        (Path(context) / "Dockerfile").write_text('FROM scratch\nADD base.tar /\nCMD ["python3"]\n')
        engine.docker(
            *("buildx", "build", "--quiet", "--provenance=false"),
            *("--output", f"type=image,name={local},compression=uncompressed"),
            context,
            seconds=_PULL_SECONDS,
        )
