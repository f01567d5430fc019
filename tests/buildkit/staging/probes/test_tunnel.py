from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from buildkit.staging.probes.client import Client, RequestTimedOut
from buildkit.staging.probes.tunnel import open_tunnels
from tests.support.http_server import Reply, Request, serve

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[4]


def forward_to(base: str, started: list[subprocess.Popen[bytes]]) -> Callable[[int], subprocess.Popen[bytes]]:
    """Starts the service's own `forward`, as it runs in a container, towards *base*."""
    port = base.rpartition(":")[2]

    def start(descriptor: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service", "forward", "--port", port]
        started.append(subprocess.Popen(command, cwd=ROOT, stdin=descriptor, stdout=descriptor))
        return started[-1]

    return start


def test_requests_share_a_process_until_the_server_closes() -> None:
    started: list[subprocess.Popen[bytes]] = []

    def respond(request: Request) -> Reply:
        return Reply(body=request.body, headers={"Connection": "close"} if request.path == "/last" else {})

    with serve(respond) as base, open_tunnels(forward_to(base, started)) as connect:
        client = Client(base, connect=connect)
        bodies = [client.send("POST", path, b"\x00\xff" * 50_000).body for path in ("/", "/", "/last", "/")]
        client.close()

    assert bodies == [b"\x00\xff" * 50_000] * 4
    assert [process.returncode for process in started] == [0, 0]


def test_process_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit.staging.probes.tunnel._END_SECONDS", 0.2)
    started: list[subprocess.Popen[bytes]] = []

    def start(descriptor: int) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", "exec >/dev/null; exec sleep 60 </dev/null"]
        started.append(subprocess.Popen(command, stdin=descriptor, stdout=descriptor))
        return started[-1]

    with open_tunnels(start) as connect, pytest.raises(RequestTimedOut):
        Client("http://canary", connect=connect, retry_seconds=0).send("GET", "/")

    assert [process.returncode for process in started] == [-9]
