"""Helpers for tests of stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from cenote.filters.language import FilterLike
from cenote.models import Chunk, EmbeddedChunk
from cenote.stores.protocol import VectorStore
from cenote.types import Metric, Vector

MakeStore = Callable[..., Awaitable[Any]]
"""Async function ``(dimensions, **options)`` that returns an empty store."""

NAMESPACE = "acme"

SQL_LOOKALIKES = [
    "'; DROP TABLE cenote_chunks; --",
    '"; DELETE FROM cenote_chunks; --',
    "$1",
    ":id",
    "%s %(id)s {id}",
    "\\'; SELECT 1",
]


def embedded(
    chunk_id: str,
    embedding: Vector = (1.0, 0.0, 0.0, 0.0),
    *,
    document_id: str = "doc",
    content: str = "some text",
    position: int = 0,
    metadata: dict[str, Any] | None = None,
    embedding_model: str = "model",
    columns: Mapping[str, Any] | None = None,
) -> EmbeddedChunk:
    """Return an embedded chunk, with defaults for everything but its id."""
    chunk = Chunk(
        id=chunk_id,
        document_id=document_id,
        content=content,
        position=position,
        metadata={} if metadata is None else metadata,
    )
    return EmbeddedChunk(
        chunk=chunk,
        embedding=embedding,
        embedding_model=embedding_model,
        columns={} if columns is None else columns,
    )


async def stored(
    store: VectorStore,
    namespace: str = NAMESPACE,
    filter: FilterLike = None,
    **kwargs: Any,
) -> list[Chunk]:
    """Return the chunks of a namespace that match a filter, by id."""
    return [chunk async for chunk in store.get_all_chunks(namespace, filter, **kwargs)]


async def found(store: VectorStore, *args: Any, **kwargs: Any) -> list[str]:
    """Return the ids of the chunks that a search finds, in order."""
    return [result.chunk.id for result in await store.search(*args, **kwargs)]


def expected_score(metric: Metric, query: Vector, vector: Vector) -> float:
    """Return the score of a vector for a query, computed in 64 bits; see `VectorStore`.

    With cosine, neither vector may be zero.
    """
    q, v = np.asarray(query, dtype=np.float64), np.asarray(vector, dtype=np.float64)
    if metric == "l2":
        return 0.0 - float(np.linalg.norm(q - v))
    product = float(q @ v)
    if metric == "inner_product":
        return product
    return product / float(np.linalg.norm(q) * np.linalg.norm(v))


class Awkward:
    """An object whose conversion to an array raises, like a tensor that requires gradients."""

    def __repr__(self) -> str:
        return "awkward"

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError
