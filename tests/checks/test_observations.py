"""Tests checks/observations.py with a fake engine; test_faults.py runs it on real images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from checks.engine import DockerClient
from checks.expectations import Expectations
from checks.observations import Observations, ProgramFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.docker_stub import DockerStub

EXPECTED = Expectations(target="postgres", has_application=False, has_models=False)


@pytest.fixture
def observe(docker_stub: DockerStub) -> Iterator[Callable[[Expectations], Observations]]:
    """Starts the observations of an image that the fake engine knows; stops them at the end."""
    docker_stub.answer("*", errors="no answer", exit_code=1)
    docker_stub.answer("image inspect image", output=json.dumps([{"Id": "sha256:00", "Config": {"User": "999"}}]))
    docker_stub.answer("rm *")
    started: list[Observations] = []

    def start(expected: Expectations) -> Observations:
        started.append(Observations(DockerClient(), "image", expected, build_secrets={}, cache=None))
        return started[-1]

    yield start
    for observations in started:
        observations.close()


def test_image_is_inspected_first(observe: Callable[[Expectations], Observations]) -> None:
    observations = observe(EXPECTED)

    assert (observations.image, observations.configuration.user) == ("sha256:00", "999")


def test_observation_of_a_missing_part_is_an_error(observe: Callable[[Expectations], Observations]) -> None:
    with pytest.raises(LookupError, match="service is not observed for the target postgres"):
        observe(EXPECTED).service.result()


def test_failed_program_is_named_with_its_error(
    observe: Callable[[Expectations], Observations], docker_stub: DockerStub
) -> None:
    docker_stub.answer("run --rm --interactive *", errors="no python3", exit_code=127)

    with pytest.raises(ProgramFailed, match=r"filesystem\.py failed inside the image, exit code 127: no python3"):
        observe(EXPECTED).file_system.result()


def test_engine_without_gpu_makes_the_device_unavailable(
    observe: Callable[[Expectations], Observations], docker_stub: DockerStub
) -> None:
    docker_stub.answer("run --rm --interactive *--gpus all*", errors="could not select device driver", exit_code=125)

    device = observe(Expectations(target="api")).device.result()

    assert device.unavailable == "the engine cannot provide a GPU: could not select device driver"


def test_record_has_no_result_of_failed_observations(observe: Callable[[Expectations], Observations]) -> None:
    observations = observe(EXPECTED)
    observations.close()

    assert set(observations.record().values()) == {None}


def test_close_removes_the_started_containers(
    observe: Callable[[Expectations], Observations], docker_stub: DockerStub
) -> None:
    docker_stub.answer("run --detach *", output="id")
    observations = observe(EXPECTED)
    name = observations.container.result()

    observations.close()

    assert any(call.startswith("rm --force --volumes ") and name in call for call in docker_stub.calls)
