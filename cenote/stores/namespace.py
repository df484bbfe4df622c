"""The chunks of one namespace in memory."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cenote import validation
from cenote.bm25 import WordIndex, stems
from cenote.filters import Filter, holds
from cenote.jsonvalues import json_text
from cenote.models import Chunk, RetrievalResult
from cenote.predicates import json_token
from cenote.stores.postings import Mask, Posting, PostingIndex
from cenote.text_search import LANGUAGE_KEY, SEARCHED_CHARACTERS
from cenote.types import Float32Array


@dataclass(slots=True)
class _Row:
    """One stored chunk, its metadata as JSON text: what leaves the store is always a fresh copy.

    The chunk's own metadata are the caller's, who may change them, and are never looked at.
    """

    chunk: Chunk
    metadata_text: str
    embedding_model: str
    created_at: datetime
    columns: Mapping[str, Any]
    postings: frozenset[Posting] = frozenset()
    words: Sequence[str] | None = None

    def same_words(self, other: _Row) -> bool:
        """Whether a search by words cannot tell them apart."""
        said, other_said = self.metadata.get(LANGUAGE_KEY), other.metadata.get(LANGUAGE_KEY)
        return self.chunk.content == other.chunk.content and said == other_said

    def same(self, other: _Row) -> bool:
        """Whether all but the embedding is equal."""
        mine, others = (
            (
                replace(row.chunk, metadata={}),
                row.embedding_model,
                row.columns,
                json_token(row.metadata),
            )
            for row in (self, other)
        )
        return bool(mine == others)

    def copy(self) -> Chunk:
        return replace(self.chunk, metadata=self.metadata)

    @property
    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = json.loads(self.metadata_text)
        return metadata

    @property
    def fields(self) -> Mapping[str, Any]:
        """The columns, for filters."""
        chunk = self.chunk
        return {
            **self.columns,
            "id": chunk.id,
            "document_id": chunk.document_id,
            "content": chunk.content,
            "position": chunk.position,
            "content_hash": chunk.content_hash,
            "embedding_model": self.embedding_model,
            "created_at": self.created_at,
        }


class Namespace:
    """The chunks of one namespace: a matrix of unit vectors with a row for each chunk.

    Rows of deleted chunks are used again.
    """

    def __init__(self, dimensions: int) -> None:
        self._matrix: Float32Array = np.zeros((16, dimensions), dtype=np.float32)
        self._norms: NDArray[np.float64] = np.zeros(16)
        self._present: Mask = np.zeros(16, dtype=np.bool_)
        self._searchable: Mask = np.zeros(16, dtype=np.bool_)
        self._rows: list[_Row | None] = []
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._index = PostingIndex()
        self._sorted_ids: list[str] | None = None
        self._words: WordIndex | None = None

    def __bool__(self) -> bool:
        return bool(self._row_of)

    # -- writing

    def upsert(self, batch: validation.Batch) -> int:
        """Write a batch; returns how many chunks are new or differ from what was stored."""
        self._reserve(sum(chunk.id not in self._row_of for chunk in batch.chunks))
        rows = [self._place(chunk.id) for chunk in batch.chunks]
        units, norms = _unit_rows(batch.embeddings)
        same_vectors = (self._matrix[rows] == units).all(axis=1) & (self._norms[rows] == norms)
        self._matrix[rows] = units
        self._norms[rows] = norms
        self._searchable[rows] = norms > 0
        now = datetime.now(UTC)
        written = 0
        for number, same_vector, chunk, metadata, text, model, columns in zip(
            rows,
            same_vectors,
            batch.chunks,
            batch.metadata,
            batch.metadata_texts,
            batch.models,
            batch.columns,
            strict=True,
        ):
            row = _Row(chunk, text, model, now, dict(columns))
            written += self._put(number, row, metadata, same_vector=bool(same_vector))
        self._present[rows] = True
        return written

    def _put(self, number: int, row: _Row, metadata: dict[str, Any], *, same_vector: bool) -> bool:
        """Put a row in its place; whether it differs from what was there."""
        old = self._rows[number]
        if old is not None:
            row.created_at = old.created_at
            row.columns = {**old.columns, **row.columns}
            if same_vector and row.same(old):
                return False
            row.words = old.words if row.same_words(old) else None
            self._index.remove(number, old.postings)
        if row.words is None:
            self._words = None
        row.postings = self._index.add(number, metadata)
        self._rows[number] = row
        return True

    def keep(self, batch: validation.Batch) -> int:
        """Write all but the embeddings of chunks that are stored; returns how many differ."""
        written = 0
        for chunk, metadata, text in zip(
            batch.chunks, batch.metadata, batch.metadata_texts, strict=True
        ):
            number = self._row_of[chunk.id]
            row = _Row(chunk, text, self._row(number).embedding_model, datetime.now(UTC), {})
            written += self._put(number, row, metadata, same_vector=True)
        return written

    def update_metadata(self, new: Mapping[str, tuple[dict[str, Any], str]], *, merge: bool) -> int:
        """Change rows' metadata; returns how many differ."""
        changed = 0
        for chunk_id, (metadata, _) in new.items():
            if (number := self._row_of.get(chunk_id)) is not None:
                row = self._row(number)
                if merge:
                    metadata = {**row.metadata, **metadata}
                row = replace(row, metadata_text=json_text(metadata))
                changed += self._put(number, row, metadata, same_vector=True)
        return changed

    def delete(self, ids: list[str]) -> None:
        for chunk_id in ids:
            number = self._row_of.pop(chunk_id, None)
            if number is not None:
                self._index.remove(number, self._row(number).postings)
                self._rows[number] = None
                self._present[number] = False
                self._searchable[number] = False
                self._free.append(number)
                self._sorted_ids = None
                self._words = None

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
            self._norms = np.concatenate([self._norms, np.zeros(more)])
            unused = np.zeros(more, dtype=np.bool_)
            self._present = np.concatenate([self._present, unused])
            self._searchable = np.concatenate([self._searchable, unused])

    # -- reading

    def search(
        self,
        query: Float32Array,
        limit: int,
        filter: Filter | None,
        per_document: int | None,
    ) -> list[RetrievalResult]:
        unit = _unit_rows(query[np.newaxis])[0][0]
        rows, scores = self._scored(unit, filter)
        wanted = limit if per_document is None else len(rows)
        candidates = rows[_contenders(scores, wanted, len(unit))]
        # A matrix product may score identical rows differently; a sum row by row does not.
        exact = (self._matrix[candidates].astype(np.float64) * unit.astype(np.float64)).sum(axis=1)
        exact = exact.clip(-1.0, 1.0)
        found = [
            (-score, self._row(number)) for score, number in zip(exact, candidates, strict=True)
        ]
        found.sort(key=lambda item: (item[0], item[1].chunk.id))
        if per_document is not None:
            found = _best_of_documents(found, per_document)
        return [
            RetrievalResult(chunk=row.copy(), score=float(-negative))
            for negative, row in found[:limit]
        ]

    def search_text(
        self, text: str, limit: int, filter: Filter | None, languages: tuple[str, ...]
    ) -> list[RetrievalResult]:
        """The chunks that have one of the words, by BM25."""
        asked = {word: None for one in languages for word in stems(one)(text)}
        ranked = self._word_index(languages).ranked([*asked])
        if filter is not None:
            rows = set(self._find(filter).tolist())
            ranked = [found for found in ranked if self._row_of[found[0]] in rows]
        return [
            RetrievalResult(
                chunk=self._row(self._row_of[one]).copy(), score=score, retriever="text"
            )
            for one, score in ranked[:limit]
        ]

    def _word_index(self, languages: tuple[str, ...]) -> WordIndex:
        if self._words is None:
            ids = [*self._ids_after(None)]
            tokens = []
            for row in (self._row(self._row_of[one]) for one in ids):
                if row.words is None:
                    row.words = _words_of(row, languages)
                tokens.append([*row.words])
            self._words = WordIndex.of(ids, tokens)
        return self._words

    def page(self, after: str | None, filter: Filter | None, limit: int) -> list[Chunk]:
        """The next chunks by id."""
        page: list[Chunk] = []
        for chunk_id in self._ids_after(after):
            row = self._row(self._row_of[chunk_id])
            if holds(filter, row):
                page.append(row.copy())
                if len(page) == limit:
                    break
        return page

    def units(self, ids: Iterable[str]) -> dict[str, Float32Array]:
        """The unit vectors by id."""
        return {one: self._matrix[self._row_of[one]] for one in ids}

    def embeddings(self, ids: Iterable[str]) -> dict[str, Float32Array]:
        """The embeddings of those that are stored, by id."""
        rows = {one: self._row_of[one] for one in ids if one in self._row_of}
        return {
            one: (self._matrix[row] * self._norms[row]).astype(np.float32)
            for one, row in rows.items()
        }

    def get(self, ids: Iterable[str]) -> list[Chunk]:
        return [self._row(self._row_of[one]).copy() for one in ids if one in self._row_of]

    def count(self, filter: Filter | None) -> int:
        return len(self._row_of) if filter is None else len(self._find(filter))

    def matching(self, filter: Filter | None) -> list[Chunk]:
        """The chunks of which a filter holds, in no order."""
        numbers = self._row_of.values() if filter is None else self._find(filter)
        return [self._row(number).copy() for number in numbers]

    def hashes(self) -> dict[str, tuple[str, str]]:
        """Content hash and embedding model by id."""
        rows = {chunk_id: self._row(number) for chunk_id, number in self._row_of.items()}
        return {
            chunk_id: (row.chunk.content_hash, row.embedding_model)
            for chunk_id, row in rows.items()
        }

    def _find(self, filter: Filter) -> NDArray[np.intp]:
        used = len(self._rows)
        return self._index.find(filter, self._present[:used], self._rows)

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
        self, unit: Float32Array, filter: Filter | None
    ) -> tuple[NDArray[np.intp], Float32Array]:
        """The rows that a search may find, and their scores to the precision of float32."""
        used = len(self._rows)
        searchable = self._searchable[:used]
        if filter is not None:
            rows = self._find(filter)
            rows = rows[searchable[rows]]
            if len(rows) < used // 8:  # gathering the rows costs less than the whole product
                return rows, self._matrix[rows] @ unit
            return rows, (self._matrix[:used] @ unit)[rows]
        scores = self._matrix[:used] @ unit
        if searchable.all():
            return _numbers(used), scores
        rows = np.flatnonzero(searchable)
        return rows, scores[rows]


def _words_of(row: _Row, languages: tuple[str, ...]) -> Sequence[str]:
    """The words of a chunk, in the language that its metadata name or the first one."""
    language = languages[0]
    named = row.metadata.get(LANGUAGE_KEY)
    if len(languages) > 1 and isinstance(named, str) and named.lower() in languages:
        language = named.lower()
    return stems(language)(row.chunk.content[:SEARCHED_CHARACTERS])


def _best_of_documents(found: list[tuple[Any, _Row]], most: int) -> list[tuple[Any, _Row]]:
    """Of a ranking, what remains if no document has more than so many places."""
    seen: Counter[str] = Counter()
    kept = []
    for item in found:
        document_id = item[1].chunk.document_id
        seen[document_id] += 1
        if seen[document_id] <= most:
            kept.append(item)
    return kept


def _unit_rows(matrix: Float32Array) -> tuple[Float32Array, NDArray[np.float64]]:
    """The rows at length 1, and the lengths that they had."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    divisors = np.where(norms > 0, norms, 1.0)[:, np.newaxis]
    units = np.empty_like(matrix)
    np.divide(matrix, divisors, out=units, casting="same_kind")  # in 64 bits inside
    return units, norms


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
