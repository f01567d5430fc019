"""The server as a process: start, readiness, signals, logs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import asyncpg
import httpx
import pytest

from tests.service.conftest import ENTAILMENT, Postgres
from tests.service.processes import ROOT, WITHOUT_TORCH, command, environment
from tests.support.polling import START_SECONDS, WAIT_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Process:
    """The service as a process."""

    popen: subprocess.Popen[bytes]
    client: httpx.Client
    log: IO[bytes]

    def log_text(self) -> str:
        """Returns the log so far."""
        self.log.seek(0)
        return self.log.read().decode()


@contextlib.contextmanager
def process(*prefix: str, **settings: object) -> Iterator[Process]:
    """Runs `python -m service serve` until it listens; kills it at the end."""
    port = free_port()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, *(prefix or ("-m", "service")), "serve", "--port", str(port)],
            cwd=ROOT,
            env=environment(**settings),
            stderr=log,
        ) as popen,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_SECONDS) as client,
    ):
        try:
            until(
                lambda: answers(client, "/livez", 200) or popen.poll() is not None, "it listens", seconds=START_SECONDS
            )
            yield Process(popen, client, log)
        finally:
            popen.kill()


@contextlib.contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Blocks writes to `table` meanwhile."""
    with asyncio.Runner() as runner:
        holder = runner.run(asyncpg.connect(url))
        runner.run(holder.execute(f"BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
        try:
            yield
        finally:
            runner.run(holder.close())


def connection(running: Process) -> socket.socket:
    """Opens a TCP connection to the server."""
    return socket.create_connection((running.client.base_url.host, running.client.base_url.port or 0))


def has_queued_tokens(running: Process) -> bool:
    """Whether tokens wait for the device."""
    return "truthgraph_queue_tokens 0.0" not in running.client.get("/metrics").text


def answers(client: httpx.Client, path: str, status: int) -> bool:
    try:
        return client.get(path).status_code == status
    except httpx.TransportError:
        return False


def test_without_torch_routes_without_a_model_work(postgres: Postgres) -> None:
    with process("-c", WITHOUT_TORCH, DATABASE_URL=postgres.fresh()) as running:
        until(lambda: answers(running.client, "/readyz", 200), "it is ready", seconds=START_SECONDS)
        assert "truthgraph[ml]" in running.client.get("/readyz").json()["notes"]["embedding"]
        assert running.client.post("/api/v1/claims", json={"text": "two words"}).status_code == 201
        search = {"query": "words", "mode": "keyword"}
        assert running.client.post("/api/v1/search", json=search).json()["count"] == 0
        for path, body in (("embed", {"texts": ["a"]}), ("search", {"query": "a"}), ("verify", {"claim": "a b"})):
            reply = running.client.post(f"/api/v1/{path}", json=body)
            assert (reply.status_code, "truthgraph[ml]" in reply.json()["detail"]) == (503, True)


def test_without_a_database_the_process_runs_and_is_not_ready() -> None:
    with process("-c", WITHOUT_TORCH, DATABASE_URL="postgresql://nowhere.invalid/db") as running:
        reply = running.client.get("/readyz")
        assert reply.status_code == 503
        assert "the database does not answer" in reply.json()["reasons"]["database"]
        assert running.client.get("/health").status_code == 200
        assert running.popen.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_exit_code_0(number: signal.Signals) -> None:
    with process("-c", WITHOUT_TORCH, DRAIN_SECONDS="3") as running:
        running.client.close()
        running.popen.send_signal(number)
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_during_the_shutdown_delay_it_is_not_ready_and_accepts() -> None:
    with process("-c", WITHOUT_TORCH, SHUTDOWN_DELAY_SECONDS="3", DRAIN_SECONDS="3") as running:
        running.popen.send_signal(signal.SIGTERM)
        until(
            lambda: "process" in httpx.get(f"{running.client.base_url}/readyz").json()["reasons"],
            "it reports that it is stopping",
        )
        assert httpx.get(f"{running.client.base_url}/livez").status_code == 200
        assert running.popen.poll() is None
        running.client.close()
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_a_second_signal_skips_the_shutdown_delay() -> None:
    with process("-c", WITHOUT_TORCH, SHUTDOWN_DELAY_SECONDS="1000") as running:
        running.popen.send_signal(signal.SIGTERM)
        until(lambda: "process" in running.client.get("/readyz").json()["reasons"], "it reports that it is stopping")
        running.client.close()
        running.popen.send_signal(signal.SIGTERM)
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_a_slow_client_cannot_exceed_the_drain_deadline() -> None:
    with process("-c", WITHOUT_TORCH, DRAIN_SECONDS="1") as running, connection(running) as slow:
        slow.sendall(b"POST /api/v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)  # the request must have arrived, and nothing shows when it has
        running.popen.send_signal(signal.SIGTERM)
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_accepted_work_survives_a_kill_and_a_signal(models_directory: Path, postgres: Postgres) -> None:
    url = postgres.fresh()
    settings = {"MODELS_DIR": models_directory, "ENTAILMENT_MODEL": ENTAILMENT, "DATABASE_URL": url}
    with process(**settings) as running:
        until(lambda: answers(running.client, "/readyz", 200), "the models are loaded", seconds=START_SECONDS)
        for content in ("The sun rises in the east.", "Cats sleep most of the day."):
            assert running.client.post("/api/v1/evidence", json={"content": content}).status_code == 201
        found = running.client.post(
            "/api/v1/search", json={"query": "Where does the sun come up?", "mode": "vector"}
        ).json()
        assert found["results"][0]["content"] == "The sun rises in the east."
        body = running.client.post("/api/v1/verify", json={"claim": "The sun rises in the east"}).json()
        assert sum(body["evidence"][0]["nli_scores"].values()) == pytest.approx(1, abs=1e-5)
        claim = running.client.post("/api/v1/claims", json={"text": "Cats sleep"}).json()["id"]
        with locked(url, "verdicts"):  # so that the task cannot end before the process is killed
            reply = running.client.post(f"/api/v1/claims/{claim}/verify", json={})
            assert reply.status_code == 202, reply.text
            task = reply.headers["location"]
            until(lambda: running.client.get(task).json()["status"] == "processing", "the task is being processed")
            running.popen.send_signal(signal.SIGKILL)
            running.popen.wait(WAIT_SECONDS)
    with process(**settings, TASK_SECONDS="1", DRAIN_SECONDS="50") as running:
        until(lambda: answers(running.client, "/readyz", 200), "the models are loaded", seconds=START_SECONDS)
        Postgres.execute(url, "UPDATE tasks SET lease_until = now() WHERE status = 'processing'")
        until(lambda: running.client.get(task).json()["status"] == "completed", "the task survived the kill")
        rows = Postgres.execute(url, "SELECT claim_id FROM verdicts")
        assert [str(row["claim_id"]) for row in rows].count(claim) == 1
        with concurrent.futures.ThreadPoolExecutor(1) as caller:
            texts = {"texts": ["word " * 200] * 20}
            call = caller.submit(
                httpx.post, f"{running.client.base_url}/api/v1/embed", json=texts, timeout=WAIT_SECONDS
            )
            until(lambda: has_queued_tokens(running), "tokens are queued")
            running.client.close()
            running.popen.send_signal(signal.SIGTERM)
            assert call.result(WAIT_SECONDS).status_code == 200
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_logs_are_json_without_texts_or_secrets(models_directory: Path, postgres: Postgres) -> None:
    url = postgres.fresh()
    key = command("keys", "add", "k", DATABASE_URL=url).strip()
    with process("-c", WITHOUT_TORCH, DATABASE_URL=url, MODELS_DIR=models_directory) as running:
        headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "find-me"}
        running.client.post("/api/v1/claims", json={"text": "a very private claim"}, headers=headers)
        running.client.post("/api/v1/verify", json={"claim": "a very private claim"}, headers=headers)
        running.client.post("/api/v1/claims", json={"text": 5}, headers=headers)
        running.popen.send_signal(signal.SIGTERM)
        running.popen.wait(WAIT_SECONDS)
        log = running.log_text()
    entries = [json.loads(line) for line in log.splitlines()]
    assert [entry["status"] for entry in entries if entry.get("request_id") == "find-me"] == [201, 503, 422]
    assert "private" not in log
    assert key not in log
