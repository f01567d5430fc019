"""Tests the image of the proxy in front of a fake API, which returns the request or fails."""

from __future__ import annotations

import json
import re
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from service.access import Scope
from service.app import build
from service.routes.table import routes_of
from service.settings import Settings
from tests.docker.conftest import FAST_HEALTH, PROJECT, Docker
from tests.support.certificates import make_certificate
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Iterator

UPSTREAM = Path(__file__).parent / "upstream.py"
READ_POSTS = {
    "/api/v1/embed",
    "/api/v1/search",
    "/api/v1/nli",
    "/api/v1/nli/batch",
    "/v1/embeddings",
    "/embed",
    "/predict",
}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that the proxy's user can read."""
    made = make_certificate(tmp_path, "localhost")
    made.chmod(0o444)
    return made


class Proxied:
    """A proxy on a free port, and its upstreams: containers that share the name `api`."""

    def __init__(self, engine: Docker, image: str) -> None:
        self.engine, self.image = engine, image
        self.proxy, self.network = f"{engine.name}-proxy", f"{engine.name}-front"
        engine.run("network", "create", self.network)

    def upstream(self, kind: str) -> str:
        """Starts a fake API that behaves as *kind*, see upstream.py, and returns its container."""
        name = f"{self.engine.name}-{kind}"
        self.engine.run(
            *("run", "--detach", f"--name={name}", f"--network={self.network}", "--network-alias=api"),
            *(f"--volume={UPSTREAM}:/upstream.py:ro", self.image, "python3", "/upstream.py", kind),
        )
        until(lambda: "listens" in self.engine.logs(name), "the fake API listens")
        return name

    def start(self, *options: str) -> int:
        """Starts the proxy and returns its port on this machine."""
        self.engine.run(
            *("run", "--detach", f"--name={self.proxy}", f"--network={self.network}", "--publish=127.0.0.1::8080"),
            *("--read-only", "--tmpfs=/tmp:mode=1777", "--cap-drop=ALL", FAST_HEALTH, *options, self.image),
        )
        until(lambda: self.engine.is_healthy(self.proxy), "the proxy is healthy")
        return int(self.engine.text("port", self.proxy, "8080").rpartition(":")[2])


@pytest.fixture
def proxied(engine: Docker, images: dict[str, str]) -> Proxied:
    return Proxied(engine, images["proxy"])


@pytest.fixture
def client(proxied: Proxied) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{proxied.start()}", timeout=60) as made:
        yield made


def test_api_gets_the_request_id_and_the_callers_real_address(proxied: Proxied, client: httpx.Client) -> None:
    unreachable = client.post("/api/v1/claims", json={})
    assert (unreachable.status_code, unreachable.headers["content-type"]) == (502, "application/problem+json")
    assert unreachable.json()["request_id"] == unreachable.headers["x-request-id"]
    proxied.upstream("works")
    until(lambda: client.get("/").status_code == 200, "the proxy found the API without a restart")
    forged = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Request-Id": "mine-1"}
    received = client.get("/api/v1/claims?skip=1&text=private", headers=forged).json()
    assert received["path"] == "/api/v1/claims?skip=1&text=private"
    assert received["headers"]["x-request-id"] == "mine-1"
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", received["headers"]["x-forwarded-for"])
    assert received["headers"]["x-forwarded-for"] != "127.0.0.1"
    assert "forwarded" not in received["headers"]
    odd = client.get("/", headers={"X-Request-Id": 'x" y'}).json()
    assert re.fullmatch(r"[0-9a-f]{32}", odd["headers"]["x-request-id"])
    assert client.post("/api/v1/embed", content=b"x" * 2_000_000).status_code == 200
    too_large = client.post("/api/v1/embed", content=b"x" * 2_000_001)
    assert (too_large.status_code, too_large.json()["status"]) == (413, 413)
    lines = [json.loads(line) for line in proxied.engine.logs(proxied.proxy).splitlines() if line.startswith("{")]
    assert "mine-1" in {line["request_id"] for line in lines}
    assert "private" not in proxied.engine.logs(proxied.proxy)


def test_only_idempotent_requests_are_repeated(proxied: Proxied, client: httpx.Client) -> None:
    closing = proxied.upstream("closes")
    proxied.upstream("works")
    for path in sorted(READ_POSTS):
        for _ in range(4):
            assert client.post(path, json={}).status_code == 200, path
    assert all(client.get("/api/v1/claims").status_code == 200 for _ in range(12))
    statuses = [client.post("/api/v1/claims", json={}).status_code for _ in range(24)]
    assert set(statuses) == {200, 502}, "a POST that stores data is not repeated"
    sent = proxied.engine.logs(closing).count("POST /api/v1/claims") + proxied.engine.logs(
        f"{proxied.engine.name}-works"
    ).count("POST /api/v1/claims")
    assert sent == len(statuses)
    proxied.engine.run("kill", closing)
    until(lambda: client.post("/api/v1/claims", json={}).status_code == 200, "the proxy no longer uses it")
    assert {client.post("/api/v1/claims", json={}).status_code for _ in range(12)} == {200}


def test_accepted_request_is_completed_before_the_proxy_stops(proxied: Proxied, client: httpx.Client) -> None:
    slow = proxied.upstream("slow")
    until(lambda: client.get("/quick").status_code == 200, "the proxy found the API")
    statuses: list[int] = []
    caller = threading.Thread(target=lambda: statuses.append(client.post("/api/v1/claims", json={}).status_code))
    caller.start()
    until(lambda: "POST /api/v1/claims" in proxied.engine.logs(slow), "the request is in progress")
    proxied.engine.run("stop", "--time=50", proxied.proxy)
    caller.join()
    assert statuses == [200]
    assert proxied.engine.text("inspect", "--format", "{{.State.ExitCode}}", proxied.proxy) == "0"


def test_certificate_makes_the_port_tls_only(proxied: Proxied, certificate: Path) -> None:
    port = proxied.start(f"--volume={certificate}:/run/secrets/tls:ro")
    proxied.upstream("works")
    with httpx.Client(verify=ssl.create_default_context(cafile=certificate)) as client:
        until(lambda: client.get(f"https://localhost:{port}/").status_code == 200, "the proxy found the API")
        assert client.get(f"https://localhost:{port}/").json()["headers"]["x-forwarded-proto"] == "https"
        plain = client.post(f"http://localhost:{port}/api/v1/claims?a=1")
        assert (plain.status_code, plain.headers["location"]) == (308, f"https://localhost:{port}/api/v1/claims?a=1")


def test_repeated_posts_store_nothing() -> None:
    """Compared with the API's routes: a POST that needs only the scope `read` stores nothing."""
    [pattern] = re.findall(r"location ~ (\^.*\$) \{", (PROJECT / "docker/proxy/nginx.conf").read_text())
    routes = routes_of(build(Settings()).litestar)
    twice = {route.path for route in routes if route.method == "POST" and re.match(pattern, route.path)}
    assert twice == {route.path for route in routes if route.method == "POST" and route.scope is Scope.READ}
    assert twice == READ_POSTS
