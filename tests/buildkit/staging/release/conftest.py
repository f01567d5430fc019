from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from buildkit.staging.release.release import stage
from tests.support.fake_stack import FakeSite

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def site(tmp_path: Path) -> FakeSite:
    """A site on which nothing was ever released."""
    return FakeSite(tmp_path)


@pytest.fixture
def serving(site: FakeSite) -> FakeSite:
    """A site on which the release of image "a" serves, on schema 0001."""
    stage(site.context("a"))
    site.calls.clear()
    site.lines.clear()
    return site
