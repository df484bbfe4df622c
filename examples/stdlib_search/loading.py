"""Bringing the store to what the standard library says now, writing no more than has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text

from cenote import EmbeddedChunk, PgVectorStore

from .corpus import Passage
from .embedding import Embedder

BATCH_SIZE = 250
"""Chunks that are embedded and written at a time: each batch is one transaction."""


@dataclass(slots=True)
class Changes:
    """How a namespace of the store differs from what it should hold."""

    namespace: str
    new: list[Passage] = field(default_factory=list)
    changed: list[Passage] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


async def find_changes(
    store: PgVectorStore, row: Any, namespace: str, passages: list[Passage], embedding_model: str
) -> Changes:
    """Compare a namespace with the passages.

    Args:
        store: what holds the chunks.
        row: the mapped class of the store's table.
        namespace: what to compare.
        passages: what it should hold.
        embedding_model: what its embeddings should be made by; all others count as changed.
    """
    stored = {chunk.id: chunk.content_hash async for chunk in store.get_all_chunks(namespace)}
    for chunk_id in await _embedded_by_others(store, row, namespace, embedding_model):
        stored[chunk_id] = ""
    changes = Changes(namespace)
    for passage in passages:
        content_hash = stored.pop(passage.chunk.id, None)
        if content_hash is None:
            changes.new.append(passage)
        elif content_hash != passage.chunk.content_hash:
            changes.changed.append(passage)
    changes.gone.extend(stored)
    return changes


async def _embedded_by_others(
    store: PgVectorStore, row: Any, namespace: str, embedding_model: str
) -> list[str]:
    query = select(row.id).where(row.namespace == namespace, row.embedding_model != embedding_model)
    async with store.engine.connect() as connection:
        return list(await connection.scalars(query))


async def apply_changes(
    store: PgVectorStore, changes: Changes, embedder: Embedder, advance: Callable[[int], None]
) -> None:
    """Delete what is gone, embed and write what is new or changed.

    An interrupted run loses at most one batch: the next run finds the rest still to do.

    Args:
        store: where to write.
        changes: what to write.
        embedder: what makes the embeddings.
        advance: is told the number of chunks after each batch.
    """
    await store.delete(changes.gone, changes.namespace)
    advance(len(changes.gone))
    passages = changes.new + changes.changed
    for start in range(0, len(passages), BATCH_SIZE):
        batch = passages[start : start + BATCH_SIZE]
        vectors = embedder.embed([passage.text for passage in batch])
        embedded = [
            EmbeddedChunk(chunk=passage.chunk, embedding=vector, embedding_model=embedder.name)
            for passage, vector in zip(batch, vectors, strict=True)
        ]
        await store.upsert(embedded, changes.namespace)
        advance(len(batch))


async def analyze(store: PgVectorStore) -> None:
    """Tell Postgres' planner what the table holds now.

    Autovacuum does it within a minute or so. Until then the planner expects few rows, and may
    compare them all where the ANN index would be faster.
    """
    async with store.engine.begin() as connection:
        await connection.execute(text(f"ANALYZE {store.config.table_name}"))
