"""Runs a swarm of three engines, each in its own network namespace; a node is lost and comes back.

The nodes share only a bridge. A node with its link down is like a lost machine: its engine and containers keep running,
but nothing reaches them. The API is the image `core`: claims need no model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
import pytest

from tests.docker.conftest import PROJECT, STACK, built
from tests.support.needs import skip_or_fail
from tests.support.polling import WAIT_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

BRIDGE, NETWORK = "tgcluster", "10.214.73"
FORWARDED = ("--in-interface", BRIDGE, "--out-interface", BRIDGE, "--jump", "ACCEPT")
NODES = (1, 2, 3)


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Node:
    """An engine in a network namespace."""

    number: int
    folder: Path

    @property
    def name(self) -> str:
        """The name of the namespace, and the host name of the engine."""
        return f"{BRIDGE}{self.number}"

    @property
    def address(self) -> str:
        """The address on the bridge."""
        return f"{NETWORK}.{self.number}"

    @property
    def url(self) -> str:
        """The URL of the proxy on this node."""
        return f"http://{self.address}:8080"

    def docker(self, *arguments: str, environment: dict[str, str] | None = None) -> str:
        """Runs `docker *arguments` on this node and returns its output."""
        return run("docker", "--host", f"unix://{self.folder}/docker.sock", *arguments, environment=environment)

    def is_serving(self) -> bool:
        """Returns whether a replica is ready behind this node's proxy."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        return False

    def set_link(self, state: str) -> None:
        """Sets the link between node and bridge `up` or `down`."""
        run("ip", "link", "set", f"{BRIDGE}v{self.number}", state)


@contextlib.contextmanager
def running(node: Node) -> Iterator[None]:
    """Runs an engine in the node's namespace; removes both afterwards."""
    cable, end = f"{BRIDGE}v{node.number}", "eth0"
    run("ip", "netns", "add", node.name)
    try:
        run("ip", "link", "add", cable, "type", "veth", "peer", "name", end, "netns", node.name)
        run("ip", "link", "set", cable, "master", BRIDGE, "up")
        for arguments in (
            ("address", "add", f"{node.address}/24", "dev", end),
            ("link", "set", "lo", "up"),
            ("link", "set", end, "up"),
            ("route", "add", "default", "via", f"{NETWORK}.254"),
        ):
            run("ip", "-n", node.name, *arguments)
        configuration = {
            "hosts": [f"unix://{node.folder}/docker.sock"],
            "data-root": str(node.folder / "data"),
            "exec-root": str(node.folder / "exec"),
            "pidfile": str(node.folder / "dockerd.pid"),
            "features": {"containerd-snapshotter": True},
        }
        (node.folder / "daemon.json").write_text(json.dumps(configuration))
        with (node.folder / "log").open("wb") as log:
            engine = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{node.name}", "unshare", "--uts", "--", "sh", "-c"),
                    f"hostname {node.name} && exec dockerd --config-file {node.folder}/daemon.json",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            until(lambda: (node.folder / "docker.sock").exists() and _answers(node), f"engine {node.number} answers")
            yield
        finally:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                node.docker("swarm", "leave", "--force")
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                if containers := node.docker("ps", "--all", "--quiet").split():
                    node.docker("rm", "--force", *containers)
            engine.terminate()
            engine.wait(60)
    finally:
        run("ip", "netns", "delete", node.name)


def remove(folder: Path) -> None:
    """Removes *folder*, including mounts that a crashed engine left in it."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((each for each in mounts if each.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _answers(node: Node) -> bool:
    with contextlib.suppress(AssertionError):
        return node.docker("version", "--format", "{{.Server.Version}}") != ""
    return False


@dataclass(slots=True)
class Writer:
    """Stores claims through one node's proxy, one after the other, and remembers which were accepted."""

    url: str
    accepted: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    longest_seconds: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(60)

    def _write(self) -> None:
        with httpx.Client(base_url=self.url, timeout=20) as client:
            number = 0
            while not self._stop.is_set():
                number += 1
                text, began = f"Claim number {number} is stored once.", time.monotonic()
                try:
                    reply = client.post("/api/v1/claims", json={"text": text})
                    reply.raise_for_status()
                    self.accepted[reply.json()["id"]] = text
                except httpx.HTTPError:
                    self.failed += 1
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                self._stop.wait(0.05)


