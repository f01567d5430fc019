"""Tests the stack with Docker Compose and in swarm mode: it serves, hides its secrets, updates and recovers."""

from __future__ import annotations

import secrets
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.docker.conftest import PROJECT, STACK, Docker
from tests.support.needs import skip_or_fail
from tests.support.polling import START_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

CALLERS = 4
PAUSE_SECONDS = 0.1  # between two requests of a caller: the new replica needs the processor to load its models
OVERLAY = """
FROM {image}
USER 0:0
RUN rm -r /app/service /app/migrations
COPY service /app/service
COPY migrations /app/migrations
USER 1000:1000
"""
"""Removes the old code first: Python would run its bytecode, which the image does not compare with the sources."""


@pytest.fixture(scope="session")
def api_image(
    pytestconfig: pytest.Config, docker: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The image of the API that was built last, with the code of this checkout."""
    built, made = "truthgraph-api:latest", "truthgraph-test-stack:api"
    if subprocess.run([*docker, "image", "inspect", built], capture_output=True, check=False).returncode != 0:
        skip_or_fail(pytestconfig, "api-image", "`nox -s build-image` builds it")
    file = tmp_path_factory.mktemp("api") / "Dockerfile"
    file.write_text(OVERLAY.format(image=built))
    file.with_name("Dockerfile.dockerignore").write_text("*\n!service\n!migrations\n**/__pycache__\n")
    subprocess.run(
        [*docker, "buildx", "build", "--quiet", "--provenance=false", "--file", file, "--tag", made, PROJECT],
        capture_output=True,
        check=True,
    )
    yield made
    subprocess.run([*docker, "image", "rm", made], capture_output=True, check=False)


@pytest.fixture
def compose(pytestconfig: pytest.Config, docker: Sequence[str]) -> None:
    """Requires Docker Compose."""
    if subprocess.run([*docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        skip_or_fail(pytestconfig, "compose", "Debian 13 has it as docker-compose")


@pytest.fixture
def swarm(docker: Sequence[str]) -> Iterator[None]:
    """Requires swarm mode; leaves it again if it was off before."""
    state = subprocess.run(
        [*docker, "info", "--format", "{{.Swarm.LocalNodeState}}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if state == "inactive":
        subprocess.run([*docker, "swarm", "init", "--advertise-addr=127.0.0.1"], capture_output=True, check=True)
    yield
    if state == "inactive":
        subprocess.run([*docker, "swarm", "leave", "--force"], capture_output=True, check=True)


@dataclass(frozen=True, slots=True)
class Stack:
    """A deployment under a unique name."""

    engine: Docker
    environment: dict[str, str]
    password: str
    url: str

    def container(self, service: str) -> str:
        """Returns a running container of a service."""
        ids = self.engine.text(
            *("ps", "--quiet", "--filter", f"name={self.engine.name}"),
            *("--filter", f"label=io.truthgraph.service={service}"),
        ).split()
        assert ids, f"{service} does not run"
        return ids[0]

    def is_restarted(self, container: str) -> bool:
        """Returns whether the engine has restarted a container exactly once and it runs."""
        return self.engine.text("inspect", "--format", "{{.RestartCount}} {{.State.Running}}", container) == "1 true"

    def is_ready(self) -> bool:
        """Returns whether the API is ready, as seen through the proxy."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def client(self) -> httpx.Client:
        """Returns a client with an API key, made as an operator would."""
        api = self.container("api")
        key = self.engine.text("exec", api, "python", "-m", "service", "keys", "add", f"key {secrets.token_hex(4)}")
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture
def stack(engine: Docker, images: dict[str, str], api_image: str, tmp_path: Path) -> Stack:
    """The stack with a free port and new secrets, not started yet."""
    subprocess.run([PROJECT / "docker" / "make-secrets", tmp_path / "secrets"], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "TRUTHGRAPH_API_IMAGE": api_image,
        "TRUTHGRAPH_DATABASE_IMAGE": images["postgres"],
        "TRUTHGRAPH_PROXY_IMAGE": images["proxy"],
        "TRUTHGRAPH_SECRETS": str(tmp_path / "secrets"),
        "TRUTHGRAPH_STACK": engine.name,
        "TRUTHGRAPH_PUBLISHED_PORT": str(port),
        "TRUTHGRAPH_MONITOR_SECONDS": "3",
    }
    return Stack(engine, environment, (tmp_path / "secrets/database-password").read_text(), f"http://127.0.0.1:{port}")


def assert_serves(stack: Stack) -> None:
    """Asserts that claims are stored, evidence is found by meaning, and a request without a key is refused."""
    refused = httpx.get(f"{stack.url}/api/v1/claims")
    assert refused.status_code == 401, "a caller on this machine does not count as one in the container"
    with stack.client() as client:
        claim = client.post("/api/v1/claims", json={"text": "Our planet is round."}).json()["id"]
        assert client.get(f"/api/v1/claims/{claim}").json()["text"] == "Our planet is round."
        for content in ("The Earth is an oblate spheroid.", "Cats sleep most of the day."):
            assert client.post("/api/v1/evidence", json={"content": content}).status_code == 201
        found = client.post("/api/v1/search", json={"query": "the shape of our planet", "mode": "vector"}).json()
        assert found["results"][0]["content"] == "The Earth is an oblate spheroid."


def visible_text(stack: Stack, *objects: str) -> str:
    """Returns the output of inspect for the containers and *objects*, with environments, logs and image histories."""
    engine = stack.engine
    containers = engine.text("ps", "--all", "--quiet", "--filter", f"name={engine.name}").split()
    texts = [engine.text("inspect", *containers, *objects)]
    for container in containers:
        texts.append(engine.logs(container))
        command = "cat /proc/1/environ /proc/1/cmdline; env"
        texts.append(engine.run("exec", container, "sh", "-c", command, code=None).stdout.decode(errors="replace"))
    for image in {value for name, value in stack.environment.items() if name.endswith("_IMAGE")}:
        texts += [engine.text("image", "inspect", image), engine.text("history", "--no-trunc", image)]
    return "\n".join(texts)


def test_compose_stack_serves_and_recovers(stack: Stack, compose: None) -> None:
    del compose
    command = ("compose", "--project-name", stack.engine.name, "--file", str(STACK))
    try:
        stack.engine.run(*command, "up", "--detach", environment=stack.environment)
        until(stack.is_ready, "the API is ready", seconds=START_SECONDS)
        assert_serves(stack)
        text = visible_text(stack)
        assert stack.password not in text
        assert "TRUTHGRAPH_DRAIN_SECONDS=30" in text, "the search finds visible values"
        published = stack.engine.text("port", stack.container("proxy"))
        assert "127.0.0.1" in published
        assert "0.0.0.0" not in published, "only this machine can reach it"  # noqa: S104
        # The engine restarts a container after its process has ended, but not after `docker kill`.
        for service, signal_name in (("api", "TERM"), ("database", "QUIT")):
            ended = stack.container(service)
            stack.engine.run("exec", ended, "sh", "-c", f"kill -{signal_name} 1")
            until(partial(stack.is_restarted, ended), f"{service} was restarted")
            until(stack.is_ready, "the API is ready again", seconds=START_SECONDS)
        for service in ("api", "database", "proxy"):
            assert "NoNewPrivs:\t1" in stack.engine.text("exec", stack.container(service), "cat", "/proc/1/status")
    finally:
        stack.engine.run(*command, "down", "--volumes", "--timeout=5", environment=stack.environment)


@dataclass(slots=True)
class Load:
    """Callers that send requests until `is_over` is set, and record the lost ones."""

    stack: Stack
    completed: int = 0
    lost: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, number: int, key: str) -> None:
        """Runs one caller; odd ones open a new connection for each request."""
        with httpx.Client(base_url=self.stack.url, headers={"Authorization": key}, timeout=60) as client:
            while not self.is_over.is_set():
                try:
                    if number % 2:
                        with httpx.Client(base_url=self.stack.url, headers=client.headers, timeout=60) as fresh:
                            answers = self.requests(fresh)
                    else:
                        answers = self.requests(client)
                    lost = [
                        f"{time.time():.2f} {answer.status_code} {answer.text[:200]}"
                        for answer in answers
                        if answer.is_error
                    ]
                except httpx.TransportError as error:
                    lost = [f"{time.time():.2f} {error!r}"]
                with self.lock:
                    self.completed += not lost
                    self.lost += lost
                self.is_over.wait(PAUSE_SECONDS)

    @staticmethod
    def requests(client: httpx.Client) -> list[httpx.Response]:
        """Sends one request that stores and one that computes."""
        return [
            client.post("/api/v1/claims", json={"text": "The sun rises in the east."}),
            client.post("/api/v1/embed", json={"texts": ["The sun rises in the east."]}),
        ]


