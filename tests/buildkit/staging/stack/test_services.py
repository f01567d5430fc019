from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from buildkit.errors import CommandFailed, StackFailed
from buildkit.staging.stack import services
from buildkit.staging.stack.services import Replica
from buildkit.staging.stack.stack import Stack
from tests.support.swarm_tasks import show_tasks, task

if TYPE_CHECKING:
    from tests.support.fake_engine import FakeEngine

NEW, OLD = f"sha256:{'b' * 64}", f"sha256:{'a' * 64}"


def replica(slot: int, digest: str = NEW, state: str = "running", desired: str = "running", error: str = "") -> Replica:
    return Replica(f"{slot}{digest[-1]}{state}", slot, f"api@{digest}", state, desired, error, "container")


def test_deploy_passes_images_settings_and_secrets(
    engine: FakeEngine, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGRAPH_REPLICAS", "7")

    stack.with_release({"database": "pg@sha256:a"}, {"TRUTHGRAPH_BODY_BYTES": "9"}).deploy()

    assert engine.calls[-1].endswith(f"--compose-file {stack.file} s")
    given = {name: value for name, value in engine.environments[-1].items() if name.startswith("TRUTHGRAPH_")}
    assert given == {
        "TRUTHGRAPH_DATABASE_IMAGE": "pg@sha256:a",
        "TRUTHGRAPH_BODY_BYTES": "9",
        "TRUTHGRAPH_SECRETS": str(stack.secrets),
        "TRUTHGRAPH_STACK": "s",
    }


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"TRUTHGRAPH_PUBLISHED_PORT": "9000", "TRUTHGRAPH_TLS_FILE": "/c.pem"}, "https://127.0.0.1:9000"),
    ],
)
def test_address_is_that_of_the_proxy(stack: Stack, settings: dict[str, str], address: str) -> None:
    assert stack.with_release({}, settings).address == address


def test_exists_asks_swarm_for_the_service(engine: FakeEngine, stack: Stack) -> None:
    assert not stack.exists("api")

    engine.answers["service ls --quiet --filter name=s_api"] = "id\n"
    assert stack.exists("api")

    engine.answers["info"] = '{"LocalNodeState": "inactive"}'
    assert not stack.exists("api")


def test_image_and_desired_replicas_are_those_of_the_service(engine: FakeEngine, stack: Stack) -> None:
    spec = {"Mode": {"Replicated": {"Replicas": 2}}, "TaskTemplate": {"ContainerSpec": {"Image": "api@sha256:a"}}}
    engine.answers["service inspect s_api"] = json.dumps([{"Spec": spec}])
    engine.answers["service inspect s_proxy"] = json.dumps([{"Spec": {"Mode": {"Global": {}}}}])

    assert stack.image("api") == "api@sha256:a"
    assert (stack.desired_replicas("api"), stack.desired_replicas("proxy")) == (2, 1)
    assert stack.last_update("api") == ""


def test_replicas_are_asked_again_if_a_task_is_gone(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["service ps"] = "one\ntwo\n"
    gone = CommandFailed(["docker", "inspect"], 1, "no such task")
    engine.answers["inspect --type task one two"] = [gone, json.dumps([task("b", "failed"), task("a", "running")])]

    assert [(each.task, each.is_running, each.has_failed) for each in stack.replicas("api")] == [
        ("a", True, False),
        ("b", False, True),
    ]


def test_replicas_that_cannot_be_inspected_are_an_error(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["service ps"] = "one\n"
    engine.answers["inspect --type task"] = CommandFailed(["docker", "inspect"], 1, "no")

    with pytest.raises(CommandFailed):
        stack.replicas("api")


@dataclass(frozen=True, slots=True)
class ScriptedStack(Stack):
    """A stack whose swarm reports `states` one after the other, and the last one from then on."""

    states: deque[tuple[dict[str, str], tuple[Replica, ...]]] = field(default_factory=deque)

    def inspect(self, service: str) -> dict[str, Any]:
        del service
        if len(self.states) > 1:
            self.states.popleft()
        return {"Spec": {"Mode": {"Replicated": {"Replicas": 2}}}, "UpdateStatus": self.states[0][0]}

    def replicas(self, service: str, *, include_ended: bool = False) -> tuple[Replica, ...]:
        del service
        found = self.states[0][1]
        return found if include_ended else tuple(each for each in found if each.desired_state in {"running", "ready"})


def follow(stack: Stack, *states: tuple[dict[str, str], tuple[Replica, ...]], seconds: float = 5) -> list[str]:
    """Returns the log of a rollout that goes through *states*."""
    lines: list[str] = []
    scripted = ScriptedStack(
        engine=stack.engine, name="s", file=stack.file, log=lines.append, states=deque([({}, ()), *states])
    )
    scripted.wait_for_rollout("api", previous_update="old", seconds=seconds, until_digest=NEW)
    return lines


UPDATING = {"State": "updating", "StartedAt": "new"}
COMPLETED = {"State": "completed", "StartedAt": "new"}
BOTH_NEW = (replica(1), replica(2))
MIXED = (replica(1), replica(2, OLD))


def test_rollout_ends_when_every_replica_is_new(stack: Stack) -> None:
    lines = follow(stack, (UPDATING, MIXED), (UPDATING, BOTH_NEW), (COMPLETED, BOTH_NEW))

    assert lines == ["api.1 running bbbbbbbbbbbb", "api.2 running aaaaaaaaaaaa", "api.2 running bbbbbbbbbbbb"]


def test_rollout_ignores_the_update_before(stack: Stack) -> None:
    """Swarm reports the last update until it has started this one."""
    old = {"State": "rollback_completed", "StartedAt": "old"}

    follow(stack, (old, (replica(1, OLD), replica(2, OLD))), (UPDATING, MIXED), (COMPLETED, BOTH_NEW))


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("rollback_completed", "swarm rolled the update back: unhealthy container"),
        ("paused", "swarm paused the update"),
        ("rollback_paused", "could not roll the update back"),
    ],
)
def test_rollout_that_swarm_rolled_back_has_failed(stack: Stack, state: str, shown: str) -> None:
    starting = replica(1, state="starting")
    ended = Replica(starting.task, 1, starting.image, "failed", "shutdown", "unhealthy container", "container")
    after = (ended, replica(1, OLD), replica(2, OLD))

    with pytest.raises(StackFailed, match=shown):
        follow(
            stack,
            (UPDATING, (starting, replica(2, OLD))),
            (UPDATING, after),
            ({"State": state, "StartedAt": "new"}, after),
        )


