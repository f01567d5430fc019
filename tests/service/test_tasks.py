"""Verification tasks: over HTTP, across restarts and replicas, with leases and retries."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from service.store.claims import ClaimStore
from service.store.verdicts import VerdictStore
from service.tasks import Task, TaskQueue, TaskState
from service.verification import Options
from tests.service.conftest import Postgres, Served, in_database, served, settings
from tests.service.samples import VERDICT
from tests.support.polling import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.database import Database


def start_task(running: Served, text: str = "Bananas are rich in potassium", **headers: str) -> tuple[str, str]:
    """Stores a claim and starts a task for it; returns the claim's id and the task's path."""
    claim = running.client.post("/api/v1/claims", json={"text": text}).json()["id"]
    reply = running.client.post(f"/api/v1/claims/{claim}/verify", json={}, headers=headers)
    assert reply.status_code == 202, reply.text
    assert reply.json()["status"] in {"pending", "processing"}
    return claim, reply.headers["location"]


def status(running: Served, path: str) -> dict[str, object]:
    body: dict[str, object] = running.client.get(path).json()
    return body


def is_final(running: Served, path: str) -> Callable[[], bool]:
    return lambda: status(running, path)["status"] in {"completed", "failed"}


def test_a_task_completes_with_its_verdict(api: Served) -> None:
    api.client.post("/api/v1/evidence", json={"content": "Bananas are rich in potassium"})
    claim, path = start_task(api)
    until(is_final(api, path), "the task ends")
    body = api.client.get(path).json()
    assert (body["status"], body["progress_percentage"], body["attempts"]) == ("completed", 100, 1)
    assert body["result"] == api.client.get(f"/api/v1/verdicts/{claim}").json()
    assert body["result"]["verdict"] == api.client.get(f"/api/v1/verdict/{claim}").json()["verdict"] == "SUPPORTED"


def test_an_idempotency_key_gives_one_task_or_a_conflict(api: Served) -> None:
    key = {"idempotency-key": str(uuid.uuid4())}
    claim, path = start_task(api, **key)
    again = api.client.post(f"/api/v1/claims/{claim}/verify", json={}, headers=key)
    assert (again.status_code, again.headers["location"]) == (202, path)
    options = {"options": {"max_evidence_items": 3}}
    assert api.client.post(f"/api/v1/claims/{claim}/verify", json=options, headers=key).status_code == 409
    until(is_final(api, path), "the task ends")


def test_a_second_open_task_is_a_409_with_the_first(api: Served) -> None:
    api.embedder.may_run.clear()
    claim, path = start_task(api)
    second = api.client.post(f"/api/v1/claims/{claim}/verify", json={})
    assert (second.status_code, second.headers["location"]) == (409, path)
    waiting = api.client.get(f"/api/v1/verdicts/{claim}")
    assert (waiting.status_code, waiting.headers["location"]) == (202, path)
    api.embedder.may_run.set()
    until(is_final(api, path), "the task ends")


def test_the_task_of_another_claim_makes_no_202(api: Served) -> None:
    api.embedder.may_run.clear()
    _, path = start_task(api)
    other = api.client.post("/api/v1/claims", json={"text": "another claim"}).json()["id"]
    assert api.client.get(f"/api/v1/verdicts/{other}").status_code == 404
    api.embedder.may_run.set()
    until(is_final(api, path), "the task ends")


@pytest.mark.parametrize("body", [{"claim_id": str(uuid.uuid4())}, {"claim_text": "another text"}])
def test_a_body_that_contradicts_the_path_is_a_400(api: Served, body: dict[str, str]) -> None:
    claim = api.client.post("/api/v1/claims", json={"text": "some claim"}).json()["id"]
    assert api.client.post(f"/api/v1/claims/{claim}/verify", json=body).status_code == 400


def test_an_unknown_claim_or_task_is_a_404(api: Served) -> None:
    assert api.client.post(f"/api/v1/claims/{uuid.uuid4()}/verify", json={}).status_code == 404
    assert api.client.get(f"/api/v1/tasks/{uuid.uuid4()}").status_code == 404


def test_a_claim_that_breaks_the_model_fails_with_a_reason(api: Served) -> None:
    _, path = start_task(api, "poison in claims")
    until(is_final(api, path), "the task ends")
    body = status(api, path)
    assert (body["status"], body["attempts"]) == ("failed", 1)
    assert "failed on this input" in str(body["error"])


def test_tasks_survive_a_restart(postgres: Postgres) -> None:
    url = postgres.fresh()
    with served(settings(url, task_workers=0)) as running:
        _, path = start_task(running)
    with served(settings(url)) as running:
        until(is_final(running, path), "the task ends after the restart")
        assert status(running, path)["status"] == "completed"


def test_a_stopping_worker_releases_its_task(postgres: Postgres) -> None:
    url = postgres.fresh()
    with served(settings(url, drain_seconds=0.2)) as running:
        running.embedder.may_run.clear()
        _, path = start_task(running)
        until(lambda: bool(running.embedder.batches), "the worker runs the task")
    with served(settings(url)) as running:
        until(is_final(running, path), "another worker completes it")
        assert (status(running, path)["status"], status(running, path)["attempts"]) == ("completed", 1)


def test_two_replicas_run_each_task_once(postgres: Postgres) -> None:
    url = postgres.fresh()
    with served(settings(url)) as one, served(settings(url)) as two:
        paths = [start_task(one, f"claim number {number}")[1] for number in range(20)]
        for path in paths:
            until(is_final(two, path), "all tasks end")
    rows = Postgres.execute(url, "SELECT status, attempts, count(*) AS n FROM tasks GROUP BY 1, 2")
    assert [tuple(row) for row in rows] == [("completed", 1, 20)]
    [row] = Postgres.execute(url, "SELECT count(*) AS n FROM verdicts")
    assert row["n"] == 20


async def queued(database: Database, *, lease_seconds: float, attempts: int) -> tuple[TaskQueue, Task]:
    """Returns a queue, and a task that is the only one in it."""
    queue = TaskQueue(database, lease_seconds=lease_seconds, attempts=attempts)
    claim = await ClaimStore(database).add("t", "a claim", None)
    task, is_new = await queue.add("t", claim, Options(), None)
    assert is_new
    return queue, task


def test_a_late_holder_of_a_lease_writes_nothing(postgres: Postgres) -> None:
    url = postgres.fresh()

    async def work(database: Database) -> None:
        queue, task = await queued(database, lease_seconds=0.001, attempts=3)
        late, current = uuid.uuid4(), uuid.uuid4()
        lost = await queue.lease(late)
        taken = await queue.lease(current)
        assert lost is not None
        assert taken is not None
        assert (taken.id, taken.attempts) == (task.id, 2)
        assert not await queue.complete(lost, late, VERDICT)
        assert await VerdictStore(database).latest("t", task.claim_id) is None
        assert await queue.complete(taken, current, VERDICT)
        assert not await queue.complete(taken, current, VERDICT)
        assert (await queue.task("t", task.id)).status is TaskState.COMPLETED

    in_database(url, work)


def test_a_task_fails_after_its_last_attempt(postgres: Postgres) -> None:
    url = postgres.fresh()

    async def work(database: Database) -> None:
        queue, task = await queued(database, lease_seconds=0.001, attempts=2)
        for _ in range(2):
            assert await queue.lease(uuid.uuid4()) is not None
        assert await queue.lease(uuid.uuid4()) is None
        closed = await queue.task("t", task.id)
        assert closed.status is TaskState.FAILED
        assert "2 attempts" in str(closed.error)

    in_database(url, work)


def test_a_transient_error_is_retried_and_then_fails(postgres: Postgres) -> None:
    url = postgres.fresh()

    async def work(database: Database) -> None:
        queue, task = await queued(database, lease_seconds=60, attempts=2)
        holder = uuid.uuid4()
        leased = await queue.lease(holder)
        assert leased is not None
        await queue.fail(leased, holder, "busy", is_transient=True)
        assert (await queue.task("t", task.id)).status is TaskState.PENDING
        assert await queue.lease(holder) is None  # it is not due yet
        async with database.connection() as connection:
            await connection.execute("UPDATE tasks SET runnable_at = now()")
        leased = await queue.lease(holder)
        assert leased is not None
        await queue.fail(leased, holder, "busy", is_transient=True)
        assert (await queue.task("t", task.id)).status is TaskState.FAILED

    in_database(url, work)


def test_finished_tasks_expire_and_their_verdicts_stay(postgres: Postgres) -> None:
    url = postgres.fresh()
    with served(settings(url)) as running:
        claim, path = start_task(running)
        until(is_final(running, path), "the task ends")
    Postgres.execute(url, "UPDATE tasks SET completed_at = now() - interval '8 days'")
    with served(settings(url)) as running:
        until(lambda: running.client.get(path).status_code == 404, "the task is deleted")
        assert running.client.get(f"/api/v1/verdicts/{claim}").status_code == 200
