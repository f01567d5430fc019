"""A fake API for the tests of the proxy, in a container.

The argument is its behaviour:

works    returns the request
closes   closes the connection after each request
slow     waits before it returns the request
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BEHAVIOUR = sys.argv[1]
SLOW_SECONDS = 3


class Handler(BaseHTTPRequestHandler):
    """Responds to every request."""

    def _respond(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        sys.stdout.write(f"{self.command} {self.path}\n")
        sys.stdout.flush()
        if BEHAVIOUR == "closes":
            self.close_connection = True
            return
        if BEHAVIOUR == "slow" and self.path != "/quick":
            time.sleep(SLOW_SECONDS)
        received = {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}
        body = json.dumps(received).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _respond  # noqa: N815 - the names that the library calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Logs nothing else."""


signal.signal(signal.SIGQUIT, lambda _number, _frame: os._exit(0))
server = ThreadingHTTPServer(("0.0.0.0", 8000), Handler)  # noqa: S104
sys.stdout.write("listens\n")
sys.stdout.flush()
server.serve_forever()
