"""The design that cenote replaced: an asyncpg pool, vectors as text, one HNSW index for all.

An upsert is one ``executemany`` that always rewrites rows. A search sets ``hnsw.ef_search`` with
SET LOCAL outside a transaction, where it has no effect, so it runs with pgvector's defaults. A scan
fetches all rows at once.
"""

from __future__ import annotations

import json
from typing import Any

import asyncpg

from benchmarks.contenders.base import Contender, Job

_TABLE = """
DROP TABLE IF EXISTS chunks;
CREATE TABLE chunks (
    namespace text NOT NULL, id text NOT NULL, document_id text NOT NULL, content text NOT NULL,
    position integer NOT NULL, metadata jsonb NOT NULL DEFAULT '{}', content_hash text NOT NULL,
    embedding vector(:dimensions) NOT NULL, embedding_model text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (namespace, id)
);
CREATE INDEX ON chunks (namespace, document_id);
CREATE INDEX ON chunks USING gin (metadata)
"""
_INDEX = """
CREATE INDEX ON chunks USING hnsw (embedding vector_cosine_ops)
WITH (m = 16, ef_construction = 64)
"""
_UPSERT = """
INSERT INTO chunks (namespace, id, document_id, content, position, metadata, content_hash,
                    embedding, embedding_model)
VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7, $8::vector, $9)
ON CONFLICT (namespace, id) DO UPDATE
SET document_id = excluded.document_id, content = excluded.content, position = excluded.position,
    metadata = excluded.metadata, content_hash = excluded.content_hash,
    embedding = excluded.embedding, embedding_model = excluded.embedding_model
"""
_SEARCH = """
SELECT id, document_id, content, position, metadata, content_hash,
       1 - (embedding <=> $1::vector) AS score
FROM chunks WHERE namespace = $2 ORDER BY embedding <=> $1::vector LIMIT $3
"""
_SEARCH_FILTERED = """
SELECT id, document_id, content, position, metadata, content_hash,
       1 - (embedding <=> $1::vector) AS score
FROM chunks WHERE namespace = $2 AND metadata @> $4::jsonb
ORDER BY embedding <=> $1::vector LIMIT $3
"""
_SCAN = """
SELECT id, document_id, content, position, metadata, content_hash
FROM chunks WHERE namespace = $1 ORDER BY id
"""


class Original(Contender):
    """The design that cenote replaced."""

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dimensions = dimensions
        self._pool = await asyncpg.create_pool(dsn, min_size=1, max_size=10)

    async def close(self) -> None:
        await self._pool.close()

    async def create_table(self) -> None:
        await self._pool.execute(_TABLE.replace(":dimensions", str(self._dimensions)))

    async def create_index(self) -> None:
        await self._pool.execute(_INDEX)

    async def upsert(self, batch: Any) -> None:
        records = [
            (
                row.tenant,
                row.id,
                row.document_id,
                row.content,
                row.position,
                json.dumps(row.metadata),
                "",
                _text(row.vector),
                "model",
            )
            for row in batch
        ]
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.executemany(_UPSERT, records)

    async def search(self, job: Job) -> list[str]:
        async with self._pool.acquire() as connection:
            await connection.execute("SET LOCAL hnsw.ef_search = 100")
            if job.filter is None:
                query = _SEARCH, _text(job.query), job.tenant, job.limit
                records = await connection.fetch(*query)
            else:
                filter = json.dumps(job.filter)
                records = await connection.fetch(
                    _SEARCH_FILTERED, _text(job.query), job.tenant, job.limit, filter
                )
        return [chunk["id"] for chunk in map(_chunk, records)]

    async def scan(self, tenant: str) -> int:
        async with self._pool.acquire() as connection:
            records = await connection.fetch(_SCAN, tenant)
        return sum(1 for _ in map(_chunk, records))


def _text(vector: Any) -> str:
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def _chunk(record: Any) -> dict[str, Any]:
    return {**record, "metadata": json.loads(record["metadata"])}
