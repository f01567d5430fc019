"""Routes of evidence."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, cast
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency as Given
from litestar.exceptions import ClientException
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Reference, RequestBody
from litestar.params import FromPath, FromQuery

from service.access import Caller, Scope
from service.errors import documented
from service.ingestor import EvidenceIngestor
from service.schemas import EvidenceAdded, EvidenceItem, IngestReport, NewEvidenceItem
from service.store.evidence import EvidenceStore

__all__ = ["HANDLERS"]

_LINES_MEDIA_TYPE: Final = "application/x-ndjson"
_JSON_LIMIT_BYTES: Final = 1_000_000


@dataclass
class _EvidenceOperation(Operation):
    """Describes the two kinds of body, which the handler's types cannot express."""

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
    scope=Scope.WRITE,
    tags=["evidence"],
    summary="Store evidence",
    operation_class=_EvidenceOperation,
    request_max_body_size=None,
    responses={
        200: ResponseSpec(
            cast("type[msgspec.Struct]", EvidenceAdded | IngestReport),  # any annotation is accepted, not only a class
            generate_examples=False,
            description="The evidence was already stored, or the body was JSON lines",
        ),
        **documented(400, 401, 403, 413, 422, 429, 500, 503, 504),
    },
)
async def add_evidence(
    request: Request[object, object, State],
    ingestor: Given[EvidenceIngestor],
    caller: Given[Caller],
    *,
    truncate: FromQuery[bool] = False,
) -> Response[EvidenceAdded | IngestReport]:
    """Stores one piece sent as JSON (201, or 200 if it was already stored), or a stream of JSON lines (200).

    An invalid line is reported with its number, and the other lines are stored. Content over the model's token limit
    is an error unless `truncate` is set: then all of it is stored, and the embedding is of its beginning.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() == _LINES_MEDIA_TYPE:
        report = await ingestor.add_lines(caller.tenant, request.stream(), truncate=truncate)
        return Response(report, status_code=200)
    body = b"".join([chunk async for chunk in _limited(request.stream())])
    piece = msgspec.json.decode(body, type=NewEvidenceItem)
    [(identifier, is_new)] = await ingestor.add(caller.tenant, [piece], truncate=truncate)
    return Response(EvidenceAdded(identifier, is_new), status_code=201 if is_new else 200)


@get(
    "/api/v1/evidence/{evidence_id:uuid}",
    scope=Scope.READ,
    tags=["evidence"],
    summary="Get a piece of evidence",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_evidence(
    evidence_id: FromPath[UUID], evidence: Given[EvidenceStore], caller: Given[Caller]
) -> EvidenceItem:
    """Returns the evidence as it was stored."""
    found = await evidence.get(caller.tenant, evidence_id)
    return EvidenceItem(
        found.id, found.content, found.source_url, found.source_type, found.published_on, found.created_at
    )


@delete(
    "/api/v1/evidence/{evidence_id:uuid}",
    scope=Scope.WRITE,
    tags=["evidence"],
    summary="Delete a piece of evidence",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def delete_evidence(evidence_id: FromPath[UUID], evidence: Given[EvidenceStore], caller: Given[Caller]) -> None:
    """Deletes the evidence. Verdicts based on it keep a copy of its text."""
    await evidence.delete(caller.tenant, evidence_id)


async def _limited(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        if total > _JSON_LIMIT_BYTES:
            raise ClientException(f"a piece of evidence is at most {_JSON_LIMIT_BYTES} bytes", status_code=413)
        yield chunk


HANDLERS = [add_evidence, get_evidence, delete_evidence]
