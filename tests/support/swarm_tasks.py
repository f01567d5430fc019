"""Makes the tasks of a swarm service as `docker inspect` prints them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.fake_engine import FakeEngine

__all__ = ["show_tasks", "task"]


def task(
    identifier: str, state: str, *, desired: str = "running", error: str = "", image: str = "api@sha256:a"
) -> dict[str, Any]:
    """Returns a task as `docker inspect` prints it."""
    return {
        "ID": identifier,
        "Slot": 1,
        "Spec": {"ContainerSpec": {"Image": image}},
        "Status": {"State": state, "Err": error, "ContainerStatus": {"ContainerID": f"c-{identifier}"}},
        "DesiredState": desired,
    }


def show_tasks(engine: FakeEngine, *rounds: list[dict[str, Any]]) -> None:
    """Has *engine* report the tasks of each round in turn, the last one from then on."""
    engine.answers["service ps"] = "some"
    engine.answers["inspect --type task"] = [json.dumps(tasks) for tasks in rounds]