def test_rollout_failure_has_the_message_of_swarm(stack: Stack) -> None:
    started = {"State": "rollback_started", "StartedAt": "new", "Message": "update rolled back due to failure"}

    with pytest.raises(StackFailed, match="update rolled back due to failure"):
        follow(stack, (started, MIXED), ({**started, "State": "rollback_completed"}, MIXED))


def test_rollout_without_end_fails_in_time(stack: Stack) -> None:
    with pytest.raises(StackFailed, match="not complete within 0 s: 1 of 2 replicas of api run"):
        follow(stack, (UPDATING, MIXED), seconds=0.05)


def test_container_is_a_healthy_one(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["ps"] = "one Up 2 s (starting)\ntwo Up 2 s (healthy)\n"

    assert stack.container("api") == "two"
    assert "label=com.docker.swarm.service.name=s_api" in engine.calls[-1]


def test_container_that_is_missing_is_an_error(stack: Stack) -> None:
    with pytest.raises(CommandFailed, match="no healthy container of s_api runs on this machine"):
        stack.container()


def test_execute_passes_its_input(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["exec --interactive container cat"] = "text"

    assert stack.execute("container", "cat", stdin="text") == "text"
    assert engine.inputs[-1] == "text"


def test_execute_failure_hides_arguments_and_input(engine: FakeEngine, stack: Stack) -> None:
    command = ["docker", "exec", "--interactive", "container", "python", "a long program"]
    engine.answers["exec"] = CommandFailed(command, 9, "broken")

    with pytest.raises(CommandFailed) as caught:
        stack.execute("container", "python", "a long program", stdin="secret")

    assert str(caught.value) == "`docker exec container python …` failed with exit code 9:\nbroken"


def test_log_tail_reads_the_containers_here(engine: FakeEngine, stack: Stack) -> None:
    show_tasks(engine, [task("a", "running"), task("b", "failed")])
    engine.answers["logs --tail 6 c-a"] = CommandFailed(["docker", "logs"], 1, "no such container")
    engine.answers["logs --tail 6 c-b"] = "one\ntwo\n"

    assert stack.log_tail("api") == "one\ntwo"
    assert not engine.called("service logs")


def test_log_tail_asks_swarm_for_containers_elsewhere(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["service logs --raw --tail 6 s_api"] = "elsewhere\n"

    assert stack.log_tail("api") == "elsewhere"


def test_remove_waits_until_containers_and_networks_are_gone(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["ps --all"] = ["one", ""]
    engine.answers["network ls"] = ["net", ""]

    stack.remove()

    assert len(engine.called("network ls")) == 2


def test_remove_that_does_not_end_is_an_error(
    engine: FakeEngine, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_COMMAND_SECONDS", 0.01)
    engine.answers["ps --all"] = "one"

    with pytest.raises(CommandFailed, match="containers or networks are still there"):
        stack.remove()


def test_remove_volumes_removes_those_of_the_stack(engine: FakeEngine, stack: Stack) -> None:
    engine.answers["volume ls --quiet --filter label=com.docker.stack.namespace=s"] = "s_database\ns_models\n"

    stack.remove_volumes()

    assert engine.called("volume rm") == ["volume rm s_database", "volume rm s_models"]
