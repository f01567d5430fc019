"""Finds images in an engine, which is a fake program here; test_engine_oracle.py reads from a real one."""

from pathlib import Path

import pytest

from buildkit.errors import CommandFailed
from buildkit.image.engine_images import content_store, export, image_id
from buildkit.image.errors import CorruptImage, ImageNotFound
from tests.support.docker_stub import DockerStub
from tests.support.images import digest, write_folder

DIGEST = digest(b"{}")


def test_image_id_is_that_of_the_engine(docker_stub: DockerStub) -> None:
    docker_stub.answer("image inspect known", output=f'[{{"Id": "{DIGEST}", "Size": 1}}]')
    assert image_id("", "known") == DIGEST


@pytest.mark.parametrize("message", ["Error: No such image: x", "invalid reference format"])
def test_unknown_image_is_not_found(docker_stub: DockerStub, message: str) -> None:
    docker_stub.answer("image inspect x", errors=message, exit_code=1)
    with pytest.raises(ImageNotFound, match="neither a file nor an image of the engine"):
        image_id("", "x")


def test_engine_that_fails_is_no_missing_image(docker_stub: DockerStub) -> None:
    docker_stub.answer("image inspect x", errors="Cannot connect to the Docker daemon", exit_code=1)
    with pytest.raises(CommandFailed, match="Cannot connect"):
        image_id("", "x")


def test_content_store_needs_containerd_and_the_image(docker_stub: DockerStub, tmp_path: Path) -> None:
    assert content_store("", DIGEST) is None, "docker info failed"
    docker_stub.answer("info *", output=f"{tmp_path}\n[]")
    assert content_store("", DIGEST) is None, "another store"
    docker_stub.answer("info *", output=f'{tmp_path}\n[["driver-type","io.containerd.snapshotter.v1"]]')
    assert content_store("", DIGEST) is None, "on another machine"
    folder = tmp_path / "containerd" / "daemon" / "io.containerd.content.v1.content"
    write_folder({f"blobs/sha256/{DIGEST.removeprefix('sha256:')}": b"{}"}, folder)
    assert content_store("", digest(b"other")) is None, "without the image"
    assert content_store("", DIGEST) is not None


def read_export() -> bytes:
    with export("", "known") as stream:
        buffer = bytearray(10)
        return bytes(buffer[: stream.readinto(memoryview(buffer))])


def test_export_is_consumed_to_its_end(docker_stub: DockerStub, tmp_path: Path) -> None:
    docker_stub.answer("image save known", script=f"head -c 3000000 /dev/zero; touch {tmp_path / 'done'}")
    assert read_export() == bytes(10)
    assert (tmp_path / "done").exists()


def test_export_that_fails_at_its_end_is_a_failed_command(docker_stub: DockerStub) -> None:
    docker_stub.answer("image save known", script="printf 0123456789", errors="no space left", exit_code=3)
    with pytest.raises(CommandFailed, match="no space left") as raised:
        read_export()
    assert raised.value.exit_code_of_command == 3


def test_error_of_the_reader_is_kept_if_the_export_succeeds(docker_stub: DockerStub) -> None:
    docker_stub.answer("image save known", output="x")
    with pytest.raises(CorruptImage, match="bad"), export("", "known"):
        raise CorruptImage("known", "bad")


def test_export_is_stopped_if_the_reader_fails(docker_stub: DockerStub) -> None:
    docker_stub.answer("image save known", script="exec sleep 600")
    with pytest.raises(KeyboardInterrupt), export("", "known"):
        raise KeyboardInterrupt
