"""Runs verification tasks: a queue in PostgreSQL that survives the process, and the worker that takes tasks from it.

A worker takes a task with a lease (SELECT ... FOR UPDATE SKIP LOCKED). Only the holder of the lease writes the verdict,
in the transaction that completes the task. So each task has exactly one outcome, even if a process or the database
fails at any point. A queue library would store its jobs in its own tables, and completion and verdict would be two
transactions.
"""

import asyncio
import contextlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

import asyncpg

from service.current_request import request_context, request_id
from service.database import ConflictError, Database, DatabaseUnavailableError, NotFoundError
from service.inference.engine import InferenceEngine
from service.inference.types import (
    DeadlineExceededError,
    DeviceLostError,
    InferenceError,
    ModelUnavailableError,
    OverloadedError,
)
from service.store.claims import Claim
from service.store.evidence import Filters
from service.store.verdicts import NewVerdict, insert_verdict
from service.verification import InvalidTextError, Options, Verifier, check_claim

__all__ = ["Task", "TaskQueue", "TaskState", "TaskWorker"]

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS: Final = 1.0
_EXPIRY_SECONDS: Final = 600.0
_TRANSIENT: Final = (
    OverloadedError,
    DeadlineExceededError,
    ModelUnavailableError,
    DeviceLostError,
    DatabaseUnavailableError,
)
"""Errors that are not the task's fault: it is retried, here or on another replica."""
_TASK: Final = (
    "id, claim_id, status, progress_percentage, attempts, error, verdict_id, created_at, completed_at, request"
)


