"""Verification: at once, or as a task that is asked about later; and the verdicts that were kept."""

from typing import Annotated
from uuid import UUID

from litestar import Response, get, post
from litestar.di import NamedDependency as Given
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter, JSONBody

from service.access import Caller, ForbiddenError
from service.database import NotFoundError
from service.errors import documented
from service.inference.engine import InferenceEngine
from service.inference.types import Label
from service.schemas import (
    ClaimToVerify,
    JudgedItem,
    TaskStatus,
    ToVerify,
    VerdictEvidence,
    VerdictResult,
    VerdictSummary,
    VerificationResult,
)
from service.store import Filters, Store, Verdict
from service.tasks import Queue, Task, TaskState
from service.verification import Options, RequestMismatchError, Verifier, checked_text

__all__ = ["HANDLERS", "own_tenant", "summary"]


@post(
    "/api/v1/verify",
    status_code=200,
    tags=["verification"],
    summary="Verify a claim now",
    responses=documented(400, 401, 403, 413, 422, 429, 500, 503, 504),
)
async def verify(
    data: JSONBody[ToVerify], verifier: Given[Verifier], store: Given[Store], caller: Given[Caller]
) -> VerificationResult:
    """Finds evidence, judges it, decides, and keeps claim and verdict."""
    tenant = own_tenant(caller, data.tenant_id)
    options = Options(max_evidence=data.max_evidence, threshold=data.confidence_threshold, mode=data.search_mode)
    content = await verifier.verify(tenant, data.claim, options)
    verdict = await store.add_verdict(tenant, (checked_text(data.claim)[0], None), content)
    return VerificationResult(
        verdict=content.verdict,
        confidence=content.confidence,
        has_conflict=content.has_conflict,
        evidence=[
            JudgedItem(
                evidence_id=each.found.evidence_id,
                content=each.found.content,
                source_url=each.found.source_url,
                nli_label=each.scores.label,
                nli_confidence=each.scores.confidence,
                nli_scores=dict(each.scores.by_label()),
                similarity=each.found.similarity,
            )
            for each in content.judged
        ],
        explanation=content.reasoning,
        claim_id=verdict.claim.id,
        verification_id=verdict.id,
        rule_version=content.rule_version,
        processing_time_ms=content.processing_seconds * 1000,
        validation_warnings=list(content.warnings),
    )


