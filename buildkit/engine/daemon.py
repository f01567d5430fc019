"""Finds a container engine, or installs, starts and stops a managed daemon: an engine that this toolkit started.

The order is: (1) the engine that `docker` finds (DOCKER_HOST, the current context, the default socket), (2) the managed
daemon of an earlier run, (3) a new managed daemon, with Debian's packages installed if they are missing. Steps (1) and
(2) change nothing on the machine.
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
from typing import TYPE_CHECKING, Final

from buildkit.engine.client import connect, versions
from buildkit.engine.install import DOCKER_PACKAGES, install_docker
from buildkit.engine.processes import end, program_of
from buildkit.errors import CommandFailed, EngineTooOld, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit.engine.client import Engine

__all__ = ["ManagedDaemon", "clean", "ensure", "find", "start", "stop"]

_ISOLATED: Final[Mapping[str, object]] = {
    "iptables": False,
    "ip6tables": False,
    "ip-forward": False,
    "ip-masq": False,
    "userland-proxy": False,
    "builder": {"gc": {"enabled": False}},
}
"""Settings of dockerd (its reference, "Daemon configuration file") for a daemon that runs next to others: the
machine's network is not changed, and the build cache is never pruned (the default limit is a tenth of the disk)."""
_CHILDREN: Final[dict[int, subprocess.Popen[bytes]]] = {}
"""The daemons that this process started, by process id: this process must wait for them when it stops them."""
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class ManagedDaemon:
    """An engine of this toolkit: the folders and the network of its dockerd.

    Attributes:
        state: the folder for images, build cache and log.
        run: the folder for sockets and process ids; a reboot may remove it.
        bridge: an existing network interface, for a daemon next to others; "" for dockerd's default, docker0 with
            firewall rules. With a bridge dockerd leaves docker0 and the firewall alone. Its containers then reach only
            each other, and its builds use the network of the machine.
    """

    state: Path = Path("/var/lib/truthgraph-engine")
    run: Path = Path("/run/truthgraph-engine")
    bridge: str = ""

    @property
    def socket(self) -> Path:
        """The socket of the engine's API."""
        return self.run / "docker.sock"

    @property
    def host(self) -> str:
        """The value of DOCKER_HOST for it."""
        return f"unix://{self.socket}"

    @property
    def log(self) -> Path:
        """The output of dockerd and its containerd."""
        return self.state / "dockerd.log"

    @property
    def pid_file(self) -> Path:
        """The file to which dockerd writes its process id."""
        return self.run / "dockerd.pid"

    def configuration(self) -> dict[str, object]:
        """Returns the content of dockerd's daemon.json: its own folders, images in containerd's store."""
        return {
            "hosts": [self.host],
            "data-root": str(self.state / "data"),
            "exec-root": str(self.run / "exec"),
            "pidfile": str(self.pid_file),
            "features": {"containerd-snapshotter": True},
            **({**_ISOLATED, "bridge": self.bridge} if self.bridge else {}),
        }


def find(environment: Mapping[str, str], daemon: ManagedDaemon) -> Engine:
    """Returns the engine of the environment if it answers, or else the managed daemon.

    Raises:
        EngineUnavailable: neither answers; `commands` says how to start one.
        EngineTooOld: the one that answers is too old.
    """
    hosts = [""] if environment.get("DOCKER_HOST") or not daemon.socket.exists() else ["", daemon.host]
    reason = ""
    for host in hosts:
        try:
            return connect(host)
        except CommandFailed as error:
            reason = reason or error.log_tail.partition("\n")[0] or f"exit code {error.exit_code_of_command}"
    address = environment.get("DOCKER_HOST") or f"the default address or {daemon.host}"
    raise EngineUnavailable(address, reason, ["nox -s engine"])


def ensure(environment: Mapping[str, str], daemon: ManagedDaemon, log: Callable[[str], None]) -> Engine:
    """Returns an engine with buildx: one that answers, or else a managed daemon, installed and started if necessary.

    Installs Debian packages if dockerd or buildx is missing, which needs root and apt-get. Logs each change before it
    makes it.

    Raises:
        EngineUnavailable: no engine answers, and none can be started; `commands` says what to run.
        EngineTooOld: the engine of the environment is too old.
        CommandFailed: an installation failed.
    """
    try:
        engine = find(environment, daemon)
    except EngineUnavailable:
        if environment.get("DOCKER_HOST"):
            raise  # the user named this engine; do not use another
        if not shutil.which("dockerd") or not shutil.which("docker"):
            install_docker(DOCKER_PACKAGES, log)
        engine = start(daemon, log)
    try:
        versions(engine)
    except EngineTooOld:
        if shutil.which("dockerd") is None or os.geteuid() != 0 or environment.get("DOCKER_HOST"):
            raise
        install_docker(("docker-cli", "docker-buildx"), log)
        versions(engine)
    return engine


