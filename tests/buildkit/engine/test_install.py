from __future__ import annotations

import os

import pytest

from buildkit.engine import install
from buildkit.errors import EngineUnavailable


def test_user_without_root_gets_the_commands_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(EngineUnavailable, match=r"docker\.io is not installed") as caught:
        install.install_packages(("docker.io", "docker-cli"), lambda _: None)

    assert caught.value.commands


def test_pin_takes_only_docker_packages_from_debian_13() -> None:
    everything, docker = install.backport_pins().strip().split("\n\n")

    assert "Package: *" in everything
    assert "Pin-Priority: -1" in everything
    assert "docker.io docker-cli docker-buildx containerd" in docker
    assert "runc" not in docker


def test_backport_source_is_on_the_mirror_of_the_machine() -> None:
    source = install.backport_source("http://mirror.test/debian/")

    assert "URIs: http://mirror.test/debian/" in source
    assert "Suites: trixie" in source
