"""Talks to a service that starts, serves and stops, and prints what it said, one JSON document a line.

Runs in a container of its own that shares the service's network, so that it outlives it:

    python3 -I - '{"port": 8000, "start_seconds": 60, "paths": ["/livez"]}' < client.py

Prints `{"answers": {path: [status, body]}}` once the service answers /health, then `{"half_sent": true}` once half of
a request is on its way, and, when that request's answer is complete or the connection is gone, `{"drained": ...}`.
The caller stops the service after the second line; the other half goes out once the service refuses new connections.
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
BODY = b'{"texts": ["a request that is under way when the service is told to stop"]}'


def say(**fields: object) -> None:
    """One line of JSON, at once."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def get(port: int, path: str) -> list[Any]:
    """Status and body of one GET, or 0 and why there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return [answer.status, answer.read().decode("utf-8", "replace")]
    except (OSError, http.client.HTTPException) as error:
        return [0, f"{type(error).__name__}: {error}"]
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Whether a new connection is taken."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def drain(port: int, path: str, deadline: float) -> dict[str, Any]:
    """Sends half of a request, waits until the service takes no new ones, sends the rest and reads the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(BODY)}\r\n\r\n"
        connection.sendall(head.encode() + BODY[:10])
        say(half_sent=True)
        while accepts(port) and time.monotonic() < deadline:
            time.sleep(PAUSE_SECONDS)
        is_refusing = time.monotonic() < deadline
        try:
            connection.sendall(BODY[10:])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            return {"status": 0, "why": f"{type(error).__name__}: {error}", "is_refusing": is_refusing}
        return {"status": answer.status, "why": "", "is_refusing": is_refusing}


def main() -> None:
    """Start, serve, stop."""
    request = json.loads(sys.argv[1])
    port = request["port"]
    began = time.monotonic()
    answers = {"/health": get(port, "/health")}
    while answers["/health"][0] == 0 and time.monotonic() < began + request["start_seconds"]:
        time.sleep(PAUSE_SECONDS)
        answers = {"/health": get(port, "/health")}
    seconds = time.monotonic() - began
    for path in request["paths"]:
        answers[path] = get(port, path) if answers["/health"][0] else answers["/health"]
    say(answers=answers, seconds=seconds)
    if not answers["/health"][0]:
        return
    try:
        drained = drain(port, request["post"], time.monotonic() + request["stop_seconds"])
    except OSError as error:
        drained = {"status": 0, "why": f"{type(error).__name__}: {error}", "is_refusing": False}
    say(drained=drained)


main()
