"""Routes of verification: at once, or as a task whose state is polled; and of stored verdicts."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Response, get, post
from litestar.di import NamedDependency as Given
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody

from service.access import Caller, ForbiddenError, Scope
from service.database import NotFoundError
from service.errors import documented
from service.inference.engine import InferenceEngine
from service.routes.verdict_bodies import verdict_result, verdict_summary, verify_response
from service.schemas import TaskStatus, VerdictResult, VerdictSummary, VerifyClaimRequest, VerifyRequest, VerifyResponse
from service.store.claims import Claim, ClaimStore
from service.store.evidence import Filters
from service.store.verdicts import Verdict, VerdictStore
from service.tasks import Task, TaskQueue, TaskState
from service.verification import Options, RequestMismatchError, Verifier, check_claim

__all__ = ["HANDLERS", "own_tenant"]


@post(
    "/api/v1/verify",
    scope=Scope.WRITE,
    status_code=200,
    tags=["verification"],
    summary="Verify a claim",
    responses=documented(400, 401, 403, 413, 422, 429, 500, 503, 504),
)
async def verify(
    data: JSONBody[VerifyRequest], verifier: Given[Verifier], verdicts: Given[VerdictStore], caller: Given[Caller]
) -> VerifyResponse:
    """Retrieves evidence, classifies it, and returns the verdict. Stores the claim and the verdict."""
    tenant = own_tenant(caller, data.tenant_id)
    options = Options(max_evidence=data.max_evidence, threshold=data.confidence_threshold, mode=data.search_mode)
    claim = check_claim(data.claim)
    content = await verifier.verify(tenant, claim, options)
    return verify_response(await verdicts.add_with_claim(tenant, claim.text, content))


@get(
    "/api/v1/verdict/{claim_id:uuid}",
    scope=Scope.READ,
    tags=["verification"],
    summary="Get the newest verdict on a claim, without its evidence",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_verdict_summary(
    claim_id: FromPath[UUID], verdicts: Given[VerdictStore], caller: Given[Caller]
) -> VerdictSummary:
    """Returns the same verdict as /api/v1/verdicts."""
    verdict = await verdicts.latest(caller.tenant, claim_id)
    if verdict is None:
        raise NotFoundError("verdict on claim", claim_id)
    return verdict_summary(verdict)


@post(
    "/api/v1/claims/{claim_id:uuid}/verify",
    scope=Scope.WRITE,
    status_code=202,
    tags=["verification"],
    summary="Start a task that verifies a claim",
    responses=documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
)
async def verify_claim(
    *,
    claim_id: FromPath[UUID],
    data: JSONBody[VerifyClaimRequest],
    claims: Given[ClaimStore],
    queue: Given[TaskQueue],
    engine: Given[InferenceEngine],
    caller: Given[Caller],
    idempotency_key: Annotated[
        str | None, HeaderParameter(name="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
    ] = None,
) -> Response[TaskStatus]:
    """Returns a task at once; the header Location is the path of its state. The task survives a restart.

    The same Idempotency-Key with the same request returns the same task. A claim has at most one open task: a request
    for another is a conflict (409), and Location is the path of the open one.
    """
    claim = await claims.get(caller.tenant, claim_id)
    _require_match(data, claim)
    engine.embedding.get()
    engine.entailment.get()
    options = Options(
        max_evidence=data.options.max_evidence_items,
        threshold=data.options.confidence_threshold,
        mode=data.options.search_mode,
        filters=Filters(source_prefix=data.corpus_ids[0] if data.corpus_ids else None),
    )
    task, _ = await queue.add(caller.tenant, claim, options, idempotency_key)
    return _accepted(task)


@get(
    "/api/v1/verdicts/{claim_id:uuid}",
    scope=Scope.READ,
    tags=["verification"],
    summary="Get the newest verdict on a claim, with its evidence",
    responses={
        202: ResponseSpec(TaskStatus, generate_examples=False, description="The claim's task has not finished yet"),
        **documented(401, 403, 404, 422, 429, 503),
    },
)
async def get_verdict(
    claim_id: FromPath[UUID],
    verdicts: Given[VerdictStore],
    queue: Given[TaskQueue],
    caller: Given[Caller],
) -> Response[VerdictResult | TaskStatus]:
    """Returns 200 with the verdict, or 202 with the open task if there is no verdict yet."""
    verdict = await verdicts.latest(caller.tenant, claim_id)
    if verdict is not None:
        return Response(verdict_result(verdict), status_code=200)
    task = await queue.newest_of(caller.tenant, claim_id)
    if task is not None and task.status in {TaskState.PENDING, TaskState.PROCESSING}:
        return _accepted(task)
    raise NotFoundError("verdict on claim", claim_id)


@get(
    "/api/v1/tasks/{task_id:uuid}",
    scope=Scope.READ,
    tags=["verification"],
    summary="Get the state of a task",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_task(
    task_id: FromPath[UUID], verdicts: Given[VerdictStore], queue: Given[TaskQueue], caller: Given[Caller]
) -> TaskStatus:
    """Returns the task, with the verdict once it is completed, or with the reason once it has failed."""
    task = await queue.task(caller.tenant, task_id)
    is_completed = task.status is TaskState.COMPLETED
    return _status(task, await verdicts.latest(caller.tenant, task.claim_id) if is_completed else None)


def own_tenant(caller: Caller, tenant_id: str | None) -> str:
    """Returns the caller's tenant; raises `ForbiddenError` if the request names another one."""
    if tenant_id is not None and tenant_id != caller.tenant:
        raise ForbiddenError("tenant_id is not the tenant of the API key")
    return caller.tenant


def _require_match(data: VerifyClaimRequest, claim: Claim) -> None:
    if data.claim_id is not None and data.claim_id != str(claim.id):
        raise RequestMismatchError("claim_id in the body differs from the claim in the path")
    if data.claim_text is not None and check_claim(data.claim_text).text != claim.text:
        raise RequestMismatchError("claim_text in the body differs from the text of the claim in the path")


def _accepted(task: Task) -> Response[Any]:
    return Response(_status(task, None), status_code=202, headers={"Location": f"/api/v1/tasks/{task.id}"})


def _status(task: Task, verdict: Verdict | None) -> TaskStatus:
    return TaskStatus(
        task_id=task.id,
        claim_id=task.claim_id,
        status=task.status,
        created_at=task.created_at,
        completed_at=task.completed_at,
        progress_percentage=task.progress_percentage,
        attempts=task.attempts,
        error=task.error,
        result=None if verdict is None else verdict_result(verdict),
    )


HANDLERS = [verify, get_verdict_summary, verify_claim, get_verdict, get_task]
