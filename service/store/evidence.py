"""Stores evidence with its embeddings, and searches it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

import asyncpg

from service.database import (
    Database,
    DatabaseUnavailableError,
    NotFoundError,
    mismatch,
    stored_space,
)
from service.inference.types import EmbeddingSpace, Vector

__all__ = ["Evidence", "EvidenceStore", "Filters", "NewEvidence", "SearchHit", "SearchMode", "hit_of"]

SearchMode: TypeAlias = Literal["hybrid", "vector", "keyword"]
_RANK_CONSTANT: Final = 60
"""k of reciprocal rank fusion, as in Cormack, Clarke and Buettcher, SIGIR 2009."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvidence:
    """Evidence to store, with its vector."""

    content: str
    source_url: str | None
    source_type: str | None
    published_on: date | None
    vector: Vector


@dataclass(frozen=True, slots=True)
class Evidence:
    """A text that may support or refute claims."""

    id: UUID
    content: str
    source_url: str | None
    source_type: str | None
    published_on: date | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Limits a search to some evidence; None means any. Dates are inclusive."""

    source_prefix: str | None = None
    published_from: date | None = None
    published_to: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchHit:
    """A piece of evidence as a search returned it. `evidence_id` is None once the evidence is deleted.

    `similarity` is from 0 to 1, see `service.retrieval`.
    """

    evidence_id: UUID | None
    content: str
    source_url: str | None
    published_on: date | None
    similarity: float


_FILTER: Final = """
    e.tenant_id = $1
    AND ($2::text IS NULL OR starts_with(e.source_url, $2))
    AND ($3::date IS NULL OR e.published_on >= $3)
    AND ($4::date IS NULL OR e.published_on <= $4)
"""
# Any word of the query may match: a claim is a sentence, and few texts contain all the words of a sentence.
_ANY_WORD: Final = r"""
    (SELECT string_agg('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''', ' | ')::tsquery
     FROM unnest(to_tsvector('english', $5)))
"""
_BY_VECTOR: Final = f"""
    SELECT e.id, m.embedding <=> $6::text::vector AS distance
    FROM embeddings m JOIN evidence e ON e.id = m.evidence_id
    WHERE {_FILTER}
    ORDER BY m.embedding <=> $6::text::vector
    LIMIT $7
"""
_BY_KEYWORD: Final = f"""
    SELECT e.id, ts_rank(e.search, query.words, 1 | 32) AS score
    FROM evidence e, (SELECT {_ANY_WORD} AS words) AS query
    WHERE {_FILTER} AND e.search @@ query.words
    ORDER BY score DESC, e.id
    LIMIT $7
