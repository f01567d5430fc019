"""The container engine: the one that the environment points to, or a private one that is started here.

Order of what is tried: (1) the engine that `docker` finds by itself (DOCKER_HOST, the current context, the default
socket), (2) the private engine of an earlier run, (3) a private engine is started, after Debian's packages for it were
installed where they are missing. Steps (1) and (2) change nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit.errors import CommandFailed, EngineTooOld, EngineUnavailable
from buildkit.processes import end, program_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "Engine",
    "Mirror",
    "Private",
    "at",
    "clean",
    "debian_mirror",
    "docker",
    "ensure",
    "find",
    "install_packages",
    "start",
    "stop",
    "versions",
]

LEAST_ENGINE = (23, 0)
"""Docker 23: the first whose default builder is BuildKit through buildx (release notes 23.0)."""
LEAST_BUILDX = (0, 13)
"""buildx 0.13: the first with `--progress=rawjson` (release notes 0.13.0), which the build record is made from."""

_PACKAGES = ("docker.io", "docker-cli", "docker-buildx", "containerd")
_DONOR_SUITE = "trixie"
"""Debian 13: the first whose own packages have buildx (docker.io 26.1, docker-buildx 0.13)."""
_DONOR_RELEASE = 13
_DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
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
_ANSWER_SECONDS = 10.0
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answered.

    Attributes:
        host: what DOCKER_HOST must be to reach it; "" where `docker` finds it without.
        version: the engine's, as it says it.
        root: the folder that its images take room in; None where it is on another machine.
    """

    host: str
    version: str
    root: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in its environment to reach this engine."""
        return {"DOCKER_HOST": self.host} if self.host else {}


@dataclass(frozen=True, slots=True)
class Private:
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


def docker(host: str, *arguments: str, seconds: float = _ANSWER_SECONDS) -> str:
    """What `docker *arguments*` prints.

    Raises:
        CommandFailed: it failed, or did not answer in time.
    """
    command = ["docker", *arguments]
    environment = os.environ | ({"DOCKER_HOST": host} if host else {})
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise CommandFailed(command, 127, "docker is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(command, 124, f"no answer within {seconds:.0f} s") from error
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr.strip()[-2000:])
    return done.stdout


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of *version*: `26.1.5+dfsg1` is (26, 1, 5). A version without any is (0,)."""
    return tuple(int(part) for part in re.findall(r"\d+", re.split("[+-]", version, maxsplit=1)[0])) or (0,)


def at(host: str) -> Engine:
    """The engine at *host*.

    Raises:
        CommandFailed: none answers there.
        EngineTooOld: it is older than `LEAST_ENGINE`.
    """
    info = json.loads(docker(host, "info", "--format", "{{json .}}"))
    version = str(info.get("ServerVersion") or "")
    if not version:
        raise CommandFailed(["docker", "info"], 1, "; ".join(info.get("ServerErrors") or ["no engine answered"]))
    if _numbers(version) < LEAST_ENGINE:
        least = ".".join(map(str, LEAST_ENGINE))
        raise EngineTooOld("Docker Engine", version, least, "Upgrade it, or point DOCKER_HOST to another one.")
    root = Path(str(info["DockerRootDir"]))
    return Engine(host, version, root if root.is_dir() else None)


def find(environment: Mapping[str, str], private: Private) -> Engine:
    """The engine that already answers: the environment's own first, then the private one.

    Raises:
        EngineUnavailable: neither answers; `commands` says how to have one.
        EngineTooOld: the one that answers is too old.
    """
    hosts = [""] if environment.get("DOCKER_HOST") or not private.socket.exists() else ["", private.host]
    reason = ""
    for host in hosts:
        try:
            return at(host)
        except CommandFailed as error:
            reason = reason or error.log_tail.splitlines()[0]
    address = environment.get("DOCKER_HOST") or f"the default address or {private.host}"
    raise EngineUnavailable(address, reason, ["nox -s engine"])


