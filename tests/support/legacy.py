"""A legacy table, as the migrations of the first cenote created it."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import execute

# The effect of the legacy migration files, statement by statement.
VERSION_TABLE = (
    "CREATE TABLE cenote_schema_migrations"
    " (version text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())",
)
VERSIONS = {
    "001_init.sql": (
        "CREATE EXTENSION IF NOT EXISTS vector",
        "CREATE TABLE cenote_chunks (id text PRIMARY KEY, namespace text NOT NULL,"
        " document_id text NOT NULL, content text NOT NULL, position int NOT NULL,"
        " metadata jsonb NOT NULL DEFAULT '{}'::jsonb, content_hash text NOT NULL,"
        " embedding vector(4) NOT NULL, embedding_model text NOT NULL,"
        " created_at timestamptz NOT NULL DEFAULT now())",
        "CREATE INDEX cenote_chunks_namespace_doc_idx ON cenote_chunks (namespace, document_id)",
        "CREATE INDEX cenote_chunks_metadata_gin_idx ON cenote_chunks USING gin (metadata)",
        "CREATE INDEX cenote_chunks_embedding_hnsw_idx ON cenote_chunks"
        " USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 64)",
    ),
    "002_namespace_id_pk.sql": (
        "ALTER TABLE cenote_chunks DROP CONSTRAINT cenote_chunks_pkey",
        "ALTER TABLE cenote_chunks ADD PRIMARY KEY (namespace, id)",
    ),
    "003_chunk_iteration_index.sql": (),
}

ROWS = (
    "INSERT INTO cenote_chunks SELECT 'chunk ' || n, 'tenant ' || n % 7, 'doc ' || n / 10,"
    " 'text ' || n, n % 10, jsonb_build_object('n', n), md5(n::text),"
    " ARRAY[sin(n), cos(n), sin(2 * n), cos(3 * n)]::real[]::vector, 'm', '2026-01-01'::timestamptz"
    " FROM generate_series(1, 500) n"
)


async def create_legacy_table(engine: AsyncEngine, version: int = 3) -> None:
    """Create a legacy table with 500 rows."""
    await execute(engine, *VERSION_TABLE)
    for name, statements in list(VERSIONS.items())[:version]:
        await execute(engine, *statements)
        await execute(engine, f"INSERT INTO cenote_schema_migrations (version) VALUES ('{name}')")
    await execute(engine, ROWS)
