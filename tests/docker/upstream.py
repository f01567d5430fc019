"""A stand-in for the API: answers with what it was sent, or breaks off, or takes its time. Runs in a container."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KIND = sys.argv[1]
SLOW_SECONDS = 3


class Answer(BaseHTTPRequestHandler):
    """Any request."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        sys.stdout.write(f"{self.command} {self.path}\n")
        sys.stdout.flush()
        if KIND == "breaks":
            self.close_connection = True
            return
        if KIND == "slow" and self.path != "/quick":
            time.sleep(SLOW_SECONDS)
        seen = {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the names that the library calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing more."""


signal.signal(signal.SIGQUIT, lambda _number, _frame: os._exit(0))
server = ThreadingHTTPServer(("0.0.0.0", 8000), Answer)  # noqa: S104
sys.stdout.write("listens\n")
sys.stdout.flush()
server.serve_forever()
