"""The service, started as the image says: read-only, without capabilities, database or network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from checks.verdicts import fail_if, not_applicable, not_verified

if TYPE_CHECKING:
    import testinfra

    from checks.evidence import Answer, Observations, ServiceRun
    from checks.expectations import Expectations

pytestmark = pytest.mark.needs("application")
UNDOCUMENTED = ("/docs", "/openapi.json")  # the documentation does not describe itself


@pytest.fixture(scope="module")
def life(evidence: Observations) -> ServiceRun:
    """One life of the service, however short."""
    return evidence.service.result()


@pytest.fixture
def service(life: ServiceRun) -> ServiceRun:
    """One life of a service that answers; what it does otherwise cannot be told."""
    if life.answers["/health"].status == 0:
        not_verified("the application does not start")
    return life


@pytest.fixture
def stopped(service: ServiceRun) -> ServiceRun:
    """One life of a service that still ran when it was told to stop."""
    if not service.is_running:
        not_verified("the application ended by itself")
    return service


def answer_of(service: ServiceRun, path: str) -> Answer:
    """What the service answered; it cannot be told when the service ended before it was asked."""
    answer = service.answers[path]
    if answer.status == 0 and not service.is_running:
        not_verified("the application ended by itself")
    return answer


def log_of(service: ServiceRun) -> str:
    """The end of the service's log, for a message."""
    return " | ".join(service.log.strip().splitlines()[-5:]) or "nothing"


def test_application_starts(life: ServiceRun, expectations: Expectations) -> None:
    """The application starts and answers within its time."""
    answer = life.answers["/health"]
    fail_if(
        [f"nothing on port {expectations.port}: {answer.body}; its log ends with: {log_of(life)}"]
        if answer.status == 0
        else [],
        fix="run the image by hand: docker run --read-only --cap-drop ALL --tmpfs /tmp --network none IMAGE",
    )


def test_health_answers(service: ServiceRun) -> None:
    """/health answers 200 and says how each part is."""
    answer = answer_of(service, "/health")
    document = parsed(answer.body)
    fail_if(
        [f"/health answered {answer.status}: {answer.body[:500]}"]
        if answer.status != 200 or "status" not in document
        else [],
        fix="/health is 200 while the process can serve at least something",
    )


def test_healthcheck_passes(service: ServiceRun) -> None:
    """The image's own health check passes inside the running container."""
    ended = service.healthcheck
    if ended.exit_code and not service.is_running:
        not_verified("the application ended by itself")
    fail_if(
        [f"it ended with {ended.exit_code}: {(ended.errors or ended.output).strip()[:500]}"] if ended.exit_code else [],
        fix="HEALTHCHECK must name a program that the image has, and the port that the service listens on",
    )


def test_liveness_answers(service: ServiceRun) -> None:
    """/livez answers 200 without a database."""
    answer = answer_of(service, "/livez")
    fail_if(
        [f"/livez answered {answer.status}: {answer.body[:500]}"] if answer.status != 200 else [],
        fix="liveness depends on the process alone, or an orchestrator restarts what it cannot mend",
    )


def test_readiness_says_why_not(service: ServiceRun) -> None:
    """Without database and network, /readyz answers 503 and gives its reasons."""
    answer = answer_of(service, "/readyz")
    document = parsed(answer.body)
    reasons = document.get("reasons")
    is_right = answer.status == 503 and document.get("is_ready") is False and bool(reasons)
    fail_if(
        [] if is_right else [f"/readyz answered {answer.status}: {answer.body[:500]}"],
        fix="readiness is false, with a reason for each part, until every part is ready",
    )


def test_it_keeps_running(service: ServiceRun) -> None:
    """Without database and network the service keeps running: no crash loop."""
    fail_if(
        [f"it ended with {service.exit_code}; its log ends with: {log_of(service)}"] if not service.is_running else [],
        fix="a missing database makes the service unready, it does not end it",
    )


def test_metrics_answer(service: ServiceRun) -> None:
    """/metrics answers in Prometheus' format."""
    answer = answer_of(service, "/metrics")
    fail_if(
        [f"/metrics answered {answer.status}: {answer.body[:200]}"]
        if answer.status != 200 or "# TYPE" not in answer.body
        else [],
        fix="expose prometheus_client's registry at /metrics",
    )


