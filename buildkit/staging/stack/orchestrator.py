"""Defines the operations of an orchestrator for a release. `Stack` implements them for Docker's swarm mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

    from buildkit.staging.stack.services import Replica

__all__ = ["Orchestrator"]


class Orchestrator(Protocol):
    """One deployment of the stack file: its services, their images and settings.

    Services are `api`, `database`, `proxy`, the job `migrate`, and during a release `canary`. Every method that waits
    takes the longest time in seconds, and logs its progress.
    """

    @property
    def images(self) -> Mapping[str, str]:
        """Service -> repository with digest, as `deploy` runs them."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Variables of the stack file, none of them secret."""

    @property
    def address(self) -> str:
        """URL of the proxy on this machine."""

    @property
    def certificate(self) -> str | None:
        """File with the proxy's certificate; None if it speaks plain HTTP."""

    def with_release(self, images: Mapping[str, str], settings: Mapping[str, str]) -> Orchestrator:
        """Returns the same deployment with other images and settings. Changes nothing until `deploy`."""

    def exists(self, service: str) -> bool:
        """Returns whether the service is deployed."""

    def image(self, service: str) -> str:
        """Returns the image that the service is configured to run, as repository with digest."""

    def replicas(self, service: str, *, include_ended: bool = False) -> tuple[Replica, ...]:
        """Returns the replicas of the service."""

    def deploy(self) -> None:
        """Starts updating every service to `images` and `settings`; returns before the update is complete."""

    def last_update(self, service: str) -> str:
        """Returns an identifier of the service's last update; "" before the first."""

    def wait_for_rollout(
        self, service: str, *, seconds: float, previous_update: str = "", until_digest: str = ""
    ) -> None:
        """Waits until the update after *previous_update* is complete and every replica runs; else `StackFailed`."""

    def run_job(self, job: str, image: str, *, seconds: float, command: str = "") -> None:
        """Runs the job once more from *image* and waits for its end; `StackFailed` if it fails."""

    def wait_for_job(self, job: str, *, seconds: float) -> None:
        """Waits for the end of the job that the first deployment started; `StackFailed` if it fails."""

    def start_canary(self, image: str, *, seconds: float) -> str:
        """Starts one replica of *image* without traffic and returns its container; `StackFailed` if it ends."""

    def wait_for_canary(self, *, seconds: float) -> None:
        """Waits until the canary is ready; `StackFailed` if it ends."""

    def check_canary(self) -> None:
        """Raises `StackFailed` with the end of its log if the canary ends within seconds."""

    def stop_canary(self) -> None:
        """Removes the canary if there is one."""

    def container(self, service: str = "api") -> str:
        """Returns a healthy container of the service; `CommandFailed` if there is none."""

    def execute(self, container: str, *command: str, stdin: str = "", seconds: float = ...) -> str:
        """Runs *command* in *container* and returns its output; *stdin* is its standard input."""

    def start(self, container: str, *command: str, descriptor: int) -> subprocess.Popen[bytes]:
        """Starts *command* in *container*; it reads from and writes to the open file *descriptor*."""

    def remove(self) -> None:
        """Removes the services; stored data stays."""
