"""Every route of the slimmed images, on the CPU, with a real PostgreSQL and real models.

Needs the images, from `python -m buildkit build single` and so on. A missing image is skipped, and fails the test under
`--require images`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.service.conftest import EMBEDDING, ENTAILMENT, ROUTES
from tests.support.needs import skip_or_fail
from tests.support.polling import START_SECONDS, WAIT_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.service.conftest import Postgres

TARGETS = ("api", "fleet", "single", "inference")
PAIR = {"premise": "It rains.", "hypothesis": "Water falls."}
# Requests in order. {claim}, {evidence} and {task} are ids from earlier responses.
REQUESTS: tuple[tuple[str, str, object], ...] = (
    (
        "POST",
        "/api/v1/evidence",
        {"content": "The Earth is an oblate spheroid.", "source_url": "https://example.org/a"},
    ),
    ("POST", "/api/v1/claims", {"text": "The Earth is round."}),
    ("GET", "/api/v1/claims", None),
    ("GET", "/api/v1/claims/{claim}", None),
    ("POST", "/api/v1/embed", {"texts": ["The Earth is round.", "La Terre est ronde."]}),
    ("POST", "/api/v1/search", {"query": "Is the Earth round?"}),
    ("POST", "/api/v1/nli", PAIR),
    ("POST", "/api/v1/nli/batch", {"pairs": [["It rains.", "Water falls."], ["It rains.", "The sun shines."]]}),
    ("POST", "/api/v1/verify", {"claim": "The Earth is round."}),
    ("POST", "/api/v1/claims/{claim}/verify", {}),
    ("GET", "/api/v1/tasks/{task}", None),
    ("GET", "/api/v1/verdict/{claim}", None),
    ("GET", "/api/v1/verdicts/{claim}", None),
    *(("GET", path, None) for path in ("/", "/health", "/health/detailed", "/livez", "/readyz", "/metrics", "/docs")),
    *(("GET", path, None) for path in ("/rate-limit-stats", "/openapi.json", "/docs/openapi.json", "/v1/models")),
    *(("GET", path, None) for path in ("/info", "/v2/health/live", "/v2/health/ready")),
    ("GET", f"/v2/models/{EMBEDDING}/ready", None),
    ("POST", "/v1/embeddings", {"model": EMBEDDING, "input": ["The Earth is round."]}),
    ("POST", "/embed", {"inputs": "The Earth is round."}),
    ("POST", "/predict", {"inputs": [["It rains.", "Water falls."]]}),
    ("GET", "/api/v1/evidence/{evidence}", None),
    ("DELETE", "/api/v1/evidence/{evidence}", None),
)


@pytest.fixture(scope="module", params=TARGETS)
def image(request: pytest.FixtureRequest, docker: Sequence[str], pytestconfig: pytest.Config) -> str:
    """The image of a target."""
    name = f"truthgraph-api:{'latest' if request.param == 'api' else request.param}"
    if subprocess.run([*docker, "image", "inspect", name], capture_output=True, check=False).returncode:
        skip_or_fail(pytestconfig, "images", f"the engine has no {name}")
    return name


@pytest.fixture(scope="module")
def client(
    image: str,
    docker: Sequence[str],
    postgres: Postgres,
    models_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    """A client of a container of the image that is ready."""
    url = postgres.fresh()
    folder = url.rpartition("host=")[2]
    name = f"tg-slimmed-{os.getpid()}"
    environment = {
        "TRUTHGRAPH_DATABASE_URL": url,
        "TRUTHGRAPH_MODELS_DIR": "/models",
        "TRUTHGRAPH_ENTAILMENT_MODEL": ENTAILMENT,
        "TRUTHGRAPH_ALLOW_ANONYMOUS": "true",
        "TRUTHGRAPH_HOST": "127.0.0.1",
        "TRUTHGRAPH_PORT": "18329",
        "TMPDIR": "/tmp",  # noqa: S108 - in the container
    }
    log = tmp_path_factory.mktemp("log") / "serve.log"
    command = [*docker, "run", "--rm", "--name", name, "--network", "host", "--read-only", "--tmpfs", "/tmp"]  # noqa: S108
    command += ["--user", str(os.getuid()), "-v", f"{folder}:{folder}", "-v", f"{models_directory}:/models:ro"]
    command += [word for pair in environment.items() for word in ("-e", "=".join(pair))]
    with (
        log.open("w") as output,
        subprocess.Popen([*command, image], stdout=output, stderr=subprocess.STDOUT) as running,
        httpx.Client(base_url="http://127.0.0.1:18329", timeout=WAIT_SECONDS) as client,
    ):
        try:
            until(lambda: _is_ready(client) or running.poll() is not None, "the image is ready", seconds=START_SECONDS)
            assert running.poll() is None, log.read_text()
            yield client
        finally:
            subprocess.run([*docker, "stop", name], capture_output=True, check=False)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def test_every_route_answers(client: httpx.Client) -> None:
    known: dict[str, str] = {}
    failed = []
    for method, template, body in REQUESTS:
        path = template.format_map(known)
        answer = client.request(method, path, json=body)
        if not answer.is_success:
            failed.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            continue
        found = answer.json() if "json" in answer.headers.get("content-type", "") and answer.content else {}
        for name, field in {"/api/v1/evidence": "evidence", "/api/v1/claims": "claim"}.items():
            if (method, template) == ("POST", name):
                known[field] = found["id"]
        if template.endswith("{claim}/verify"):
            known["task"] = found["task_id"]
            _wait_for(client, known["task"])
    assert not failed


def _wait_for(client: httpx.Client, task: str) -> None:
    until(
        lambda: client.get(f"/api/v1/tasks/{task}").json()["status"] in {"completed", "failed"},
        "the task ends",
        seconds=WAIT_SECONDS,
    )


def test_every_route_is_requested() -> None:
    """A new route must be added to REQUESTS."""

    def shape(path: str) -> str:
        return re.sub(r"\{\w+\}", "*", path.replace(EMBEDDING, "*"))

    requested = {(method, shape(path)) for method, path, _ in REQUESTS}
    assert {(route.method, shape(route.path)) for route in ROUTES} - requested == {("GET", "/docs/*")}


@pytest.mark.parametrize("program", ["python -m service routes", "python -m service embed text"])
def test_commands_run_in_the_image(image: str, docker: Sequence[str], program: str) -> None:
    command = [*docker, "run", "--rm", "--network", "none", image, *program.split()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)


def test_an_import_of_a_removed_module_names_the_slim_rule(image: str, docker: Sequence[str]) -> None:
    ended = subprocess.run(
        [*docker, "run", "--rm", "--network", "none", image, "python", "-c", "import numpy.tests"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert "No module named 'numpy.tests': it was removed from this installation (slim rule tests)" in ended.stderr
