from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from buildkit.staging.probes.client import Client, RequestTimedOut
from tests.support.certificates import make_certificate
from tests.support.http_server import Reply, Request, serve

if TYPE_CHECKING:
    from pathlib import Path


def echo_key(request: Request) -> bytes:
    return request.headers.get("x-api-key", "none").encode()


def test_each_request_carries_the_key_unless_it_is_anonymous() -> None:
    with serve(echo_key) as base, closing(Client(base, "secret")) as client:
        assert client.send("GET", "/").body == b"secret"
        assert client.send_once("GET", "/", is_anonymous=True).body == b"none"


def test_body_is_sent_as_json_and_bytes_as_they_are() -> None:
    with (
        serve(lambda request: request.headers.get("content-type", "").encode() + request.body) as base,
        closing(Client(base)) as client,
    ):
        assert client.send("POST", "/", {"texts": ["a"]}).body == b'application/json{"texts": ["a"]}'
        assert client.send("POST", "/", b"\xff").body == b"\xff"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_transient_status_is_retried_and_counted(status: int) -> None:
    replies = iter([Reply(status), Reply(body=b"[1]")])
    with serve(lambda _: next(replies)) as base, closing(Client(base)) as client:
        response = client.send("GET", "/")

    assert (response.status, response.json(), response.retries) == (200, [1], 1)


def test_other_error_status_is_returned_at_once() -> None:
    with serve(lambda _: Reply(500)) as base, closing(Client(base)) as client:
        response = client.send("GET", "/")

    assert (response.status, response.retries) == (500, 0)


def test_lost_connection_is_retried_until_the_deadline() -> None:
    with pytest.raises(RequestTimedOut, match=r"GET /livez: ConnectionRefusedError") as caught:
        Client("http://127.0.0.1:1", retry_seconds=0.3).send("GET", "/livez")

    assert caught.value.retries >= 1


def test_connection_that_the_server_closes_is_opened_again() -> None:
    with (
        serve(lambda _: Reply(headers={"Connection": "close"})) as base,
        closing(Client(base, retry_seconds=0)) as client,
    ):
        assert [client.send("GET", "/").status for _ in range(2)] == [200, 200]


def test_only_the_given_certificate_is_trusted(tmp_path: Path) -> None:
    """The name in it does not matter: staging is reached by an address of this machine."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    ours, other = (make_certificate(tmp_path, name) for name in ("staging.test", "other.test"))
    with (
        serve(echo_key, certificate=ours) as base,
        closing(Client(base, "secret", ca_file=str(ours))) as client,
    ):
        assert client.send("GET", "/").body == b"secret"
    with (
        serve(echo_key, certificate=other) as base,
        closing(Client(base, "secret", ca_file=str(ours), retry_seconds=0.2)) as client,
        pytest.raises(RequestTimedOut, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.send("GET", "/")


def test_base_url_without_host_is_refused() -> None:
    with pytest.raises(ValueError, match="expected http://host:port"):
        Client("staging").send_once("GET", "/")


def test_key_is_not_part_of_the_representation() -> None:
    assert "secret" not in repr(Client("http://127.0.0.1:1", "secret"))
