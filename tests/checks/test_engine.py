from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checks.engine import DockerClient, EngineFailed, ImageUnknown, configuration
from checks.layers import read_store, read_stream
from checks.secrets import SecretScanner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.checks.conftest import Workshop


@pytest.fixture
def engine(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerClient]:
    """The engine that holds the stand-in, found as a run of the checks finds it."""
    if len(workshop.docker) > 1:
        monkeypatch.setenv("DOCKER_HOST", workshop.docker[2])
    found = DockerClient()
    yield found
    found.close()


def test_store_and_stream_show_the_same_layers(engine: DockerClient, workshop: Workshop) -> None:
    digest, found = engine.inspect(workshop.without_fault)
    store = engine.store(digest)
    if store is None:
        pytest.skip("this engine's own store cannot be read from here")
    with engine.save(digest) as saving:
        assert saving.stdout
        streamed = read_stream(saving.stdout, SecretScanner({}))
    assert streamed == read_store(store, digest, found.architecture, SecretScanner({}), None)
    assert any("VOLUME" in step for step in streamed.history)


def test_what_was_started_is_taken_away(engine: DockerClient, workshop: Workshop) -> None:
    name = engine.start(workshop.without_fault, "--entrypoint", "sleep", command=("60",))
    assert engine.state(name)["Running"]
    assert engine.exec(name, "id", "-u").output == "1000\n"
    engine.close()
    with pytest.raises(EngineFailed, match="No such container"):
        engine.state(name)


def test_unknown_image_is_told_from_a_failing_engine(engine: DockerClient) -> None:
    with pytest.raises(ImageUnknown):
        engine.inspect("truthgraph-nowhere:none")


def test_configuration_of_an_image_without_any_is_empty() -> None:
    """An imported file system has neither command nor user nor labels."""
    assert configuration({"Config": None}) == configuration({})
    assert configuration({}).arguments == ()


def test_configuration_is_read() -> None:
    found = configuration(
        {
            "Architecture": "arm64",
            "Config": {
                "User": "1000:1000",
                "Entrypoint": ["/init"],
                "Cmd": ["serve"],
                "Env": ["A=b=c", "D="],
                "ExposedPorts": {"8000/tcp": {}},
                "Healthcheck": {"Test": ["CMD", "curl"]},
                "Volumes": {"/var/cache": {}},
            },
        },
    )
    assert found.arguments == ("/init", "serve")
    assert found.environment == {"A": "b=c", "D": ""}
    assert (found.ports, found.volumes, found.healthcheck) == (("8000/tcp",), ("/var/cache",), ("CMD", "curl"))
    assert found.architecture == "arm64"
