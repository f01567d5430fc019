"""Measures how fast the service answers: `nox -s bench-serving`. Published results are in docs/measured/.

Starts the service with MiniLM and a classifier of the size of DeBERTa-v3-base (with random weights: speed does not
depend on them). Then a number of clients send the same texts, each as soon as it has its last response. Another server
with OpenAI's embeddings route (`--against NAME URL MODEL`) is measured in turn with ours, one load at a time, so that
other work on the machine slows both down alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tests.service.deberta import save_classifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["main"]

TEXT = (
    "the of climate study shows that river water glacier sun orbit planet energy vaccine trial data report city mayor "
    "said people year growth market price bank history war treaty science paper method result evidence claim false true"
)
WORDS = TEXT.split()
EMBEDDING, ENTAILMENT = "all-MiniLM-L6-v2", "deberta-v3-base-random"
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """One load: `clients` that each send `items` at a time. `words` are the possible lengths of an item."""

    name: str
    words: tuple[int, ...]
    clients: int
    items: int


SHORT, MIXED = (14,), (6, 8, 10, 14, 20, 30, 60, 120, 240)
LOADS = (
    Load("embed short", SHORT, 1, 1),
    Load("embed short", SHORT, 8, 1),
    Load("embed short", SHORT, 32, 1),
    Load("embed short", SHORT, 128, 1),
    Load("embed short", SHORT, 4, 32),
    Load("embed mixed", MIXED, 32, 1),
    Load("embed mixed", MIXED, 4, 32),
    Load("nli 48 tokens", (22,), 1, 1),
    Load("nli 48 tokens", (22,), 4, 16),
    Load("nli mixed", (6, 10, 20, 30, 60, 100), 4, 16),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure. `process` is its process id, None if it does not run here or its CPU time is not counted."""

    name: str
    url: str
    model: str
    process: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a load on a server. `cpu_ms` is the server's CPU time per item; None if unknown."""

    server: str
    load: Load
    items_per_second: float
    p50_ms: float
    p95_ms: float
    refused: int
    cpu_ms: float | None
    load_average: float