def versions(engine: Engine) -> dict[str, str]:
    """Versions of engine, client, buildx and BuildKit, by those names.

    Raises:
        EngineTooOld: buildx is missing or too old.
    """
    client = docker(engine.host, "version", "--format", "{{.Client.Version}}").strip()
    least = ".".join(map(str, LEAST_BUILDX))
    advice = "Install your distribution's docker-buildx or docker-buildx-plugin package."
    try:
        match = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", docker(engine.host, "buildx", "version"))
    except CommandFailed as error:
        raise EngineTooOld("docker buildx", "(not installed)", least, advice) from error
    buildx = match[1] if match else "0"
    if _numbers(buildx) < LEAST_BUILDX:
        raise EngineTooOld("docker buildx", buildx, least, advice)
    inspected = docker(engine.host, "buildx", "inspect", seconds=30)
    found = re.search(r"^\s*BuildKit(?: version)?:\s*(\S+)", inspected, re.MULTILINE)
    buildkit = found[1] if found else "unknown"
    if buildkit.endswith("+unknown"):
        buildkit = f"built into Docker Engine {engine.version}"  # Debian's build does not carry the number
    return {"engine": engine.version, "client": client, "buildx": buildx, "buildkit": buildkit}


def ensure(environment: Mapping[str, str], private: Private, say: Callable[[str], None]) -> Engine:
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
            _install(_PACKAGES, say)
        engine = start(private, say)
    try:
        versions(engine)
    except EngineTooOld:
        if shutil.which("dockerd") is None or os.geteuid() != 0 or environment.get("DOCKER_HOST"):
            raise
        _install(("docker-cli", "docker-buildx"), say)
        versions(engine)
    return engine


# ---- installing -----------------------------------------------------------------------------------------------------


def _release() -> dict[str, str]:
    """The machine's /etc/os-release."""
    path = Path("/etc/os-release")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def donor_source(uri: str) -> str:
    """An apt source (deb822) for Debian 13 at *uri*, the mirror that the machine already uses."""
    return (
        "# Docker's packages of Debian 13, pinned in preferences.d/truthgraph-engine. Written by `nox -s engine`.\n"
        f"Types: deb\nURIs: {uri}\nSuites: {_DONOR_SUITE}\nComponents: main\nSigned-By: {_DEBIAN_KEYRING}\n"
    )


def donor_preferences(packages: Sequence[str] = _PACKAGES) -> str:
    """Preferences of apt that take *packages*, and nothing else, from Debian 13."""
    return (
        f"Package: *\nPin: release n={_DONOR_SUITE}\nPin-Priority: -1\n\n"
        f"Package: {' '.join(packages)}\nPin: release n={_DONOR_SUITE}\nPin-Priority: 990\n"
    )


@dataclass(frozen=True, slots=True)
class Mirror:
    """The Debian archive that this machine uses: its address, and that of its security archive if any."""

    uri: str
    security_uri: str | None


def debian_mirror() -> Mirror:
    """The machine's own Debian archive, whatever the format of its apt sources.

    Raises:
        EngineUnavailable: apt has no source for this release.
    """
    codename = _release().get("VERSION_CODENAME", "")
    fields = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, str] = {}
    for line in listed.splitlines():
        uri, release, component = line.split("\t")
        if component == "main":
            found.setdefault(release, uri)
    if codename not in found:
        raise EngineUnavailable("apt", f"no source for {codename} main in /etc/apt", ["apt-get update"])
    return Mirror(found[codename], found.get(f"{codename}-security"))


def _by_hand(packages: Sequence[str]) -> list[str]:
    """The commands that a user can run where this harness may not."""
    return [f"sudo apt-get install {' '.join(packages)}", "nox -s engine"]


def _require_root_and_apt(packages: Sequence[str]) -> None:
    """Passes where *packages* can be installed.

    Raises:
        EngineUnavailable: this is no Debian, or we are not root.
    """
    release = _release()
    if shutil.which("apt-get") is None or release.get("ID") != "debian":
        name = release.get("PRETTY_NAME", "this system")
        advice = ["see docs.docker.com/engine/install"]
        raise EngineUnavailable("this machine", f"{packages[0]} is not installed, and {name} is not Debian", advice)
    if os.geteuid() != 0:
        reason = f"{packages[0]} is not installed, and only root may install it"
        raise EngineUnavailable("this machine", reason, _by_hand(packages))