def test_swarm_updates_without_loss_and_rolls_back(stack: Stack, swarm: None) -> None:
    del swarm
    name = stack.engine.name
    try:
        stack.engine.run(
            "stack", "deploy", "--detach=true", "--compose-file", str(STACK), name, environment=stack.environment
        )
        until(stack.is_ready, "the API is ready", seconds=START_SECONDS)
        assert_serves(stack)
        services = [f"{name}_{service}" for service in ("api", "database", "migrate", "proxy")]
        text = visible_text(
            stack, *services, *stack.engine.text("secret", "ls", "--quiet", "--filter", f"name={name}").split()
        )
        assert stack.password not in text
        assert "TRUTHGRAPH_DRAIN_SECONDS=30" in text, "the search finds visible values"
        with stack.client() as client:
            before = client.get("/api/v1/claims").json()["total"]
            load = Load(stack)
            callers = [
                threading.Thread(target=load.call, args=(number, client.headers["Authorization"]))
                for number in range(CALLERS)
            ]
            for caller in callers:
                caller.start()
            try:
                updated = stack.engine.text("service", "update", "--force", "--detach=false", "--quiet", f"{name}_api")
                assert updated, "the update ended"
                bad = ("--env-add", "TRUTHGRAPH_DTYPE=float16")
                stack.engine.run("service", "update", "--detach=true", "--quiet", *bad, f"{name}_api")
                state = ("service", "inspect", "--format", "{{.UpdateStatus.State}}", f"{name}_api")
                until(lambda: stack.engine.text(*state) == "rollback_completed", "the bad update was rolled back")
            finally:
                load.is_over.set()
                for caller in callers:
                    caller.join()
            assert load.lost == []
            assert load.completed > CALLERS
            assert client.get("/api/v1/claims").json()["total"] == before + load.completed
            stack.engine.run("kill", stack.container("database"))
            until(
                lambda: client.get("/api/v1/claims").status_code == 503, "the API reports that its database is missing"
            )
            until(lambda: client.get("/api/v1/claims").status_code == 200, "the database is back")
            assert client.get("/api/v1/claims").json()["total"] == before + load.completed
    finally:
        stack.engine.run("stack", "rm", name)
        until(
            lambda: not stack.engine.text("ps", "--all", "--quiet", "--filter", f"name={name}"),
            "all containers have stopped",
        )
        until(
            lambda: not stack.engine.text("network", "ls", "--quiet", "--filter", f"name={name}"),
            "all networks are removed",
        )
