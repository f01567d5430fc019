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
    """The engine with the image of the stand-in, found through DOCKER_HOST."""
    if len(workshop.docker) > 1:
        monkeypatch.setenv("DOCKER_HOST", workshop.docker[2])
    found = DockerClient()
    yield found
    found.close()


def test_layers_from_store_and_stream_are_equal(engine: DockerClient, workshop: Workshop) -> None:
    digest, found = engine.inspect(workshop.without_fault)
    folder = engine.blob_folder(digest)
    if folder is None:
        pytest.skip("this process may not read the engine's folder")
    with engine.save(digest) as saving:
        assert saving.stdout
        streamed = read_stream(saving.stdout, SecretScanner({}))
    assert streamed == read_store(folder, digest, found.architecture, SecretScanner({}), None)
    assert any("VOLUME" in step for step in streamed.history)


def test_close_removes_started_containers(engine: DockerClient, workshop: Workshop) -> None:
    name = engine.start(workshop.without_fault, "--entrypoint", "sleep", command=("60",))
    assert engine.state(name)["Running"]
    assert engine.exec(name, "id", "-u").output == "1000\n"
    engine.close()
    with pytest.raises(EngineFailed, match="No such container"):
        engine.state(name)


def test_unknown_image_has_its_own_error(engine: DockerClient) -> None:
    with pytest.raises(ImageUnknown):
        engine.inspect("truthgraph-nowhere:none")


def test_missing_configuration_is_empty() -> None:
    """An image made by `docker import` has neither command nor user nor labels."""
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
