from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from buildkit.errors import StackFailed
from buildkit.staging.stack import canary
from tests.support.swarm_tasks import show_tasks, task

if TYPE_CHECKING:
    from buildkit.staging.stack.stack import Stack
    from tests.support.fake_engine import FakeEngine

SPEC = {
    "Env": ["TRUTHGRAPH_TASK_WORKERS=4", "TRUTHGRAPH_BODY_BYTES=1", "OTHER=a=b"],
    "Mounts": [
        {"Type": "volume", "Source": "models", "Target": "/m", "ReadOnly": True, "VolumeOptions": {"NoCopy": True}},
        {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 9}},  # noqa: S108 - a path in a container
    ],
    "Secrets": [{"SecretName": "s-url-1", "File": {"Name": "database-url"}}],
    "CapabilityDrop": ["ALL"],
    "Healthcheck": {"Test": ["CMD-SHELL", "curl"], "StartPeriod": 90_000_000_000},
    "Args": ["serve"],
}


@pytest.fixture(autouse=True)
def _spec(engine: FakeEngine) -> None:
    engine.answers["service inspect s_api"] = json.dumps([{"Spec": {"TaskTemplate": {"ContainerSpec": SPEC}}}])


@pytest.fixture(autouse=True)
def _short_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_MOMENT_SECONDS", 0.01)


def test_canary_is_configured_as_the_api_without_traffic(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("a", "preparing")], [task("a", "starting")])

    container = stack.with_release({}, {"TRUTHGRAPH_BODY_BYTES": "2"}).start_canary("api@sha256:b", seconds=5)

    assert container == "c-a"
    [created] = engine.called("service create")
    for part in (
        "--name s_canary",
        "--network s_back",
        "--env TRUTHGRAPH_BODY_BYTES=2 --env OTHER=a=b",
        "--mount type=volume,target=/m,source=models,readonly,volume-nocopy=true",
        "--mount type=tmpfs,target=/tmp,tmpfs-size=9",
        "--secret source=s-url-1,target=database-url",
        "--cap-drop ALL",
        "--health-cmd curl --health-interval 2s --health-start-period 90000ms",
        "--env TRUTHGRAPH_TASK_WORKERS=0 api@sha256:b serve",
    ):
        assert part in created
    assert "TRUTHGRAPH_TASK_WORKERS=4" not in created


def test_canary_that_ends_fails_with_its_log(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("a", "failed", error="exit 7")])
    engine.answers["logs"] = "bad setting\n"

    with pytest.raises(StackFailed, match="the canary ended: exit 7\nbad setting"):
        stack.start_canary("image", seconds=5)
    with pytest.raises(StackFailed, match="the canary ended"):
        stack.check_canary()


def test_canary_that_does_not_start_fails_in_time(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("a", "preparing")])

    with pytest.raises(StackFailed, match="the canary did not start within 0 s"):
        stack.start_canary("image", seconds=0.01)


def test_wait_for_canary_ends_when_it_runs(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("a", "starting")], [task("a", "running")])

    stack.wait_for_canary(seconds=5)
    stack.check_canary()


def test_canary_that_is_not_ready_fails_in_time(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("a", "starting")])
    engine.answers["logs"] = "loading\n"

    with pytest.raises(StackFailed, match="the canary was not ready within 0 s\nloading"):
        stack.wait_for_canary(seconds=0.01)


def test_stop_canary_removes_it_if_there_is_one(engine: FakeEngine, stack: Stack) -> None:
    stack.stop_canary()
    assert not engine.called("service rm")

    engine.answers["service ls --quiet --filter name=s_canary"] = "id\n"
    stack.stop_canary()
    assert engine.called("service rm") == ["service rm s_canary"]
