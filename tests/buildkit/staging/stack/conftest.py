from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.staging.stack import polling
from buildkit.staging.stack.stack import Stack
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls without delay."""
    monkeypatch.setattr(polling, "_INTERVAL_SECONDS", 0.001)


@pytest.fixture
def engine() -> FakeEngine:
    """An engine that manages a swarm."""
    swarm = {"LocalNodeState": "active", "ControlAvailable": True, "Cluster": {"ID": "cluster"}}
    return FakeEngine(answers={"info": json.dumps(swarm)})


@pytest.fixture
def stack(engine: FakeEngine, tmp_path: Path) -> Stack:
    """A stack on `engine`."""
    return Stack(engine=engine, name="s", file=tmp_path / "stack.yaml", secrets=tmp_path / "secrets")
