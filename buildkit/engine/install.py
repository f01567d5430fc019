"""Installs Debian packages: Docker, and the tools that make the base image."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.engine.client import version_numbers
from buildkit.errors import CommandFailed, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["DOCKER_PACKAGES", "Mirror", "debian_mirror", "install_docker", "install_packages"]

DOCKER_PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "containerd")
_BACKPORT_SUITE = "trixie"
"""Debian 13: the first release that packages buildx (docker.io 26.1, docker-buildx 0.13)."""
_BACKPORT_RELEASE = 13
_DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def _release() -> dict[str, str]:
    """Returns the fields of the machine's /etc/os-release; empty if there is no such file."""
    path = Path("/etc/os-release")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def backport_source(uri: str) -> str:
    """Returns an apt source (deb822) for Debian 13 on the mirror *uri*."""
    return (
        "# Docker's packages of Debian 13, pinned in preferences.d/truthgraph-engine. Written by `nox -s engine`.\n"
        f"Types: deb\nURIs: {uri}\nSuites: {_BACKPORT_SUITE}\nComponents: main\nSigned-By: {_DEBIAN_KEYRING}\n"
    )


def backport_pins(packages: Sequence[str] = DOCKER_PACKAGES) -> str:
    """Returns apt preferences that take only *packages* from Debian 13."""
    return (
        f"Package: *\nPin: release n={_BACKPORT_SUITE}\nPin-Priority: -1\n\n"
        f"Package: {' '.join(packages)}\nPin: release n={_BACKPORT_SUITE}\nPin-Priority: 990\n"
    )


@dataclass(frozen=True, slots=True)
class Mirror:
    """The addresses of the machine's Debian archive, and of its security archive (None if apt has none)."""

    uri: str
    security_uri: str | None


def debian_mirror() -> Mirror:
    """Returns the Debian archive of this machine, from its apt sources in any format.

    Raises:
        EngineUnavailable: apt has no source for this release.
    """
    codename = _release().get("VERSION_CODENAME", "")
    fields = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        uri, release, component = line.split("\t")
        if component == "main":
            found.setdefault(release, uri)
    if codename not in found:
        raise EngineUnavailable("apt", f"no source for {codename} main in /etc/apt", ["apt-get update"])
    return Mirror(found[codename], found.get(f"{codename}-security"))


def _by_hand(packages: Sequence[str]) -> list[str]:
    """Returns the commands that an administrator can run instead."""
    return [f"sudo apt-get install {' '.join(packages)}", "nox -s engine"]


def _require_root_and_apt(packages: Sequence[str]) -> None:
    """Checks that *packages* can be installed.

    Raises:
        EngineUnavailable: this is not Debian, or this user is not root.
    """
    release = _release()
    if shutil.which("apt-get") is None or release.get("ID") != "debian":
        name = release.get("PRETTY_NAME", "this system")
        advice = ["see docs.docker.com/engine/install"]
        raise EngineUnavailable("this machine", f"{packages[0]} is not installed, and {name} is not Debian", advice)
    if os.geteuid() != 0:
        reason = f"{packages[0]} is not installed, and only root may install it"
        raise EngineUnavailable("this machine", reason, _by_hand(packages))


def install_packages(packages: Sequence[str], log: Callable[[str], None]) -> None:
    """Installs *packages* from the machine's Debian release.

    Raises:
        EngineUnavailable: this is not Debian, or this user is not root; `commands` says what to run.
        CommandFailed: apt failed.
    """
    _require_root_and_apt(packages)
    _apt(log, "update")
    _apt(log, "install", "--yes", "--no-install-recommends", *packages)


def install_docker(packages: Sequence[str], log: Callable[[str], None]) -> None:
    """Installs Docker *packages*. On Debian 12 they come from a source of Debian 13, pinned to these packages."""
    _require_root_and_apt(packages)
    release = _release()
    codename = release.get("VERSION_CODENAME", "")
    _apt(log, "update")
    if codename != _BACKPORT_SUITE and version_numbers(release.get("VERSION_ID", ""))[0] < _BACKPORT_RELEASE:
        mirror = debian_mirror()
        source = Path("/etc/apt/sources.list.d/truthgraph-engine.sources")
        preferences = Path("/etc/apt/preferences.d/truthgraph-engine")
        log(f"taking {', '.join(DOCKER_PACKAGES)} from Debian 13: writing {source} and {preferences}")
        preferences.write_text(backport_pins())
        source.write_text(backport_source(mirror.uri))
        _apt(log, "update")
    with _no_service_starts():
        _apt(log, "install", "--yes", "--no-install-recommends", *packages, "iptables")


def _apt(log: Callable[[str], None], *arguments: str) -> None:
    command = ["apt-get", "--quiet", "--quiet", *arguments]
    log(f"running {' '.join(command)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, (done.stdout + done.stderr).strip()[-2000:])


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Prevents packages from starting their services during the installation (Debian Policy 9.3.3.1)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()
