"""Claims and evidence: what the service is told."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency as Given
from litestar.exceptions import ClientException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Reference, RequestBody
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from service.access import Caller
from service.errors import documented
from service.evidence import EvidenceIngestor
from service.routes.verification import summary
from service.schemas import (
    ClaimItem,
    ClaimPage,
    EvidenceAdded,
    EvidenceItem,
    EvidenceLines,
    NewClaim,
    NewEvidenceItem,
)
from service.store import Claim, Store
from service.verification import checked_text

__all__ = ["HANDLERS"]

_LINES_MEDIA_TYPE: Final = "application/x-ndjson"
_JSON_LIMIT_BYTES: Final = 1_000_000


@post(
    "/api/v1/claims", tags=["claims"], summary="Keep a claim", responses=documented(400, 401, 403, 413, 422, 429, 503)
)
async def add_claim(data: JSONBody[NewClaim], store: Given[Store], caller: Given[Caller]) -> ClaimItem:
    """Keeps the claim's text in Unicode's normal form C."""
    text, _ = checked_text(data.text)
    return _item(await store.add_claim(caller.tenant, text, data.source_url))


@get("/api/v1/claims", tags=["claims"], summary="List claims", responses=documented(401, 403, 422, 429, 503))
async def list_claims(
    store: Given[Store],
    caller: Given[Caller],
    skip: Annotated[int, QueryParameter(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> ClaimPage:
    """Newest first."""
    claims, total = await store.claims(caller.tenant, skip=skip, limit=limit)
    return ClaimPage([_item(claim) for claim in claims], total, skip, limit)


@get(
    "/api/v1/claims/{claim_id:uuid}",
    tags=["claims"],
    summary="One claim",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_claim(claim_id: FromPath[UUID], store: Given[Store], caller: Given[Caller]) -> ClaimItem:
    """The claim with the newest verdict on it."""
    claim = await store.claim(caller.tenant, claim_id)
    verdict = await store.latest_verdict(caller.tenant, claim_id)
    return msgspec.structs.replace(_item(claim), verdict=None if verdict is None else summary(verdict))


@dataclass
class _EvidenceOperation(Operation):
    """The body is one of two kinds, which a handler's types cannot say."""

    def __post_init__(self) -> None:
        one = Reference(ref="#/components/schemas/NewEvidenceItem")
        self.request_body = RequestBody(
            description="One piece of evidence, or one per line.",
            required=True,
            content={
                "application/json": OpenAPIMediaType(schema=one),
                _LINES_MEDIA_TYPE: OpenAPIMediaType(schema=one),
            },
        )


@post(
    "/api/v1/evidence",
    tags=["evidence"],
    summary="Keep evidence",
    operation_class=_EvidenceOperation,
    request_max_body_size=None,
    responses={
        200: ResponseSpec(
            EvidenceAdded | EvidenceLines,  # type: ignore[arg-type] # any annotation is taken, not only a class
            generate_examples=False,
            description="It was there before, or lines were read",
        ),
        **documented(400, 401, 403, 413, 422, 429, 500, 503, 504),
    },
)
async def add_evidence(
    request: Request[object, object, State],
    intake: Given[EvidenceIngestor],
    caller: Given[Caller],
    *,
    truncate: FromQuery[bool] = False,
) -> Response[EvidenceAdded | EvidenceLines]:
    """One piece as JSON (201, or 200 if it was there), or many as JSON lines (200) that are read as they come.

    A bad line is reported with its number and nothing else is lost. Content over the model's limit is a problem
    unless `truncate`; all of it is kept then, and the vector is of its beginning.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() == _LINES_MEDIA_TYPE:
        result = await intake.add_lines(caller.tenant, request.stream(), truncate=truncate)
        return Response(result, status_code=200)
    body = b"".join([chunk async for chunk in _limited(request.stream())])
    piece = msgspec.json.decode(body, type=NewEvidenceItem)
    [(identifier, is_new)] = await intake.add(caller.tenant, [piece], truncate=truncate)
    return Response(EvidenceAdded(identifier, is_new), status_code=201 if is_new else 200)


@get(
    "/api/v1/evidence/{evidence_id:uuid}",
    tags=["evidence"],
    summary="One piece of evidence",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_evidence(evidence_id: FromPath[UUID], store: Given[Store], caller: Given[Caller]) -> EvidenceItem:
    """As it was given."""
    found = await store.evidence(caller.tenant, evidence_id)
    return EvidenceItem(
        found.id, found.content, found.source_url, found.source_type, found.published_on, found.created_at
    )


@delete(
    "/api/v1/evidence/{evidence_id:uuid}",
    tags=["evidence"],
    summary="Forget a piece of evidence",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def delete_evidence(evidence_id: FromPath[UUID], store: Given[Store], caller: Given[Caller]) -> None:
    """Verdicts that rest on it keep its text."""
    await store.delete_evidence(caller.tenant, evidence_id)


async def _limited(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        if total > _JSON_LIMIT_BYTES:
            raise ClientException(f"one piece of evidence is at most {_JSON_LIMIT_BYTES} bytes", status_code=413)
        yield chunk


def _item(claim: Claim) -> ClaimItem:
    return ClaimItem(claim.id, claim.text, claim.source_url, claim.submitted_at)


HANDLERS = [add_claim, list_claims, get_claim, add_evidence, get_evidence, delete_evidence]
