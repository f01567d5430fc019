from __future__ import annotations

import shutil
import ssl
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from buildkit.staging.probes.client import Client, RequestTimedOut
from tests.support.certificates import make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def served(certificate: Path | None = None) -> Iterator[str]:
    """A server that answers each GET with the key it was sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            content = self.headers.get("x-api-key", "none").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        def handle_error(self, *_: object) -> None:
            """A handshake that the client broke off is what is wanted."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_key_goes_with_each_request_unless_it_shall_not() -> None:
    with served() as base, closing(Client(base, "secret")) as client:
        assert client.send("GET", "/").body == b"secret"
        assert client.once("GET", "/", anonymous=True).body == b"none"


def test_only_the_certificate_that_was_given_is_trusted(tmp_path: Path) -> None:
    """Whatever name is in it: staging is reached by an address of this machine."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    ours, other = (make_certificate(tmp_path, name) for name in ("staging.test", "other.test"))
    with served(ours) as base, closing(Client(base, "secret", authority=str(ours))) as client:
        assert client.send("GET", "/").body == b"secret"
    with (
        served(other) as base,
        closing(Client(base, "secret", authority=str(ours), patience_seconds=0.2)) as client,
        pytest.raises(RequestTimedOut, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.send("GET", "/")