"""
_HIT: Final = "e.id AS evidence_id, e.content, e.source_url, e.published_on"
_SEARCH: Final[dict[SearchMode, str]] = {
    # Every statement takes the same eight parameters, used or not.
    "vector": f"""
        SELECT {_HIT}, greatest(0, 1 - found.distance) AS similarity
        FROM ({_BY_VECTOR}) AS found JOIN evidence e USING (id)
        WHERE 1 - found.distance >= $8::float8 AND ($5::text IS NOT NULL)
        ORDER BY found.distance, e.id
    """,
    "keyword": f"""
        SELECT {_HIT}, found.score AS similarity
        FROM ({_BY_KEYWORD}) AS found JOIN evidence e USING (id)
        WHERE found.score >= $8::float8 AND ($6::text IS NULL)
        ORDER BY found.score DESC, e.id
    """,
    "hybrid": f"""
        WITH by_vector AS (SELECT id, row_number() OVER (ORDER BY distance, id) AS rank FROM ({_BY_VECTOR}) AS v),
        by_keyword AS (SELECT id, row_number() OVER (ORDER BY score DESC, id) AS rank FROM ({_BY_KEYWORD}) AS k),
        fused AS (
            SELECT id,
                coalesce(1.0 / ({_RANK_CONSTANT} + v.rank), 0) + coalesce(1.0 / ({_RANK_CONSTANT} + k.rank), 0) AS score
            FROM by_vector v FULL JOIN by_keyword k USING (id)
        )
        SELECT {_HIT}, greatest(0, 1 - (m.embedding <=> $6::text::vector)) AS similarity
        FROM fused JOIN evidence e USING (id) JOIN embeddings m ON m.evidence_id = e.id
        WHERE 1 - (m.embedding <=> $6::text::vector) >= $8::float8
        ORDER BY fused.score DESC, e.id
    """,
}
_COLUMNS: Final = "id, content, source_url, source_type, published_on, created_at"


class EvidenceStore:
    """Reads, writes and searches evidence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, tenant: str, pieces: Sequence[NewEvidence], space: EmbeddingSpace) -> list[tuple[UUID, bool]]:
        """Stores `pieces` with their vectors, all or none.

        Returns:
            For each piece its id, and whether it is new: the same content of the same tenant is stored once.
        """
        hashes = [hashlib.sha256(piece.content.encode()).digest() for piece in pieces]
        async with self._database.transaction() as connection:
            await _claim_space(connection, space)
            new = await _insert(connection, tenant, pieces, hashes)
            vectors = dict(zip(hashes, (piece.vector for piece in pieces), strict=True))
            await connection.executemany(
                "INSERT INTO embeddings (evidence_id, embedding) VALUES ($1, $2::text::vector)",
                [(identifier, vectors[digest].pgvector()) for digest, identifier in new.items()],
            )
            rows = await connection.fetch(
                "SELECT id, content_sha256 FROM evidence WHERE tenant_id = $1 AND content_sha256 = ANY($2::bytea[])",
                tenant,
                hashes,
            )
        known: dict[bytes, UUID] = {row["content_sha256"]: row["id"] for row in rows}
        # The first of equal pieces is the new one.
        return [(known[digest], new.pop(digest, None) is not None) for digest in hashes]

    async def get(self, tenant: str, evidence_id: UUID) -> Evidence:
        """Returns one piece of evidence, or raises `NotFoundError`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_COLUMNS} FROM evidence WHERE tenant_id = $1 AND id = $2", tenant, evidence_id
            )
        if row is None:
            raise NotFoundError("evidence", evidence_id)
        return Evidence(**row)

    async def delete(self, tenant: str, evidence_id: UUID) -> None:
        """Deletes evidence and its vector, or raises `NotFoundError`. Verdicts based on it keep a copy of its text."""
        async with self._database.connection() as connection:
            status = await connection.execute(
                "DELETE FROM evidence WHERE tenant_id = $1 AND id = $2", tenant, evidence_id
            )
        if status == "DELETE 0":
            raise NotFoundError("evidence", evidence_id)

    async def search(
        self,
        tenant: str,
        query: str,
        vector: Vector | None,
        *,
        mode: SearchMode,
        candidates: int,
        min_similarity: float,
        filters: Filters,
        space: EmbeddingSpace | None,
    ) -> list[SearchHit]:
        """Returns the union of up to `candidates` hits by vector and by keyword, as `mode` asks, best first."""
        async with self._database.connection() as connection:
            if space is not None:
                await _check_space(connection, space)
            rows = await connection.fetch(
                _SEARCH[mode],
                tenant,
                filters.source_prefix,
                filters.published_from,
                filters.published_to,
                query,
                None if vector is None else vector.pgvector(),
                candidates,
                min_similarity,
            )
        return [hit_of(row) for row in rows]


def hit_of(row: Mapping[str, Any]) -> SearchHit:
    """Reads a hit from a row with its columns."""
    return SearchHit(
        evidence_id=row["evidence_id"],
        content=row["content"],
        source_url=row["source_url"],
        published_on=row["published_on"],
        similarity=min(1.0, row["similarity"]),  # rounding makes the cosine of equal vectors a little more
    )


async def _insert(
    connection: asyncpg.Connection, tenant: str, pieces: Sequence[NewEvidence], hashes: Sequence[bytes]
) -> dict[bytes, UUID]:
    """Inserts the pieces whose content is new to the tenant; returns their ids by hash."""
    rows = await connection.fetch(
        """
        INSERT INTO evidence (tenant_id, content, content_sha256, source_url, source_type, published_on)
        SELECT $1, piece.* FROM unnest($2::text[], $3::bytea[], $4::text[], $5::text[], $6::date[])
            AS piece (content, content_sha256, source_url, source_type, published_on)
        ORDER BY content_sha256 -- two transactions that insert the same pieces must not deadlock
        ON CONFLICT (tenant_id, content_sha256) DO NOTHING
        RETURNING id, content_sha256
        """,
        tenant,
        [piece.content for piece in pieces],
        list(hashes),
        [piece.source_url for piece in pieces],
        [piece.source_type for piece in pieces],
        [piece.published_on for piece in pieces],
    )
    return {row["content_sha256"]: row["id"] for row in rows}


async def _claim_space(connection: asyncpg.Connection, space: EmbeddingSpace) -> None:
    """Records `space` as the database's embedding space if there is none yet, and refuses any other."""
    await connection.execute(
        """
        INSERT INTO embedding_space (model_name, model_revision, dimension) VALUES ($1, $2, $3)
        ON CONFLICT (only_row) DO NOTHING
        """,
        space.model_name,
        space.model_revision,
        space.dimension,
    )
    await _check_space(connection, space)


async def _check_space(connection: asyncpg.Connection, space: EmbeddingSpace) -> None:
    stored = await stored_space(connection)
    if stored is not None and (problem := mismatch(stored, space)):
        raise DatabaseUnavailableError(problem)
