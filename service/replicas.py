"""Reaches replicas from inside a container, over networks that nothing outside the stack can reach.

`forward` connects standard input and output to this container's server, as `ssh -W` does, so that a client outside
can send its own requests to one replica through `docker exec --interactive`. `scrape` reads the metrics of all
replicas. Standard library only: the commands must start quickly, since a client may open several connections.
"""

import os
import socket
import sys
import threading
import urllib.request

__all__ = ["forward", "scrape"]

_CHUNK_BYTES = 65536
_SCRAPE_SECONDS = 5.0
_STDIN, _STDOUT = 0, 1


def forward(host: str, port: int) -> None:
    """Copies standard input to a connection to `host`, and its responses to standard output, until it closes.

    Raises `OSError` if nothing listens there.
    """
    with socket.create_connection((host, port)) as connection:
        threading.Thread(target=_send_input, args=(connection,), daemon=True).start()
        while received := connection.recv(_CHUNK_BYTES):
            _write(received)


def _send_input(connection: socket.socket) -> None:
    try:
        # Not sys.stdin: a thread that waits in it holds its lock, which ends the interpreter with an error.
        while content := os.read(_STDIN, _CHUNK_BYTES):
            connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
    except OSError:  # the server has hung up, which the other direction reports
        return


def _write(content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(_STDOUT, view) :]


def scrape(name: str, port: int) -> dict[str, str]:
    """Returns the metrics page of each address that `name` resolves to, by address.

    A replica that does not answer within five seconds is left out and reported on standard error. Raises `OSError` if
    `name` does not resolve.
    """
    resolved = socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)
    pages: dict[str, str] = {}
    for address in sorted({str(socket_address[0]) for *_, socket_address in resolved}):
        try:
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=_SCRAPE_SECONDS) as response:
                pages[address] = response.read().decode()
        except OSError as error:
            sys.stderr.write(f"no metrics from {address}: {error}\n")
    return pages