def install_packages(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Installs Debian *packages* of this machine's own release.

    Raises:
        EngineUnavailable: this is no Debian, or we are not root; `commands` says what to run.
        CommandFailed: apt failed.
    """
    _require_root_and_apt(packages)
    _apt(say, "update")
    _apt(say, "install", "--yes", "--no-install-recommends", *packages)


def _install(packages: Sequence[str], say: Callable[[str], None]) -> None:
    """Installs *packages* of Docker, on Debian 12 from Debian 13 by a pinned source, upgrading nothing else."""
    _require_root_and_apt(packages)
    release = _release()
    codename = release.get("VERSION_CODENAME", "")
    _apt(say, "update")
    if codename != _DONOR_SUITE and _numbers(release.get("VERSION_ID", ""))[0] < _DONOR_RELEASE:
        mirror = debian_mirror()
        source = Path("/etc/apt/sources.list.d/truthgraph-engine.sources")
        preferences = Path("/etc/apt/preferences.d/truthgraph-engine")
        say(f"taking {', '.join(_PACKAGES)} from Debian 13: writing {source} and {preferences}")
        preferences.write_text(donor_preferences())
        source.write_text(donor_source(mirror.uri))
        _apt(say, "update")
    with _no_service_starts():
        _apt(say, "install", "--yes", "--no-install-recommends", *packages, "iptables")


def _apt(say: Callable[[str], None], *arguments: str) -> None:
    command = ["apt-get", "--quiet", "--quiet", *arguments]
    say(f"running {' '.join(command)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, (done.stdout + done.stderr).strip()[-2000:])


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keeps the packages' own services from starting while they are installed (Debian Policy 9.3.3.1)."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


# ---- starting and stopping ------------------------------------------------------------------------------------------


def _runs(pid_file: Path, program: str) -> int | None:
    """The process id in *pid_file* where that process is a live *program*, else None."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if program_of(pid) == program else None


def _clear_leftovers(private: Private, say: Callable[[str], None]) -> None:
    """Removes what a killed engine left: pid files of other processes, a dead socket, mounts below its folders."""
    for pid_file, program in (
        (private.pid_file, "dockerd"),
        (private.run / "exec" / "containerd" / "containerd.pid", "containerd"),
    ):
        pid = _runs(pid_file, program)
        if pid is not None and program == "containerd":
            say(f"ending containerd {pid}, left by a killed engine")
            end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        if pid is None or program == "containerd":
            pid_file.unlink(missing_ok=True)
    private.socket.unlink(missing_ok=True)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [m for m in mounts if m.startswith((f"{private.run}/", f"{private.state}/"))]
    for mount in sorted(below, key=len, reverse=True):
        say(f"unmounting {mount}, left by a killed engine")
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)


def start(private: Private, say: Callable[[str], None]) -> Engine:
    """Starts a private engine and waits until it answers; one that runs already is taken as it is.

    Raises:
        EngineUnavailable: not root, or it did not come up; the reason holds the end of its log.
    """
    if os.geteuid() != 0:
        raise EngineUnavailable(private.host, "only root can start one", ["sudo nox -s engine"])
    pid = _runs(private.pid_file, "dockerd")
    if pid is None:
        _clear_leftovers(private, say)
        private.state.mkdir(parents=True, exist_ok=True)
        private.run.mkdir(parents=True, exist_ok=True)
        configuration = private.state / "daemon.json"
        configuration.write_text(json.dumps(private.configuration(), indent=1) + "\n")
        say(f"starting a private engine: dockerd --config-file {configuration}, log in {private.log}")
        with private.log.open("ab") as log:
            process = subprocess.Popen(
                ["dockerd", "--config-file", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")},
            )
    else:
        say(f"waiting for the private engine {pid}")
        process = None
    deadline = time.monotonic() + _START_SECONDS
    reason = "no answer"
    while time.monotonic() < deadline:
        if private.socket.exists():
            try:
                engine = at(private.host)
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


def clean(engine: Engine, private: Private, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Removes the images called *names* (repositories), and in the private engine all that builds left.

    Another engine's build cache is not touched: other builds of the user may need it.
    """
    for name in names:
        images = docker(engine.host, "image", "ls", "--quiet", "--no-trunc", name).split()
        if images:
            say(f"removing {len(set(images))} images of {name}")
            docker(engine.host, "image", "rm", "--force", *sorted(set(images)), seconds=_STOP_SECONDS * 4)
    if engine.host == private.host:
        say("removing what builds left in the private engine")
        docker(engine.host, "buildx", "prune", "--all", "--force", seconds=_STOP_SECONDS * 10)


def stop(private: Private, say: Callable[[str], None], *, purge: bool = False) -> bool:
    """Stops the private engine, its containers with it; False where none ran. *purge* removes all that it stored."""
    pid = _runs(private.pid_file, "dockerd")
    if pid is not None:
        say(f"stopping the private engine {pid}")
        end([pid], ask=signal.SIGTERM, patience_seconds=_STOP_SECONDS)
        if pid in _CHILDREN:
            _CHILDREN.pop(pid).wait()
    _clear_leftovers(private, say)
    if purge and private.state.exists():
        say(f"removing {private.state}")
        shutil.rmtree(private.state)
    return pid is not None
