"""The store for unit tests and small collections: numpy in the process's own memory."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cenote import validation
from cenote.filters import json_token
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.progress import Report
from cenote.stores import bulk
from cenote.stores.base import VectorStore
from cenote.types import ColumnType, Float32Array, Vector

PAGE_SIZE = 500
"""Chunks that `get_all_chunks` reads at a time."""

_Posting: TypeAlias = tuple[str, Hashable]
"""A metadata key and the token of its value."""


class InMemoryVectorStore(VectorStore):
    """A `VectorStore` that keeps everything in memory and answers as `PgVectorStore` does.

    A search is exact: one matrix product over the namespace, and a partial sort.

    Args:
        dimensions: the length of every vector.
        column_type: ``"halfvec"`` rounds vectors to 16 bits, as a table of that type does.
        embedding_model: refuse chunks that another model embedded.

    Raises:
        ConfigurationError: dimensions is no integer of 1 or more, or there is no such column type.
    """

    def __init__(
        self,
        dimensions: int,
        *,
        column_type: ColumnType = "vector",
        embedding_model: str | None = None,
    ) -> None:
        validation.check_dimensions(dimensions)
        validation.check_column_type(column_type)
        self._dimensions = dimensions
        self._column_type: ColumnType = column_type
        self._embedding_model = embedding_model
        self._namespaces: dict[str, _Namespace] = {}

    def __repr__(self) -> str:
        return f"InMemoryVectorStore(dimensions={self._dimensions})"

    async def apply_migrations(self) -> None:
        """There is no schema; here so that a test can put this store in `PgVectorStore`'s place."""

    async def close(self) -> None:
        """There is nothing to close; here for the same reason."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def upsert(self, embedded_chunks: list[EmbeddedChunk], namespace: str) -> None:
        validation.check_namespace(namespace)
        batch = validation.check_batch(
            embedded_chunks, self._dimensions, self._column_type, self._embedding_model
        )
        if batch.chunks:
            if namespace not in self._namespaces:
                self._namespaces[namespace] = _Namespace(self._dimensions)
            self._namespaces[namespace].upsert(batch)

    async def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: dict[str, Any] | None = None,
        *,
        exact: bool = True,
        ef_search: int | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector; see `VectorStore.search`.

        Args:
            exact, ef_search: taken for the sake of `PgVectorStore`'s arguments; every search here
                is exact.
        """
        validation.check_namespace(namespace)
        validation.check_limit(limit)
        validation.check_ef_search(ef_search)
        query = validation.check_query_vector(query_vector, self._dimensions, self._column_type)
        filter = validation.check_filter(filter)
        stored = self._namespaces.get(namespace)
        if stored is None or not query.any():
            return []
        return stored.search(query, limit, filter)

    async def bulk_load(
        self,
        embedded_chunks: bulk.Stream,
        namespace: str,
        *,
        ann_index: bulk.AnnIndexDuringLoad = "auto",
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> int:
        """Write any number of chunks; see `PgVectorStore.bulk_load`.

        Args:
            embedded_chunks, namespace, progress: the same.
            ann_index, memory, workers: taken for the sake of that method; there is no index here.
        """
        validation.check_namespace(namespace)
        bulk.check_stream(embedded_chunks)
        bulk.check_ann_index(ann_index)
        write = partial(self.upsert, namespace=namespace)
        async with bulk.batches(embedded_chunks) as batches:
            return await bulk.load(write, batches, progress)

    @asynccontextmanager
    async def without_ann_index(
        self,
        *,
        memory: str | None = None,
        workers: int | None = None,
        progress: Report | None = None,
    ) -> AsyncIterator[None]:
        """There is no index; here for the sake of `PgVectorStore.without_ann_index`."""
        yield

    async def delete(self, chunk_ids: list[str], namespace: str) -> None:
        validation.check_namespace(namespace)
        ids = validation.check_ids(chunk_ids)
        if stored := self._namespaces.get(namespace):
            stored.delete(ids)

    async def delete_namespace(self, namespace: str) -> None:
        validation.check_namespace(namespace)
        self._namespaces.pop(namespace, None)

    def get_all_chunks(
        self, namespace: str, filter: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        validation.check_namespace(namespace)
        return self._chunks(namespace, validation.check_filter(filter))

    async def _chunks(self, namespace: str, filter: dict[str, Any]) -> AsyncIterator[Chunk]:
        after: str | None = None
        while stored := self._namespaces.get(namespace):
            page = stored.page(after, filter)
            for chunk in page:
                yield chunk
            if len(page) < PAGE_SIZE:
                return
            after = page[-1].id


@dataclass(slots=True)
class _Row:
    """One stored chunk, its metadata as JSON text: what leaves the store is always a fresh copy.

    The chunk's own metadata are the caller's, who may change them, and are never looked at.
    """

    chunk: Chunk
    metadata: str
    postings: frozenset[_Posting]

    def copy(self) -> Chunk:
        return replace(self.chunk, metadata=json.loads(self.metadata))


class _Namespace:
    """The chunks of one namespace: a matrix of unit vectors with a row for each chunk.

    Rows of deleted chunks are used again. The index of the metadata maps each (key, value) to the
    rows that hold it, so that a filter costs what it matches and not what is stored.
    """

    def __init__(self, dimensions: int) -> None:
        self._matrix: Float32Array = np.zeros((16, dimensions), dtype=np.float32)
        self._searchable: NDArray[np.bool_] = np.zeros(16, dtype=np.bool_)
        self._rows: list[_Row | None] = []
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._index: defaultdict[_Posting, set[int]] = defaultdict(set)
        self._index_arrays: dict[_Posting, NDArray[np.intp]] = {}
        self._sorted_ids: list[str] | None = None

    def __bool__(self) -> bool:
        return bool(self._row_of)

    # -- writing

    def upsert(self, batch: validation.Batch) -> None:
        self._reserve(sum(chunk.id not in self._row_of for chunk in batch.chunks))
        rows = [self._place(chunk.id) for chunk in batch.chunks]
        units, nonzero = _unit_rows(batch.embeddings)
        self._matrix[rows] = units
        self._searchable[rows] = nonzero
        new = map(_Row, batch.chunks, batch.metadata_texts, map(_postings, batch.metadata))
        for number, row in zip(rows, new, strict=True):
            self._unindex(number)
            self._rows[number] = row
            for posting in row.postings:
                self._index[posting].add(number)
                self._index_arrays.pop(posting, None)

    def delete(self, ids: list[str]) -> None:
        for chunk_id in ids:
            number = self._row_of.pop(chunk_id, None)
            if number is not None:
                self._unindex(number)
                self._rows[number] = None
                self._searchable[number] = False
                self._free.append(number)
                self._sorted_ids = None

    def _place(self, chunk_id: str) -> int:
        """The chunk's row, or a free one."""
        number = self._row_of.get(chunk_id)
        if number is None:
            if self._free:
                number = self._free.pop()
            else:
                number = len(self._rows)
                self._rows.append(None)
            self._row_of[chunk_id] = number
            self._sorted_ids = None
        return number

    def _reserve(self, new: int) -> None:
        """Make room for new chunks, and as many again as there are, so that growing stays cheap."""
        needed = len(self._rows) + new - len(self._free)
        have = len(self._matrix)
        if needed > have:
            more = max(needed, 2 * have) - have
            dimensions = self._matrix.shape[1]
            self._matrix = np.concatenate(
                [self._matrix, np.zeros((more, dimensions), dtype=np.float32)]
            )
            self._searchable = np.concatenate([self._searchable, np.zeros(more, dtype=np.bool_)])

    def _unindex(self, number: int) -> None:
        row = self._rows[number]
        for posting in row.postings if row is not None else ():
            self._index_arrays.pop(posting, None)
            rows = self._index[posting]
            rows.discard(number)
            if not rows:
                del self._index[posting]

    # -- reading

    def search(
        self, query: Float32Array, limit: int, filter: dict[str, Any]
    ) -> list[RetrievalResult]:
        unit = _unit_rows(query[np.newaxis])[0][0]
        rows, scores = self._scored(unit, filter)
        candidates = rows[_contenders(scores, limit, len(unit))]
        # A matrix product may score identical rows differently; a sum row by row does not.
        exact = (self._matrix[candidates].astype(np.float64) * unit.astype(np.float64)).sum(axis=1)
        exact = exact.clip(-1.0, 1.0)
        found = [
            (-score, self._row(number)) for score, number in zip(exact, candidates, strict=True)
        ]
        found.sort(key=lambda item: (item[0], item[1].chunk.id))
        return [
            RetrievalResult(chunk=row.copy(), score=float(-negative))
            for negative, row in found[:limit]
        ]

    def page(self, after: str | None, filter: dict[str, Any]) -> list[Chunk]:
        """The next chunks by id."""
        wanted = _postings(filter)
        page: list[Chunk] = []
        for chunk_id in self._ids_after(after):
            row = self._row(self._row_of[chunk_id])
            if wanted <= row.postings:
                page.append(row.copy())
                if len(page) == PAGE_SIZE:
                    break
        return page

    def _row(self, number: int) -> _Row:
        row = self._rows[number]
        assert row is not None
        return row

    def _ids_after(self, after: str | None) -> Iterator[str]:
        if self._sorted_ids is None:
            self._sorted_ids = sorted(self._row_of)
        start = 0 if after is None else bisect_right(self._sorted_ids, after)
        for position in range(start, len(self._sorted_ids)):
            yield self._sorted_ids[position]

    def _scored(
        self, unit: Float32Array, filter: dict[str, Any]
    ) -> tuple[NDArray[np.intp], Float32Array]:
        """The rows that a search may find, and their scores to the precision of float32."""
        used = len(self._rows)
        searchable = self._searchable[:used]
        if filter:
            rows = self._matching(filter)
            rows = rows[searchable[rows]]
            if len(rows) < used // 8:  # gathering the rows costs less than the whole product
                return rows, self._matrix[rows] @ unit
            return rows, (self._matrix[:used] @ unit)[rows]
        scores = self._matrix[:used] @ unit
        if searchable.all():
            return _numbers(used), scores
        rows = np.flatnonzero(searchable)
        return rows, scores[rows]

    def _matching(self, filter: dict[str, Any]) -> NDArray[np.intp]:
        """The rows whose metadata matches."""
        postings = _postings(filter)
        if any(posting not in self._index for posting in postings):
            return np.empty(0, dtype=np.intp)
        arrays = sorted((self._rows_of(posting) for posting in postings), key=len)
        rows = arrays[0]
        for other in arrays[1:]:
            mask = np.zeros(len(self._rows), dtype=np.bool_)
            mask[other] = True
            rows = rows[mask[rows]]
        return rows

    def _rows_of(self, posting: _Posting) -> NDArray[np.intp]:
        if posting not in self._index_arrays:
            rows = self._index[posting]
            self._index_arrays[posting] = np.fromiter(rows, dtype=np.intp, count=len(rows))
        return self._index_arrays[posting]


def _postings(metadata: dict[str, Any]) -> frozenset[_Posting]:
    return frozenset((key, json_token(value)) for key, value in metadata.items())


def _unit_rows(matrix: Float32Array) -> tuple[Float32Array, NDArray[np.bool_]]:
    """The rows at length 1, and which of them have a direction at all."""
    norms = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    nonzero = norms > 0
    norms[~nonzero] = 1.0
    units = np.empty_like(matrix)
    np.divide(matrix, norms[:, np.newaxis], out=units, casting="same_kind")  # in 64 bits inside
    return units, nonzero


def _contenders(scores: Float32Array, limit: int, dimensions: int) -> NDArray[np.intp]:
    """Positions of all scores that may belong to the best `limit`, rounding considered."""
    if limit >= len(scores):
        return _numbers(len(scores))
    worst = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    # Two float32 products of unit vectors are each off by at most dimensions * 2**-24.
    slack = 2 * dimensions * 2.0**-24
    return np.flatnonzero(scores >= worst - slack)


def _numbers(count: int) -> NDArray[np.intp]:
    return np.arange(count, dtype=np.intp)
