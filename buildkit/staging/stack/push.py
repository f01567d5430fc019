"""Pushes an image to a registry, counts the bytes that were sent, and checks the digest that the registry reports.

Layers are compressed (zstd) when the image is exported, so the verified bytes are the bytes that are sent. The engine
sends layers in parallel and skips those that the registry has.
"""

from __future__ import annotations

import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.errors import CommandFailed, RegistryFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildkit.engine.client import Engine

__all__ = ["Pushed", "layer_bytes", "push"]

_DIGEST: Final = re.compile(r"digest: (sha256:[0-9a-f]{64})")
_LAYER: Final = re.compile(r"^([0-9a-f]{12}): (.+)$")
_PRESENT: Final = "Layer already exists"
_LOG_EVERY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """The result of a push.

    Attributes:
        reference: repository with digest, as a node pulls it.
        bytes_sent: of layers that the registry did not have.
        bytes_present: of layers that it had.
    """

    reference: str
    bytes_sent: int
    bytes_present: int


def push(engine: Engine, *, digest: str, repository: str, tag: str, log: Callable[[str], None]) -> Pushed:
    """Pushes the image *digest*, which has the name *repository*:*tag* already; *log* gets the progress.

    Raises:
        RegistryFailed: the push stopped, or the registry reports another digest afterwards.
    """
    name = f"{repository}:{tag}"
    registry = repository.partition("/")[0]
    progress = _Progress()
    try:
        with _every(_LOG_EVERY_SECONDS, lambda seconds: log(f"{progress} after {seconds:.0f} s")):
            engine.stream("push", name, on_line=progress.read)
    except CommandFailed as error:
        reason = error.log_tail.splitlines()[-1] if error.log_tail else str(error)
        raise RegistryFailed(registry, reason, f"{progress}; the next push sends only what is missing") from error
    if progress.digest != digest:
        raise RegistryFailed(registry, f"reports {progress.digest or 'no digest'} for {name}, but {digest} was sent")
    sizes = layer_bytes(engine, name)
    present = sum(sizes.get(layer, 0) for layer, state in progress.layers.items() if state == _PRESENT)
    return Pushed(f"{repository}@{digest}", bytes_sent=sum(sizes.values()) - present, bytes_present=present)


def layer_bytes(engine: Engine, name: str) -> dict[str, int]:
    """Returns the bytes of each layer in the registry, by the first twelve digits of its digest.

    Raises:
        RegistryFailed: the registry does not return the manifest.
    """
    try:
        raw = engine.docker("buildx", "imagetools", "inspect", "--raw", name, seconds=60)
    except CommandFailed as error:
        raise RegistryFailed(name.partition("/")[0], error.log_tail) from error
    return {entry["digest"].removeprefix("sha256:")[:12]: int(entry["size"]) for entry in json.loads(raw)["layers"]}


class _Progress:
    """The progress that `docker push` has printed: the state of each layer, and the digest at the end."""

    def __init__(self) -> None:
        self.layers: dict[str, str] = {}
        self.digest = ""

    def read(self, line: str) -> None:
        if match := _DIGEST.search(line):
            self.digest = match[1]
        if match := _LAYER.match(line):
            self.layers[match[1]] = match[2].strip()

    def __str__(self) -> str:
        done = sum(state in {_PRESENT, "Pushed"} for state in list(self.layers.values()))
        return f"{done} of {len(self.layers)} layers are in the registry"


@contextmanager
def _every(seconds: float, report: Callable[[float], None]) -> Iterator[None]:
    """Calls *report* with the elapsed seconds, every few *seconds*, in a thread, while the block runs."""
    began, done = time.monotonic(), threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            report(time.monotonic() - began)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