class TaskState(StrEnum):
    """State of a task; the last two are final."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Task:
    """A requested verification. `request` is its options as JSON."""

    id: UUID
    claim_id: UUID
    status: TaskState
    progress_percentage: int
    attempts: int
    error: str | None
    verdict_id: UUID | None
    created_at: datetime
    completed_at: datetime | None
    request: str


@dataclass(frozen=True, slots=True)
class _Leased:
    """A task that a worker holds the lease of."""

    id: UUID
    tenant: str
    claim: Claim
    options: Options
    request_id: str
    attempts: int


class TaskQueue:
    """The tasks in the database, shared by all replicas."""

    def __init__(self, database: Database, *, lease_seconds: float, attempts: int) -> None:
        self._database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._attempts = attempts
        self.added = asyncio.Event()
        """Set when this process adds a task, so that its worker does not wait for its next poll."""

    async def add(self, tenant: str, claim: Claim, options: Options, idempotency_key: str | None) -> tuple[Task, bool]:
        """Adds a task to verify `claim`; returns the task and whether it is new.

        The same idempotency key with the same request returns the existing task.

        Raises:
            ConflictError: the key was used for another request, or the claim has an open task.
        """
        request = json.dumps({"claim_id": str(claim.id), **asdict(options)}, default=str, sort_keys=True)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                f"""
                INSERT INTO tasks (tenant_id, claim_id, idempotency_key, request, request_id)
                VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT DO NOTHING
                RETURNING {_TASK}
                """,
                tenant,
                claim.id,
                idempotency_key,
                request,
                request_id(),
            )
            if row is not None:
                self.added.set()
                return _task(row), True
            row = await connection.fetchrow(
                f"SELECT {_TASK} FROM tasks WHERE tenant_id = $1 AND idempotency_key = $2", tenant, idempotency_key
            )
            if row is not None:
                if json.loads(row["request"]) == json.loads(request):
                    return _task(row), False
                raise ConflictError("the Idempotency-Key was used for another request", f"/api/v1/tasks/{row['id']}")
            open_task = await connection.fetchval(
                "SELECT id FROM tasks WHERE claim_id = $1 AND status IN ('pending', 'processing')", claim.id
            )
        if open_task is None:  # it ended between the two statements
            return await self.add(tenant, claim, options, idempotency_key)
        raise ConflictError("the claim already has an open task", f"/api/v1/tasks/{open_task}")

    async def task(self, tenant: str, task_id: UUID) -> Task:
        """Returns one task, or raises `NotFoundError`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_TASK} FROM tasks WHERE tenant_id = $1 AND id = $2", tenant, task_id
            )
        if row is None:
            raise NotFoundError("task", task_id)
        return _task(row)

    async def newest_of(self, tenant: str, claim_id: UUID) -> Task | None:
        """Returns the newest task of a claim, or None."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_TASK} FROM tasks WHERE tenant_id = $1 AND claim_id = $2 ORDER BY created_at DESC LIMIT 1",
                tenant,
                claim_id,
            )
        return _task(row) if row else None

    async def lease(self, holder: UUID) -> _Leased | None:
        """Takes the next task: a pending one that is due, or one with an expired lease. Returns None without one."""
        async with self._database.transaction() as connection:
            await connection.execute(
                """
                UPDATE tasks SET status = 'failed', completed_at = now(), lease_holder = NULL, lease_until = NULL,
                    error = 'failed after ' || attempts || ' attempts: no worker finished it'
                WHERE status = 'processing' AND lease_until < now() AND attempts >= $1
                """,
                self._attempts,
            )
            row = await connection.fetchrow(
                """
                UPDATE tasks SET status = 'processing', attempts = attempts + 1, lease_holder = $1,
                    lease_until = now() + $2, progress_percentage = 10, error = NULL
                FROM (
                    SELECT id FROM tasks
                    WHERE status = 'pending' AND runnable_at <= now() OR status = 'processing' AND lease_until < now()
                    ORDER BY runnable_at
                    LIMIT 1
                    FOR UPDATE SKIP LOCKED
                ) AS next, claims
                WHERE tasks.id = next.id AND claims.id = tasks.claim_id
                RETURNING tasks.id, tasks.tenant_id, tasks.request, tasks.request_id, tasks.attempts,
                    claims.id AS claim_id, claims.text, claims.source_url, claims.submitted_at
                """,
                holder,
                self._lease,
            )
        if row is None:
            return None
        request = json.loads(row["request"])
        options = Options(
            max_evidence=request["max_evidence"],
            threshold=request["threshold"],
            mode=request["mode"],
            filters=Filters(**request["filters"]),
        )
        claim = Claim(row["claim_id"], row["text"], row["source_url"], row["submitted_at"])
        return _Leased(row["id"], row["tenant_id"], claim, options, row["request_id"], row["attempts"])

    async def progress(self, task_id: UUID, holder: UUID, percentage: int) -> None:
        """Records the progress of a task and renews its lease."""
        async with self._database.connection() as connection:
            await connection.execute(
                """
                UPDATE tasks SET progress_percentage = $3, lease_until = now() + $4
                WHERE id = $1 AND lease_holder = $2
                """,
                task_id,
                holder,
                percentage,
                self._lease,
            )

    async def complete(self, leased: _Leased, holder: UUID, content: NewVerdict) -> bool:
        """Stores the verdict and completes the task, both or neither; returns False if another worker has the lease."""
        async with self._database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                verdict = await insert_verdict(connection, leased.claim, content)
                status = await connection.execute(
                    """
                    UPDATE tasks SET status = 'completed', progress_percentage = 100, completed_at = now(),
                        verdict_id = $3, lease_holder = NULL, lease_until = NULL
                    WHERE id = $1 AND lease_holder = $2
                    """,
                    leased.id,
                    holder,
                    verdict.id,
                )
            except BaseException:
                await transaction.rollback()
                raise
            holds_lease: bool = status == "UPDATE 1"
            await (transaction.commit() if holds_lease else transaction.rollback())
        return holds_lease

    async def fail(self, leased: _Leased, holder: UUID, reason: str, *, is_transient: bool) -> None:
        """Fails the task with `reason`, or retries it after a delay if the error is transient and attempts are left."""
        is_retried = is_transient and leased.attempts < self._attempts
        async with self._database.connection() as connection:
            await connection.execute(
                """
                UPDATE tasks SET status = CASE WHEN $4 THEN 'pending' ELSE 'failed' END, error = $3,
                    completed_at = CASE WHEN $4 THEN NULL ELSE now() END, lease_holder = NULL, lease_until = NULL,
                    progress_percentage = 0, runnable_at = now() + $5
                WHERE id = $1 AND lease_holder = $2
                """,
                leased.id,
                holder,
                reason,
                is_retried,
                timedelta(seconds=2.0**leased.attempts),
            )

    async def release(self, leased: _Leased, holder: UUID) -> None:
        """Makes a task pending again without counting the attempt: its worker is stopping."""
        async with self._database.connection() as connection:
            await connection.execute(
                """
                UPDATE tasks SET status = 'pending', attempts = attempts - 1, lease_holder = NULL, lease_until = NULL,
                    progress_percentage = 0
                WHERE id = $1 AND lease_holder = $2
                """,
                leased.id,
                holder,
            )

    async def expire(self, age: timedelta) -> None:
        """Deletes tasks that ended longer than `age` ago; their verdicts stay."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM tasks WHERE completed_at < now() - $1::interval", age)


