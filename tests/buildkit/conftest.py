"""Fixtures for the tests of the toolkit: a C compiler, for libraries that the loader accepts."""

from __future__ import annotations

import pytest

from tests.support.needs import find_program


@pytest.fixture(scope="session")
def gcc(pytestconfig: pytest.Config) -> str:
    """The path of a C compiler for this machine."""
    return find_program(pytestconfig, "gcc", "gcc")
