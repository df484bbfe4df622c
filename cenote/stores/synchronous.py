"""`VectorStore` without ``await``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Generic, Self

from typing_extensions import TypeVar

from cenote.filters.language import Filter, FilterLike
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult, SyncResult
from cenote.ranking.fusion import DEPTH
from cenote.responsive import drive, drive_iterator
from cenote.stores.protocol import VectorStore
from cenote.types import Float32Array, Metric, Vector

Result = TypeVar("Result")
Store = TypeVar("Store", bound=VectorStore, default=VectorStore, covariant=True)
"""Class of the asynchronous store that a synchronous one drives."""


class SyncVectorStore(ABC, Generic[Store]):
    """Base class of the synchronous stores: the type that services and their tests share.

    It has the methods of `VectorStore`, which specifies them, without ``await``. Each drives the
    coroutine of an asynchronous store to its end in the caller's thread. The subclasses are
    `SyncPgVectorStore` and `SyncInMemoryVectorStore`.
    """

    _store: Store

    def __repr__(self) -> str:
        return "Sync" + repr(self._store)

    def _drive(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return drive(coroutine)

    @property
    def dimensions(self) -> int:
        """The number of dimensions of every vector."""
        return self._store.dimensions

    @property
    def metric(self) -> Metric:
        """The metric that determines the scores; see `VectorStore`."""
        return self._store.metric

    @abstractmethod
    def in_session(self, session: Any) -> Self:
        """See `VectorStore.in_session`."""

    def upsert(self, embedded_chunks: list[EmbeddedChunk], namespace: str) -> None:
        """See `VectorStore.upsert`."""
        self._drive(self._store.upsert(embedded_chunks, namespace))

    def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        per_document: int | None = None,
    ) -> list[RetrievalResult]:
        """See `VectorStore.search`."""
        return self._drive(
            self._store.search(
                query_vector,
                namespace,
                limit,
                filter,
                min_score=min_score,
                per_document=per_document,
            )
        )

    def delete(self, chunk_ids: list[str], namespace: str) -> None:
        """See `VectorStore.delete`."""
        self._drive(self._store.delete(chunk_ids, namespace))

    def delete_namespace(self, namespace: str) -> None:
        """See `VectorStore.delete_namespace`."""
        self._drive(self._store.delete_namespace(namespace))

    def get_all_chunks(self, namespace: str, filter: FilterLike = None) -> Iterator[Chunk]:
        """See `VectorStore.get_all_chunks`."""
        return drive_iterator(self._store.get_all_chunks(namespace, filter))

    def get(self, chunk_ids: Sequence[str], namespace: str) -> list[Chunk]:
        """See `VectorStore.get`."""
        return self._drive(self._store.get(chunk_ids, namespace))

    def get_embeddings(self, chunk_ids: Sequence[str], namespace: str) -> dict[str, Float32Array]:
        """See `VectorStore.get_embeddings`."""
        return self._drive(self._store.get_embeddings(chunk_ids, namespace))

    def list_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Chunk]:
        """See `VectorStore.list_chunks`."""
        return self._drive(self._store.list_chunks(namespace, filter, after=after, limit=limit))

    def count(self, namespace: str, filter: FilterLike = None) -> int:
        """See `VectorStore.count`."""
        return self._drive(self._store.count(namespace, filter))

    def list_namespaces(self) -> dict[str, int]:
        """See `VectorStore.list_namespaces`."""
        return self._drive(self._store.list_namespaces())

    def neighbours(
        self, chunk_id: str, namespace: str, *, before: int = 1, after: int = 1
    ) -> list[Chunk]:
        """See `VectorStore.neighbours`."""
        return self._drive(self._store.neighbours(chunk_id, namespace, before=before, after=after))

    def delete_document(self, document_id: str, namespace: str) -> int:
        """See `VectorStore.delete_document`."""
        return self._drive(self._store.delete_document(document_id, namespace))

    def delete_matching(self, filter: Filter | Mapping[str, Any], namespace: str) -> int:
        """See `VectorStore.delete_matching`."""
        return self._drive(self._store.delete_matching(filter, namespace))

    def update_metadata(
        self, metadata: Mapping[str, dict[str, Any]], namespace: str, *, merge: bool = False
    ) -> int:
        """See `VectorStore.update_metadata`."""
        return self._drive(self._store.update_metadata(metadata, namespace, merge=merge))

    def missing(self, chunks: Sequence[Chunk], namespace: str) -> list[Chunk]:
        """See `VectorStore.missing`."""
        return self._drive(self._store.missing(chunks, namespace))

    def sync_document(
        self, document_id: str, chunks: Sequence[EmbeddedChunk | Chunk], namespace: str
    ) -> SyncResult:
        """See `VectorStore.sync_document`."""
        return self._drive(self._store.sync_document(document_id, chunks, namespace))

    def search_many(
        self,
        query_vectors: Sequence[Vector],
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
    ) -> list[list[RetrievalResult]]:
        """See `VectorStore.search_many`."""
        return self._drive(
            self._store.search_many(query_vectors, namespace, limit, filter, min_score=min_score)
        )

    def search_diverse(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        diversity: float = 0.5,
        candidates: int | None = None,
    ) -> list[RetrievalResult]:
        """See `VectorStore.search_diverse`."""
        return self._drive(
            self._store.search_diverse(
                query_vector, namespace, limit, filter, diversity=diversity, candidates=candidates
            )
        )

    def search_text(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """See `VectorStore.search_text`."""
        return self._drive(self._store.search_text(text, namespace, limit, filter))

    def search_hybrid(
        self,
        text: str,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        vector_weight: float = 1.0,
        text_weight: float = 1.0,
        depth: int = DEPTH,
    ) -> list[RetrievalResult]:
        """See `VectorStore.search_hybrid`."""
        return self._drive(
            self._store.search_hybrid(
                text,
                query_vector,
                namespace,
                limit,
                filter,
                vector_weight=vector_weight,
                text_weight=text_weight,
                depth=depth,
            )
        )

    def search_namespaces(
        self,
        query_vector: Vector,
        namespaces: Sequence[str],
        limit: int = 10,
        filter: FilterLike = None,
        **options: Any,
    ) -> list[tuple[str, RetrievalResult]]:
        """See `VectorStore.search_namespaces`."""
        return self._drive(
            self._store.search_namespaces(query_vector, namespaces, limit, filter, **options)
        )
