"""Stored claims."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from service.database import NotFoundError
from service.store.claims import ClaimStore
from tests.service.conftest import Postgres, in_database

if TYPE_CHECKING:
    from service.database import Database


def test_a_page_is_newest_first_and_counts_all(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        claims = ClaimStore(database)
        added = [await claims.add("t", f"claim {number}", None) for number in range(3)]
        await claims.add("other", "another tenant's claim", None)
        page, total = await claims.page("t", skip=1, limit=1)
        assert (page, total) == ([added[1]], 3)

    in_database(postgres.fresh(), work)


def test_a_claim_of_another_tenant_is_not_found(postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        claims = ClaimStore(database)
        claim = await claims.add("t", "a claim", "https://a.example")
        assert await claims.get("t", claim.id) == claim
        for tenant, identifier in (("other", claim.id), ("t", uuid.uuid4())):
            with pytest.raises(NotFoundError, match=str(identifier)):
                await claims.get(tenant, identifier)

    in_database(postgres.fresh(), work)
