"""Bring the store up to date with the installed standard library, writing only the changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import select, text

from cenote import EmbeddedChunk, PgVectorStore

from .corpus import Passage
from .embedding import Embedder

BATCH_SIZE = 250
"""Number of chunks to embed and write at a time. Each batch is one transaction."""


@dataclass(slots=True)
class Changes:
    """Differences between a namespace of the store and the passages it should hold.

    Attributes:
        namespace: Namespace that was compared.
        new: Passages that are not stored yet.
        changed: Passages that are stored with another content or embedding model.
        removed_ids: Ids of stored chunks that no passage has any more.
    """

    namespace: str
    new: list[Passage] = field(default_factory=list)
    changed: list[Passage] = field(default_factory=list)
    removed_ids: list[str] = field(default_factory=list)


async def find_changes(
    store: PgVectorStore, namespace: str, passages: list[Passage], embedding_model: str
) -> Changes:
    """Compare a namespace with the passages it should hold.

    Args:
        store: Store that holds the chunks.
        namespace: Namespace to compare.
        passages: Passages that the namespace should hold.
        embedding_model: Model of the embeddings. Chunks embedded by any other count as changed.
    """
    stored = {chunk.id: chunk.content_hash async for chunk in store.get_all_chunks(namespace)}
    for chunk_id in await _embedded_by_other_models(store, namespace, embedding_model):
        stored[chunk_id] = ""  # equals no passage's hash
    changes = Changes(namespace)
    for passage in passages:
        content_hash = stored.pop(passage.chunk.id, None)
        if content_hash is None:
            changes.new.append(passage)
        elif content_hash != passage.chunk.content_hash:
            changes.changed.append(passage)
    changes.removed_ids.extend(stored)
    return changes


async def _embedded_by_other_models(
    store: PgVectorStore, namespace: str, embedding_model: str
) -> list[str]:
    row = store.model
    query = select(row.id).where(row.namespace == namespace, row.embedding_model != embedding_model)
    async with store.engine.connect() as connection:
        return list(await connection.scalars(query))


async def apply_changes(
    store: PgVectorStore, changes: Changes, embedder: Embedder, advance: Callable[[int], None]
) -> None:
    """Delete the removed chunks, then embed and write the new and changed passages.

    An interrupted run loses at most one batch; the next run finds and writes what is missing.

    Args:
        store: Store to write to.
        changes: Changes to write.
        embedder: Model that embeds the passages.
        advance: Function to call with the number of chunks after each batch.
    """
    await store.delete(changes.removed_ids, changes.namespace)
    advance(len(changes.removed_ids))
    passages = changes.new + changes.changed
    for start in range(0, len(passages), BATCH_SIZE):
        batch = passages[start : start + BATCH_SIZE]
        vectors = embedder.embed(batch)
        embedded = [
            EmbeddedChunk(chunk=passage.chunk, embedding=vector, embedding_model=embedder.name)
            for passage, vector in zip(batch, vectors, strict=True)
        ]
        await store.upsert(embedded, changes.namespace)
        advance(len(batch))


async def analyze(store: PgVectorStore) -> None:
    """Update the statistics that Postgres' planner keeps about the table.

    Autovacuum would do it within a minute or so. Until then the planner expects few rows, and may
    compare them all although the ANN index would be faster.
    """
    async with store.engine.begin() as connection:
        await connection.execute(text(f"ANALYZE {store.config.table_name}"))
