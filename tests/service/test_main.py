"""The command line and the process: what an image and an operator rely on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import asyncpg
import httpx
import pytest

from service.inference.models import MANIFEST, check
from tests.service.conftest import EMBEDDING, ENTAILMENT, Postgres
from tests.support.polling import WAIT_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = (
    "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'tokenizers', 'numpy'))); "
    "from service.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


def environment(**settings: object) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TRUTHGRAPH_")}
    return clean | {f"TRUTHGRAPH_{name}": str(value) for name, value in settings.items()}


def command(*arguments: str, code: int = 0, **settings: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Process:
    """The service in a process of its own."""

    popen: subprocess.Popen[bytes]
    client: httpx.Client
    log: IO[bytes]

    def log_text(self) -> str:
        """All that it has logged so far."""
        self.log.seek(0)
        return self.log.read().decode()


@contextlib.contextmanager
def process(*prefix: str, **settings: object) -> Iterator[Process]:
    """`python -m service serve` that listens; killed at the end."""
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
            until(lambda: answers(client, "/livez", 200) or popen.poll() is not None, "it listens")
            yield Process(popen, client, log)
        finally:
            popen.kill()


@contextlib.contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """Nobody writes to `table` meanwhile."""
    with asyncio.Runner() as runner:
        holder = runner.run(asyncpg.connect(url))
        runner.run(holder.execute(f"BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))
        try:
            yield
        finally:
            runner.run(holder.close())


def connection(running: Process) -> socket.socket:
    """A connection of the bare kind."""
    return socket.create_connection((running.client.base_url.host, running.client.base_url.port or 0))


def waits(running: Process) -> bool:
    """Whether anything waits for the device."""
    return "truthgraph_queue_tokens 0.0" not in running.client.get("/metrics").text


def answers(client: httpx.Client, path: str, status: int) -> bool:
    try:
        return client.get(path).status_code == status
    except httpx.TransportError:
        return False


def test_routes_are_equal_and_need_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "routes"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    routes = json.loads(done.stdout)
    assert routes["declared"] == routes["registered"]
    assert ["GET", "/health"] in routes["declared"]


def test_nothing_heavy_is_imported_for_the_routes() -> None:
    """Which is what keeps the start short; a time would depend on the machine."""
    heavy = ("torch", "transformers", "alembic", "numpy")
    code = f"import sys, service.app; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_models_are_added_with_nothing_but_the_standard_library(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (origin / name).write_text("{}", encoding="utf-8")
    arguments = ["models", "add", "m", "--from", str(origin), "--into", str(tmp_path / "models")]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"from service.__main__ import main; sys.exit(main({arguments!r}))"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True)
    assert (tmp_path / "models" / "m" / MANIFEST).is_file()


def test_a_wrong_setting_stops_the_start_with_its_name() -> None:
    assert "TRUTHGRAPH_PORT" in command("serve", PORT="x", code=2)
    assert "TRUTHGRAPH_DATABASE_URL" in command("keys", "list", code=2)


def test_embed_prints_the_vectors_of_the_configured_model(models_directory: Path) -> None:
    output = command("embed", "The sun rises in the east.", "x", MODELS_DIR=models_directory)
    vectors = json.loads(output.splitlines()[0])
    from service.inference.torch_models import load_embedder, place

    model = load_embedder(check(models_directory, EMBEDDING), place("cpu", "float32"))
    expected = model.forward(model.prepare(["The sun rises in the east.", "x"], truncate=False))
    for vector, ours in zip(vectors, expected, strict=True):
        assert vector == pytest.approx(ours.values(), abs=1e-5)


def test_keys_are_made_listed_and_revoked(postgres: Postgres) -> None:
    url = postgres.fresh()
    key = command("keys", "add", "ci", "--scope", "read", "--tenant", "acme", DATABASE_URL=url).strip()
    assert key.startswith("tg_")
    listed = command("keys", "list", DATABASE_URL=url)
    assert json.loads(listed)["scopes"] == ["read"]
    assert key not in listed
    assert "there is already an API key named ci" in command("keys", "add", "ci", DATABASE_URL=url, code=1)
    command("keys", "revoke", "ci", DATABASE_URL=url)
    assert json.loads(command("keys", "list", DATABASE_URL=url))["revoked_at"] is not None
    assert "there is no API key named nobody" in command("keys", "revoke", "nobody", DATABASE_URL=url, code=1)


def test_migrate_brings_an_empty_database_up(postgres: Postgres) -> None:
    url = postgres.empty()
    command("migrate", DATABASE_URL=url)
    assert command("keys", "list", DATABASE_URL=url) == ""


def test_without_torch_the_process_serves_what_needs_no_model(postgres: Postgres) -> None:
    with process("-c", WITHOUT_TORCH, DATABASE_URL=postgres.fresh()) as running:
        until(lambda: answers(running.client, "/readyz", 200), "it is ready")
        assert "truthgraph[ml]" in running.client.get("/readyz").json()["notes"]["embedding"]
        assert running.client.post("/api/v1/claims", json={"text": "two words"}).status_code == 201
        search = {"query": "words", "mode": "keyword"}
        assert running.client.post("/api/v1/search", json=search).json()["count"] == 0
        for path, body in (("embed", {"texts": ["a"]}), ("search", {"query": "a"}), ("verify", {"claim": "a b"})):
            reply = running.client.post(f"/api/v1/{path}", json=body)
            assert (reply.status_code, "truthgraph[ml]" in reply.json()["detail"]) == (503, True)


def test_without_database_and_network_it_neither_crashes_nor_is_ready() -> None:
    with process("-c", WITHOUT_TORCH, DATABASE_URL="postgresql://nowhere.invalid/db") as running:
        reply = running.client.get("/readyz")
        assert reply.status_code == 503
        assert "the database does not answer" in reply.json()["reasons"]["database"]
        assert running.client.get("/health").status_code == 200
        assert running.popen.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_with_0_within_the_deadline(number: signal.Signals) -> None:
    with process("-c", WITHOUT_TORCH, DRAIN_SECONDS="3") as running:
        running.client.close()
        running.popen.send_signal(number)
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_after_a_signal_it_lingers_not_ready_and_still_takes_new_connections() -> None:
    with process("-c", WITHOUT_TORCH, SHUTDOWN_DELAY_SECONDS="3", DRAIN_SECONDS="3") as running:
        running.popen.send_signal(signal.SIGTERM)
        until(lambda: "process" in httpx.get(f"{running.client.base_url}/readyz").json()["reasons"], "it says so")
        assert httpx.get(f"{running.client.base_url}/livez").status_code == 200
        assert running.popen.poll() is None
        running.client.close()
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_a_second_signal_ends_the_lingering() -> None:
    with process("-c", WITHOUT_TORCH, SHUTDOWN_DELAY_SECONDS="1000") as running:
        running.popen.send_signal(signal.SIGTERM)
        until(lambda: "process" in running.client.get("/readyz").json()["reasons"], "it lingers")
        running.client.close()
        running.popen.send_signal(signal.SIGTERM)
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_a_slow_client_does_not_outlive_the_drain_deadline() -> None:
    with process("-c", WITHOUT_TORCH, DRAIN_SECONDS="1") as running, connection(running) as slow:
        slow.sendall(b"POST /api/v1/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)  # the request must have arrived; nothing tells when
        running.popen.send_signal(signal.SIGTERM)
        assert running.popen.wait(WAIT_SECONDS) == 0


def test_real_models_answer_and_what_was_accepted_is_finished(models_directory: Path, postgres: Postgres) -> None:
    url = postgres.fresh()
    settings = {"MODELS_DIR": models_directory, "ENTAILMENT_MODEL": ENTAILMENT, "DATABASE_URL": url}
    with process(**settings) as running:
        until(lambda: answers(running.client, "/readyz", 200), "the models are loaded")
        for content in ("The sun rises in the east.", "Cats sleep most of the day."):
            assert running.client.post("/api/v1/evidence", json={"content": content}).status_code == 201
        found = running.client.post(
            "/api/v1/search", json={"query": "Where does the sun come up?", "mode": "vector"}
        ).json()
        assert found["results"][0]["content"] == "The sun rises in the east."
        body = running.client.post("/api/v1/verify", json={"claim": "The sun rises in the east"}).json()
        assert sum(body["evidence"][0]["nli_scores"].values()) == pytest.approx(1, abs=1e-5)
        claim = running.client.post("/api/v1/claims", json={"text": "Cats sleep"}).json()["id"]
        with locked(url, "verdicts"):  # so that the task cannot end before the process does
            reply = running.client.post(f"/api/v1/claims/{claim}/verify", json={})
            assert reply.status_code == 202, reply.text
            task = reply.headers["location"]
            until(lambda: running.client.get(task).json()["status"] == "processing", "it is in the middle of the task")
            running.popen.send_signal(signal.SIGKILL)
            running.popen.wait(WAIT_SECONDS)
    with process(**settings, TASK_SECONDS="1", DRAIN_SECONDS="50") as running:
        until(lambda: answers(running.client, "/readyz", 200), "the models are loaded")
        Postgres.execute(url, "UPDATE tasks SET lease_until = now() WHERE status = 'processing'")
        until(lambda: running.client.get(task).json()["status"] == "completed", "the task survived the kill")
        rows = Postgres.execute(url, "SELECT claim_id FROM verdicts")
        assert [str(row["claim_id"]) for row in rows].count(claim) == 1
        with concurrent.futures.ThreadPoolExecutor(1) as caller:
            texts = {"texts": ["word " * 200] * 20}
            call = caller.submit(
                httpx.post, f"{running.client.base_url}/api/v1/embed", json=texts, timeout=WAIT_SECONDS
            )
            until(lambda: "truthgraph_queue_tokens 0.0" not in running.client.get("/metrics").text, "some of it waits")
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


def test_ingest_reports_bad_lines_loses_nothing_else_and_goes_on_where_it_stopped(
    models_directory: Path, postgres: Postgres, tmp_path: Path
) -> None:
    file = tmp_path / "evidence.jsonl"
    lines = [json.dumps({"content": f"sentence number {number}"}) for number in range(7)]
    lines[3], lines[5] = "{broken", lines[4]
    file.write_text("\n".join(lines), encoding="utf-8")
    note = file.with_name(file.name + ".progress")
    note.write_text("1", encoding="ascii")  # an earlier run did the first line
    url = postgres.fresh()
    output = command("ingest", str(file), code=1, MODELS_DIR=models_directory, DATABASE_URL=url)
    assert "4 added, 1 duplicates, 1 failed" in output
    assert "line 4:" in output
    assert not note.exists()
    contents = Postgres.execute(url, "SELECT content FROM evidence")
    assert sorted(row["content"] for row in contents) == [f"sentence number {number}" for number in (1, 2, 4, 6)]