def test_routes_are_the_declared_ones(evidence: Observations) -> None:
    """The registered routes are exactly the declared ones."""
    ended = evidence.routes.result()
    table = parsed(ended.output)
    declared, registered = (operations(table.get(key)) for key in ("declared", "registered"))
    fail_if(
        [
            *(f"{' '.join(item)} is registered but not declared" for item in sorted(registered - declared)),
            *(f"{' '.join(item)} is declared but not registered" for item in sorted(declared - registered)),
            *(
                [f"`python -m service routes` ended with {ended.exit_code}: {ended.errors.strip()[-500:]}"]
                if ended.exit_code
                else []
            ),
            *([] if declared else ["no route is declared"]),
        ],
        fix="declare each route in service/routes/table.py",
    )


def test_openapi_agrees(service: ServiceRun, evidence: Observations) -> None:
    """The OpenAPI document that the running service gives describes exactly the declared routes."""
    answer = answer_of(service, "/openapi.json")
    document = parsed(answer.body)
    described = {(method.upper(), path) for path, methods in document.get("paths", {}).items() for method in methods}
    declared = operations(parsed(evidence.routes.result().output).get("declared"))
    if not declared:
        not_verified("the declared routes are not known")
    expected = {item for item in declared if not item[1].startswith(UNDOCUMENTED)}
    fail_if(
        [
            *(f"{' '.join(item)} is described but not declared" for item in sorted(described - declared)),
            *(f"{' '.join(item)} is declared but not described" for item in sorted(expected - described)),
            *([] if described else [f"/openapi.json answered {answer.status}"]),
        ],
        fix="register handlers through the route table, with include_in_schema",
    )


def operations(rows: object) -> set[tuple[str, str]]:
    """Method and path of each row."""
    return {(str(row[0]), str(row[1])) for row in rows} if isinstance(rows, list) else set()


def parsed(text: str) -> dict[str, Any]:
    """A JSON object, empty where *text* is none."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def test_stop_signal_drains(stopped: ServiceRun) -> None:
    """A request that is under way when the stop signal comes still gets its answer."""
    fail_if(
        [f"the connection ended without an answer: {stopped.drained_why}; its log ends with: {log_of(stopped)}"]
        if stopped.drained_status == 0
        else [],
        fix="on SIGTERM stop listening, finish what is in flight, then exit",
    )


def test_stop_signal_ends_it(stopped: ServiceRun, expectations: Expectations) -> None:
    """The stop signal ends the service with exit code 0 within its time."""
    limit = expectations.stop_seconds
    fail_if(
        [f"exit code {stopped.exit_code} after {stopped.stop_seconds:.1f} of {limit:.0f} s; log: {log_of(stopped)}"]
        if stopped.exit_code or stopped.stop_seconds > limit
        else [],
        fix="handle SIGTERM in the process that CMD starts; 137 means that the engine had to kill it",
    )


@pytest.mark.parametrize("script", ["alembic", "uvicorn"])
def test_console_script_runs(script: str, expectations: Expectations, host: testinfra.host.Host) -> None:
    """The console script {script} is on PATH and runs."""
    if script not in expectations.locked:
        not_applicable(f"{script} is not in the lock")
    ended = host.run(f"{script} --version")
    fail_if(
        [f"`{script} --version` ended with {ended.rc}: {ended.stderr.strip()[-500:]}"] if ended.rc else [],
        fix="copy the environment whole, bin/ included, to the path that it was made at",
    )


def test_service_runs_as_its_user(stopped: ServiceRun, expectations: Expectations) -> None:
    """The service's process runs as the expected user."""
    users = stopped.status.partition("\nUid:")[2].split()[:1]
    if not users:
        not_verified("the process's status cannot be read")
    fail_if(
        [f"its user is {users[0]}, expected {expectations.user}"] if users != [expectations.user] else [],
        fix=f"USER {expectations.user}:{expectations.user} in the final stage",
    )


def test_migrations_are_written_as_sql(evidence: Observations) -> None:
    """`alembic upgrade head --sql` writes the migrations in the container, without a database."""
    ended = evidence.migration.result()
    fail_if(
        [f"it ended with {ended.exit_code}: {ended.errors.strip()[-1000:]}"]
        if ended.exit_code or "alembic_version" not in ended.output
        else [],
        fix="copy migrations/ and its configuration to the application's folder",
    )
