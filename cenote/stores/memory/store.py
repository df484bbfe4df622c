"""The in-memory store, for unit tests and small collections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

from cenote.config import check_text_search, languages
from cenote.filters.checks import as_filter, checked_filter, is_long, narrowing_filter
from cenote.filters.language import Filter, FilterLike, field
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult, SyncResult
from cenote.orm.factory import config_from_model
from cenote.orm.mixin import ChunkMixin
from cenote.postgres.full_text import QUERY_CHARACTERS
from cenote.progress import Report
from cenote.ranking.bm25 import stems
from cenote.ranking.fusion import DEPTH, at_least, diverse, fused
from cenote.responsive import stop_at_exit
from cenote.stores import bulk_load
from cenote.stores.memory.namespace import Namespace, stored_can_match
from cenote.stores.memory.user_values import ModelValues, UserValues, WrittenValues
from cenote.stores.protocol import VectorStore
from cenote.telemetry import NamespaceInTelemetry, Telemetry, record, reported
from cenote.types import ColumnType, Float32Array, Metric, Vector
from cenote.validation.arguments import (
    MAX_LIMIT,
    check_boolean,
    check_choice,
    check_chunk_id,
    check_column_type,
    check_dimensions,
    check_diversity,
    check_document_id,
    check_ef_search,
    check_embedding_model,
    check_full_text,
    check_fusion,
    check_ids,
    check_ids_in_order,
    check_limit,
    check_min_score,
    check_namespace,
    check_neighbours,
    check_per_document,
    check_rerank,
    check_text,
)
from cenote.validation.batches import (
    batch_without_embeddings,
    check_batch,
    check_chunks,
    check_document,
    check_metadata_by_id,
    is_embedded,
    reject_unembedded,
)
from cenote.validation.vectors import check_query_vector, check_query_vectors

PAGE_SIZE = 500
"""Number of chunks that `get_all_chunks` reads at a time."""


class InMemoryVectorStore(VectorStore):
    """A `VectorStore` that keeps its chunks in memory and gives the answers of `PgVectorStore`.

    Every search is exact: one matrix product over the namespace, followed by a partial sort. A read
    that is expected to take more than 10 ms runs in a thread. Writes to its namespace wait for it.

    Args:
        dimensions: Number of dimensions of every vector; omit it with `model`.
        model: Your chunk model. The store takes the dimensions, the column type and the languages
            from it, and treats the model's columns as Postgres does: it checks and converts their
            values, sets defaults, and raises an error for a name that the model lacks. It does not
            enforce unique constraints, foreign keys and checks. A filter on a column whose value
            only the database can compute raises an error. Without a model, the store keeps
            `EmbeddedChunk.columns` as they are.
        column_type: ``"halfvec"`` rounds vectors to 16 bits, as a table of that type does.
        metric: ``"cosine"``, ``"inner_product"`` or ``"l2"``; see `VectorStore`.
        embedding_model: Reject chunks with the embedding of another model.
        text_search: One or more languages of the full-text search, as for `PgVectorStore`. Words
            are stemmed by `cenote.retrievers.stems`. Requires the extra ``cenote[bm25]``.
        namespaces_in_telemetry: ``"hashed"`` or ``"plain"``; see `cenote.telemetry`.

    Raises:
        ConfigurationError: `dimensions` is not a positive integer, the column type, the metric or a
            language is unknown, or `model` is not a chunk model, or has other settings.
    """

    def __init__(
        self,
        dimensions: int | None = None,
        *,
        model: type[ChunkMixin] | None = None,
        column_type: ColumnType = "vector",
        metric: Metric = "cosine",
        embedding_model: str | None = None,
        text_search: str | None = None,
        namespaces_in_telemetry: NamespaceInTelemetry = "hashed",
    ) -> None:
        check_text_search(text_search)
        for language in languages(text_search):
            stems(language)
        self._user_values = UserValues()
        if model is not None:
            settings = {
                "dimensions": dimensions,
                "column_type": column_type,
                "metric": metric,
                "text_search": text_search,
            }
            config = config_from_model(model, settings)
            dimensions, column_type = config.dimensions, config.column_type
            metric = config.metric
            text_search = config.text_search
            self._user_values = ModelValues(model)
        check_column_type(column_type)
        check_choice(metric, Metric, setting="metric")
        check_embedding_model(embedding_model)
        self._dimensions = check_dimensions(dimensions)
        self._column_type: ColumnType = column_type
        self._metric: Metric = metric
        self._languages = languages(text_search)
        self._embedding_model = embedding_model
        self._telemetry = Telemetry("memory", namespaces_in_telemetry)
        self._namespaces: dict[str, Namespace] = {}

    def __repr__(self) -> str:
        return f"InMemoryVectorStore(dimensions={self._dimensions})"

    @property
    def dimensions(self) -> int:
        return self._dimensions

    @property
    def metric(self) -> Metric:
        return self._metric

    def in_session(self, session: object) -> Self:
        """Return the store itself: a rollback of the session does not undo its writes."""
        return self

    async def apply_migrations(self) -> None:
        """Do nothing: this store has no schema. Lets tests replace `PgVectorStore` with it."""

    async def close(self) -> None:
        """Do nothing: there is nothing to close. Lets tests replace `PgVectorStore` with it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @reported("upsert")
    async def upsert(self, embedded_chunks: list[EmbeddedChunk], namespace: str) -> None:
        check_namespace(namespace)
        batch = check_batch(
            embedded_chunks,
            self._dimensions,
            self._column_type,
            self._embedding_model,
            self._metric,
        )
        if batch.chunks:
            values = self._user_values.check(batch)
            await self._writable(namespace)
            stored = self._namespaces.setdefault(
                namespace, Namespace(self._dimensions, self._metric)
            )
            stored.upsert(batch, values)
        record(rows=len(batch.chunks))

    @reported("search")
    async def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        per_document: int | None = None,
        exact: bool = True,
        ef_search: int | None = None,
        rerank: int | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector; see `VectorStore.search`.

        Args:
            exact, ef_search, rerank: Accepted for compatibility with `PgVectorStore`; every search
                of this store is exact.
        """
        check_namespace(namespace)
        check_limit(limit)
        check_boolean(exact, field="exact")
        check_ef_search(ef_search)
        check_rerank(rerank)
        query = check_query_vector(query_vector, self._dimensions, self._column_type, self._metric)
        condition = await self._checked_filter(filter)
        check_min_score(min_score, self._metric)
        check_per_document(per_document)
        record(path="exact")
        if not stored_can_match(self._metric, query):
            return []
        stored = self._chunks_in(namespace)
        seconds = stored.search_seconds(limit if per_document is None else MAX_LIMIT, condition)
        return at_least(
            min_score,
            await stored.readers.run(seconds, stored.search, query, limit, condition, per_document),
        )

    @reported("search_many")
    async def search_many(
        self,
        query_vectors: Sequence[Vector],
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        exact: bool = True,
        ef_search: int | None = None,
        rerank: int | None = None,
    ) -> list[list[RetrievalResult]]:
        """Search for several vectors at once; see `VectorStore.search_many`.

        Args:
            exact, ef_search, rerank: As for :meth:`search`.
        """
        check_namespace(namespace)
        check_limit(limit)
        check_boolean(exact, field="exact")
        check_ef_search(ef_search)
        check_rerank(rerank)
        check_min_score(min_score, self._metric)
        queries = await check_query_vectors(
            query_vectors, self._dimensions, self._column_type, self._metric
        )
        condition = await self._checked_filter(filter)
        stored = self._chunks_in(namespace)
        seconds = len(queries) * stored.search_seconds(limit, condition)
        with stop_at_exit() as stop:
            return await stored.readers.run(
                seconds, stored.search_many, queries, limit, condition, min_score, stop
            )

    @reported("search_diverse")
    async def search_diverse(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        diversity: float = 0.5,
        candidates: int | None = None,
    ) -> list[RetrievalResult]:
        candidates = check_diversity(diversity, candidates, limit)
        found = await self.search(query_vector, namespace, candidates, filter)
        stored = self._chunks_in(namespace)
        ids = [result.chunk.id for result in found]
        vectors = await stored.readers.run(stored.read_seconds(len(ids)), stored.embeddings, ids)
        return await diverse(query_vector, found, vectors, limit, diversity, self._metric)

    @reported("search_namespaces")
    async def search_namespaces(
        self,
        query_vector: Vector,
        namespaces: Sequence[str],
        limit: int = 10,
        filter: FilterLike = None,
        **options: Any,
    ) -> list[tuple[str, RetrievalResult]]:
        return await super().search_namespaces(query_vector, namespaces, limit, filter, **options)

    @reported("search_text")
    async def search_text(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find the chunks that contain words of a text, by BM25; see `VectorStore.search_text`.

        The word index of a namespace is rebuilt by the first search after a change.
        """
        condition = await self._check_text_search(text, namespace, limit, filter)
        stored = self._chunks_in(namespace)
        return await stored.readers.run(
            stored.text_search_seconds(limit, condition),
            stored.search_text,
            text[:QUERY_CHARACTERS],
            limit,
            condition,
            self._languages,
        )

    async def _check_text_search(
        self, text: str, namespace: str, limit: int, filter: FilterLike
    ) -> Filter | None:
        """Check the arguments of a full-text search and return its filter."""
        check_full_text(self._languages)
        check_text(text, field="text")
        check_namespace(namespace)
        check_limit(limit)
        return await self._checked_filter(filter)

    @reported("search_hybrid")
    async def search_hybrid(
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
        check_fusion(vector_weight, text_weight, depth)
        query = check_query_vector(query_vector, self._dimensions, self._column_type, self._metric)
        condition = await self._check_text_search(text, namespace, limit, filter)
        depth = max(depth, limit)
        stored = self._chunks_in(namespace)

        def search() -> list[RetrievalResult]:
            nearest = (
                stored.search(query, depth, condition, None)
                if stored_can_match(self._metric, query)
                else []
            )
            question = text[:QUERY_CHARACTERS]
            by_words = stored.search_text(question, depth, condition, self._languages)
            return fused((nearest, by_words), (vector_weight, text_weight), limit)

        seconds = stored.search_seconds(depth, condition)
        seconds += stored.text_search_seconds(depth, condition)
        return await stored.readers.run(seconds, search)

    @reported("bulk_load")
    async def bulk_load(
        self,
        embedded_chunks: bulk_load.Stream,
        namespace: str,
        *,
        ann_index: bulk_load.AnnIndexDuringLoad = "auto",
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """Write any number of chunks; see `PgVectorStore.bulk_load`.

        Args:
            embedded_chunks, namespace, progress: As for `PgVectorStore.bulk_load`.
            ann_index, memory, workers: Accepted for compatibility; this store has no ANN index.
        """
        check_namespace(namespace)
        bulk_load.check_stream(embedded_chunks)
        bulk_load.check_ann_index(ann_index)
        write = partial(self.upsert, namespace=namespace)
        async with bulk_load.batches(embedded_chunks) as batches:
            return await bulk_load.load(write, batches, progress)

    @asynccontextmanager
    async def deferred_ann_index(
        self,
        *,
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> AsyncIterator[None]:
        """Do nothing: this store has no ANN index. See `PgVectorStore.deferred_ann_index`."""
        yield

    @reported("delete")
    async def delete(self, chunk_ids: list[str], namespace: str) -> None:
        check_namespace(namespace)
        ids = check_ids(chunk_ids)
        (await self._writable(namespace)).delete(ids)

    @reported("delete_namespace")
    async def delete_namespace(self, namespace: str) -> None:
        check_namespace(namespace)
        self._namespaces.pop(namespace, None)

    @reported("delete_document")
    async def delete_document(self, document_id: str, namespace: str) -> int:
        check_namespace(namespace)
        check_document_id(document_id)
        document = as_filter(field("document_id") == document_id)
        return await self._delete_matching(document, namespace)

    @reported("delete_matching")
    async def delete_matching(self, filter: Filter | Mapping[str, Any], namespace: str) -> int:
        check_namespace(namespace)
        matching = await self._checked_filter(filter, narrowing_filter)
        return await self._delete_matching(matching, namespace)

    async def _delete_matching(self, filter: Filter | None, namespace: str) -> int:
        stored = await self._writable(namespace)
        ids = [chunk.id for chunk in stored.matching(filter)]
        stored.delete(ids)
        return len(ids)

    @reported("update_metadata")
    async def update_metadata(
        self, metadata: Mapping[str, dict[str, Any]], namespace: str, *, merge: bool = False
    ) -> int:
        check_namespace(namespace)
        check_boolean(merge, field="merge")
        new = check_metadata_by_id(metadata)
        on_update = self._user_values.on_update()
        stored = await self._writable(namespace)
        return stored.update_metadata(new, on_update, merge=merge)

    @reported("sync_document")
    async def sync_document(
        self, document_id: str, chunks: Sequence[EmbeddedChunk | Chunk], namespace: str
    ) -> SyncResult:
        check_namespace(namespace)
        embedded, kept_chunks = check_document(document_id, chunks)
        batch = check_batch(
            embedded, self._dimensions, self._column_type, self._embedding_model, self._metric
        )
        unembedded = batch_without_embeddings(kept_chunks, self._dimensions)
        values = self._user_values.check(batch) if batch.chunks else WrittenValues([], [])
        on_update = self._user_values.on_update()
        await self._writable(namespace)
        stored = self._namespaces.setdefault(namespace, Namespace(self._dimensions, self._metric))
        reject_unembedded(unembedded.chunks, stored.hashes(), self._embedding_model)
        ids = {chunk.id for chunk in (*batch.chunks, *unembedded.chunks)}
        before = stored.matching(as_filter(field("document_id") == document_id))
        obsolete = [chunk.id for chunk in before if chunk.id not in ids]
        stored.delete(obsolete)
        written = stored.update_without_embeddings(unembedded, on_update)
        written += stored.upsert(batch, values)
        return SyncResult(written=written, removed=len(obsolete), unchanged=len(ids) - written)

    @reported("get")
    async def get(self, chunk_ids: Sequence[str], namespace: str) -> list[Chunk]:
        check_namespace(namespace)
        ids = check_ids_in_order(chunk_ids)
        stored = self._chunks_in(namespace)
        return await stored.readers.run(stored.read_seconds(len(ids)), stored.get, ids)

    @reported("get_embeddings")
    async def get_embeddings(
        self, chunk_ids: Sequence[str], namespace: str
    ) -> dict[str, Float32Array]:
        check_namespace(namespace)
        ids = check_ids(chunk_ids)
        stored = self._chunks_in(namespace)
        return await stored.readers.run(stored.read_seconds(len(ids)), stored.embeddings, ids)

    @reported("count")
    async def count(self, namespace: str, filter: FilterLike = None) -> int:
        check_namespace(namespace)
        condition = await self._checked_filter(filter)
        stored = self._chunks_in(namespace)
        return await stored.readers.run(stored.read_seconds(0, condition), stored.count, condition)

    @reported("list_namespaces")
    async def list_namespaces(self) -> dict[str, int]:
        namespaces = sorted(self._namespaces.items())
        return {name: stored.count(None) for name, stored in namespaces if stored}

    @reported("missing")
    async def missing(self, chunks: Sequence[Chunk], namespace: str) -> list[Chunk]:
        check_namespace(namespace)
        checked = check_chunks(chunks)
        hashes = self._chunks_in(namespace).hashes()
        return [chunk for chunk in checked if not is_embedded(chunk, hashes, self._embedding_model)]

    @reported("list_chunks")
    async def list_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Chunk]:
        check_namespace(namespace)
        check_limit(limit)
        condition = await self._checked_filter(filter)
        if after is not None:
            check_text(after, field="after")
        return await self._page(self._chunks_in(namespace), after, condition, limit)

    @reported("neighbours")
    async def neighbours(
        self, chunk_id: str, namespace: str, *, before: int = 1, after: int = 1
    ) -> list[Chunk]:
        check_namespace(namespace)
        check_chunk_id(chunk_id)
        check_neighbours(before, after)
        stored = self._chunks_in(namespace)
        chunks = stored.get([chunk_id])
        if not chunks:
            return []
        same_document = as_filter(field("document_id") == chunks[0].document_id)
        document = await stored.readers.run(
            stored.read_seconds(0, same_document), stored.matching, same_document
        )
        document.sort(key=lambda chunk: (chunk.position, chunk.id))
        place = [chunk.id for chunk in document].index(chunk_id)
        return document[max(place - before, 0) : place + after + 1]

    async def _checked_filter(
        self, given: FilterLike, check: Callable[[Any], Filter | None] = as_filter
    ) -> Filter | None:
        """Check a filter and its user columns; in a thread if its values are long."""

        def resolve(filter: Any) -> Filter | None:
            return self._user_values.resolved(check(filter))

        return await checked_filter(given, resolve)

    def _chunks_in(self, namespace: str) -> Namespace:
        """Return the chunks of a namespace, which may be empty."""
        return self._namespaces.get(namespace) or Namespace(self._dimensions, self._metric)

    async def _writable(self, namespace: str) -> Namespace:
        """Return the chunks of a namespace as soon as no thread reads them.

        The caller must write before it awaits anything else.
        """
        while stored := self._namespaces.get(namespace):
            if not stored.readers.any_running:
                return stored
            await stored.readers.finish()
        return Namespace(self._dimensions, self._metric)

    async def _page(
        self, stored: Namespace, after: str | None, filter: Filter | None, limit: int
    ) -> list[Chunk]:
        seconds = stored.read_seconds(limit, filter)
        return await stored.readers.run(seconds, stored.page, after, filter, limit)

    def get_all_chunks(self, namespace: str, filter: FilterLike = None) -> AsyncIterator[Chunk]:
        check_namespace(namespace)
        is_checked = not is_long(filter)
        given = self._user_values.resolved(as_filter(filter)) if is_checked else filter
        return self._chunks(namespace, given, is_checked=is_checked)

    async def _chunks(
        self, namespace: str, given: FilterLike, *, is_checked: bool
    ) -> AsyncIterator[Chunk]:
        filter = as_filter(given) if is_checked else await self._checked_filter(given)
        after: str | None = None
        while stored := self._namespaces.get(namespace):
            with self._telemetry.operation("get_all_chunks", namespace) as stats:
                page = await self._page(stored, after, filter, PAGE_SIZE)
                stats.rows = len(page)
            for chunk in page:
                yield chunk
            if len(page) < PAGE_SIZE:
                return
            after = page[-1].id
