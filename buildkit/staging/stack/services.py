"""Deploys the services of a stack in Docker's swarm mode, follows rollouts, and runs commands in their containers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from buildkit.engine.client import start_docker
from buildkit.errors import CommandFailed, StackFailed
from buildkit.staging.stack.polling import polls
from buildkit.staging.stack.swarm import is_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from buildkit.engine.client import Engine

__all__ = ["SERVICES", "Replica", "StackServices"]

SERVICES: Final = ("api", "database", "proxy")
"""Services of the stack file that run all the time; `migrate` is a job."""
_COMMAND_SECONDS: Final = 120.0
_DEPLOY_SECONDS: Final = 300.0
_LOGS_SECONDS: Final = 15.0
_INSPECT_ATTEMPTS: Final = 5
_FAILED_STATES: Final = frozenset({"failed", "rejected", "orphaned"})
_ROLLBACKS: Final = {
    "rollback_completed": "rolled the update back",
    "paused": "paused the update",
    "rollback_paused": "could not roll the update back and paused",
}
"""States of a failed update in `docker service inspect` -> the same in words."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One task of a service.

    Attributes:
        task: its identifier.
        slot: its number within the service; 0 for a service with one task on each node.
        image: repository with digest.
        state: as swarm names it: starting, running, complete, failed, and so on.
        desired_state: the state that swarm works towards.
        error: why it ended; "" if it did not.
        container: identifier of its container; "" before it has one.
    """

    task: str
    slot: int
    image: str
    state: str
    desired_state: str
    error: str
    container: str

    @property
    def digest(self) -> str:
        """The digest of its image; "" if the image is named without one."""
        return self.image.partition("@")[2]

    @property
    def is_running(self) -> bool:
        """Whether it runs, is healthy if it has a health check, and is meant to go on."""
        return self.state == "running" and self.desired_state == "running"

    @property
    def has_failed(self) -> bool:
        """Whether it ended with an error."""
        return self.state in _FAILED_STATES


@dataclass(frozen=True, slots=True)
class StackServices:
    """The services of one stack on one engine, which must be a swarm manager.

    Attributes:
        name: of the stack; its services are name_api and so on.
        file: the stack file.
        images: service (`api`, `database`, `proxy`) -> repository with digest.
        settings: variables of the stack file, none of them secret.
        secrets: folder with the files of the secrets.
        log: gets a line for each change that a method waits for.
    """

    engine: Engine
    name: str
    file: Path
    images: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: Path = Path("/nonexistent")
    log: Callable[[str], None] = field(default=lambda _line: None, repr=False)

    @property
    def certificate(self) -> str | None:
        """File with the proxy's certificate; None if it speaks plain HTTP."""
        return self.settings.get("TRUTHGRAPH_TLS_FILE") or None

    @property
    def address(self) -> str:
        """URL of the proxy on this machine."""
        port = self.settings.get("TRUTHGRAPH_PUBLISHED_PORT", "8080")
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{port}"

    def with_release(self, images: Mapping[str, str], settings: Mapping[str, str]) -> Self:
        """Returns the same stack with other images and settings. Changes nothing until `deploy`."""
        return replace(self, images=images, settings=settings)

    def docker(self, *arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
        """Runs `docker *arguments` and returns its output."""
        return self.engine.docker(*arguments, seconds=seconds)

    def service_name(self, service: str) -> str:
        """Returns the name of a service as swarm knows it."""
        return f"{self.name}_{service}"

    def deploy(self) -> None:
        """Deploys the stack file; swarm then updates the services that differ. Returns before they run.

        Raises:
            CommandFailed: the file or a variable was refused.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRUTHGRAPH_")}
        self.engine.docker(
            *("stack", "deploy", "--detach=true", "--with-registry-auth", "--compose-file", str(self.file), self.name),
            seconds=_DEPLOY_SECONDS,
            environment={
                **inherited,
                **self.settings,
                **{f"TRUTHGRAPH_{service.upper()}_IMAGE": image for service, image in self.images.items()},
                "TRUTHGRAPH_SECRETS": str(self.secrets),
                "TRUTHGRAPH_STACK": self.name,
            },
        )

    def exists(self, service: str = "api") -> bool:
        """Returns whether the service is deployed."""
        return is_manager(self.engine) and bool(
            self.docker("service", "ls", "--quiet", "--filter", f"name={self.service_name(service)}").strip()
        )

    def inspect(self, service: str) -> dict[str, Any]:
        """Returns the output of `docker service inspect`."""
        [inspected] = json.loads(self.docker("service", "inspect", self.service_name(service)))
        found: dict[str, Any] = inspected
        return found

    def image(self, service: str) -> str:
        """Returns the image that the service is configured to run, as repository with digest."""
        return str(self.inspect(service)["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"])

    def desired_replicas(self, service: str) -> int:
        """Returns the number of replicas that the service should have: its own number, or one on each node."""
        return _desired(self.inspect(service), len(self.replicas(service)))

    def replicas(self, service: str, *, include_ended: bool = False) -> tuple[Replica, ...]:
        """Returns the tasks of a service, ordered by slot."""
        filters = () if include_ended else ("--filter", "desired-state=running", "--filter", "desired-state=ready")
        name = self.service_name(service)
        tasks: list[dict[str, Any]] = []
        for attempts_left in reversed(range(_INSPECT_ATTEMPTS)):
            identifiers = self.docker("service", "ps", "--quiet", "--no-trunc", *filters, name).split()
            try:
                tasks = json.loads(self.docker("inspect", "--type", "task", *identifiers)) if identifiers else []
            except CommandFailed:  # swarm removed an old task between the two commands
                if not attempts_left:
                    raise
            else:
                break
        return tuple(sorted(map(_replica, tasks), key=lambda replica: (replica.slot, replica.task)))

    def last_update(self, service: str) -> str:
        """Returns the start of the service's last update, which identifies it; "" before the first."""
        return _started(self.inspect(service).get("UpdateStatus") or {})

    def wait_for_rollout(
        self, service: str, *, seconds: float, previous_update: str = "", until_digest: str = ""
    ) -> None:
        """Follows a service until its update is complete and every replica runs; logs each change of a replica.

        Args:
            service: the service.
            seconds: the longest time to wait.
            previous_update: `last_update` from before the change; swarm reports it until the new update starts.
            until_digest: the digest that every replica must run; "" for any.

        Raises:
            StackFailed: swarm rolled the update back or paused it, or time is up. The reason has the replicas' errors.
        """
        progress = _Progress(service, self.log)
        running: list[Replica] = []
        desired = 0
        for _ in polls(seconds):
            inspected = self.inspect(service)
            progress.observe(self.replicas(service, include_ended=True))
            present = self.replicas(service)
            desired = _desired(inspected, len(present))
            running = [each for each in present if each.is_running and until_digest in {"", each.digest}]
            update = inspected.get("UpdateStatus") or {}
            state = update.get("State", "") if _started(update) != previous_update else ""
            if state == "rollback_started":
                progress.add(update.get("Message", ""))
            if state in _ROLLBACKS:
                raise StackFailed(f"swarm {_ROLLBACKS[state]}: {progress.reason or update.get('Message', '')}")
            if state in {"", "completed"} and len(running) == desired == len(present):
                return
        reason = progress.reason or f"{len(running)} of {desired} replicas of {service} run"
        raise StackFailed(f"the rollout was not complete within {seconds:.0f} s: {reason}")

    def container(self, service: str = "api") -> str:
        """Returns a healthy container of *service* on this engine.

        Raises:
            CommandFailed: there is none.
        """
        label = f"com.docker.swarm.service.name={self.service_name(service)}"
        filters = ("--filter", f"label={label}", "--filter", "status=running")
        listed = self.docker("ps", "--format", "{{.ID}} {{.Status}}", "--no-trunc", *filters).splitlines()
        healthy = [line.split()[0] for line in listed if "(" not in line or "(healthy)" in line]
        if not healthy:
            reason = f"no healthy container of {self.service_name(service)} runs on this machine"
            raise CommandFailed(["docker", "ps", *filters], 1, reason)
        return healthy[0]

    def execute(self, container: str, *command: str, stdin: str = "", seconds: float = _COMMAND_SECONDS) -> str:
        """Runs *command* in *container* and returns its output; *stdin* is its standard input.

        Raises:
            CommandFailed: it failed. The error names the program only: arguments and input may be secret or long.
        """
        try:
            return self.engine.docker("exec", "--interactive", container, *command, stdin=stdin, seconds=seconds)
        except CommandFailed as error:
            shown = ["docker", "exec", container, command[0], "…"]
            raise CommandFailed(shown, error.exit_code_of_command, error.log_tail) from None

    def start(self, container: str, *command: str, descriptor: int) -> subprocess.Popen[bytes]:
        """Starts *command* in *container*; it reads from and writes to the open file *descriptor*."""
        arguments = ("exec", "--interactive", container, *command)
        return start_docker(
            self.engine.host, *arguments, stdin=descriptor, stdout=descriptor, stderr=subprocess.DEVNULL
        )

    def log_tail(self, service: str, task: str = "", lines: int = 6) -> str:
        """Returns the last log lines of a service, or of one of its tasks; "" if there are none.

        Reads the containers on this engine if there are any: `docker service logs`, which collects from all nodes, may
        never end (seen with a service whose earlier tasks swarm had removed).
        """
        containers = [
            replica.container
            for replica in self.replicas(service, include_ended=True)
            if replica.container and task in {"", replica.task}
        ]
        found: list[str] = []
        for container in containers:
            found += self._logs("logs", "--tail", str(lines), container)
        if not found:
            found = self._logs("service", "logs", "--raw", "--tail", str(lines), task or self.service_name(service))
        return "\n".join(found).strip()

    def _logs(self, *command: str) -> list[str]:
        """Returns the lines that a log command prints; none if it fails or takes too long."""
        lines: list[str] = []
        with contextlib.suppress(CommandFailed):
            self.engine.stream(*command, on_line=lines.append, seconds=_LOGS_SECONDS)
            return lines
        return []

    @property
    def _label(self) -> tuple[str, str]:
        return "--filter", f"label=com.docker.stack.namespace={self.name}"

    def remove(self) -> None:
        """Removes services, networks and secrets, and waits until they are gone; volumes stay."""
        self.log(f"removing the stack {self.name}")
        self.docker("stack", "rm", self.name)
        for _ in polls(_COMMAND_SECONDS):
            containers = self.docker("ps", "--all", "--quiet", *self._label).strip()
            if not containers and not self.docker("network", "ls", "--quiet", *self._label).strip():
                return
        raise CommandFailed(["docker", "stack", "rm", self.name], 124, "containers or networks are still there")

    def remove_volumes(self) -> None:
        """Removes the volumes, with the database in them. Works outside a swarm too."""
        for volume in self.docker("volume", "ls", "--quiet", *self._label).split():
            self.log(f"removing the volume {volume}")
            self.docker("volume", "rm", volume)


class _Progress:
    """Logs each change of a replica once, and collects the errors of replicas that ended meanwhile."""

    def __init__(self, service: str, log: Callable[[str], None]) -> None:
        self._service = service
        self._log = log
        self._states: dict[str, str] = {}
        self._reasons: list[str] = []

    @property
    def reason(self) -> str:
        """The last three errors."""
        return "; ".join(self._reasons[-3:])

    def add(self, reason: str) -> None:
        """Adds an error, unless it is known."""
        if reason not in self._reasons:
            self._reasons.append(reason)

    def observe(self, replicas: tuple[Replica, ...]) -> None:
        """Logs the changes since the last call. Replicas that had ended before the first call are left out."""
        for replica in replicas:
            known = self._states.get(replica.task)
            if known != replica.state:
                if known or replica.desired_state == "running" or replica.has_failed:
                    error = f": {replica.error}" if replica.error else ""
                    self._log(f"{self._service}.{replica.slot} {replica.state} {replica.digest[7:19]}{error}")
                if known and replica.error:
                    self.add(replica.error)
            self._states[replica.task] = replica.state


def _replica(task: Mapping[str, Any]) -> Replica:
    """Returns the replica that `docker inspect --type task` describes."""
    status = task["Status"]
    return Replica(
        task=task["ID"],
        slot=int(task.get("Slot", 0)),
        image=task["Spec"]["ContainerSpec"]["Image"],
        state=status["State"],
        desired_state=task["DesiredState"],
        error=status.get("Err", ""),
        container=status.get("ContainerStatus", {}).get("ContainerID", ""),
    )


def _desired(service: Mapping[str, Any], present: int) -> int:
    mode = service["Spec"]["Mode"]
    return int(mode["Replicated"]["Replicas"]) if "Replicated" in mode else max(1, present)


def _started(update: Mapping[str, str]) -> str:
    return update.get("StartedAt", "")
