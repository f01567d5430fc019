from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit.engine.client import Engine
from buildkit.errors import CommandFailed, ReleaseFailed
from buildkit.staging.probes import container_exec
from buildkit.staging.stack.stack import Stack
from tests.support.http_server import serve

if TYPE_CHECKING:
    from tests.support.docker_stub import DockerStub

ROOT = Path(__file__).parents[4]
SERVICE = "exec --interactive api1 python -m service"
PLAN = {
    "current": "0001",
    "target": "0002",
    "direction": "up",
    "revisions": ["0002"],
    "is_compatible": True,
    "data_loss": [],
}
PAGE = 'truthgraph_requests_total{method="GET",route="/",status="200"} 3.0\n'


@pytest.fixture
def stack(docker_stub: DockerStub) -> Stack:
    """A stack with one healthy container of the API, `api1`."""
    docker_stub.answer("ps *", output="api1 Up 5 minutes (healthy)")
    return Stack(engine=Engine("", "26", None), name="s", file=Path("stack.yaml"))


def test_temporary_key_is_made_and_purged(stack: Stack, docker_stub: DockerStub) -> None:
    docker_stub.answer(f"{SERVICE} keys add *", output="tg_secret")
    docker_stub.answer(f"{SERVICE} keys purge *")

    with container_exec.temporary_key(stack) as key:
        assert key.secret == "tg_secret"  # noqa: S105

    commands = [call for call in docker_stub.calls if call.startswith("exec")]
    assert f"keys add {key.name} --scope write --tenant {key.name}" in commands[0]
    assert commands[1] == f"{SERVICE} keys purge {key.name}"
    assert not [call for call in docker_stub.calls if key.secret in call]


def test_temporary_key_is_purged_after_an_error(stack: Stack, docker_stub: DockerStub) -> None:
    docker_stub.answer(f"{SERVICE} keys add *", output="tg_secret")

    with pytest.raises(ZeroDivisionError), container_exec.temporary_key(stack):
        raise ZeroDivisionError

    assert "keys purge" in docker_stub.calls[-1]  # it fails here, which is ignored


def test_migration_plan_is_read(stack: Stack, docker_stub: DockerStub) -> None:
    docker_stub.answer(f"{SERVICE} migrate --plan --to head", output=json.dumps(PLAN))

    plan = container_exec.plan_migration(stack, "api1")

    assert (plan.direction, plan.revisions, plan.is_compatible, plan.data_loss) == ("up", ("0002",), True, ())


def test_migration_plan_failure_has_the_reason(stack: Stack, docker_stub: DockerStub) -> None:
    docker_stub.answer(f"{SERVICE} migrate *", errors="Traceback\nSchemaError: no way from 0009 to 0002", exit_code=1)

    with pytest.raises(ReleaseFailed, match="SchemaError: no way from 0009 to 0002"):
        container_exec.plan_migration(stack, "api1", "0002")


def test_scrape_parses_the_page_of_each_replica(stack: Stack, docker_stub: DockerStub) -> None:
    docker_stub.answer(f"{SERVICE} scrape api", output=json.dumps({"10.0.0.1": PAGE, "10.0.0.2": PAGE}))

    scrapes = container_exec.scrape(stack)

    assert [scrape.replica for scrape in scrapes] == ["10.0.0.1", "10.0.0.2"]
    assert scrapes[0].requests == {("/", "200"): 3.0}


def test_scrape_without_an_answer_fails(stack: Stack, docker_stub: DockerStub) -> None:
    docker_stub.answer(f"{SERVICE} scrape api", errors="no metrics from 10.0.0.1: timed out", exit_code=1)

    with pytest.raises(CommandFailed, match=r"no metrics from 10\.0\.0\.1"):
        container_exec.scrape(stack)


def test_canary_client_sends_its_key_through_docker_exec(stack: Stack, docker_stub: DockerStub) -> None:
    with serve(lambda request: request.headers["x-api-key"].encode()) as base:
        port = base.rpartition(":")[2]
        forward = f"cd {ROOT} && exec {sys.executable} -m service forward --port {port}"
        docker_stub.answer("exec --interactive canary1 python -m service forward", script=forward)
        key = container_exec.ApiKey("checks", "tg_secret")
        with container_exec.canary_client(stack, "canary1", key) as client:
            assert client.send("GET", "/").body == b"tg_secret"