@get(
    "/api/v1/verdict/{claim_id:uuid}",
    tags=["verification"],
    summary="The newest verdict on a claim, in short",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_verdict_summary(claim_id: FromPath[UUID], store: Given[Store], caller: Given[Caller]) -> VerdictSummary:
    """From the same rows as /api/v1/verdicts."""
    verdict = await store.latest_verdict(caller.tenant, claim_id)
    if verdict is None:
        raise NotFoundError("verdict on claim", claim_id)
    return summary(verdict)


@post(
    "/api/v1/claims/{claim_id:uuid}/verify",
    status_code=202,
    tags=["verification"],
    summary="Have a claim verified",
    responses=documented(400, 401, 403, 404, 409, 413, 422, 429, 503),
)
async def verify_claim(
    *,
    claim_id: FromPath[UUID],
    data: JSONBody[ClaimToVerify],
    store: Given[Store],
    queue: Given[Queue],
    engine: Given[InferenceEngine],
    caller: Given[Caller],
    idempotency_key: Annotated[
        str | None, HeaderParameter(name="Idempotency-Key", min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$")
    ] = None,
) -> Response[TaskStatus]:
    """Answers at once with a task; Location says where to ask. The task survives this process.

    The same Idempotency-Key with the same request gives the same task. A claim has one open task: asking for
    another is a conflict, whose Location is the open one's.
    """
    claim = await store.claim(caller.tenant, claim_id)
    if data.claim_id is not None and data.claim_id != str(claim_id):
        raise RequestMismatchError("claim_id in the body is not the claim in the path")
    if data.claim_text is not None and checked_text(data.claim_text)[0] != claim.text:
        raise RequestMismatchError("claim_text in the body is not the text of the claim in the path")
    engine.embedding.get()
    engine.entailment.get()
    options = Options(
        max_evidence=data.options.max_evidence_items,
        threshold=data.options.confidence_threshold,
        mode=data.options.search_mode,
        filters=Filters(source_prefix=data.corpus_ids[0] if data.corpus_ids else None),
    )
    task, _ = await queue.add(caller.tenant, claim, options, idempotency_key)
    return Response(_status(task, None), status_code=202, headers={"Location": f"/api/v1/tasks/{task.id}"})


@get(
    "/api/v1/verdicts/{claim_id:uuid}",
    tags=["verification"],
    summary="The newest verdict on a claim, in full",
    responses={
        202: ResponseSpec(TaskStatus, generate_examples=False, description="There will be one"),
        **documented(401, 403, 404, 422, 429, 503),
    },
)
async def get_verdict(
    claim_id: FromPath[UUID],
    store: Given[Store],
    queue: Given[Queue],
    caller: Given[Caller],
) -> Response[VerdictResult | TaskStatus]:
    """200 with the verdict; 202 with the task while there is no verdict yet and this claim's task is open."""
    verdict = await store.latest_verdict(caller.tenant, claim_id)
    if verdict is not None:
        return Response(result(verdict), status_code=200)
    task = await queue.newest_of(caller.tenant, claim_id)
    if task is not None and task.status in {TaskState.PENDING, TaskState.PROCESSING}:
        return Response(_status(task, None), status_code=202, headers={"Location": f"/api/v1/tasks/{task.id}"})
    raise NotFoundError("verdict on claim", claim_id)


@get(
    "/api/v1/tasks/{task_id:uuid}",
    tags=["verification"],
    summary="How far a task is",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_task(
    task_id: FromPath[UUID],
    store: Given[Store],
    queue: Given[Queue],
    caller: Given[Caller],
) -> TaskStatus:
    """With the verdict once it is completed, with the reason once it failed."""
    task = await queue.task(caller.tenant, task_id)
    verdict = await store.latest_verdict(caller.tenant, task.claim_id) if task.status is TaskState.COMPLETED else None
    return _status(task, verdict)


def own_tenant(caller: Caller, asked: str | None) -> str:
    """The caller's tenant; a request that names another one is refused."""
    if asked is not None and asked != caller.tenant:
        raise ForbiddenError("tenant_id is not the tenant of this key")
    return caller.tenant


def summary(verdict: Verdict) -> VerdictSummary:
    """A verdict without its evidence."""
    content = verdict.content
    return VerdictSummary(
        claim_id=verdict.claim.id,
        claim_text=verdict.claim.text,
        verdict=content.verdict,
        confidence=content.confidence,
        has_conflict=content.has_conflict,
        reasoning=content.reasoning,
        evidence_count=len(content.judged),
        supporting_count=content.count(Label.ENTAILMENT),
        refuting_count=content.count(Label.CONTRADICTION),
        created_at=verdict.created_at,
    )


def result(verdict: Verdict) -> VerdictResult:
    """A verdict with its evidence."""
    content = verdict.content
    return VerdictResult(
        claim_id=verdict.claim.id,
        claim_text=verdict.claim.text,
        verdict=content.verdict,
        confidence=content.confidence,
        has_conflict=content.has_conflict,
        reasoning=content.reasoning,
        evidence=[
            VerdictEvidence(
                id=each.found.evidence_id,
                text=each.found.content,
                source=each.found.source_url,
                relevance=each.found.similarity,
                url=each.found.source_url,
                publication_date=each.found.published_on,
                nli_label=each.scores.label,
                nli_confidence=each.scores.confidence,
            )
            for each in content.judged
        ],
        verified_at=verdict.created_at,
        processing_time_ms=content.processing_seconds * 1000,
        rule_version=content.rule_version,
        embedding_model=content.embedding_model,
        entailment_model=content.entailment_model,
        validation_warnings=list(content.warnings),
    )


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
        result=None if verdict is None else result(verdict),
    )


HANDLERS = [verify, get_verdict_summary, verify_claim, get_verdict, get_task]
