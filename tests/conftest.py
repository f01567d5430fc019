"""Fixtures for tools beyond Python that tests need (a container engine, a browser), and the option `--require NEED`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from buildkit.engine import daemon
from buildkit.errors import BuildkitError
from tests.support import needs
from tests.support.docker_stub import DockerStub

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ON_DEMAND = {"staging": "brings up the whole stack and breaks it", "cluster": "starts three engines"}
"""Markers of tests that run only with `-m`, and the reason."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require",
        action="append",
        default=[],
        metavar="NEED",
        help="fail tests that need NEED (docker, browser, postgres, gcc) instead of skipping them if it is missing",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = config.option.markexpr or ""
    for item in items:
        for marker, cost in ON_DEMAND.items():
            if marker not in selected and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{cost}: run with -m {marker}"))
    needs.add_markers(items)


@pytest.fixture(scope="session")
def docker(pytestconfig: pytest.Config) -> Sequence[str]:
    """The `docker` command of a running engine, with its options: append arguments and run it."""
    try:
        found = daemon.find(os.environ, daemon.ManagedDaemon())
    except BuildkitError as error:
        needs.skip_or_fail(pytestconfig, "docker", str(error).splitlines()[0])
    return ("docker", "-H", found.host) if found.host else ("docker",)


@pytest.fixture(scope="session")
def browser(pytestconfig: pytest.Config) -> str:
    """The path of Chromium."""
    return needs.find_program(pytestconfig, "browser", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def docker_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DockerStub:
    """A fake `docker` program, first on PATH, without answers."""
    stub = DockerStub(tmp_path / "docker-stub")
    stub.first_on_path(monkeypatch)
    return stub
