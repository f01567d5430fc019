"""Fixtures for slimming: the C compiler, for libraries that the loader accepts."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session")
def gcc(pytestconfig: pytest.Config) -> str:
    """The path of a C compiler for this machine."""
    found = shutil.which("gcc")
    if found is None:
        if "gcc" in pytestconfig.getoption("--require"):
            pytest.fail("gcc is required and not installed", pytrace=False)
        pytest.skip("no gcc")
    return found