def _running_pid(pid_file: Path, program: str) -> int | None:
    """Returns the process id in *pid_file* if that process runs *program*, else None."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if program_of(pid) == program else None


def _clear_leftovers(daemon: ManagedDaemon, log: Callable[[str], None]) -> None:
    """Removes the leftovers of a killed daemon: its containerd, stale pid files, the socket, mounts in its folders."""
    for pid_file, program in (
        (daemon.pid_file, "dockerd"),
        (daemon.run / "exec" / "containerd" / "containerd.pid", "containerd"),
    ):
        pid = _running_pid(pid_file, program)
        if pid is not None and program == "containerd":
            log(f"ending containerd {pid}, left by a killed daemon")
            end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        if pid is None or program == "containerd":
            pid_file.unlink(missing_ok=True)
    daemon.socket.unlink(missing_ok=True)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    own = [mount for mount in mounts if mount.startswith((f"{daemon.run}/", f"{daemon.state}/"))]
    for mount in sorted(own, key=len, reverse=True):
        log(f"unmounting {mount}, left by a killed daemon")
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def start(daemon: ManagedDaemon, log: Callable[[str], None]) -> Engine:
    """Starts dockerd, unless it runs already, and waits until it answers.

    Raises:
        EngineUnavailable: this user is not root, or dockerd did not start; the reason holds the end of its log.
    """
    if os.geteuid() != 0:
        raise EngineUnavailable(daemon.host, "only root can start one", ["sudo nox -s engine"])
    pid = _running_pid(daemon.pid_file, "dockerd")
    if pid is None:
        _clear_leftovers(daemon, log)
        process = _start_dockerd(daemon, log)
    else:
        log(f"waiting for dockerd {pid}")
        process = None
    deadline = time.monotonic() + _START_SECONDS
    reason = "no answer"
    while time.monotonic() < deadline:
        if daemon.socket.exists():
            try:
                engine = connect(daemon.host)
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
    tail = "\n".join(daemon.log.read_text(errors="replace").splitlines()[-12:])
    raise EngineUnavailable(daemon.host, f"{reason}; the end of {daemon.log}:\n{tail}", [])


def _start_dockerd(daemon: ManagedDaemon, log: Callable[[str], None]) -> subprocess.Popen[bytes]:
    """Writes dockerd's configuration and starts it in its own session, so that Ctrl-C does not end it."""
    daemon.state.mkdir(parents=True, exist_ok=True)
    daemon.run.mkdir(parents=True, exist_ok=True)
    configuration = daemon.state / "daemon.json"
    configuration.write_text(json.dumps(daemon.configuration(), indent=1) + "\n")
    log(f"starting dockerd --config-file {configuration}, log in {daemon.log}")
    with daemon.log.open("ab") as log_file:
        return subprocess.Popen(
            ["dockerd", "--config-file", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")},
        )


def clean(engine: Engine, daemon: ManagedDaemon, names: Sequence[str], log: Callable[[str], None]) -> None:
    """Removes the images of the repositories *names*; if *engine* is the managed daemon, also its build cache.

    The build cache of any other engine is kept: the user's other builds may need it.
    """
    for name in names:
        images = engine.docker("image", "ls", "--quiet", "--no-trunc", name).split()
        if images:
            log(f"removing the images of {name}: {len(set(images))}")
            engine.docker("image", "rm", "--force", *sorted(set(images)), seconds=_STOP_SECONDS * 4)
    if engine.host == daemon.host:
        log("removing the build cache of the managed daemon")
        engine.docker("buildx", "prune", "--all", "--force", seconds=_STOP_SECONDS * 10)


def stop(daemon: ManagedDaemon, log: Callable[[str], None], *, purge: bool = False) -> bool:
    """Stops dockerd and its containers; *purge* also removes its data. Returns whether dockerd was running."""
    pid = _running_pid(daemon.pid_file, "dockerd")
    if pid is not None:
        log(f"stopping dockerd {pid}")
        end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        if pid in _CHILDREN:
            _CHILDREN.pop(pid).wait()
    _clear_leftovers(daemon, log)
    if purge and daemon.state.exists():
        log(f"removing {daemon.state}")
        shutil.rmtree(daemon.state)
    return pid is not None
