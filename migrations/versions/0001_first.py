"""Creates the first schema: claims, evidence, embeddings, verdicts with their evidence, tasks, keys, rate limits."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "embedding_space",
    "claims",
    "evidence",
    "embeddings",
    "verdicts",
    "nli_results",
    "tasks",
    "api_keys",
    "rate_buckets",
)

UPGRADE = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    """
    -- The model that made the vectors: one row, written by the first process that stores a vector.
    CREATE TABLE embedding_space (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        model_name text NOT NULL,
        model_revision text NOT NULL,
        dimension integer NOT NULL CHECK (dimension > 0),
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE claims (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id varchar(255) NOT NULL,
        text text NOT NULL CHECK (text <> ''),
        source_url text,
        submitted_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX claims_newest ON claims (tenant_id, submitted_at DESC, id)",
    """
    CREATE TABLE evidence (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id varchar(255) NOT NULL,
        content text NOT NULL CHECK (content <> ''),
        content_sha256 bytea NOT NULL CHECK (length(content_sha256) = 32),
        source_url text,
        source_type varchar(50),
        published_on date,
        created_at timestamptz NOT NULL DEFAULT now(),
        search tsvector NOT NULL GENERATED ALWAYS AS (to_tsvector('english', content)) STORED,
        UNIQUE (tenant_id, content_sha256)
    )
    """,
    "CREATE INDEX evidence_search ON evidence USING gin (search)",
    "CREATE INDEX evidence_newest ON evidence (tenant_id, created_at DESC)",
    """
    CREATE TABLE embeddings (
        evidence_id uuid PRIMARY KEY REFERENCES evidence ON DELETE CASCADE,
        embedding vector(384) NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX embeddings_cosine ON embeddings USING hnsw (embedding vector_cosine_ops)",
    """
    CREATE TABLE verdicts (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        claim_id uuid NOT NULL REFERENCES claims ON DELETE CASCADE,
        verdict varchar(20) NOT NULL CHECK (verdict IN ('SUPPORTED', 'REFUTED', 'NOT_ENOUGH_INFO')),
        confidence double precision NOT NULL CHECK (confidence BETWEEN 0 AND 1),
        support_score double precision NOT NULL CHECK (support_score BETWEEN 0 AND 1),
        refute_score double precision NOT NULL CHECK (refute_score BETWEEN 0 AND 1),
        has_conflict boolean NOT NULL,
        supporting_count integer NOT NULL CHECK (supporting_count >= 0),
        refuting_count integer NOT NULL CHECK (refuting_count >= 0),
        neutral_count integer NOT NULL CHECK (neutral_count >= 0),
        reasoning text NOT NULL,
        rule_version text NOT NULL,
        search_mode varchar(10) NOT NULL CHECK (search_mode IN ('hybrid', 'vector', 'keyword')),
        embedding_model text NOT NULL,
        entailment_model text NOT NULL,
        warnings text[] NOT NULL DEFAULT '{}',
        processing_seconds double precision NOT NULL CHECK (processing_seconds >= 0),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE INDEX verdicts_latest ON verdicts (claim_id, created_at DESC)",
    """
    -- The evidence of a verdict, with its text: a verdict must stay readable after the evidence is deleted.
    CREATE TABLE nli_results (
        verdict_id uuid NOT NULL REFERENCES verdicts ON DELETE CASCADE,
        position integer NOT NULL CHECK (position >= 0),
        evidence_id uuid REFERENCES evidence ON DELETE SET NULL,
        content text NOT NULL,
        source_url text,
        published_on date,
        similarity double precision NOT NULL CHECK (similarity BETWEEN 0 AND 1),
        label varchar(13) NOT NULL CHECK (label IN ('entailment', 'neutral', 'contradiction')),
        entailment double precision NOT NULL CHECK (entailment BETWEEN 0 AND 1),
        neutral double precision NOT NULL CHECK (neutral BETWEEN 0 AND 1),
        contradiction double precision NOT NULL CHECK (contradiction BETWEEN 0 AND 1),
        PRIMARY KEY (verdict_id, position)
    )
    """,
    "CREATE INDEX nli_results_evidence ON nli_results (evidence_id)",
    """
    CREATE TABLE tasks (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id varchar(255) NOT NULL,
        claim_id uuid NOT NULL REFERENCES claims ON DELETE CASCADE,
        idempotency_key varchar(255),
        request jsonb NOT NULL,
        request_id text NOT NULL,
        status varchar(10) NOT NULL DEFAULT 'pending'
            CHECK (status IN ('pending', 'processing', 'completed', 'failed')),
        progress_percentage integer NOT NULL DEFAULT 0 CHECK (progress_percentage BETWEEN 0 AND 100),
        attempts integer NOT NULL DEFAULT 0,
        error text,
        verdict_id uuid REFERENCES verdicts ON DELETE SET NULL,
        runnable_at timestamptz NOT NULL DEFAULT now(),
        lease_until timestamptz,
        lease_holder uuid,
        created_at timestamptz NOT NULL DEFAULT now(),
        completed_at timestamptz,
        UNIQUE (tenant_id, idempotency_key),
        CHECK ((status = 'processing') = (lease_holder IS NOT NULL)),
        CHECK ((status IN ('completed', 'failed')) = (completed_at IS NOT NULL))
    )
    """,
    "CREATE UNIQUE INDEX tasks_one_open_per_claim ON tasks (claim_id) WHERE status IN ('pending', 'processing')",
    "CREATE INDEX tasks_newest ON tasks (claim_id, created_at DESC)",
    "CREATE INDEX tasks_runnable ON tasks (runnable_at) WHERE status = 'pending'",
    "CREATE INDEX tasks_leased ON tasks (lease_until) WHERE status = 'processing'",
    "CREATE INDEX tasks_done ON tasks (completed_at) WHERE completed_at IS NOT NULL",
    """
    -- Stores only the hash of a key: keys are 256 random bits, so a plain SHA-256 cannot be inverted by guessing.
    CREATE TABLE api_keys (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name text NOT NULL UNIQUE,
        key_sha256 bytea NOT NULL UNIQUE CHECK (length(key_sha256) = 32),
        scopes text[] NOT NULL CHECK (scopes <@ ARRAY['read', 'write', 'admin'] AND cardinality(scopes) > 0),
        tenant_id varchar(255) NOT NULL,
        tokens_per_minute integer NOT NULL CHECK (tokens_per_minute > 0),
        created_at timestamptz NOT NULL DEFAULT now(),
        revoked_at timestamptz
    )
    """,
    """
    -- Unlogged: after a crash of the database every caller starts with a full bucket.
    CREATE UNLOGGED TABLE rate_buckets (
        subject text PRIMARY KEY,
        tokens double precision NOT NULL,
        updated_at timestamptz NOT NULL
    )
    """,
)


def upgrade() -> None:
    """Creates every table; needs an empty database."""
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    """Drops every table. The extension stays: other schemas may use it."""
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE {table}")