def _task(row: asyncpg.Record) -> Task:
    return Task(**{**row, "status": TaskState(row["status"])})


class TaskWorker:
    """Runs tasks, one at a time, while both models are loaded."""

    def __init__(self, queue: TaskQueue, verifier: Verifier, engine: InferenceEngine, *, expiry_days: float) -> None:
        self._queue = queue
        self._verifier = verifier
        self._engine = engine
        self._expiry = timedelta(days=expiry_days)
        self._holder = uuid.uuid4()
        self._is_stopping = False
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the worker. Call it on the event loop."""
        self._loop = asyncio.create_task(self._run(), name="tasks")

    async def stop(self, wait_seconds: float) -> None:
        """Stops taking tasks; lets the current one run for `wait_seconds`, then releases it."""
        self._is_stopping = True
        self._queue.added.set()
        if self._loop is not None:
            done, _ = await asyncio.wait({self._loop}, timeout=wait_seconds)
            if not done:
                self._loop.cancel()
                await asyncio.wait({self._loop})

    async def _run(self) -> None:
        expired_at = -_EXPIRY_SECONDS
        clock = asyncio.get_running_loop().time
        while not self._is_stopping:
            try:
                if clock() - expired_at > _EXPIRY_SECONDS:
                    expired_at = clock()
                    await self._queue.expire(self._expiry)
                leased = await self._queue.lease(self._holder) if self._engine.is_ready else None
                if leased is not None:
                    with request_context(leased.request_id):
                        await self._work(leased)
                    continue
            except DatabaseUnavailableError as error:
                _LOGGER.debug("cannot take tasks: %s", error)
            except Exception:  # one bad task must not end the loop
                _LOGGER.exception("unexpected error in the task loop")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._queue.added.wait(), _POLL_SECONDS)
            if not self._is_stopping:
                self._queue.added.clear()

    async def _work(self, leased: _Leased) -> None:
        """Verifies one claim and ends its task."""

        async def progress(percentage: int) -> None:
            await self._queue.progress(leased.id, self._holder, percentage)

        try:
            content = await self._verifier.verify(
                leased.tenant, check_claim(leased.claim.text), leased.options, progress
            )
            if not await self._queue.complete(leased, self._holder, content):
                _LOGGER.warning("task %s: the lease expired and another worker has it", leased.id)
        except asyncio.CancelledError:
            await self._queue.release(leased, self._holder)
            raise
        except (InferenceError, InvalidTextError, DatabaseUnavailableError) as error:
            _LOGGER.warning("task %s failed in attempt %d: %s", leased.id, leased.attempts, type(error).__name__)
            await self._queue.fail(leased, self._holder, str(error), is_transient=isinstance(error, _TRANSIENT))
        except asyncpg.PostgresError as error:
            _LOGGER.exception("task %s failed", leased.id)
            await self._queue.fail(leased, self._holder, type(error).__name__, is_transient=False)
