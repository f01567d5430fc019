"""Finds an image in a container engine: its ID, its blobs on this machine, and its export as a stream."""

import fcntl
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from buildkit.engine.client import docker, start_docker
from buildkit.errors import BuildkitError, CommandFailed
from buildkit.image.blobs import FolderStore, blob_name
from buildkit.image.errors import ImageNotFound
from buildkit.image.layer_stream import ByteSource
from buildkit.image.manifest import decode_json

__all__ = ["content_store", "export", "image_id"]

_ANSWER_SECONDS: Final = 120.0  # only an engine that hangs takes longer
_PIPE_BYTES: Final = 1 << 20  # Linux's limit for an ordinary user, /proc/sys/fs/pipe-max-size
_EXIT_SECONDS: Final = 5.0  # for `docker image save` to report its error after its output ended


class _InspectedImage(msgspec.Struct, frozen=True, rename="pascal"):
    id: str


def image_id(host: str, reference: str) -> str:
    """Returns the ID of an image: the digest of its index, manifest or configuration, depending on the engine's store.

    Raises:
        ImageNotFound: the engine does not have it.
        CommandFailed: the engine does not answer.
    """
    try:
        output = docker(host, "image", "inspect", reference, seconds=_ANSWER_SECONDS)
    except CommandFailed as error:
        message = error.log_tail
        if "no such image" in message.lower() or "invalid reference" in message.lower():
            raise ImageNotFound(reference, f"neither a file nor an image of the engine ({message})") from error
        raise
    return decode_json(output.encode(), tuple[_InspectedImage, ...], reference, "engine's description")[0].id


def content_store(host: str, digest: str) -> FolderStore | None:
    """Returns containerd's content store if the engine uses it, it is on this machine, and *digest* is in it."""
    try:
        output = docker(host, "info", "--format", "{{.DockerRootDir}}\n{{json .DriverStatus}}", seconds=_ANSWER_SECONDS)
    except CommandFailed:
        return None
    root, _, status = output.partition("\n")
    if "io.containerd.snapshotter" not in status:
        return None
    # where dockerd keeps the state of the containerd that it starts itself (moby, cmd/dockerd, since 24.0)
    folder = Path(root) / "containerd" / "daemon" / "io.containerd.content.v1.content"
    if not os.access(folder / "blobs" / "sha256", os.R_OK | os.X_OK):
        return None
    store = FolderStore(folder)
    root_document = store.open(blob_name(digest, digest))
    if root_document is None:
        return None
    root_document.close()
    return store


@contextmanager
def export(host: str, reference: str) -> Iterator[ByteSource]:
    """Runs `docker image save` during the block, and yields its output.

    Raises:
        CommandFailed: it failed; also if the block noticed first that the output ends early.
    """
    arguments = ("image", "save", reference)
    with start_docker(host, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 (a pipe was requested)
        assert process.stderr is not None  # noqa: S101
        if sys.platform == "linux":
            with suppress(OSError):  # a smaller pipe is only slower
                fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            with io.FileIO(process.stdout.fileno(), closefd=False) as pipe:
                yield pipe
                while pipe.read(_PIPE_BYTES):
                    pass
        except BuildkitError as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_SECONDS)
            if process.returncode:
                message = process.stderr.read().decode(errors="replace").strip()
                raise CommandFailed(["docker", *arguments], process.returncode, message) from error
            process.kill()
            raise
        except BaseException:
            process.kill()
            raise
        message = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise CommandFailed(["docker", *arguments], process.returncode, message)