@pytest.fixture
def stack_images(docker: Sequence[str], images: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The images of the stack."""
    with built(docker, tmp_path, "core") as made:
        yield {**images, **made}


@pytest.fixture
def nodes(
    pytestconfig: pytest.Config, docker: Sequence[str], stack_images: dict[str, str]
) -> Iterator[tuple[Node, ...]]:
    """Three managers of one swarm, which have the images."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables", "nsenter", "dockerd"))):
        skip_or_fail(pytestconfig, "cluster", "needs root, ip, iptables, nsenter and dockerd")
    with contextlib.ExitStack() as stack:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(run, "ip", "link", "delete", BRIDGE)
        run("ip", "address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        # If the kernel filters bridges, the engine of this machine may allow only its own traffic.
        run("iptables", "--insert", "FORWARD", *FORWARDED)
        stack.callback(run, "iptables", "--delete", "FORWARD", *FORWARDED)
        made = tuple(Node(number, Path(tempfile.mkdtemp(prefix=f"tgc{number}-"))) for number in NODES)
        for node in made:
            stack.callback(remove, node.folder)
            stack.enter_context(running(node))
            with subprocess.Popen([*docker, "save", *stack_images.values()], stdout=subprocess.PIPE) as saved:
                load = ["docker", "--host", f"unix://{node.folder}/docker.sock", "load", "--quiet"]
                loaded = subprocess.run(load, stdin=saved.stdout, capture_output=True, check=False)
            assert (saved.returncode, loaded.returncode) == (0, 0), loaded.stderr.decode()
        first, *others = made
        first.docker("swarm", "init", "--advertise-addr", first.address)
        token = first.docker("swarm", "join-token", "--quiet", "manager")
        for node in others:
            node.docker("swarm", "join", "--advertise-addr", node.address, "--token", token, f"{first.address}:2377")
        yield made


def replicas(node: Node) -> dict[str, int]:
    """Returns node -> running replicas of the API."""
    lines = node.docker(
        "service", "ps", "tg_api", "--filter", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}"
    )
    found: dict[str, int] = {}
    for line in lines.splitlines():
        where, state, *_ = line.split()
        if state == "Running":
            found[where] = found.get(where, 0) + 1
    return found


def test_lost_node_costs_no_claim_and_is_used_again(
    nodes: tuple[Node, ...],
    stack_images: dict[str, str],
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    first, _, third = nodes
    run(str(PROJECT / "docker" / "make-secrets"), str(tmp_path / "secrets"))
    environment = {
        "TRUTHGRAPH_API_IMAGE": stack_images["core"],
        "TRUTHGRAPH_DATABASE_IMAGE": stack_images["postgres"],
        "TRUTHGRAPH_PROXY_IMAGE": stack_images["proxy"],
        "TRUTHGRAPH_SECRETS": str(tmp_path / "secrets"),
        "TRUTHGRAPH_STACK": "tg",
        "TRUTHGRAPH_REPLICAS": "3",
        "TRUTHGRAPH_ALLOW_ANONYMOUS": "true",
        "TRUTHGRAPH_RATE_LIMITS": "false",
        "TRUTHGRAPH_API_MEMORY": "512m",
        "TRUTHGRAPH_DATABASE_NODE": f"node.hostname == {first.name}",
    }
    first.docker(
        *("stack", "deploy", "--resolve-image", "never", "-c", str(STACK), "tg"),
        environment=environment,
    )
    until(lambda: all(node.is_serving() for node in nodes), "every node's proxy finds a ready replica")
    until(lambda: set(replicas(first)) == {node.name for node in nodes}, "one replica runs on each node")
    with Writer(first.url) as writer:
        until(lambda: len(writer.accepted) > 50, "claims are stored")
        before = len(writer.accepted)
        third.set_link("down")
        until(lambda: third.name not in replicas(first) and sum(replicas(first).values()) == 3, "its replica moved")
        until(lambda: len(writer.accepted) > before + 100, "claims are stored without the third node")
        third.set_link("up")
        until(third.is_serving, "the third node serves again")
        until(
            lambda: first.docker("node", "inspect", third.name, "--format", "{{.Status.State}}") == "ready",
            "the third node is ready",
        )
        first.docker("service", "update", "--force", "--detach=false", "--quiet", "tg_api")
        until(lambda: third.name in replicas(first), "an update spreads the replicas over all nodes again")
    record_testsuite_property("claims accepted", len(writer.accepted))
    record_testsuite_property("claims failed", writer.failed)
    record_testsuite_property("longest seconds", round(writer.longest_seconds, 1))
    with httpx.Client(base_url=third.url, timeout=20) as client:
        for claim, text in writer.accepted.items():
            assert client.get(f"/api/v1/claims/{claim}").json()["text"] == text
    assert writer.failed <= 0.05 * len(writer.accepted)
