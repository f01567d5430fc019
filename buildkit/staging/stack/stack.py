"""Combines the services, jobs and canary of a stack into one class for releases."""

from __future__ import annotations

from dataclasses import dataclass

from buildkit.staging.stack import canary, jobs
from buildkit.staging.stack.services import StackServices

__all__ = ["Stack"]


@dataclass(frozen=True, slots=True)
class Stack(StackServices):
    """One stack in Docker's swarm mode. Implements `Orchestrator`."""

    def run_job(self, job: str, image: str, *, seconds: float, command: str = "") -> None:
        """Runs a job of the stack once more; see `jobs.run_job`."""
        jobs.run_job(self, job, image, seconds=seconds, command=command)

    def wait_for_job(self, job: str, *, seconds: float) -> None:
        """Waits for the end of a job; see `jobs.wait_for_job`."""
        jobs.wait_for_job(self, job, seconds=seconds)

    def start_canary(self, image: str, *, seconds: float) -> str:
        """Starts one replica without traffic; see `canary.start_canary`."""
        return canary.start_canary(self, image, seconds=seconds)

    def wait_for_canary(self, *, seconds: float) -> None:
        """Waits until the canary is ready; see `canary.wait_for_canary`."""
        canary.wait_for_canary(self, seconds=seconds)

    def check_canary(self) -> None:
        """Fails if the canary ends within seconds; see `canary.check_canary`."""
        canary.check_canary(self)

    def stop_canary(self) -> None:
        """Removes the canary; see `canary.stop_canary`."""
        canary.stop_canary(self)
