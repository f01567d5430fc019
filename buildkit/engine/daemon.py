"""Finds a container engine that answers, or installs, starts and stops one of the project's own.

Order: (1) the engine that `docker` finds by itself (DOCKER_HOST, the current context, the default socket), (2) the
daemon that an earlier run started, (3) a new daemon, after installing Debian's packages where they are missing. Steps
(1) and (2) change nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.engine.client import connect, versions
from buildkit.engine.install import DOCKER_PACKAGES, install_docker
from buildkit.engine.processes import end, program_of
from buildkit.errors import CommandFailed, EngineTooOld, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit.engine.client import Engine

__all__ = ["ManagedDaemon", "clean", "ensure", "find", "start", "stop"]

_BESIDE_OTHERS: dict[str, object] = {
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    "ip-masq": False,
    "userland-proxy": False,
    "builder": {"gc": {"enabled": False}},
}
"""Settings of dockerd (its reference, "Daemon configuration file") that leave the machine's network as it is, and the
build cache to whoever started the engine: by default no more than a tenth of the disk is kept of it."""
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""The engines that this process started: it is the one to wait for them when they are stopped."""
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ManagedDaemon:
    """Where a private engine lives. `state` survives, `run` may be lost with a reboot.

    `bridge` names an interface that is there already, for an engine beside others: without it dockerd takes docker0
    and the firewall for its own. Such an engine touches neither, so its containers reach nothing but each other; its
    builds take the machine's network.
    """

    state: Path = Path("/var/lib/truthgraph-engine")
    run: Path = Path("/run/truthgraph-engine")
    bridge: str = ""

    @property
    def socket(self) -> Path:
        """The engine's API."""
        return self.run / "docker.sock"

    @property
    def host(self) -> str:
        """The value of DOCKER_HOST for it."""
        return f"unix://{self.socket}"

    @property
    def log(self) -> Path:
        """What dockerd and its containerd print."""
        return self.state / "dockerd.log"

    @property
    def pid_file(self) -> Path:
        """The process id of dockerd, written by itself."""
        return self.run / "dockerd.pid"

    def configuration(self) -> dict[str, object]:
        """The daemon.json of dockerd: everything in folders of its own, images in containerd's store."""
        return {
            "hosts": [self.host],
            "data-root": str(self.state / "data"),
            "exec-root": str(self.run / "exec"),
            "pidfile": str(self.pid_file),
            "features": {"containerd-snapshotter": True},
            **(_BESIDE_OTHERS | {"bridge": self.bridge} if self.bridge else {}),
        }


def find(environment: Mapping[str, str], private: ManagedDaemon) -> Engine:
    """The engine that already answers: the environment's own first, then the private one.

    Raises:
        EngineUnavailable: neither answers; `commands` says how to have one.
        EngineTooOld: the one that answers is too old.
    """
    hosts = [""] if environment.get("DOCKER_HOST") or not private.socket.exists() else ["", private.host]
    reason = ""
    for host in hosts:
        try:
            return connect(host)
        except CommandFailed as error:
            reason = reason or error.log_tail.splitlines()[0]
    address = environment.get("DOCKER_HOST") or f"the default address or {private.host}"
    raise EngineUnavailable(address, reason, ["nox -s engine"])


def ensure(environment: Mapping[str, str], private: ManagedDaemon, log: Callable[[str], None]) -> Engine:
    """An engine that answers, with buildx: found, or installed and started. Says each change before it makes it.

    Installs Debian packages where dockerd or buildx is missing (root and apt-get needed) and starts a private engine.

    Raises:
        EngineUnavailable: none answers and none can be had; `commands` says what to run.
        EngineTooOld: the one that the environment points to is too old.
        CommandFailed: an installation failed.
    """
    try:
        engine = find(environment, private)
    except EngineUnavailable:
        if environment.get("DOCKER_HOST"):
            raise  # the user named one; another would be a surprise
        if not shutil.which("dockerd") or not shutil.which("docker"):
            install_docker(DOCKER_PACKAGES, log)
        engine = start(private, log)
    try:
        versions(engine)
    except EngineTooOld:
        if shutil.which("dockerd") is None or os.geteuid() != 0 or environment.get("DOCKER_HOST"):
            raise
        install_docker(("docker-cli", "docker-buildx"), log)
        versions(engine)
    return engine


