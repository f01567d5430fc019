"""Sends requests to a service while it starts, serves and stops, and prints the responses as JSON lines.

Uses the standard library only. Runs in a second container of the same image, which shares the network of the service's
container and outlives it:

    python3 -I - '{"port": 8000, "start_seconds": 60, "paths": ["/livez"]}' < client.py

Prints `{"responses": {path: [status, body]}}` when the service has answered, then `{"is_half_sent": true}` when half of
a request has been sent. The caller then stops the service. When the service refuses new connections, the client sends
the other half, and prints `{"drained": {...}}` with the response or the error.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from typing import Any

__all__: list[str] = []

PAUSE_SECONDS = 0.1
ANSWER_SECONDS = 30.0  # far above the time of an answer, even on a loaded machine
BODY = b'{"texts": ["a request that is in flight when the service is stopped"]}'


def send(**fields: object) -> None:
    """Prints one line of JSON and flushes it."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def get(port: int, path: str) -> list[Any]:
    """Returns status and body of a GET request; 0 and the error if there was no response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return [response.status, response.read().decode("utf-8", "replace")]
    except (OSError, http.client.HTTPException) as error:
        return [0, f"{type(error).__name__}: {error}"]
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Whether the service accepts a new connection."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def drain(port: int, path: str, deadline: float) -> dict[str, Any]:
    """Sends half of a request, waits until the service accepts no more connections, and completes the request."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(BODY)}\r\n\r\n"
        connection.sendall(head.encode() + BODY[:10])
        send(is_half_sent=True)
        while accepts(port) and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        is_refusing = time.monotonic() < deadline
        try:
            connection.sendall(BODY[10:])
            response = http.client.HTTPResponse(connection)
            response.begin()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            return {"status": 0, "error": f"{type(error).__name__}: {error}", "is_refusing": is_refusing}
        return {"status": response.status, "error": "", "is_refusing": is_refusing}


def main() -> None:
    """Waits for the service, sends the requests and waits until the service stops."""
    request = json.loads(sys.argv[1])
    port = request["port"]
    started = time.monotonic()
    responses = {"/health": get(port, "/health")}
    while responses["/health"][0] == 0 and time.monotonic() < started + request["start_seconds"]:
        time.sleep(PAUSE_SECONDS)
        responses = {"/health": get(port, "/health")}
    seconds = time.monotonic() - started
    for path in request["paths"]:
        responses[path] = get(port, path) if responses["/health"][0] else responses["/health"]
    send(responses=responses, seconds=seconds)
    if not responses["/health"][0]:
        return
    try:
        drained = drain(port, request["post"], time.monotonic() + request["stop_seconds"])
    except OSError as error:
        drained = {"status": 0, "error": f"{type(error).__name__}: {error}", "is_refusing": False}
    send(drained=drained)


main()
