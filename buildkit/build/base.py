"""The Python base image: from a registry where one answers, else made here from Debian's packages.

Both reach BuildKit under the name that the Dockerfile uses (a named context), so that one Dockerfile serves both. Which
of the two it was is in the build record and in the image's labels.
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
from typing import TYPE_CHECKING, Literal

from buildkit.engine import install
from buildkit.errors import BaseUnavailable, CommandFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.engine.client import Engine

__all__ = ["Base", "Origin", "ensure_base_image"]

Origin = Literal["auto", "registry", "debian"]

DEBIAN_PYTHONS = {"3.13": "trixie"}
"""The Debian suite that packages each Python as its `python3` (packages.debian.org; 3.12 was in none)."""

_PACKAGES = ("python3", "ca-certificates", "netbase", "tzdata")
"""What python:slim images have too: zone data, service names, root certificates."""

_LEFT_OUT = (
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
"""dpkg options (dpkg.cfg) that hold for packages installed later too; licences stay, nothing waits for the disk."""

_HOOK = """find "$1" -xdev -perm /6000 -type f -exec chmod a-s {} + \
&& rm -f "$1"/var/lib/dpkg/*-old "$1"/var/cache/debconf/*-old "$1"/etc/*-"""
"""Shell, run on the finished tree: what later layers would have to change or delete, and so store or leave twice."""

_EPOCH_SECONDS = 315532800
"""1980-01-01, for mmdebstrap's SOURCE_DATE_EPOCH: the same packages give the same bytes."""

_PULL_SECONDS = 900.0
_REACH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Base:
    """A base image that the engine holds.

    Attributes:
        reference: the name that the Dockerfile uses, as `python:3.13-slim-trixie`.
        digest: of the image in the engine, `sha256:…`.
        origin: where it came from.
        local: the engine's own reference for it, by digest where it has one.
        layers: how many it has; the lowest ones of every image on top of it.
    """

    reference: str
    digest: str
    origin: Literal["registry", "debian"]
    local: str
    layers: int

    def site_packages(self, python: str) -> str:
        """Where this base's own interpreter installs to; Debian's has a folder of its own name (Python Policy)."""
        return f"/usr/local/lib/python{python}/{'dist' if self.origin == 'debian' else 'site'}-packages"

    @property
    def context(self) -> str:
        """The value of BuildKit's named context for `reference`."""
        return f"docker-image://{self.local}"


def ensure_base_image(
    engine: Engine,
    *,
    reference: str,
    python: str,
    origin: Origin,
    cache: Path,
    log: Callable[[str], None],
) -> Base:
    """The base *reference*, from the engine's own store, a registry or Debian's packages, in that order.

    *origin* "registry" or "debian" leaves only that way. Archives made here are kept in *cache*, so that a new engine
    does not need them made again. Says what it does where that takes time.

    Raises:
        BaseUnavailable: no way leads to it.
        UsageError: made from Debian's packages, but no Debian release has this Python.
    """
    local = f"truthgraph-base:python{python}-{_recipe(python)[:12]}"
    if origin != "registry" and (base := _held(engine, reference, "debian", local)):
        return base
    if origin != "debian":
        if base := _held(engine, reference, "registry", reference):
            return base
        try:
            return _pull(engine, reference, log)
        except CommandFailed as error:
            if origin == "registry":
                raise BaseUnavailable(reference, f"cannot be pulled: {error.log_tail}") from error
            log(f"{reference} cannot be pulled ({error.log_tail.splitlines()[-1]}); making it from Debian's packages")
    archive = cache / f"base-{_recipe(python)}.tar"
    if not archive.exists():
        _make(python, archive, log)
    _load(engine, archive, local)
    base = _held(engine, reference, "debian", local)
    if base is None:
        raise BaseUnavailable(local, "the engine took it and does not show it")
    return base


def _held(engine: Engine, reference: str, origin: Literal["registry", "debian"], local: str) -> Base | None:
    """The base that the engine holds as *local*, None where it has none."""
    try:
        inspected = json.loads(engine.docker("image", "inspect", local))[0]
    except CommandFailed:
        return None
    repository_digests: list[str] = inspected.get("RepoDigests") or []
    digest = repository_digests[0].partition("@")[2] if repository_digests else str(inspected["Id"])
    return Base(reference, digest, origin, local, len(inspected["RootFS"].get("Layers") or ()))


def _pull(engine: Engine, reference: str, log: Callable[[str], None]) -> Base:
    """Pulls *reference*; a registry that does not answer within `_REACH_SECONDS` counts as none."""
    engine.docker("buildx", "imagetools", "inspect", "--raw", reference, seconds=_REACH_SECONDS)
    log(f"pulling {reference}")
    engine.docker("pull", "--quiet", reference, seconds=_PULL_SECONDS)
    base = _held(engine, reference, "registry", reference)
    if base is None:
        raise CommandFailed(["docker", "pull", reference], 0, "pulled, but the engine does not show it")
    return base


def _recipe(python: str) -> str:
    """SHA-256 (hex) of what decides how a base is made: another recipe is another base."""
    parts = [python, DEBIAN_PYTHONS.get(python, ""), *_PACKAGES, *_LEFT_OUT, _HOOK, str(_EPOCH_SECONDS)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _make(python: str, archive: Path, log: Callable[[str], None]) -> None:
    """Makes the root file system as a tar at *archive* with mmdebstrap, from the machine's own Debian mirror."""
    suite = DEBIAN_PYTHONS.get(python)
    if suite is None:
        raise UsageError(
            "image.python", python, f"Debian packages {', '.join(DEBIAN_PYTHONS)} only; others need a registry"
        )
    if shutil.which("mmdebstrap") is None:
        install.install_packages(("mmdebstrap",), log)
    mirror = install.debian_mirror()
    archive.parent.mkdir(parents=True, exist_ok=True)
    log(f"making a Debian {suite} base with Python {python} (about 20 s, more where the mirror is slow)")
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        part = Path(scratch) / "base.tar"
        command = ["mmdebstrap", "--variant=apt", f"--include={','.join(_PACKAGES)}"]
        command += [f"--dpkgopt={option}" for option in _LEFT_OUT]
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
    """Gives the engine *archive* as the image *local*: one layer, uncompressed, owner and times as they are."""
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
