"""Stores claims."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from service.database import Database, NotFoundError

__all__ = ["Claim", "ClaimStore", "insert_claim"]

_COLUMNS: Final = "id, text, source_url, submitted_at"


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement to be verified. Its text is in Unicode normal form C."""

    id: UUID
    text: str
    source_url: str | None
    submitted_at: datetime


class ClaimStore:
    """Reads and writes claims."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, tenant: str, text: str, source_url: str | None) -> Claim:
        """Stores a claim."""
        async with self._database.connection() as connection:
            return await insert_claim(connection, tenant, text, source_url)

    async def get(self, tenant: str, claim_id: UUID) -> Claim:
        """Returns one claim, or raises `NotFoundError`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM claims WHERE tenant_id = $1 AND id = $2", tenant, claim_id
            )
        if row is None:
            raise NotFoundError("claim", claim_id)
        return Claim(**row)

    async def page(self, tenant: str, *, skip: int, limit: int) -> tuple[list[Claim], int]:
        """Returns up to `limit` claims, newest first, after skipping `skip`; and how many the tenant has."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                f"SELECT {_COLUMNS} FROM claims WHERE tenant_id = $1 ORDER BY submitted_at DESC, id OFFSET $2 LIMIT $3",
                tenant,
                skip,
                limit,
            )
            total = await connection.fetchval("SELECT count(*) FROM claims WHERE tenant_id = $1", tenant)
        return [Claim(**row) for row in rows], total


async def insert_claim(connection: asyncpg.Connection, tenant: str, text: str, source_url: str | None) -> Claim:
    """Stores a claim, in the caller's transaction if there is one."""
    row = await connection.fetchrow(
        f"INSERT INTO claims (tenant_id, text, source_url) VALUES ($1, $2, $3) RETURNING {_COLUMNS}",
        tenant,
        text,
        source_url,
    )
    return Claim(**row)
