from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import UsageError
from buildkit.staging.stack import swarm

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.fake_engine import FakeEngine

INACTIVE = json.dumps({"LocalNodeState": "inactive"})


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (INACTIVE, "stage on this machine alone with `-- --local`"),
        ('{"LocalNodeState": "active", "ControlAvailable": false}', "name a manager"),
    ],
)
def test_engine_that_cannot_deploy_is_refused(engine: FakeEngine, tmp_path: Path, status: str, shown: str) -> None:
    engine.answers["info"] = status

    with pytest.raises(UsageError, match=shown):
        swarm.ensure_swarm(engine, tmp_path, is_local=False, log=lambda _: None)


def test_manager_stays_as_it_is(engine: FakeEngine, tmp_path: Path) -> None:
    swarm.ensure_swarm(engine, tmp_path, is_local=True, log=lambda _: None)

    assert swarm.is_manager(engine)
    assert not engine.called("swarm")


def test_swarm_made_here_is_left_again(engine: FakeEngine, tmp_path: Path) -> None:
    active = engine.answers["info"]
    assert isinstance(active, str)
    engine.answers["info"] = [INACTIVE, active]

    swarm.ensure_swarm(engine, tmp_path, is_local=True, log=lambda _: None)
    swarm.leave_swarm(engine, tmp_path, log=lambda _: None)
    swarm.leave_swarm(engine, tmp_path, log=lambda _: None)

    assert [call.split()[1] for call in engine.called("swarm")] == ["init", "leave"]


def test_swarm_with_other_services_is_not_left(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "swarm-made-here").write_text("cluster\n")
    engine.answers["service ls"] = "other\n"
    lines: list[str] = []

    swarm.leave_swarm(engine, tmp_path, log=lines.append)

    assert lines == ["the swarm stays: other services run in it"]
    assert not engine.called("swarm")


def test_another_swarm_is_not_left(engine: FakeEngine, tmp_path: Path) -> None:
    (tmp_path / "swarm-made-here").write_text("earlier cluster\n")

    swarm.leave_swarm(engine, tmp_path, log=lambda _: None)

    assert not engine.called("swarm")
