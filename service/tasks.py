"""Verification tasks that outlive the process: a queue in PostgreSQL, and the worker that empties it.

A task is claimed with a lease (SELECT ... FOR UPDATE SKIP LOCKED), and its verdict is written in the same transaction
that completes it and only by the holder of the lease. So whatever dies in between, each task has one outcome.
A queue library was considered; it keeps its jobs in tables of its own, and completion and verdict would no longer be
one transaction.
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

from service.database import ConflictError, Database, DatabaseUnavailableError, NotFoundError
from service.inference.engine import InferenceEngine
from service.inference.types import (
    DeadlineExceededError,
    DeviceLostError,
    InferenceError,
    ModelUnavailableError,
    OverloadedError,
)
from service.store import Claim, Filters, NewVerdict, insert_verdict
from service.telemetry import request_context, request_id
from service.verification import InvalidTextError, Options, Verifier

__all__ = ["Queue", "Task", "TaskState", "Worker"]

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
"""Failures that say nothing about the task itself: it is tried again, here or on another replica."""
_TASK: Final = (
    "id, claim_id, status, progress_percentage, attempts, error, verdict_id, created_at, completed_at, request"
)


class TaskState(StrEnum):
    """Where a task is; the last two are final."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Task:
    """A verification that was asked for."""

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
    """A task in the hands of a worker."""

    id: UUID
    tenant: str
    claim: Claim
    options: Options
    request_id: str
    attempts: int


class Queue:
    """The tasks in the database. Every replica sees the same ones."""

    def __init__(self, database: Database, *, lease_seconds: float, attempts: int) -> None:
        self._database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._attempts = attempts
        self.added = asyncio.Event()
        """Set when this process adds a task, so that its own worker need not wait for its next look."""

    async def add(self, tenant: str, claim: Claim, options: Options, idempotency_key: str | None) -> tuple[Task, bool]:
        """Ask for the verification of `claim`; the task and whether it is new.

        The same idempotency key with the same request gives the task there is.

        Raises:
            ConflictError: when the key was used for another request, or the claim has an open task already.
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
                raise ConflictError("the idempotency key was used for another request", f"/api/v1/tasks/{row['id']}")
            open_task = await connection.fetchval(
                "SELECT id FROM tasks WHERE claim_id = $1 AND status IN ('pending', 'processing')", claim.id
            )
        if open_task is None:  # it was closed between the two statements
            return await self.add(tenant, claim, options, idempotency_key)
        raise ConflictError("the claim is being verified already", f"/api/v1/tasks/{open_task}")

    async def task(self, tenant: str, task_id: UUID) -> Task:
        """One task, or `NotFoundError`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_TASK} FROM tasks WHERE tenant_id = $1 AND id = $2", tenant, task_id
            )
        if row is None:
            raise NotFoundError("task", task_id)
        return _task(row)

    async def newest_of(self, tenant: str, claim_id: UUID) -> Task | None:
        """The newest task of a claim."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_TASK} FROM tasks WHERE tenant_id = $1 AND claim_id = $2 ORDER BY created_at DESC LIMIT 1",
                tenant,
                claim_id,
            )
        return _task(row) if row else None

    async def lease(self, holder: UUID) -> _Leased | None:
        """Take the next task: a pending one whose time has come, or one whose holder let its lease run out."""
        async with self._database.transaction() as connection:
            await connection.execute(
                """
                UPDATE tasks SET status = 'failed', completed_at = now(), lease_holder = NULL, lease_until = NULL,
                    error = 'given up after ' || attempts || ' attempts: no worker finished it'
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
        """Tell how far a task is, which renews its lease."""
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
        """Write the verdict and close the task, both or neither; False if the lease had gone to another worker."""
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
            is_ours: bool = status == "UPDATE 1"
            await (transaction.commit() if is_ours else transaction.rollback())
        return is_ours

    async def fail(self, leased: _Leased, holder: UUID, reason: str, *, is_transient: bool) -> None:
        """Close the task with `reason`, or, if it is worth another attempt, make it pending again after a while."""
        again = is_transient and leased.attempts < self._attempts
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
                again,
                timedelta(seconds=2.0**leased.attempts),
            )

    async def give_back(self, leased: _Leased, holder: UUID) -> None:
        """Make a task pending as if it had not been tried: its worker is told to stop."""
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
        """Forget tasks that were closed longer ago than `age`; their verdicts stay."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM tasks WHERE completed_at < now() - $1::interval", age)


def _task(row: asyncpg.Record) -> Task:
    return Task(**{**row, "status": TaskState(row["status"])})


class Worker:
    """Takes tasks one after the other for as long as it runs, and only while both models are there."""

    def __init__(self, queue: Queue, verifier: Verifier, engine: InferenceEngine, *, expiry_days: float) -> None:
        self._queue = queue
        self._verifier = verifier
        self._engine = engine
        self._expiry = timedelta(days=expiry_days)
        self._holder = uuid.uuid4()
        self._is_stopping = False
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; called on the event loop."""
        self._loop = asyncio.create_task(self._run(), name="tasks")

    async def stop(self, wait_seconds: float) -> None:
        """Take no more; give the task at hand `wait_seconds` to finish, then give it back."""
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
                _LOGGER.debug("tasks wait for the database: %s", error)
            except Exception:  # the loop's edge: one bad task must not end it
                _LOGGER.exception("unexpected error in the task loop")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._queue.added.wait(), _POLL_SECONDS)
            if not self._is_stopping:
                self._queue.added.clear()

    async def _work(self, leased: _Leased) -> None:
        """Verify one claim and close its task, whatever comes."""

        async def progress(percentage: int) -> None:
            await self._queue.progress(leased.id, self._holder, percentage)

        try:
            content = await self._verifier.verify(leased.tenant, leased.claim.text, leased.options, progress)
            if not await self._queue.complete(leased, self._holder, content):
                _LOGGER.warning("task %s went to another worker", leased.id)
        except asyncio.CancelledError:
            await self._queue.give_back(leased, self._holder)
            raise
        except (InferenceError, InvalidTextError, DatabaseUnavailableError) as error:
            _LOGGER.warning("task %s, attempt %d: %s", leased.id, leased.attempts, type(error).__name__)
            await self._queue.fail(leased, self._holder, str(error), is_transient=isinstance(error, _TRANSIENT))
        except asyncpg.PostgresError as error:
            _LOGGER.exception("task %s", leased.id)
            await self._queue.fail(leased, self._holder, type(error).__name__, is_transient=False)