def main(arguments: list[str]) -> int:
    """Measures all loads and prints a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=3, help="measurements of each load on each server (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="length of a measurement in seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--against",
        nargs=3,
        metavar=("NAME", "URL", "MODEL"),
        help="another server, by the URL of its embeddings route",
    )
    parser.add_argument("--process", type=int, help="process id of the other server, to count its CPU time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement to FILE")
    chosen = parser.parse_args(arguments)
    samples: list[Sample] = []
    with _served() as ours:
        servers = [ours]
        if chosen.against:
            name, url, model = chosen.against
            servers.append(Server(name, url, model, chosen.process))
        for load in LOADS:
            for _ in range(chosen.runs):
                for server in servers:
                    if load.name.startswith("embed") or server is ours:
                        samples.append(asyncio.run(_measure(server, load, chosen.seconds)))
                        print(
                            f"{server.name:>12} {load.name:<14} {samples[-1].items_per_second:8.1f}/s", file=sys.stderr
                        )
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(sample) for sample in samples], indent=1) + "\n", encoding="utf-8")
    print(_markdown(samples, [server.name for server in servers]))
    return 0


async def _measure(server: Server, load: Load, seconds: float) -> Sample:
    source = random.Random(0)  # noqa: S311 - the same texts for every server

    def text() -> str:
        return " ".join(source.choice(WORDS) for _ in range(source.choice(load.words)))

    bodies = [json.dumps(_body(server, load, text)).encode() for _ in range(200)]
    url = server.url if load.name.startswith("embed") else server.url.replace("/v1/embeddings", "/api/v1/nli/batch")
    latencies: list[float] = []
    refused = 0
    before = _cpu_seconds(server.process)
    began = time.perf_counter()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"content-type": "application/json"}
    ) as session:

        async def client(number: int) -> None:
            nonlocal refused
            turn = number * 37
            while time.perf_counter() - began < seconds:
                turn += 1
                sent = time.perf_counter()
                async with session.post(url, data=bodies[turn % len(bodies)]) as reply:
                    answer = await reply.read()
                if reply.status == 429:
                    refused += 1
                elif reply.status != 200:
                    raise RuntimeError(f"{url}: {reply.status}: {answer[:300]!r}")
                else:
                    latencies.append(time.perf_counter() - sent)

        await asyncio.gather(*(client(number) for number in range(load.clients)))
    lasted = time.perf_counter() - began
    latencies.sort()
    done = len(latencies) * load.items
    after = _cpu_seconds(server.process)
    return Sample(
        server=server.name,
        load=load,
        items_per_second=round(done / lasted, 1),
        p50_ms=round(1e3 * latencies[len(latencies) // 2], 1),
        p95_ms=round(1e3 * latencies[int(len(latencies) * 0.95)], 1),
        refused=refused,
        cpu_ms=None if before is None or after is None else round(1e3 * (after - before) / done, 2),
        load_average=round(os.getloadavg()[0], 1),
    )


def _body(server: Server, load: Load, text: Callable[[], str]) -> dict[str, object]:
    if load.name.startswith("embed"):
        return {"model": server.model, "input": [text() for _ in range(load.items)]}
    return {"pairs": [(text(), text()) for _ in range(load.items)]}


def _cpu_seconds(process: int | None) -> float | None:
    """Returns the user and system time of `process` so far, in seconds (proc(5), fields 14 and 15 of stat)."""
    if process is None:
        return None
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _served() -> Iterator[Server]:
    """Runs our service as a process with both models loaded and without rate limits."""
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        _make_models(models, Path(scratch) / "origin")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "TRUTHGRAPH_MODELS_DIR": str(models),
            "TRUTHGRAPH_ENTAILMENT_MODEL": ENTAILMENT,
            "TRUTHGRAPH_ALLOW_ANONYMOUS": "true",
            "TRUTHGRAPH_RATE_LIMITS": "false",
            "TRUTHGRAPH_LOG_LEVEL": "WARNING",
        }
        process = subprocess.Popen([sys.executable, "-m", "service", "serve", "--port", str(port)], env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/metrics", process)
            yield Server("ours", f"{url}/v1/embeddings", EMBEDDING, process.pid)
        finally:
            process.terminate()
            process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until the metrics say that both models are loaded."""
    deadline = time.monotonic() + START_SECONDS
    ready = ('truthgraph_ready{part="embedding"} 1.0', 'truthgraph_ready{part="entailment"} 1.0')
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service did not start within {START_SECONDS:.0f} s")
        with contextlib.suppress(OSError):
            answer = urllib.request.urlopen(url, timeout=5).read().decode()  # noqa: S310 - our own
            if all(line in answer for line in ready):
                return
        time.sleep(0.2)


def _make_models(models: Path, origin: Path) -> None:
    """Makes folders of MiniLM and of a classifier with DeBERTa-v3-base's shape and float32 weights, as on the hub."""
    from service.inference.models import KNOWN, add

    embedding = add(models, EMBEDDING, KNOWN[EMBEDDING])
    save_classifier(
        origin,
        embedding.path / "tokenizer.json",
        vocab_size=128_100,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        position_buckets=256,
    )
    add(models, ENTAILMENT, str(origin))


def _markdown(samples: list[Sample], servers: list[str]) -> str:
    """Returns a table with a row for each load and server: medians, and the smallest and largest rate."""
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, load {samples[0].load_average}",
        "",
        "| load | clients x items | server | items/s | min to max | p50 ms | p95 ms | CPU ms/item | refused |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for load in LOADS:
        for server in servers:
            found = [sample for sample in samples if sample.load == load and sample.server == server]
            if not found:
                continue
            rates = [sample.items_per_second for sample in found]
            cpu = [sample.cpu_ms for sample in found if sample.cpu_ms is not None]
            lines.append(
                f"| {load.name} | {load.clients} x {load.items} | {server} | {statistics.median(rates):.1f} "
                f"| {min(rates):.1f} to {max(rates):.1f} | {statistics.median(sample.p50_ms for sample in found):.1f} "
                f"| {statistics.median(sample.p95_ms for sample in found):.1f} "
                f"| {f'{statistics.median(cpu):.2f}' if cpu else ''} "
                f"| {sum(sample.refused for sample in found)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
