"""Routes of claims."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.di import NamedDependency as Given
from litestar.params import FromPath, JSONBody, QueryParameter

from service.access import Caller, Scope
from service.errors import documented
from service.routes.verdict_bodies import verdict_summary
from service.schemas import ClaimItem, ClaimPage, NewClaim
from service.store.claims import Claim, ClaimStore
from service.store.verdicts import VerdictStore
from service.verification import check_claim

__all__ = ["HANDLERS"]


@post(
    "/api/v1/claims",
    scope=Scope.WRITE,
    tags=["claims"],
    summary="Store a claim",
    responses=documented(400, 401, 403, 413, 422, 429, 503),
)
async def add_claim(data: JSONBody[NewClaim], claims: Given[ClaimStore], caller: Given[Caller]) -> ClaimItem:
    """Stores the text in Unicode normal form C."""
    claim = check_claim(data.text)
    return _item(await claims.add(caller.tenant, claim.text, data.source_url))


@get(
    "/api/v1/claims",
    scope=Scope.READ,
    tags=["claims"],
    summary="List claims",
    responses=documented(401, 403, 422, 429, 503),
)
async def list_claims(
    claims: Given[ClaimStore],
    caller: Given[Caller],
    skip: Annotated[int, QueryParameter(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> ClaimPage:
    """Returns a page of claims, newest first."""
    page, total = await claims.page(caller.tenant, skip=skip, limit=limit)
    return ClaimPage([_item(claim) for claim in page], total, skip, limit)


@get(
    "/api/v1/claims/{claim_id:uuid}",
    scope=Scope.READ,
    tags=["claims"],
    summary="Get a claim",
    responses=documented(401, 403, 404, 422, 429, 503),
)
async def get_claim(
    claim_id: FromPath[UUID], claims: Given[ClaimStore], verdicts: Given[VerdictStore], caller: Given[Caller]
) -> ClaimItem:
    """Returns the claim with the newest verdict on it."""
    claim = await claims.get(caller.tenant, claim_id)
    verdict = await verdicts.latest(caller.tenant, claim_id)
    return msgspec.structs.replace(_item(claim), verdict=None if verdict is None else verdict_summary(verdict))


def _item(claim: Claim) -> ClaimItem:
    return ClaimItem(claim.id, claim.text, claim.source_url, claim.submitted_at)


HANDLERS = [add_claim, list_claims, get_claim]
