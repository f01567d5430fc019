"""Checks the service, run by the image's command: read-only, without capabilities, database or network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from checks.results import fail_if, not_applicable, not_verified

if TYPE_CHECKING:
    import testinfra

    from checks.expectations import Expectations
    from checks.observations import Observations, Response, ServiceRun

pytestmark = pytest.mark.needs("application")
UNDOCUMENTED = ("/docs", "/openapi.json")  # the documentation itself


@pytest.fixture(scope="module")
def run(observations: Observations) -> ServiceRun:
    """The run of the service, even if it ended at once."""
    return observations.service.result()


@pytest.fixture
def service(run: ServiceRun) -> ServiceRun:
    """The run of a service that answers requests."""
    if run.responses["/health"].status == 0:
        not_verified("the service does not start")
    return run


@pytest.fixture
def stopped(service: ServiceRun) -> ServiceRun:
    """The run of a service that was still running when it was stopped."""
    if not service.is_running:
        not_verified("the service ended by itself")
    return service


def response_to(service: ServiceRun, path: str) -> Response:
    """Returns the response to a GET request; not verified if the service ended before the request."""
    response = service.responses[path]
    if response.status == 0 and not service.is_running:
        not_verified("the service ended by itself")
    return response


def log_of(service: ServiceRun) -> str:
    """Returns the last lines of the service's log, for a message."""
    return " | ".join(service.log.strip().splitlines()[-5:]) or "(empty)"


def test_service_starts(run: ServiceRun, expectations: Expectations) -> None:
    """The service starts and answers requests in time."""
    response = run.responses["/health"]
    fail_if(
        [f"no answer on port {expectations.port}: {response.body}; the log ends with: {log_of(run)}"]
        if response.status == 0
        else [],
        fix="run it by hand: docker run --read-only --cap-drop ALL --tmpfs /tmp --network none IMAGE",
    )


def test_health_answers(service: ServiceRun) -> None:
    """/health answers with status 200 and a JSON document."""
    response = response_to(service, "/health")
    document = parsed(response.body)
    fail_if(
        [f"/health answered {response.status}: {response.body[:500]}"]
        if response.status != 200 or "status" not in document
        else [],
        fix="answer /health with status 200 and a field `status` as long as the process can serve any request",
    )


def test_healthcheck_passes(service: ServiceRun) -> None:
    """The image's health check passes in the running container."""
    ended = service.healthcheck
    if ended.exit_code and not service.is_running:
        not_verified("the service ended by itself")
    fail_if(
        [f"exit code {ended.exit_code}: {(ended.errors or ended.output).strip()[:500]}"] if ended.exit_code else [],
        fix="HEALTHCHECK needs a program that the image has, and the port that the service listens on",
    )


def test_liveness_answers(service: ServiceRun) -> None:
    """/livez answers with status 200, even without a database."""
    response = response_to(service, "/livez")
    fail_if(
        [f"/livez answered {response.status}: {response.body[:500]}"] if response.status != 200 else [],
        fix="make /livez depend on the process only: a restart does not repair a database",
    )


def test_readiness_gives_reasons(service: ServiceRun) -> None:
    """Without a database, /readyz answers with status 503 and the reasons."""
    response = response_to(service, "/readyz")
    document = parsed(response.body)
    reasons = document.get("reasons")
    is_right = response.status == 503 and document.get("is_ready") is False and bool(reasons)
    fail_if(
        [] if is_right else [f"/readyz answered {response.status}: {response.body[:500]}"],
        fix="answer `is_ready: false` and a reason for each part that is not ready",
    )


def test_service_keeps_running(service: ServiceRun) -> None:
    """Without a database the service keeps running: no crash loop."""
    fail_if(
        [f"the service ended with exit code {service.exit_code}; the log ends with: {log_of(service)}"]
        if not service.is_running
        else [],
        fix="without a database, report not ready instead of exiting",
    )


def test_metrics_answer(service: ServiceRun) -> None:
    """/metrics answers in the format of Prometheus."""
    response = response_to(service, "/metrics")
    fail_if(
        [f"/metrics answered {response.status}: {response.body[:200]}"]
        if response.status != 200 or "# TYPE" not in response.body
        else [],
        fix="serve the registry of prometheus_client at /metrics",
    )


