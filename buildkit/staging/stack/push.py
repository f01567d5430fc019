"""Sends an image to a registry with `docker push`, says what was sent, and holds the result against the digest.

Layers are compressed (zstd) when the image is exported, so what was verified is what is sent, byte for byte. Layers go
in parallel, and those that the registry has are skipped: both are the engine's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from buildkit.engine.processes import end_children
from buildkit.errors import CommandFailed, RegistryFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit.engine.client import Engine

__all__ = ["Pushed", "layers_of", "push"]

_DIGEST: Final = re.compile(r"digest: (sha256:[0-9a-f]{64})")
_LAYER: Final = re.compile(r"^([0-9a-f]{12}): (.+)$")
_THERE: Final = "Layer already exists"
_SAID_EVERY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to.

    Attributes:
        reference: repository with digest, as a node pulls it.
        bytes_sent: of layers that the registry did not have.
        bytes_there: of layers that it had.
        seconds: wall time.
    """

    reference: str
    bytes_sent: int
    bytes_there: int
    seconds: float


def push(engine: Engine, *, digest: str, repository: str, tag: str, log: Callable[[str], None]) -> Pushed:
    """Pushes the image *digest* as *repository*:*tag*, a name that it has already; *tell* hears how far it is.

    Raises:
        RegistryFailed: the push stopped, or the registry holds something else afterwards.
    """
    name = f"{repository}:{tag}"
    command = ["docker", *(("--host", engine.host) if engine.host else ()), "push", name]
    began = time.monotonic()
    layers: dict[str, str] = {}
    tail: deque[str] = deque(maxlen=8)
    found = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        clock = _Clock(log, lambda: _progress(layers), began)
        try:
            for line in running.stdout or ():
                tail.append(line.rstrip())
                if match := _DIGEST.search(line):
                    found = match[1]
                if match := _LAYER.match(line):
                    layers[match[1]] = match[2].strip()
        except BaseException:
            end_children()
            raise
        finally:
            clock.stop()
    registry = repository.partition("/")[0]
    if running.returncode != 0:
        reason = tail[-1] if tail else f"docker push ended with {running.returncode}"
        raise RegistryFailed(registry, reason, f"{_progress(layers)}; the next try sends only what is missing")
    if found != digest:
        raise RegistryFailed(registry, f"was sent {digest} and now has {found or 'no digest'} as {name}")
    sizes = layers_of(engine, name)
    there_bytes = sum(sizes.get(layer, 0) for layer, state in layers.items() if state == _THERE)
    return Pushed(
        reference=f"{repository}@{digest}",
        bytes_sent=sum(sizes.values()) - there_bytes,
        bytes_there=there_bytes,
        seconds=time.monotonic() - began,
    )


def layers_of(engine: Engine, name: str) -> dict[str, int]:
    """Bytes of each layer as the registry keeps it, by the first twelve digits of its digest.

    Raises:
        RegistryFailed: the registry does not give the manifest back.
    """
    try:
        raw = engine.docker("buildx", "imagetools", "inspect", "--raw", name, seconds=60)
    except CommandFailed as error:
        raise RegistryFailed(name.partition("/")[0], error.log_tail) from error
    return {entry["digest"].removeprefix("sha256:")[:12]: int(entry["size"]) for entry in json.loads(raw)["layers"]}


def _progress(layers: dict[str, str]) -> str:
    done = sum(state in {_THERE, "Pushed"} for state in layers.values())
    return f"{done} of {len(layers)} layers are there"


class _Clock:
    """Says how far it is every few seconds, as long as nobody stops it."""

    def __init__(self, log: Callable[[str], None], progress: Callable[[], str], began: float) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(log, progress, began), daemon=True)
        self._thread.start()

    def _run(self, log: Callable[[str], None], progress: Callable[[], str], began: float) -> None:
        while not self._stopped.wait(_SAID_EVERY_SECONDS):
            log(f"{progress()} after {time.monotonic() - began:.0f} s")

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
