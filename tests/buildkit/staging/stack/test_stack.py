"""How an update is followed: what counts as its end, and what as its failure. The managers' words are made up."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from buildkit.engine.client import Engine
from buildkit.errors import CommandFailed, ReleaseFailed, UsageError
from buildkit.staging.stack import stack as stack_module
from buildkit.staging.stack.stack import Replica, Stack

NEW, OLD = f"sha256:{'b' * 64}", f"sha256:{'a' * 64}"


def replica(slot: int, digest: str = NEW, state: str = "running", wanted: str = "running", error: str = "") -> Replica:
    return Replica(f"{slot}{digest[-1]}{state}", slot, f"api@{digest}", state, wanted, error, "node", "container")


@dataclass(frozen=True, slots=True)
class Told(Stack):
    """A stack whose managers say, one after the other, what is in `states`; the last for ever."""

    states: deque[tuple[dict[str, str], tuple[Replica, ...]]] = field(default_factory=deque)

    def inspect(self, part: str) -> dict[str, Any]:
        del part
        if len(self.states) > 1:
            self.states.popleft()
        return {"Spec": {"Mode": {"Replicated": {"Replicas": 2}}}, "UpdateStatus": self.states[0][0]}

    def replicas(self, part: str, *, all_of_them: bool = False) -> tuple[Replica, ...]:
        del part
        found = self.states[0][1]
        return found if all_of_them else tuple(each for each in found if each.wanted in {"running", "ready"})


def follow(*states: tuple[dict[str, str], tuple[Replica, ...]], seconds: float = 5) -> list[str]:
    """What is told of an update that goes through *states*."""
    told: list[str] = []
    stack = Told(engine=Engine("", "26", None), name="s", file=Path("stack.yaml"), states=deque([({}, ()), *states]))
    stack.wait_for_rollout("api", began="old", seconds=seconds, log=told.append, step="updated", until_digest=NEW)
    return told


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "_POLL_SECONDS", 0.001)


UPDATING = {"State": "updating", "StartedAt": "new"}
COMPLETED = {"State": "completed", "StartedAt": "new"}
BOTH_NEW = (replica(1), replica(2))
MIXED = (replica(1), replica(2, OLD))


def test_an_update_ends_when_it_is_completed_and_every_replica_is_the_new_one() -> None:
    told = follow((UPDATING, MIXED), (UPDATING, BOTH_NEW), (COMPLETED, BOTH_NEW))

    assert told == ["api.1 running bbbbbbbbbbbb", "api.2 running aaaaaaaaaaaa", "api.2 running bbbbbbbbbbbb"]


def test_an_update_that_was_over_before_is_not_this_one() -> None:
    """The managers still tell of the last one until they have begun this one."""
    old = {"State": "rollback_completed", "StartedAt": "old"}

    follow((old, (replica(1, OLD), replica(2, OLD))), (UPDATING, MIXED), (COMPLETED, BOTH_NEW))


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("rollback_completed", "the engine rolled the update back: unhealthy container"),
        ("paused", "the engine paused the update"),
        ("rollback_paused", "could not roll the update back"),
    ],
)
def test_an_update_that_the_engine_took_back_has_failed(state: str, shown: str) -> None:
    starting = replica(1, state="starting")
    ended = Replica(starting.task, 1, starting.image, "failed", "shutdown", "unhealthy container", "node", "container")
    after = (ended, replica(1, OLD), replica(2, OLD))

    with pytest.raises(ReleaseFailed, match=shown):
        follow(
            (UPDATING, (starting, replica(2, OLD))), (UPDATING, after), ({"State": state, "StartedAt": "new"}, after)
        )


def test_an_update_without_end_fails_in_time() -> None:
    with pytest.raises(ReleaseFailed, match="not done within 0 s: 1 of 2 replicas of api run"):
        follow((UPDATING, MIXED), seconds=0.05)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ({"LocalNodeState": "inactive"}, "stage on this machine alone with `-- --local`"),
        ({"LocalNodeState": "active", "ControlAvailable": False}, "name a manager"),
    ],
)
def test_an_engine_that_cannot_deploy_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: dict[str, object], shown: str
) -> None:
    monkeypatch.setattr(stack_module, "_swarm", lambda _: status)

    with pytest.raises(UsageError, match=shown):
        stack_module.join(Engine("", "26", None), tmp_path, is_local=False, log=lambda _: None)


def test_what_is_given_to_a_container_is_not_in_its_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither what goes over standard input nor the program that reads it."""
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\ncat >/dev/null\necho broken >&2\nexit 9\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    stack = Stack(engine=Engine("", "26", None), name="s", file=Path("stack.yaml"))

    with pytest.raises(CommandFailed) as caught:
        stack.execute("container", "python", "-c", "a long program", given="secret")

    assert "secret" not in str(caught.value)
    assert "a long program" not in str(caught.value)
    assert "broken" in str(caught.value)
