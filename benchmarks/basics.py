"""Upserts beside hand-written asyncpg, and memory search beside the bare numpy product.

python -m benchmarks.basics
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import numpy as np
import pgvector.asyncpg
from sqlalchemy import Index, text
from sqlalchemy.schema import DropIndex

from cenote import Chunk, EmbeddedChunk, InMemoryVectorStore, PgVectorStore
from cenote.embedded import EmbeddedPostgres
from cenote.mapping import chunk_table
from cenote.types import Float32Array

DIMENSIONS = 384

# What a careful user would write by hand, without the comparison that spares unchanged rows.
HAND_WRITTEN = """
INSERT INTO cenote_chunks (namespace, id, document_id, content, position, metadata, content_hash,
                           embedding, embedding_model)
VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9)
ON CONFLICT (namespace, id) DO UPDATE
SET document_id = excluded.document_id, content = excluded.content, position = excluded.position,
    metadata = excluded.metadata, content_hash = excluded.content_hash,
    embedding = excluded.embedding, embedding_model = excluded.embedding_model
"""


def make_chunks(vectors: Float32Array) -> list[EmbeddedChunk]:
    """Chunks of some words and two metadata keys."""
    return [
        EmbeddedChunk(
            chunk=Chunk(
                id=f"{row:06}",
                document_id=f"d{row // 10}",
                content="some words " * 10,
                position=row % 10,
                metadata={"year": 2000 + row % 20, "half": row % 2},
            ),
            embedding=vector,
            embedding_model="model",
        )
        for row, vector in enumerate(vectors)
    ]


async def measure_upsert(dsn: str, count: int, rounds: int) -> None:
    """Rows a second into an empty table without an ANN index; medians of the rounds."""
    vectors = np.random.default_rng(0).standard_normal((count, DIMENSIONS)).astype(np.float32)
    chunks = make_chunks(vectors)
    rates: dict[str, list[float]] = {}
    async with await PgVectorStore.connect(dsn, DIMENSIONS, max_size=1) as store:
        await store.apply_migrations()
        await _drop_ann_index(store)
        plain, binary = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        await pgvector.asyncpg.register_vector(binary)

        async def by_text() -> None:
            async with plain.transaction():
                await plain.executemany(HAND_WRITTEN, _rows(chunks, _text_literal))

        async def by_binary() -> None:
            async with binary.transaction():
                await binary.executemany(HAND_WRITTEN, _rows(chunks, lambda vector: vector))

        async def by_cenote() -> None:
            await store.upsert(chunks, "n")

        for _ in range(rounds):
            for name, write in (
                ("text literals, by hand", by_text),
                ("binary, by hand", by_binary),
                ("cenote", by_cenote),
            ):
                await plain.execute("TRUNCATE cenote_chunks")
                rates.setdefault(name, []).append(count / await _seconds(write))
            rates.setdefault("cenote, unchanged", []).append(count / await _seconds(by_cenote))
        await plain.close()
        await binary.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"upsert of {count:,} x {DIMENSIONS}, no ANN index")
    for name, rate in medians.items():
        by_hand = rate / medians["binary, by hand"]
        print(f"  {name:24} {rate:8,.0f} rows/s  {by_hand:5.2f} x binary by hand")


async def measure_memory(count: int, queries: int) -> None:
    """A search in memory beside the product and partial sort that it cannot do without."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((count, DIMENSIONS)).astype(np.float32)
    store = InMemoryVectorStore(DIMENSIONS)
    await store.upsert(make_chunks(vectors), "n")
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    print(f"memory search over {count:,} x {DIMENSIONS}, limit 10")
    for filter in (None, {"half": 1}, {"year": 2007}):
        bare, ours = [], []
        for query in generator.standard_normal((queries, DIMENSIONS)).astype(np.float32):
            begin = time.perf_counter()
            np.argpartition(units @ query, -10)[-10:]
            middle = time.perf_counter()
            await store.search(query, "n", 10, filter)
            bare.append(middle - begin)
            ours.append(time.perf_counter() - middle)
        ratio = statistics.median(ours) / statistics.median(bare)
        print(f"  filter {filter!s:16} {ratio:5.2f} x the bare product and argpartition")


async def _drop_ann_index(store: PgVectorStore) -> None:
    table = chunk_table(store.config)
    (index,) = [index for index in table.indexes if index.name == f"ix_{table.name}_embedding"]
    assert isinstance(index, Index)
    async with store.engine.begin() as connection:
        await connection.execute(DropIndex(index))
        await connection.execute(text("ANALYZE cenote_chunks"))


def _rows(chunks: list[EmbeddedChunk], encode: Callable[[Any], Any]) -> list[tuple[Any, ...]]:
    return [
        (
            "n",
            item.chunk.id,
            item.chunk.document_id,
            item.chunk.content,
            item.chunk.position,
            json.dumps(item.chunk.metadata),
            item.chunk.content_hash,
            encode(item.embedding),
            item.embedding_model,
        )
        for item in chunks
    ]


def _text_literal(vector: Any) -> str:
    return "[" + ",".join(map(str, vector.tolist())) + "]"


async def _seconds(write: Callable[[], Awaitable[None]]) -> float:
    begin = time.perf_counter()
    await write()
    return time.perf_counter() - begin


if __name__ == "__main__":
    with EmbeddedPostgres() as server:
        asyncio.run(measure_upsert(server.dsn, count=5_000, rounds=5))
    for rows in (10_000, 50_000, 200_000):
        asyncio.run(measure_memory(rows, queries=100))
