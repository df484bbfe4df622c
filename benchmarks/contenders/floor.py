"""Hand-written asyncpg over one plain table, as fast as it can be.

It uses pgvector's binary codec and one connection without a pool, and returns the driver's records.
The table has the same indexes on key, document and metadata as cenote's, so writes maintain the
same indexes and filters can use them. One HNSW index covers all tenants. The search runs with
pgvector's default settings and loses results. With `exact`, it compares the query with every row of
the tenant and loses none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import asyncpg
import pgvector.asyncpg

from benchmarks.contenders.base import Contender, Job, Row, run_clients

_TABLE = """
DROP TABLE IF EXISTS chunks;
CREATE TABLE chunks (
    namespace text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, document_id text NOT NULL,
    content text NOT NULL, position bigint NOT NULL, metadata jsonb NOT NULL,
    content_hash text NOT NULL, embedding vector(:dimensions) NOT NULL,
    embedding_model text NOT NULL,
    PRIMARY KEY (namespace, id)
);
CREATE INDEX ON chunks (namespace, document_id);
CREATE INDEX ON chunks USING gin (metadata jsonb_path_ops);
"""
_INDEX = """
CREATE INDEX ON chunks USING hnsw (embedding vector_cosine_ops)
WITH (m = 16, ef_construction = 64)
"""
_UPSERT = """
INSERT INTO chunks VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (namespace, id) DO UPDATE
SET document_id = excluded.document_id, content = excluded.content, position = excluded.position,
    metadata = excluded.metadata, content_hash = excluded.content_hash,
    embedding = excluded.embedding, embedding_model = excluded.embedding_model
"""
_SEARCH = """
SELECT id, document_id, content, position, metadata, content_hash, embedding <=> $1 AS distance
FROM chunks WHERE namespace = $2 ORDER BY embedding <=> $1 LIMIT $3
"""
_SEARCH_FILTERED = """
SELECT id, document_id, content, position, metadata, content_hash, embedding <=> $1 AS distance
FROM chunks WHERE namespace = $2 AND metadata @> $4 ORDER BY embedding <=> $1 LIMIT $3
"""
_EXACT = """
SELECT id, document_id, content, position, metadata, content_hash, embedding <=> $1 AS distance
FROM chunks WHERE namespace = $2 ORDER BY (embedding <=> $1) + 0 LIMIT $3
"""
_EXACT_FILTERED = """
SELECT id, document_id, content, position, metadata, content_hash, embedding <=> $1 AS distance
FROM chunks WHERE namespace = $2 AND metadata @> $4 ORDER BY (embedding <=> $1) + 0 LIMIT $3
"""
_SCAN = """
SELECT id, document_id, content, position, metadata, content_hash
FROM chunks WHERE namespace = $1 ORDER BY id
"""
_PAGE = 500


class Floor(Contender):
    """Hand-written asyncpg.

    Args:
        exact: Compare the query with every row of the tenant in each search.
    """

    def __init__(self, *, exact: bool = False) -> None:
        self._sql = _EXACT if exact else _SEARCH
        self._sql_filtered = _EXACT_FILTERED if exact else _SEARCH_FILTERED
        self._connections: list[asyncpg.Connection] = []

    async def open(self, dsn: str, dimensions: int) -> None:
        self._dsn, self._dimensions = dsn, dimensions
        self._connections = [await self._connect()]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def create_table(self) -> None:
        await self._connections[0].execute(_TABLE.replace(":dimensions", str(self._dimensions)))

    async def create_index(self) -> None:
        await self._connections[0].execute(_INDEX)

    async def upsert(self, batch: Any) -> None:
        async with self._connections[0].transaction():
            await self._connections[0].executemany(_UPSERT, _records(batch))

    async def bulk_load(self, rows: Sequence[Row]) -> None:
        await self._connections[0].copy_records_to_table("chunks", records=_records(rows))
        await self.create_index()

    async def search(self, job: Job) -> list[str]:
        return await self._search(self._connections[0], job)

    async def _search(self, connection: asyncpg.Connection, job: Job) -> list[str]:
        if job.filter is None:
            records = await connection.fetch(self._sql, job.query, job.tenant, job.limit)
        else:
            filter = json.dumps(job.filter)
            records = await connection.fetch(
                self._sql_filtered, job.query, job.tenant, job.limit, filter
            )
        return [record["id"] for record in records]

    async def scan(self, tenant: str) -> int:
        count = 0
        async with self._connections[0].transaction():
            async for _ in self._connections[0].cursor(_SCAN, tenant, prefetch=_PAGE):
                count += 1
        return count

    async def set_ef_search(self, ef_search: int) -> None:
        await self._connections[0].execute(
            "SELECT set_config('hnsw.ef_search', $1, false)", str(ef_search)
        )

    async def clients(self, jobs: Sequence[Job], count: int) -> None:
        """Run the searches with one connection for each client.

        A pool would reset the connection after every search.
        """
        while len(self._connections) < count:
            self._connections.append(await self._connect())
        await run_clients(jobs, self._connections[:count], self._search)

    async def _connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(self._dsn)
        await pgvector.asyncpg.register_vector(connection)
        return connection


def _records(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [
        (
            row.tenant,
            row.id,
            row.document_id,
            row.content,
            row.position,
            json.dumps(row.metadata),
            "",
            row.vector,
            "model",
        )
        for row in rows
    ]
