"""Opens HTTP connections through the standard input and output of a command, as `ssh -W` does for ssh."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["open_tunnels"]

_TIMEOUT_SECONDS: Final = 35.0
_END_SECONDS: Final = 10.0
"""How long a command may take to end after its connection was closed; then it is killed."""


class _TunnelConnection(http.client.HTTPConnection):
    """An HTTP connection whose bytes are the input and output of a process that *start* starts."""

    def __init__(self, start: Callable[[], socket.socket]) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._start = start

    def connect(self) -> None:
        self.sock = self._start()
        self.sock.settimeout(_TIMEOUT_SECONDS)


@contextmanager
def open_tunnels(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Callable[[], http.client.HTTPConnection]]:
    """Gives a function that makes connections; each starts *command* when it is first used.

    At the end every process has ended: it is asked to by the end of its input, then killed.

    Args:
        command: connects its standard input and output to a server.
        environment: variables in addition to those of this process.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
            )
        processes.append(process)
        return ours

    try:
        yield lambda: _TunnelConnection(start)
    finally:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()
