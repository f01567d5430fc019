"""The stack in Docker's swarm mode: deployed, followed while it changes, asked from inside, and taken down.

Everything goes through the `docker` program: the address, the credentials and the contexts are its business.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from buildkit.errors import CommandFailed, ReleaseFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildkit.engine.client import Engine

__all__ = ["Replica", "Stack", "is_managed", "join", "leave"]

_POLL_SECONDS: Final = 0.5
_COMMAND_SECONDS: Final = 120.0
_JOB_ATTEMPTS: Final = 2
"""Of a job on a database that is there: what fails twice fails again."""
_LOGS_SECONDS: Final = 15.0
_LOOKS: Final = 5
_MOMENT_SECONDS: Final = 5.0
_ERROR: Final = re.compile(r"[\w.]*(Error|Exception)\b")
_MARK: Final = "swarm-made-here"
_ENDED_BADLY: Final = frozenset({"failed", "rejected", "orphaned"})


@dataclass(frozen=True, slots=True)
class Replica:
    """One task of a service as the managers see it."""

    task: str
    slot: int
    image: str
    state: str
    wanted: str
    error: str
    node: str
    container: str

    @property
    def digest(self) -> str:
        """The digest of its image; "" where the image is named without one."""
        return self.image.partition("@")[2]

    @property
    def is_running(self) -> bool:
        """Whether it runs, healthy where it has a health check, and shall go on."""
        return self.state == "running" and self.wanted == "running"


@dataclass(frozen=True, slots=True)
class Stack:
    """One stack on one engine, which must be a manager.

    Attributes:
        name: of the stack; its services are name_api and so on.
        file: the stack file.
        images: part (`api`, `postgres`, `proxy`) -> repository with digest.
        settings: variables of the stack file, none of them secret.
        secrets: folder with the secrets' files.
    """

    engine: Engine
    name: str
    file: Path
    images: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: Path = Path("/nonexistent")

    @property
    def certificate(self) -> str | None:
        """The file with the proxy's certificate; None where it speaks plain HTTP."""
        return self.settings.get("TRUTHGRAPH_TLS_FILE") or None

    @property
    def address(self) -> str:
        """The proxy's on this machine."""
        port = self.settings.get("TRUTHGRAPH_PUBLISHED_PORT", "8080")
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{port}"

    def docker(self, *arguments: str, seconds: float = _COMMAND_SECONDS) -> str:
        """What `docker *arguments*` prints."""
        return self.engine.docker(*arguments, seconds=seconds)

    def service(self, part: str) -> str:
        """The name of a service."""
        return f"{self.name}_{part}"

    # ---- deploying --------------------------------------------------------------------------------------------------

    def deploy(self) -> None:
        """Hands the stack file to the managers, which begin to change what differs; returns at once.

        Raises:
            CommandFailed: the file or a variable was refused.
        """
        variables = {
            **self.settings,
            **{f"TRUTHGRAPH_{part.upper()}_IMAGE": image for part, image in self.images.items()},
            "TRUTHGRAPH_SECRETS": str(self.secrets),
            "TRUTHGRAPH_STACK": self.name,
        }
        command = ["docker", *(("--host", self.engine.host) if self.engine.host else ())]
        command += [
            "stack",
            "deploy",
            "--detach=true",
            "--with-registry-auth",
            "--compose-file",
            str(self.file),
            self.name,
        ]
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TRUTHGRAPH_")
        } | variables
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CommandFailed(command, done.returncode, (done.stderr or done.stdout).strip()[-2000:])

    def exists(self, part: str = "api") -> bool:
        """Whether the service is there; none is where the engine manages no swarm."""
        return is_managed(self.engine) and bool(
            self.docker("service", "ls", "--quiet", "--filter", f"name={self.service(part)}").strip()
        )

    def inspect(self, part: str) -> dict[str, Any]:
        """The service as the managers keep it."""
        [service] = json.loads(self.docker("service", "inspect", self.service(part)))
        inspected: dict[str, Any] = service
        return inspected

    def wanted(self, part: str) -> int:
        """How many replicas the part shall have: its own number, or one on each node."""
        return _wanted(self.inspect(part), len(self.replicas(part)))

    def replicas(self, part: str, *, all_of_them: bool = False) -> tuple[Replica, ...]:
        """The tasks of a service, by slot; ended ones only with *all_of_them*."""
        filters = () if all_of_them else ("--filter", "desired-state=running", "--filter", "desired-state=ready")
        tasks: list[dict[str, Any]] = []
        for left in reversed(range(_LOOKS)):
            identifiers = self.docker("service", "ps", "--quiet", "--no-trunc", *filters, self.service(part)).split()
            try:
                tasks = json.loads(self.docker("inspect", "--type", "task", *identifiers)) if identifiers else []
            except CommandFailed:  # the managers forgot an old one in between
                if not left:
                    raise
            else:
                break
        found = []
        for task in tasks:
            status = task["Status"]
            found.append(
                Replica(
                    task=task["ID"],
                    slot=int(task.get("Slot", 0)),
                    image=task["Spec"]["ContainerSpec"]["Image"],
                    state=status["State"],
                    wanted=task["DesiredState"],
                    error=status.get("Err", ""),
                    node=task.get("NodeID", ""),
                    container=status.get("ContainerStatus", {}).get("ContainerID", ""),
                )
            )
        return tuple(sorted(found, key=lambda replica: (replica.slot, replica.task)))

    def wait_for_rollout(
        self, part: str, *, began: str, seconds: float, log: Callable[[str], None], step: str, until_digest: str = ""
    ) -> None:
        """Follows *part* until its update ended and every replica runs.

        *began* is what `update_began` said before the change: an update that was over before is not this one.

        Raises:
            ReleaseFailed: it was rolled back, is paused, or is not done in time; the reason holds the replicas' own.
        """
        deadline = time.monotonic() + seconds
        said: dict[str, str] = {}
        reasons: list[str] = []
        while True:
            service = self.inspect(part)
            for replica in self.replicas(part, all_of_them=True):
                line = f"{part}.{replica.slot} {replica.state}"
                if said.get(replica.task) != line and not (not said and replica.state in {"shutdown", "complete"}):
                    if replica.wanted == "running" or replica.state in _ENDED_BADLY or replica.task in said:
                        log(f"{line} {replica.digest[7:19]}{': ' + replica.error if replica.error else ''}")
                    if replica.error and replica.error not in reasons and replica.task in said:
                        reasons.append(replica.error)
                said[replica.task] = line
            update = service.get("UpdateStatus") or {}
            state = update.get("State", "") if _stamp(update) != began else ""
            wanted = _wanted(service, len(self.replicas(part)))
            running = [replica for replica in self.replicas(part) if replica.is_running]
            if until_digest:
                running = [replica for replica in running if replica.digest == until_digest]
            if state == "rollback_started" and (message := update.get("Message", "")) not in reasons:
                reasons.append(message)
            if state in {"rollback_completed", "paused", "rollback_paused"}:
                why = "; ".join(reasons[-3:]) or update.get("Message", "")
                raise ReleaseFailed(step, f"the engine {_WORDS[state]}: {why}")
            if state in {"", "completed"} and len(running) == wanted == len(self.replicas(part)):
                return
            if time.monotonic() > deadline:
                why = "; ".join(reasons[-3:]) or f"{len(running)} of {wanted} replicas of {part} run"
                raise ReleaseFailed(step, f"not done within {seconds:.0f} s: {why}")
            time.sleep(_POLL_SECONDS)

    def update_began(self, part: str) -> str:
        """When the service's last update began; "" before the first. Tells one update from the next."""
        return _stamp(self.inspect(part).get("UpdateStatus") or {})

    def run_job(
        self, part: str, image: str, *, seconds: float, step: str, log: Callable[[str], None], words: str = ""
    ) -> None:
        """Runs the stack's job *part* once more, from *image*, and waits for its end; *words* replace its command.

        Raises:
            ReleaseFailed: it failed; the reason is the end of its log.
        """
        before = {replica.task for replica in self.replicas(part, all_of_them=True)}
        name = self.service(part)
        changed = ("--args", words) if words else ()
        self.docker(
            "service", "update", "--detach", "--force", "--with-registry-auth", "--image", image, *changed, name
        )
        self._job_end(part, before, attempts=_JOB_ATTEMPTS, seconds=seconds, step=step, log=log)

    def wait_job(self, part: str, *, seconds: float, step: str, log: Callable[[str], None]) -> None:
        """Waits for the end of the job that a first deployment began."""
        attempts = 1 + int(self.inspect(part)["Spec"]["TaskTemplate"]["RestartPolicy"].get("MaxAttempts", 0))
        self._job_end(part, set(), attempts=attempts, seconds=seconds, step=step, log=log)

    def _job_end(
        self, part: str, before: set[str], *, attempts: int, seconds: float, step: str, log: Callable[[str], None]
    ) -> None:
        deadline = time.monotonic() + seconds
        told = ""
        failures = 0
        while time.monotonic() < deadline:
            tasks = [replica for replica in self.replicas(part, all_of_them=True) if replica.task not in before]
            if any(task.state == "complete" for task in tasks):
                return
            failed = [task for task in tasks if task.state in _ENDED_BADLY]
            now = next((task.state for task in tasks if task not in failed), "waiting")
            if (state := f"{part} {now}, attempt {len(failed) + 1}") != told:
                log(told := state)
            failures = len(failed)
            if failures >= attempts:
                lines = self.tail(part, failed[-1].task, lines=40).splitlines()
                # A traceback ends with its error; what stands behind that (statements, links) says less.
                told_why = [line for line in lines if _ERROR.match(line)] or lines or [failed[-1].error]
                raise ReleaseFailed(step, f"{part} failed: {told_why[-1]}")
            time.sleep(_POLL_SECONDS)
        reason = f"{part} was not done within {seconds:.0f} s"
        raise ReleaseFailed(step, reason + (f", after {failures} failures" if failures else ""))

    def tail(self, part: str, task: str = "", lines: int = 6) -> str:
        """The last lines that the part, or one of its tasks, printed; "" where they cannot be had.

        From the container itself where it is on this engine: what the managers collect from all nodes may never end
        (seen: `docker service logs` of a service whose earlier tasks were forgotten).
        """
        containers = [
            replica.container
            for replica in self.replicas(part, all_of_them=True)
            if replica.container and task in {"", replica.task}
        ]
        docker = ["docker", *(("--host", self.engine.host) if self.engine.host else ())]
        printed: list[str] = []
        commands = [("logs", "--tail", str(lines), container) for container in containers]
        elsewhere = ("service", "logs", "--raw", "--tail", str(lines), task or self.service(part))
        for command in (*commands, elsewhere):
            if command is elsewhere and printed:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    [*docker, *command], capture_output=True, text=True, check=False, timeout=_LOGS_SECONDS
                )
                printed += (done.stdout + done.stderr).splitlines() if done.returncode == 0 else []
        return "\n".join(printed).strip()

    # ---- asking from inside -----------------------------------------------------------------------------------------

    def container(self, part: str = "api", *, task: str = "") -> str:
        """A healthy container of *part* on this engine.

        Raises:
            CommandFailed: there is none.
        """
        label = f"com.docker.swarm.service.name={self.service(part)}"
        filters = ["--filter", f"label={label}", "--filter", "status=running"]
        if task:
            filters += ["--filter", f"label=com.docker.swarm.task.id={task}"]
        listed = self.docker("ps", "--format", "{{.ID}} {{.Status}}", "--no-trunc", *filters).splitlines()
        healthy = [line.split()[0] for line in listed if "(" not in line or "(healthy)" in line]
        if not healthy:
            raise CommandFailed(["docker", "ps", *filters], 1, f"no healthy container of {self.service(part)} is here")
        return healthy[0]

    def execute(self, container: str, *command: str, given: str = "", seconds: float = _COMMAND_SECONDS) -> str:
        """What *command* prints in *container*, with *given* on its standard input (never among its arguments)."""
        line = ["docker", *(("--host", self.engine.host) if self.engine.host else ())]
        line += ["exec", "--interactive", container, *command]
        shown = [*line[:5], command[0], "…"]
        try:
            done = subprocess.run(line, input=given, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(shown, 124, f"no end within {seconds:.0f} s") from error
        if done.returncode != 0:
            raise CommandFailed(shown, done.returncode, done.stderr.strip()[-2000:])
        return done.stdout

    # ---- a release without traffic ----------------------------------------------------------------------------------

    def start_candidate(self, image: str, *, seconds: float, step: str) -> str:
        """Starts one replica of *image* as the API's service is, but where no traffic comes; its container.

        It is reached by no name that the proxy asks for, and takes no task: it has no worker.

        Raises:
            ReleaseFailed: it ended, or did not start in time.
        """
        self.stop_candidate()
        spec = self.inspect("api")["Spec"]["TaskTemplate"]["ContainerSpec"]
        flags: list[str] = []
        for entry in spec.get("Env", ()):
            variable, _, value = entry.partition("=")
            if variable != "TRUTHGRAPH_TASK_WORKERS":
                flags += ["--env", f"{variable}={self.settings.get(variable, value)}"]
        for mount in spec.get("Mounts", ()):
            flags += ["--mount", _mount(mount)]
        for secret in spec.get("Secrets", ()):
            flags += ["--secret", f"source={secret['SecretName']},target={secret['File']['Name']}"]
        for capability in spec.get("CapabilityDrop", ()):
            flags += ["--cap-drop", capability]
        health = spec.get("Healthcheck", {})
        if health.get("Test", [""])[0] == "CMD-SHELL":
            start = f"{health.get('StartPeriod', 0) // 1_000_000}ms"
            flags += ["--health-cmd", health["Test"][1], "--health-interval", "2s", "--health-start-period", start]
        self.docker(
            *("service", "create", "--detach", "--quiet", "--with-registry-auth", "--no-resolve-image", "--read-only"),
            *("--name", self.service("candidate"), "--label", f"com.docker.stack.namespace={self.name}"),
            *("--network", f"{self.name}_back", "--restart-condition", "none", *flags),
            *("--env", "TRUTHGRAPH_TASK_WORKERS=0", image, *spec.get("Command", ()), *spec.get("Args", ())),
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for replica in self.replicas("candidate", all_of_them=True):
                if replica.state in {"starting", "running"} and replica.container:
                    return replica.container
                self._must_live(replica, step)
            time.sleep(_POLL_SECONDS)
        raise ReleaseFailed(step, f"the candidate did not start within {seconds:.0f} s")

    def wait_candidate(self, *, seconds: float, step: str) -> None:
        """Waits until the candidate is ready: models loaded, schema current.

        Raises:
            ReleaseFailed: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for replica in self.replicas("candidate", all_of_them=True):
                if replica.is_running:
                    return
                self._must_live(replica, step)
            time.sleep(_POLL_SECONDS)
        tail = self.tail("candidate", lines=3)
        raise ReleaseFailed(step, f"the candidate was not ready within {seconds:.0f} s\n{tail}")

    def must_live(self, part: str, *, step: str) -> None:
        """Raises `ReleaseFailed` with the end of its log if a replica of *part* ends within a moment."""
        deadline = time.monotonic() + _MOMENT_SECONDS
        while time.monotonic() < deadline:
            for replica in self.replicas(part, all_of_them=True):
                self._must_live(replica, step)
            time.sleep(_POLL_SECONDS)

    def _must_live(self, replica: Replica, step: str) -> None:
        if replica.state in {*_ENDED_BADLY, "complete", "shutdown"}:
            reason = replica.error or replica.state
            raise ReleaseFailed(step, f"the candidate ended: {reason}\n{self.tail('candidate', replica.task, 3)}")

    def stop_candidate(self) -> None:
        """Takes the candidate away, if there is one."""
        if self.exists("candidate"):
            self.docker("service", "rm", self.service("candidate"))

    # ---- taking down ------------------------------------------------------------------------------------------------

    @property
    def _label(self) -> tuple[str, str]:
        return "--filter", f"label=com.docker.stack.namespace={self.name}"

    def remove(self, log: Callable[[str], None]) -> None:
        """Removes services, networks and secrets, and waits until they are gone; what is stored stays."""
        label = self._label
        log(f"removing the stack {self.name}")
        self.docker("stack", "rm", self.name)
        deadline = time.monotonic() + _COMMAND_SECONDS
        while (
            self.docker("ps", "--all", "--quiet", *label).strip() or self.docker("network", "ls", "-q", *label).strip()
        ):
            if time.monotonic() > deadline:
                raise CommandFailed(["docker", "stack", "rm", self.name], 124, "containers or networks are still there")
            time.sleep(_POLL_SECONDS)

    def remove_volumes(self, log: Callable[[str], None]) -> None:
        """Removes what is stored. Needs no swarm, which may have been left since."""
        for volume in self.docker("volume", "ls", "--quiet", *self._label).split():
            log(f"removing the volume {volume}")
            self.docker("volume", "rm", volume)


_WORDS: Final = {
    "rollback_completed": "rolled the update back",
    "paused": "paused the update",
    "rollback_paused": "could not roll the update back and paused",
}


def _wanted(service: Mapping[str, Any], present: int) -> int:
    mode = service["Spec"]["Mode"]
    return int(mode["Replicated"]["Replicas"]) if "Replicated" in mode else max(1, present)


def _stamp(update: Mapping[str, str]) -> str:
    return update.get("StartedAt", "")


def _mount(mount: Mapping[str, Any]) -> str:
    words = [f"type={mount['Type']}", f"target={mount['Target']}"]
    if source := mount.get("Source"):
        words.append(f"source={source}")
    if mount.get("ReadOnly"):
        words.append("readonly")
    if size := (mount.get("TmpfsOptions") or {}).get("SizeBytes"):
        words.append(f"tmpfs-size={size}")
    if (mount.get("VolumeOptions") or {}).get("NoCopy"):
        words.append("volume-nocopy=true")
    return ",".join(words)


def join(engine: Engine, state: Path, *, is_local: bool, log: Callable[[str], None]) -> None:
    """Makes sure that the engine manages a swarm; makes one of this machine alone where *is_local*.

    Raises:
        UsageError: it does not, and shall not be made to.
    """
    status = _swarm(engine)
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
    (state / _MARK).write_text(_swarm(engine)["Cluster"]["ID"] + "\n")


def is_managed(engine: Engine) -> bool:
    """Whether the engine manages a swarm, so that stacks can be there at all."""
    status = _swarm(engine)
    return status.get("LocalNodeState") == "active" and bool(status.get("ControlAvailable"))


def leave(engine: Engine, state: Path, *, log: Callable[[str], None]) -> None:
    """Leaves the swarm if it is the one that `join` made and nothing else runs in it."""
    mark = state / _MARK
    if not mark.exists():
        return
    cluster = (_swarm(engine).get("Cluster") or {}).get("ID", "")
    if cluster == mark.read_text().strip():
        if engine.docker("service", "ls", "--quiet").strip():
            log("the swarm stays: other services run in it")
            return
        log("leaving the swarm that was made for staging")
        engine.docker("swarm", "leave", "--force", seconds=60)
    mark.unlink()


def _swarm(engine: Engine) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(engine.docker("info", "--format", "{{json .Swarm}}"))
    return status
