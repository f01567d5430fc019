"""The two commands that reach replicas from inside a container, each run as a process."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.http_server import Request, serve

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60


def echo(request: Request) -> bytes:
    """Returns the body of a POST and the path of a GET."""
    return request.body or request.path.encode()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=WAIT_SECONDS,
    )


def port_of(base: str) -> str:
    return base.rpartition(":")[2]


def unused_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_forward_carries_several_requests_and_binary_bodies() -> None:
    body = bytes(range(256)) * 4000
    ours, theirs = socket.socketpair()
    with (
        serve(echo) as base,
        ours,
        subprocess.Popen(
            [sys.executable, "-m", "service", "forward", "--port", port_of(base)],
            cwd=ROOT,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        ) as forwarding,
    ):
        theirs.close()
        ours.settimeout(WAIT_SECONDS)
        connection = http.client.HTTPConnection("localhost")
        connection.sock = ours
        replies = []
        for method, content in (("GET", None), ("POST", body)):
            connection.request(method, "/path", content)
            replies.append(connection.getresponse().read())
        connection.close()
        code = forwarding.wait(WAIT_SECONDS)

    assert replies == [b"/path", body]
    assert code == 0


def test_forward_without_a_server_fails_and_names_the_address() -> None:
    port = unused_port()

    done = command("forward", "--port", port)

    assert done.returncode == 1
    assert done.stderr.startswith(f"127.0.0.1:{port}: ")


def test_scrape_prints_the_metrics_page_of_each_address() -> None:
    with serve(echo) as base:
        done = command("scrape", "127.0.0.1", "--port", port_of(base))

    assert json.loads(done.stdout) == {"127.0.0.1": "/metrics"}
    assert done.returncode == 0


def test_scrape_without_an_answer_fails_and_names_the_replica() -> None:
    done = command("scrape", "127.0.0.1", "--port", unused_port())

    assert (done.returncode, done.stdout) == (1, "{}\n")
    assert "no metrics from 127.0.0.1" in done.stderr


def test_scrape_of_an_unknown_host_name_fails_with_the_reason() -> None:
    done = command("scrape", "name.invalid")

    assert done.returncode == 1
    assert done.stderr.startswith("name.invalid does not resolve: ")
