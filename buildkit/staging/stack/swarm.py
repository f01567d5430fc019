"""Joins and leaves Docker's swarm mode."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from buildkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buildkit.engine.client import Engine

__all__ = ["ensure_swarm", "is_manager", "leave_swarm"]

_MARK: Final = "swarm-made-here"
"""File in the state folder with the identifier of the swarm that `ensure_swarm` made."""


def ensure_swarm(engine: Engine, state: Path, *, is_local: bool, log: Callable[[str], None]) -> None:
    """Makes sure that the engine manages a swarm; with *is_local*, makes a swarm of this machine alone if needed.

    Raises:
        UsageError: the engine is a worker, or in no swarm and *is_local* is false.
    """
    status = _status(engine)
    if status.get("LocalNodeState") == "active":
        if not status.get("ControlAvailable"):
            raise UsageError("engine", engine.host or "default", "is a worker of its swarm; name a manager")
        return
    if not is_local:
        advice = "run `docker swarm init` there, or stage on this machine alone with `-- --local`"
        raise UsageError("engine", engine.host or "default", f"is in no swarm: {advice}")
    log("making a swarm of this machine alone, on 127.0.0.1")
    engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377", seconds=60)
    state.mkdir(parents=True, exist_ok=True)
    (state / _MARK).write_text(_status(engine)["Cluster"]["ID"] + "\n")


def is_manager(engine: Engine) -> bool:
    """Returns whether the engine manages a swarm; only then can it have stacks."""
    status = _status(engine)
    return status.get("LocalNodeState") == "active" and bool(status.get("ControlAvailable"))


def leave_swarm(engine: Engine, state: Path, *, log: Callable[[str], None]) -> None:
    """Leaves the swarm if `ensure_swarm` made it and no service runs in it."""
    mark = state / _MARK
    if not mark.exists():
        return
    cluster = (_status(engine).get("Cluster") or {}).get("ID", "")
    if cluster == mark.read_text().strip():
        if engine.docker("service", "ls", "--quiet").strip():
            log("the swarm stays: other services run in it")
            return
        log("leaving the swarm that was made for staging")
        engine.docker("swarm", "leave", "--force", seconds=60)
    mark.unlink()


def _status(engine: Engine) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(engine.docker("info", "--format", "{{json .Swarm}}"))
    return status
