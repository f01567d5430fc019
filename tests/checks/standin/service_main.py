"""A small service with the routes and commands that the checks need; STANDIN_FAULTS turns on faults."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = os.environ.get("STANDIN_FAULTS", "").split(",")
DECLARED = [["GET", path] for path in ("/health", "/livez", "/readyz", "/metrics", "/openapi.json")]
DECLARED.append(["POST", "/api/v1/embed"])


def answers() -> dict[str, tuple[int, Any]]:
    """Returns path -> (status, body)."""
    described: dict[str, Any] = {path: {method.lower(): {}} for method, path in DECLARED if path != "/openapi.json"}
    if "openapi" in FAULTS:
        del described["/metrics"]
    return {
        "/health": (500 if "health" in FAULTS else 200, {"status": "degraded"}),
        "/livez": (503 if "livez" in FAULTS else 200, {"is_alive": True}),
        "/readyz": (503, {"is_ready": False, "reasons": {} if "readyz" in FAULTS else {"store": "no database"}}),
        "/metrics": (200, "none" if "metrics" in FAULTS else "# TYPE requests counter\n"),
        "/openapi.json": (200, {"paths": described}),
    }


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests from the table, and POST requests when their bodies are complete."""

    def reply(self, status: int, document: Any) -> None:  # noqa: ANN401 - JSON or text
        """Sends one response."""
        body = (document if isinstance(document, str) else json.dumps(document)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answers a GET request."""
        self.reply(*answers().get(self.path, (404, {})))
        if "crash" in FAULTS and self.headers.get("User-Agent", "").startswith("Python-urllib"):
            os._exit(1)  # at the request of the health check, which is the last one

    def do_POST(self) -> None:
        """Reads the whole body, then answers."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(503, {})


def serve() -> int:
    """Serves until a stop signal arrives."""
    if "start" in FAULTS:
        return 1
    server = ThreadingHTTPServer(("0.0.0.0", 8000), Handler)  # noqa: S104 - in a container without a network
    server.daemon_threads = False

    def stop(_number: int, _frame: object) -> None:
        if "drain" in FAULTS:
            os._exit(0)
        threading.Thread(target=server.shutdown).start()

    if "stop" not in FAULTS:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
    server.serve_forever(poll_interval=0.05)
    server.server_close()
    return 0


def main() -> int:
    """Runs one command."""
    command = sys.argv[1]
    if command == "serve":
        return serve()
    if command == "routes":
        registered = [*DECLARED, *([["GET", "/debug"]] if "routes" in FAULTS else [])]
        sys.stdout.write(json.dumps({"declared": DECLARED, "registered": registered}))
        return int(registered != DECLARED)
    vectors = json.loads(Path("/opt/models/all-MiniLM-L6-v2/vectors.json").read_text())
    shift = 0.01 if "embed command" in FAULTS else 0.0
    sys.stdout.write(json.dumps([[value + shift for value in vector] for vector in vectors]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
