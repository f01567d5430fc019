"""What is kept: claims, evidence with its embeddings, verdicts with what they rest on. All statements on them are here.

Every method is one round trip or one transaction, and sees only the rows of the tenant that it is given.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Final, Literal, TypeAlias
from uuid import UUID

import asyncpg

from service.database import (
    Database,
    DatabaseUnavailableError,
    EmbeddingSpace,
    NotFoundError,
    mismatch,
    stored_space,
)
from service.inference.types import Label, Scores, Vector

__all__ = [
    "Claim",
    "Evidence",
    "Filters",
    "NewEvidence",
    "NewVerdict",
    "Outcome",
    "ScoredEvidence",
    "SearchHit",
    "SearchMode",
    "Store",
    "Verdict",
]


class Outcome(StrEnum):
    """What the evidence says about a claim, in the words of the FEVER task."""

    SUPPORTED = "SUPPORTED"
    REFUTED = "REFUTED"
    NOT_ENOUGH_INFO = "NOT_ENOUGH_INFO"


SearchMode: TypeAlias = Literal["hybrid", "vector", "keyword"]
_RANK_CONSTANT: Final = 60
"""k of reciprocal rank fusion, as in Cormack, Clarke and Buettcher, SIGIR 2009."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement that someone makes."""

    id: UUID
    text: str
    source_url: str | None
    submitted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvidence:
    """Evidence to keep, with its vector."""

    content: str
    source_url: str | None
    source_type: str | None
    published_on: date | None
    vector: Vector


@dataclass(frozen=True, slots=True)
class Evidence:
    """A piece of text that may speak for or against claims."""

    id: UUID
    content: str
    source_url: str | None
    source_type: str | None
    published_on: date | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which evidence a search may return; None means any."""

    source_prefix: str | None = None
    published_from: date | None = None
    published_to: date | None = None


@dataclass(frozen=True, slots=True)
class SearchHit:
    """Evidence that a search returned. `similarity` is from 0 to 1, see `retrieval`."""

    evidence_id: UUID | None
    content: str
    source_url: str | None
    published_on: date | None
    similarity: float


@dataclass(frozen=True, slots=True)
class ScoredEvidence:
    """Evidence and what the entailment model makes of the claim in its light."""

    found: SearchHit
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVerdict:
    """A verdict and all it rests on, ready to be kept."""

    verdict: Outcome
    confidence: float
    support_score: float
    refute_score: float
    has_conflict: bool
    reasoning: str
    rule_version: str
    search_mode: SearchMode
    embedding_model: str
    entailment_model: str
    warnings: tuple[str, ...]
    processing_seconds: float
    judged: tuple[ScoredEvidence, ...]

    def count(self, label: Label) -> int:
        """How many pieces of evidence have `label`."""
        return sum(each.scores.label is label for each in self.judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A kept verdict."""

    id: UUID
    claim: Claim
    content: NewVerdict
    created_at: datetime


_FILTER: Final = """
    e.tenant_id = $1
    AND ($2::text IS NULL OR starts_with(e.source_url, $2))
    AND ($3::date IS NULL OR e.published_on >= $3)
    AND ($4::date IS NULL OR e.published_on <= $4)
"""
# Any word of the query may match: a claim is a sentence, and few texts hold all the words of a sentence.
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
_COLUMNS: Final = "e.id AS evidence_id, e.content, e.source_url, e.published_on"
_SEARCH: Final[dict[SearchMode, str]] = {
    # Each statement takes the same eight parameters, though not each one uses them all.
    "vector": f"""
        SELECT {_COLUMNS}, greatest(0, 1 - found.distance) AS similarity
        FROM ({_BY_VECTOR}) AS found JOIN evidence e USING (id)
        WHERE 1 - found.distance >= $8::float8 AND ($5::text IS NOT NULL)
        ORDER BY found.distance, e.id
    """,
    "keyword": f"""
        SELECT {_COLUMNS}, found.score AS similarity
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
        SELECT {_COLUMNS}, greatest(0, 1 - (m.embedding <=> $6::text::vector)) AS similarity
        FROM fused JOIN evidence e USING (id) JOIN embeddings m ON m.evidence_id = e.id
        WHERE 1 - (m.embedding <=> $6::text::vector) >= $8::float8
        ORDER BY fused.score DESC, e.id
    """,
}
_CLAIM: Final = "id, text, source_url, submitted_at"
_EVIDENCE: Final = "id, content, source_url, source_type, published_on, created_at"


