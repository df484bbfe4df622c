"""`InMemoryVectorStore` for the tests of synchronous applications."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from cenote.filters.language import FilterLike
from cenote.models import Chunk, EmbeddedChunk
from cenote.responsive import drive
from cenote.stores.bulk_load import check_is_synchronous
from cenote.stores.memory.store import InMemoryVectorStore
from cenote.stores.synchronous import SyncVectorStore

Result = TypeVar("Result")


class SyncInMemoryVectorStore(SyncVectorStore[InMemoryVectorStore]):
    """`InMemoryVectorStore` without ``await``, for any number of threads.

    Calls run one after another in their threads.

    Args:
        dimensions: Number of dimensions of every vector; omit it with ``model=``.
        **settings: The other arguments of `InMemoryVectorStore`.

    Raises:
        ConfigurationError: A setting is invalid.
    """

    def __init__(self, dimensions: int | None = None, **settings: Any) -> None:
        self._store = InMemoryVectorStore(dimensions, **settings)
        self._lock = threading.RLock()

    def _drive(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        with self._lock:
            return drive(coroutine)

    def in_session(self, session: object) -> Self:
        """Return the store itself: a rollback of the session does not undo its writes."""
        return self

    def get_all_chunks(self, namespace: str, filter: FilterLike = None) -> Iterator[Chunk]:
        """See `VectorStore.get_all_chunks`."""
        return self._iterate(self._store.get_all_chunks(namespace, filter))

    def _iterate(self, chunks: AsyncIterator[Chunk]) -> Iterator[Chunk]:
        while True:
            try:
                chunk = self._drive(_next(chunks))
            except StopAsyncIteration:
                return
            yield chunk

    def bulk_load(
        self, embedded_chunks: Iterable[EmbeddedChunk], namespace: str, **options: Any
    ) -> int:
        """See `SyncPgVectorStore.bulk_load`. The options for the index have no effect."""
        check_is_synchronous(embedded_chunks)
        return self._drive(self._store.bulk_load(embedded_chunks, namespace, **options))

    @contextmanager
    def deferred_ann_index(self, **options: Any) -> Iterator[None]:
        """Do nothing: there is no index."""
        yield

    def apply_migrations(self) -> None:
        """Do nothing: this store has no schema."""


async def _next(chunks: AsyncIterator[Chunk]) -> Chunk:
    return await anext(chunks)