def _runs(pid_file: Path, program: str) -> int | None:
    """The process id in *pid_file* where that process is a live *program*, else None."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if program_of(pid) == program else None


def _clear_leftovers(private: ManagedDaemon, log: Callable[[str], None]) -> None:
    """Removes what a killed engine left: pid files of other processes, a dead socket, mounts below its folders."""
    for pid_file, program in (
        (private.pid_file, "dockerd"),
        (private.run / "exec" / "containerd" / "containerd.pid", "containerd"),
    ):
        pid = _runs(pid_file, program)
        if pid is not None and program == "containerd":
            log(f"ending containerd {pid}, left by a killed engine")
            end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        if pid is None or program == "containerd":
            pid_file.unlink(missing_ok=True)
    private.socket.unlink(missing_ok=True)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [m for m in mounts if m.startswith((f"{private.run}/", f"{private.state}/"))]
    for mount in sorted(below, key=len, reverse=True):
        log(f"unmounting {mount}, left by a killed engine")
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def start(private: ManagedDaemon, log: Callable[[str], None]) -> Engine:
    """Starts a private engine and waits until it answers; one that runs already is taken as it is.

    Raises:
        EngineUnavailable: not root, or it did not come up; the reason holds the end of its log.
    """
    if os.geteuid() != 0:
        raise EngineUnavailable(private.host, "only root can start one", ["sudo nox -s engine"])
    pid = _runs(private.pid_file, "dockerd")
    if pid is None:
        _clear_leftovers(private, log)
        private.state.mkdir(parents=True, exist_ok=True)
        private.run.mkdir(parents=True, exist_ok=True)
        configuration = private.state / "daemon.json"
        configuration.write_text(json.dumps(private.configuration(), indent=1) + "\n")
        log(f"starting a private engine: dockerd --config-file {configuration}, log in {private.log}")
        with private.log.open("ab") as log_file:
            process = subprocess.Popen(
                ["dockerd", "--config-file", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")},
            )
    else:
        log(f"waiting for the private engine {pid}")
        process = None
    deadline = time.monotonic() + _START_SECONDS
    reason = "no answer"
    while time.monotonic() < deadline:
        if private.socket.exists():
            try:
                engine = connect(private.host)
            except CommandFailed as error:
                reason = error.log_tail
            else:
                if process is not None:
                    _CHILDREN[process.pid] = process
                return engine
        if process is not None and process.poll() is not None:
            reason = f"dockerd ended with exit code {process.returncode}"
            break
        time.sleep(0.1)
    tail = "\n".join(private.log.read_text(errors="replace").splitlines()[-12:])
    raise EngineUnavailable(private.host, f"{reason}; the end of {private.log}:\n{tail}", [])


def clean(engine: Engine, private: ManagedDaemon, names: Sequence[str], log: Callable[[str], None]) -> None:
    """Removes the images called *names* (repositories), and in the private engine all that builds left.

    Another engine's build cache is not touched: other builds of the user may need it.
    """
    for name in names:
        images = engine.docker("image", "ls", "--quiet", "--no-trunc", name).split()
        if images:
            log(f"removing {len(set(images))} images of {name}")
            engine.docker("image", "rm", "--force", *sorted(set(images)), seconds=_STOP_SECONDS * 4)
    if engine.host == private.host:
        log("removing what builds left in the private engine")
        engine.docker("buildx", "prune", "--all", "--force", seconds=_STOP_SECONDS * 10)


def stop(private: ManagedDaemon, log: Callable[[str], None], *, purge: bool = False) -> bool:
    """Stops the private engine, its containers with it; False where none ran. *purge* removes all that it stored."""
    pid = _runs(private.pid_file, "dockerd")
    if pid is not None:
        log(f"stopping the private engine {pid}")
        end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        if pid in _CHILDREN:
            _CHILDREN.pop(pid).wait()
    _clear_leftovers(private, log)
    if purge and private.state.exists():
        log(f"removing {private.state}")
        shutil.rmtree(private.state)
    return pid is not None
