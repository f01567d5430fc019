"""What tests may need beyond Python: a fixture per need, absent means skipped, and failed under `--require NEED`.

A test asks for a need by taking its fixture; the marker of the same name is derived from that, so that
`-m "not docker"` leaves them out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NoReturn

import pytest

from buildkit.engine import daemon
from buildkit.errors import BuildkitError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NEEDS = ("docker", "browser")
"""The needs that this file knows; folders below may add their own with `--require` read the same way."""
ON_DEMAND = {"staging": "brings up the whole stack and breaks it", "cluster": "starts three engines"}
"""Markers of tests that run where `-m` names them only, and what they cost."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require", action="append", default=[], metavar="NEED", help="fail instead of skipping where NEED is absent"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = config.option.markexpr or ""
    for item in items:
        for marker, cost in ON_DEMAND.items():
            if marker not in asked and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{cost}: run with -m {marker}"))
        for need in NEEDS:
            if need in getattr(item, "fixturenames", ()):
                item.add_marker(need)


def absent(config: pytest.Config, need: str, why: str) -> NoReturn:
    """Skip the test, or fail it where the need was required."""
    if need in config.getoption("--require"):
        pytest.fail(f"{need} is required: {why}", pytrace=False)
    pytest.skip(f"no {need}: {why}")


def make_certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for *name* and its key in one file, as the proxy takes them; made by openssl."""
    key, chain = folder / f"{name}.key", folder / f"{name}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    both = folder / f"{name}.pem"
    both.write_text(chain.read_text() + key.read_text())
    return both


@pytest.fixture(scope="session")
def docker(pytestconfig: pytest.Config) -> Sequence[str]:
    """The client of an engine that answers, with its options: append a command and run it."""
    try:
        found = daemon.find(os.environ, daemon.ManagedDaemon())
    except BuildkitError as error:
        absent(pytestconfig, "docker", str(error).splitlines()[0])
    return ("docker", "-H", found.host) if found.host else ("docker",)


@pytest.fixture(scope="session")
def browser(pytestconfig: pytest.Config) -> str:
    """A Chromium that runs headless."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        absent(pytestconfig, "browser", "neither chromium nor google-chrome is installed")
    return found
