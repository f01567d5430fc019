from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace as replace_fields
from rich.console import Console

from buildkit.engine.client import Engine
from buildkit.errors import CommandFailed
from buildkit.staging.probes import container_exec, metrics
from buildkit.staging.probes.metrics import TrafficMetrics
from buildkit.staging.release.records import Migrations, Release, Releases
from buildkit.staging.stack.services import Replica
from buildkit.staging.stack.stack import Stack
from buildkit.staging.status import format_status, read_status

if TYPE_CHECKING:
    from tests.support.docker_stub import DockerStub

ROUTE = "/api/v1/embed"
SCRAPE = metrics.Scrape("10.0.0.1", 1.0, {(ROUTE, "200"): 90.0, (ROUTE, "500"): 10.0}, {ROUTE: {1.0: 90.0}})
STATS = {"ID": "container1", "MemUsage": "1.5GiB / 4GiB"}


class FakeStack(Stack):
    """Has two replicas of the API, one that failed, and no proxy."""

    def exists(self, service: str = "api") -> bool:
        return service != "proxy"

    def replicas(self, service: str, *, include_ended: bool = False) -> tuple[Replica, ...]:
        count = 2 if service == "api" else 1
        found = [replica(f"{service}{slot}", slot, f"container{slot}") for slot in range(1, count + 1)]
        if include_ended and service == "api":
            found.append(replace(replica("old", 1), state="failed", error="out of memory"))
        return tuple(found)

    def desired_replicas(self, service: str) -> int:
        return 2 if service == "api" else 1


def replica(task: str, slot: int, container: str = "") -> Replica:
    return Replica(task, slot, "api@sha256:0123456789abcdef", "running", "running", "", container)


@pytest.fixture
def stack(docker_stub: DockerStub, monkeypatch: pytest.MonkeyPatch) -> FakeStack:
    """The stack on a fake engine that runs the first container only."""
    docker_stub.answer("ps *", output="container1\nother")
    docker_stub.answer("stats *container1", output=json.dumps(STATS))
    monkeypatch.setattr(container_exec, "scrape", lambda _stack: (SCRAPE,))
    return FakeStack(engine=Engine("", "26", None), name="s", file=Path("stack.yaml"))


def test_status_counts_replicas_and_memory_on_this_engine(stack: FakeStack) -> None:
    status = read_status(stack)

    assert status.running == status.desired == {"api": 2, "database": 1}
    assert [each.task for each in status.failed["api"]] == ["old"]
    assert status.memory_bytes == {"container1": round(1.5 * 2**30)}
    assert (status.traffic.requests, status.traffic.error_fraction) == (100, 0.1)
    assert not status.is_healthy, "there is no proxy"


def test_complete_stack_is_healthy(stack: FakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStack, "exists", lambda _self, _service: True)

    assert read_status(stack).is_healthy


def test_metrics_that_cannot_be_read_are_a_problem(stack: FakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_stack: Stack) -> None:
        raise CommandFailed(["docker", "exec"], 1, "no metrics from 10.0.0.1")

    monkeypatch.setattr(FakeStack, "exists", lambda _self, _service: True)
    monkeypatch.setattr(container_exec, "scrape", fail)

    status = read_status(stack)

    assert status.problem == "no metrics from 10.0.0.1"
    assert not status.is_healthy


def test_stack_that_is_not_deployed_is_a_problem(stack: FakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStack, "exists", lambda _self, _service: False)

    assert read_status(stack).problem == "the stack is not running"


def test_container_that_ends_meanwhile_leaves_memory_unknown(stack: FakeStack, docker_stub: DockerStub) -> None:
    docker_stub.answer("stats *", errors="no such container", exit_code=1)

    assert read_status(stack).memory_bytes == {}


def test_engine_without_the_containers_measures_nothing(stack: FakeStack, docker_stub: DockerStub) -> None:
    docker_stub.answer("ps *", output="other")

    assert read_status(stack).memory_bytes == {}
    assert not [call for call in docker_stub.calls if call.startswith("stats")]


def test_tables_show_replicas_failures_and_releases(stack: FakeStack) -> None:
    traffic = TrafficMetrics(seconds=20, requests=100, error_fraction=0, p95_seconds={ROUTE: 0.25})
    serving = Release(
        name="0.1.0-aaaa",
        image="registry.test/api@sha256:0123456789abcdef",
        digest="sha256:0123456789abcdef",
        version="0.1.0",
        revision="a" * 40,
        released_by="someone@machine",
        started="2026-01-02T03:04:05+00:00",
        outcome="serving",
        bytes_sent=12_000_000,
        migrations=Migrations(before="0001", after="0002"),
        metrics=traffic,
    )
    failed = replace_fields(serving, name="0.1.0-bbbb", digest="sha256:b", outcome="failed", failed_step="canary")
    history = Releases(releases=(serving, failed))
    output = StringIO()
    console = Console(file=output, width=160)

    for table in format_status(read_status(stack), history):
        console.print(table)

    text = output.getvalue()
    assert "100 requests since the replicas started" in " ".join(text.split())
    for words in (
        ("api.1", "0.1.0-aaaa", "running", "1.61 GB"),
        ("api.1", "failed: out of memory"),
        ("0.1.0-aaaa", "serving", "01-02 03:04", "someone@machine", "0002", "12.0 MB", "0.250 s"),
        ("0.1.0-bbbb", "failed at canary"),
    ):
        assert [line for line in text.splitlines() if all(word in line for word in words)], words