def test_routes_match_the_route_table(observations: Observations) -> None:
    """The registered routes are the routes of the route table."""
    ended = observations.routes.result()
    table = parsed(ended.output)
    declared, registered = (operations(table.get(key)) for key in ("declared", "registered"))
    fail_if(
        [
            *(f"{' '.join(item)} is registered but not declared" for item in sorted(registered - declared)),
            *(f"{' '.join(item)} is declared but not registered" for item in sorted(declared - registered)),
            *(
                [f"`python -m service routes` failed, exit code {ended.exit_code}: {ended.errors.strip()[-500:]}"]
                if ended.exit_code
                else []
            ),
            *([] if declared else ["the route table is empty"]),
        ],
        fix="declare the scope of each route in its decorator, see service/routes/table.py",
    )


def test_openapi_matches_the_route_table(service: ServiceRun, observations: Observations) -> None:
    """The OpenAPI document of the service describes the routes of the route table."""
    response = response_to(service, "/openapi.json")
    document = parsed(response.body)
    described = {(method.upper(), path) for path, methods in document.get("paths", {}).items() for method in methods}
    declared = operations(parsed(observations.routes.result().output).get("declared"))
    if not declared:
        not_verified("`python -m service routes` lists no declared routes")
    expected = {item for item in declared if not item[1].startswith(UNDOCUMENTED)}
    fail_if(
        [
            *(f"{' '.join(item)} is described but not declared" for item in sorted(described - declared)),
            *(f"{' '.join(item)} is declared but not described" for item in sorted(expected - described)),
            *([] if described else [f"/openapi.json answered {response.status} and describes no route"]),
        ],
        fix="register each handler through the route table, with include_in_schema",
    )


def operations(rows: object) -> set[tuple[str, str]]:
    """Returns the (method, path) of each row of a route table."""
    return {(str(row[0]), str(row[1])) for row in rows} if isinstance(rows, list) else set()


def parsed(text: str) -> dict[str, Any]:
    """Returns the JSON object in *text*; an empty one if there is none."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def test_stop_signal_drains_requests(stopped: ServiceRun) -> None:
    """A request in flight when the stop signal arrives gets its response."""
    fail_if(
        [f"the connection ended without an answer: {stopped.drained_error}; the log ends with: {log_of(stopped)}"]
        if stopped.drained_status == 0
        else [],
        fix="on SIGTERM stop listening, finish the requests in flight, then exit",
    )


def test_stop_signal_ends_the_service(stopped: ServiceRun, expectations: Expectations) -> None:
    """The stop signal ends the service with exit code 0, in time."""
    limit = expectations.stop_seconds
    fail_if(
        [f"exit code {stopped.exit_code} after {stopped.stop_seconds:.1f} of {limit:.0f} s; log: {log_of(stopped)}"]
        if stopped.exit_code or stopped.stop_seconds > limit
        else [],
        fix="handle SIGTERM in the process that CMD starts; exit code 137 means that the engine killed it",
    )


@pytest.mark.parametrize("script", ["alembic", "uvicorn"])
def test_console_script_runs(script: str, expectations: Expectations, host: testinfra.host.Host) -> None:
    """The console script {script} is on PATH and runs."""
    if script not in expectations.locked:
        not_applicable(f"{script} is not in the lock")
    ended = host.run(f"{script} --version")
    fail_if(
        [f"`{script} --version` failed, exit code {ended.rc}: {ended.stderr.strip()[-500:]}"] if ended.rc else [],
        fix="copy the complete virtual environment, with bin/, to the path at which it was made",
    )


def test_service_runs_as_its_user(stopped: ServiceRun, expectations: Expectations) -> None:
    """The process of the service runs as the expected user."""
    users = stopped.status.partition("\nUid:")[2].split()[:1]
    if not users:
        not_verified("/proc/1/status cannot be read in the container")
    fail_if(
        [f"the user is {users[0]}, expected {expectations.user}"] if users != [expectations.user] else [],
        fix=f"set USER {expectations.user}:{expectations.user} in the final stage",
    )


def test_migrations_render_as_sql(observations: Observations) -> None:
    """`alembic upgrade head --sql` renders the migrations in the container."""
    ended = observations.migration.result()
    fail_if(
        [f"exit code {ended.exit_code}: {ended.errors.strip()[-1000:]}"]
        if ended.exit_code or "alembic_version" not in ended.output
        else [],
        fix="copy migrations/ and pyproject.toml to the folder of the application",
    )