class Store:
    """Reads and writes, each in the name of one tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_claim(self, tenant: str, text: str, source_url: str | None) -> Claim:
        """Keep a claim."""
        async with self._database.connection() as connection:
            return await _add_claim(connection, tenant, text, source_url)

    async def claim(self, tenant: str, claim_id: UUID) -> Claim:
        """One claim, or `NotFoundError`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_CLAIM} FROM claims WHERE tenant_id = $1 AND id = $2", tenant, claim_id
            )
        if row is None:
            raise NotFoundError("claim", claim_id)
        return Claim(**row)

    async def claims(self, tenant: str, *, skip: int, limit: int) -> tuple[list[Claim], int]:
        """A page of claims, newest first, and how many there are."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                f"SELECT {_CLAIM} FROM claims WHERE tenant_id = $1 ORDER BY submitted_at DESC, id OFFSET $2 LIMIT $3",
                tenant,
                skip,
                limit,
            )
            total = await connection.fetchval("SELECT count(*) FROM claims WHERE tenant_id = $1", tenant)
        return [Claim(**row) for row in rows], total

    async def add_evidence(
        self, tenant: str, pieces: Sequence[NewEvidence], space: EmbeddingSpace
    ) -> list[tuple[UUID, bool]]:
        """Keep `pieces` with their vectors, all or none.

        Returns:
            For each piece its id, and whether it is new: the same content of the same tenant is kept once.
        """
        hashes = [hashlib.sha256(piece.content.encode()).digest() for piece in pieces]
        async with self._database.transaction() as connection:
            await _claim_space(connection, space)
            inserted = await connection.fetch(
                """
                INSERT INTO evidence (tenant_id, content, content_sha256, source_url, source_type, published_on)
                SELECT $1, piece.* FROM unnest($2::text[], $3::bytea[], $4::text[], $5::text[], $6::date[])
                    AS piece (content, content_sha256, source_url, source_type, published_on)
                ORDER BY content_sha256 -- two who bring the same pieces must not wait for one another
                ON CONFLICT (tenant_id, content_sha256) DO NOTHING
                RETURNING id, content_sha256
                """,
                tenant,
                [piece.content for piece in pieces],
                hashes,
                [piece.source_url for piece in pieces],
                [piece.source_type for piece in pieces],
                [piece.published_on for piece in pieces],
            )
            new: dict[bytes, UUID] = {row["content_sha256"]: row["id"] for row in inserted}
            vectors = dict(zip(hashes, (piece.vector for piece in pieces), strict=True))
            await connection.executemany(
                "INSERT INTO embeddings (evidence_id, embedding) VALUES ($1, $2::text::vector)",
                [(identifier, _literal(vectors[digest])) for digest, identifier in new.items()],
            )
            rows = await connection.fetch(
                "SELECT id, content_sha256 FROM evidence WHERE tenant_id = $1 AND content_sha256 = ANY($2::bytea[])",
                tenant,
                hashes,
            )
        known: dict[bytes, UUID] = {row["content_sha256"]: row["id"] for row in rows}
        # The first of equal pieces is the new one.
        return [(known[digest], new.pop(digest, None) is not None) for digest in hashes]

    async def evidence(self, tenant: str, evidence_id: UUID) -> Evidence:
        """One piece of evidence, or `NotFoundError`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                f"SELECT {_EVIDENCE} FROM evidence WHERE tenant_id = $1 AND id = $2", tenant, evidence_id
            )
        if row is None:
            raise NotFoundError("evidence", evidence_id)
        return Evidence(**row)

    async def delete_evidence(self, tenant: str, evidence_id: UUID) -> None:
        """Forget a piece of evidence and its vector, or `NotFoundError`. Verdicts that rest on it keep its text."""
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
        """Up to `candidates` pieces of evidence from each side that `mode` asks, best first."""
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
                None if vector is None else _literal(vector),
                candidates,
                min_similarity,
            )
        return [SearchHit(**{**row, "similarity": min(1.0, row["similarity"])}) for row in rows]

    async def add_verdict(self, tenant: str, claim: Claim | tuple[str, str | None], content: NewVerdict) -> Verdict:
        """Keep a verdict on a kept claim, or on a new one given as (text, source_url), which is then kept with it."""
        async with self._database.transaction() as connection:
            if not isinstance(claim, Claim):
                claim = await _add_claim(connection, tenant, *claim)
            return await insert_verdict(connection, claim, content)

    async def latest_verdict(self, tenant: str, claim_id: UUID) -> Verdict | None:
        """The newest verdict on a claim; None if there is none; `NotFoundError` if there is no such claim."""
        claim = await self.claim(tenant, claim_id)
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(
                "SELECT * FROM verdicts WHERE claim_id = $1 ORDER BY created_at DESC LIMIT 1", claim_id
            )
            if row is None:
                return None
            judged = await connection.fetch(
                "SELECT * FROM nli_results WHERE verdict_id = $1 ORDER BY position", row["id"]
            )
        return _verdict(claim, row, judged)


