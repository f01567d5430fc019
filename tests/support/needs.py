"""Skips a test that needs something the machine lacks, or fails it if `--require NEED` was given.

A test asks for a need by taking the fixture of that name; pytest derives the marker of the same name from it, so that
`-m "not docker"` deselects these tests.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NEEDS", "add_markers", "find_program", "skip_or_fail"]

NEEDS = ("docker", "browser", "postgres")
"""Fixtures that stand for a need and have a marker of the same name."""


def skip_or_fail(config: pytest.Config, need: str, why: str) -> NoReturn:
    """Skips the test, or fails it if *need* is required; *why* says what is missing."""
    if need in config.getoption("--require", []):
        pytest.fail(f"{need} is required: {why}", pytrace=False)
    pytest.skip(f"no {need}: {why}")


def find_program(config: pytest.Config, need: str, *names: str) -> str:
    """Returns the path of the first of *names* that is installed; without one, skips the test or fails it."""
    for name in names:
        if found := shutil.which(name):
            return found
    skip_or_fail(config, need, f"{' or '.join(names)} is not installed")


def add_markers(items: Iterable[pytest.Item]) -> None:
    """Marks each test with the needs whose fixtures it takes."""
    for item in items:
        for need in NEEDS:
            if need in getattr(item, "fixturenames", ()):
                item.add_marker(need)
