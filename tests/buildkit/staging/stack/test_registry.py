from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import RegistryFailed
from buildkit.staging.stack.registry import LocalRegistry, Registry

if TYPE_CHECKING:
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_stale_pid_file_is_not_in_the_way(tmp_path: Path) -> None:
    """Its number may be another program's by now: this test's, for example."""
    (tmp_path / "registry.pid").write_text(f"{os.getpid()}\n")

    assert LocalRegistry(tmp_path).pid() is None


def test_it_listens_on_loopback_only(tmp_path: Path) -> None:
    configuration = LocalRegistry(tmp_path, 5099).configuration()

    assert configuration["http"] == {"addr": "127.0.0.1:5099"}


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    registry = LocalRegistry(tmp_path, free_port())
    registry.program.parent.mkdir(parents=True)
    registry.program.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    registry.program.chmod(0o755)

    with pytest.raises(RegistryFailed, match=r"did not start(?s:.*)no room") as caught:
        registry.ensure(lambda _: None)

    assert caught.value.exit_code == 3
    assert registry.pid() is None


def test_no_registry_does_not_answer() -> None:
    registry = Registry(f"127.0.0.1:{free_port()}")

    assert not registry.answers()
    with pytest.raises(RegistryFailed, match="does not answer"):
        registry.digest("api", "latest")


def test_stopping_where_nothing_runs_says_so(tmp_path: Path) -> None:
    assert LocalRegistry(tmp_path).stop(lambda _: None) is False