async def insert_verdict(connection: asyncpg.Connection, claim: Claim, content: NewVerdict) -> Verdict:
    """Write a verdict and what it rests on; the caller holds the transaction."""
    row = await connection.fetchrow(
        """
        INSERT INTO verdicts (
            claim_id, verdict, confidence, support_score, refute_score, has_conflict, supporting_count,
            refuting_count, neutral_count, reasoning, rule_version, search_mode, embedding_model, entailment_model,
            warnings, processing_seconds)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        RETURNING id, created_at
        """,
        claim.id,
        content.verdict,
        content.confidence,
        content.support_score,
        content.refute_score,
        content.has_conflict,
        content.count(Label.ENTAILMENT),
        content.count(Label.CONTRADICTION),
        content.count(Label.NEUTRAL),
        content.reasoning,
        content.rule_version,
        content.search_mode,
        content.embedding_model,
        content.entailment_model,
        list(content.warnings),
        content.processing_seconds,
    )
    await connection.executemany(
        """
        INSERT INTO nli_results (
            verdict_id, position, evidence_id, content, source_url, published_on, similarity, label, entailment,
            neutral, contradiction)
        VALUES ($1, $2, (SELECT id FROM evidence WHERE id = $3), $4, $5, $6, $7, $8, $9, $10, $11)
        """,
        [
            (
                row["id"],
                position,
                each.found.evidence_id,
                each.found.content,
                each.found.source_url,
                each.found.published_on,
                each.found.similarity,
                each.scores.label,
                each.scores.entailment,
                each.scores.neutral,
                each.scores.contradiction,
            )
            for position, each in enumerate(content.judged)
        ],
    )
    return Verdict(id=row["id"], claim=claim, content=content, created_at=row["created_at"])


def _verdict(claim: Claim, row: asyncpg.Record, judged: Sequence[asyncpg.Record]) -> Verdict:
    plain = NewVerdict.__dataclass_fields__.keys() - {"verdict", "judged", "warnings"}
    content = NewVerdict(
        **{name: row[name] for name in plain},
        verdict=Outcome(row["verdict"]),
        warnings=tuple(row["warnings"]),
        judged=tuple(
            ScoredEvidence(
                SearchHit(*(each[name] for name in SearchHit.__dataclass_fields__)),
                Scores(each["entailment"], each["neutral"], each["contradiction"]),
            )
            for each in judged
        ),
    )
    return Verdict(id=row["id"], claim=claim, content=content, created_at=row["created_at"])


async def _add_claim(connection: asyncpg.Connection, tenant: str, text: str, source_url: str | None) -> Claim:
    row = await connection.fetchrow(
        f"INSERT INTO claims (tenant_id, text, source_url) VALUES ($1, $2, $3) RETURNING {_CLAIM}",
        tenant,
        text,
        source_url,
    )
    return Claim(**row)


async def _claim_space(connection: asyncpg.Connection, space: EmbeddingSpace) -> None:
    """Make `space` the database's, if none is yet, and refuse any other."""
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


def _literal(vector: Vector) -> str:
    """A vector as pgvector reads it from a bound text parameter."""
    return str(vector.values())
