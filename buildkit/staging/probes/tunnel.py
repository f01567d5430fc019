"""Opens HTTP connections through the standard input and output of a process, as `ssh -W` does for ssh."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["open_tunnels"]

_TIMEOUT_SECONDS: Final = 35.0
_END_SECONDS: Final = 10.0
"""Time for a process to end after its connection was closed; then it is killed."""


class _TunnelConnection(http.client.HTTPConnection):
    """An HTTP connection over the socket that *open_socket* returns."""

    def __init__(self, open_socket: Callable[[], socket.socket]) -> None:
        super().__init__("localhost")
        self._open_socket = open_socket

    def connect(self) -> None:
        self.sock = self._open_socket()
        self.sock.settimeout(_TIMEOUT_SECONDS)


@contextmanager
def open_tunnels(start: Callable[[int], subprocess.Popen[bytes]]) -> Iterator[Callable[[], http.client.HTTPConnection]]:
    """Yields a function that makes connections; each connection starts a process when it is first used.

    At the end every process has ended: by itself at the end of its input, or killed after 10 seconds.

    Args:
        start: starts a process that connects its standard input and output to a server. The argument is the file
            descriptor for both.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def open_socket() -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            processes.append(start(theirs.fileno()))
        return ours

    try:
        yield lambda: _TunnelConnection(open_socket)
    finally:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()
