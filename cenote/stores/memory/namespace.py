"""The chunks of one namespace in memory."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cenote.filters.checks import predicates
from cenote.filters.compiler import holds
from cenote.filters.language import Filter, Leaf
from cenote.filters.operands import json_token
from cenote.filters.predicates import Match
from cenote.models import Chunk, RetrievalResult
from cenote.postgres.full_text import LANGUAGE_KEY, SEARCHED_CHARACTERS
from cenote.ranking.bm25 import WordIndex, stems
from cenote.ranking.fusion import at_least
from cenote.stores.memory.lists import with_lists
from cenote.stores.memory.metadata_index import Mask, Posting, PostingIndex
from cenote.stores.memory.readers import Readers
from cenote.stores.memory.user_values import Values, WrittenValues
from cenote.types import Float32Array, Metric
from cenote.validation.batches import Batch
from cenote.validation.json import json_text


@dataclass(slots=True)
class _Row:
    """A stored chunk.

    The metadata is stored as JSON text, so that every result is a fresh copy. `chunk.metadata` is
    the caller's dict. It is never read, because the caller may change it.

    Attributes:
        postings: Entries of the row in the metadata index.
        words: Words of the content, which BM25 counts; None if they were not computed yet.
    """

    chunk: Chunk
    metadata_text: str
    embedding_model: str
    created_at: datetime
    columns: Mapping[str, Any]
    postings: frozenset[Posting] = frozenset()
    words: Sequence[str] | None = None

    def same_words(self, other: _Row) -> bool:
        """Return whether both rows have the same words: equal contents in the same language."""
        language, other_language = (row.metadata.get(LANGUAGE_KEY) for row in (self, other))
        return self.chunk.content == other.chunk.content and language == other_language

    def same(self, other: _Row) -> bool:
        """Return whether both rows are equal except for their embeddings."""
        values, other_values = (
            (
                replace(row.chunk, metadata={}),
                row.embedding_model,
                row.columns,
                json_token(row.metadata),
            )
            for row in (self, other)
        )
        return bool(values == other_values)

    @property
    def characters(self) -> int:
        """Number of characters of the content and the metadata."""
        return len(self.chunk.content) + len(self.metadata_text)

    def copy(self) -> Chunk:
        """Return the chunk with a fresh copy of its metadata."""
        return replace(self.chunk, metadata=self.metadata)

    @property
    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = json.loads(self.metadata_text)
        return metadata

    @property
    def fields(self) -> Mapping[str, Any]:
        """Values of the columns by name, for filters."""
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


class _ParsedRow:
    """A row for several predicates, whose metadata is parsed once and not once per predicate."""

    __slots__ = ("_metadata", "_row")

    def __init__(self, row: _Row) -> None:
        self._row = row
        self._metadata: Mapping[str, Any] | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        if self._metadata is None:
            self._metadata = self._row.metadata
        return self._metadata

    @property
    def fields(self) -> Mapping[str, Any]:
        return self._row.fields


_SECONDS_PER_ELEMENT = 1e-9
_SECONDS_PER_RESULT = 1e-5
_SECONDS_PER_COMPARISON = 2e-6
_SECONDS_PER_CHARACTER = 1e-8
_SECONDS_PER_WORD_CHARACTER = 1e-6
"""Durations of a matrix product per element, of a result, of a predicate on a row, of a predicate
on the characters of contents and metadata, and of indexing words. They are measured with 20,000
rows on one core, and rounded up."""


class Namespace:
    """The chunks of one namespace, with a matrix that holds one vector per chunk.

    With the metric cosine, the vectors have length 1.

    Each chunk has a number: its place in the list of rows and in the matrix. Numbers of deleted
    chunks are reused.

    A thread may call the methods that read; see `Readers`. The caches that they fill may then be
    filled twice, with the same values.
    """

    def __init__(self, dimensions: int, metric: Metric) -> None:
        self._metric: Metric = metric
        self.readers = Readers()
        self._characters = 0
        self._matrix: Float32Array = np.zeros((16, dimensions), dtype=np.float32)
        self._norms: NDArray[np.float64] = np.zeros(16)
        self._present: Mask = np.zeros(16, dtype=np.bool_)
        self._searchable: Mask = np.zeros(16, dtype=np.bool_)
        self._rows: list[_Row | None] = []
        self._numbers: dict[str, int] = {}  # by chunk id
        self._free: list[int] = []
        self._index = PostingIndex()
        # caches, which changes of the chunks set to None
        self._sorted_ids: list[str] | None = None
        self._cached_word_index: WordIndex | None = None

    def __bool__(self) -> bool:
        return bool(self._numbers)

    # -- writing

    def upsert(self, batch: Batch, values: WrittenValues) -> int:
        """Write a batch and return how many chunks are new or differ from the stored ones.

        Args:
            batch: The chunks.
            values: Values of their user columns.
        """
        self._reserve(sum(chunk.id not in self._numbers for chunk in batch.chunks))
        numbers = [self._number(chunk.id) for chunk in batch.chunks]
        vectors, norms = _scaled(batch.embeddings, self._metric)
        same_vectors = (self._matrix[numbers] == vectors).all(axis=1)
        same_vectors &= self._norms[numbers] == norms
        self._matrix[numbers] = vectors
        self._norms[numbers] = norms
        self._searchable[numbers] = norms > 0
        now = datetime.now(UTC)
        written = 0
        for number, same_vector, chunk, metadata, text, model, given, defaults in zip(
            numbers,
            same_vectors,
            batch.chunks,
            batch.metadata,
            batch.metadata_texts,
            batch.models,
            values.given,
            values.defaults,
            strict=True,
        ):
            columns = {**defaults, **given} if self._rows[number] is None else given
            row = _Row(chunk, text, model, now, columns)
            written += self._put(
                number, row, metadata, values.on_update, same_vector=bool(same_vector)
            )
        self._present[numbers] = True
        return written

    def _put(
        self,
        number: int,
        row: _Row,
        metadata: dict[str, Any],
        on_update: Values,
        *,
        same_vector: bool,
    ) -> bool:
        """Store a row under its number and return whether it differs from the old row.

        Args:
            number: Number of the row.
            row: The row.
            metadata: Its metadata.
            on_update: Values of user columns for a row that differs from the old row.
            same_vector: True if the old row has the same embedding.
        """
        old = self._rows[number]
        if old is not None:
            row.created_at = old.created_at
            row.columns = {**old.columns, **row.columns}
            if same_vector and row.same(old):
                return False
            row.columns = {**row.columns, **on_update}
            row.words = old.words if row.same_words(old) else None
            self._index.remove(number, old.postings)
            self._characters -= old.characters
        self._characters += row.characters
        if row.words is None:  # the chunk is new, or its words have changed
            self._cached_word_index = None
        row.postings = self._index.add(number, metadata)
        self._rows[number] = row
        return True

    def update_without_embeddings(self, batch: Batch, on_update: Values) -> int:
        """Update stored chunks, keep their embeddings, and return the number of changed chunks.

        Args:
            batch: The chunks.
            on_update: Values of user columns for chunks that change.
        """
        written = 0
        for chunk, metadata, text in zip(
            batch.chunks, batch.metadata, batch.metadata_texts, strict=True
        ):
            number = self._numbers[chunk.id]
            row = _Row(chunk, text, self._row(number).embedding_model, datetime.now(UTC), {})
            written += self._put(number, row, metadata, on_update, same_vector=True)
        return written

    def update_metadata(
        self, new: Mapping[str, tuple[dict[str, Any], str]], on_update: Values, *, merge: bool
    ) -> int:
        """Change the metadata of stored chunks and return the number of changed chunks.

        Args:
            new: Metadata and its JSON text, by chunk id.
            on_update: Values of user columns for chunks that change.
            merge: Keep the keys that are not given.
        """
        changed = 0
        for chunk_id, (metadata, _) in new.items():
            if (number := self._numbers.get(chunk_id)) is not None:
                row = self._row(number)
                if merge:
                    metadata = {**row.metadata, **metadata}
                row = replace(row, metadata_text=json_text(metadata))
                changed += self._put(number, row, metadata, on_update, same_vector=True)
        return changed

    def delete(self, ids: list[str]) -> None:
        """Delete chunks by id. Unknown ids are ignored."""
        for chunk_id in ids:
            number = self._numbers.pop(chunk_id, None)
            if number is not None:
                row = self._row(number)
                self._index.remove(number, row.postings)
                self._characters -= row.characters
                self._rows[number] = None
                self._present[number] = False
                self._searchable[number] = False
                self._free.append(number)
                self._sorted_ids = None
                self._cached_word_index = None

    def _number(self, chunk_id: str) -> int:
        """Return the number of a chunk; assign a number to a new chunk."""
        number = self._numbers.get(chunk_id)
        if number is None:
            if self._free:
                number = self._free.pop()
            else:
                number = len(self._rows)
                self._rows.append(None)
            self._numbers[chunk_id] = number
            self._sorted_ids = None
        return number

    def _reserve(self, new: int) -> None:
        """Make room for new chunks. The capacity at least doubles, so that growth is cheap."""
        needed = len(self._rows) + new - len(self._free)
        capacity = len(self._matrix)
        if needed > capacity:
            more = max(needed, 2 * capacity) - capacity
            dimensions = self._matrix.shape[1]
            self._matrix = np.concatenate(
                [self._matrix, np.zeros((more, dimensions), dtype=np.float32)]
            )
            self._norms = np.concatenate([self._norms, np.zeros(more)])
            unused = np.zeros(more, dtype=np.bool_)
            self._present = np.concatenate([self._present, unused])
            self._searchable = np.concatenate([self._searchable, unused])

    # -- durations of reads, in seconds

    def search_seconds(self, limit: int, filter: Filter | None) -> float:
        """Estimate how long :meth:`search` takes."""
        product: float = self._matrix.shape[1] * len(self._rows) * _SECONDS_PER_ELEMENT
        return product + self.read_seconds(limit, filter)

    def text_search_seconds(self, limit: int, filter: Filter | None) -> float:
        """Estimate how long :meth:`search_text` takes."""
        seconds = self.read_seconds(limit, filter) + len(self._rows) * _SECONDS_PER_COMPARISON
        if self._cached_word_index is None:
            seconds += self._characters * _SECONDS_PER_WORD_CHARACTER
        return seconds

    def read_seconds(self, limit: int, filter: Filter | None = None) -> float:
        """Estimate how long it takes to find matching chunks, and to copy up to `limit` of them."""
        rows = len(self._rows)
        results = min(limit, rows)
        share = results / rows if rows else 0.0
        seconds = results * _SECONDS_PER_RESULT + share * self._characters * _SECONDS_PER_CHARACTER
        if filter is None or (isinstance(filter, Leaf) and isinstance(filter.predicate, Match)):
            return seconds
        comparisons = sum(1 for _ in predicates(filter))
        per_predicate = rows * _SECONDS_PER_COMPARISON + self._characters * _SECONDS_PER_CHARACTER
        return seconds + comparisons * per_predicate

    # -- reading

    def search_many(
        self,
        queries: Float32Array,
        limit: int,
        filter: Filter | None,
        min_score: float | None,
        stop: Event,
    ) -> list[list[RetrievalResult]]:
        """Search for each of several vectors, until `stop` is set."""
        results: list[list[RetrievalResult]] = []
        for query in queries:
            if stop.is_set():
                break
            can_match = stored_can_match(self._metric, query)
            found = self.search(query, limit, filter, None) if can_match else []
            results.append(at_least(min_score, found))
        return results

    def search(
        self,
        query: Float32Array,
        limit: int,
        filter: Filter | None,
        per_document: int | None,
    ) -> list[RetrievalResult]:
        """Return the chunks nearest to a query vector, exactly."""
        vector = _scaled(query[np.newaxis], self._metric)[0][0]
        numbers, scores = self._scored(vector, filter)
        depth = limit if per_document is None else len(numbers)
        slack = self._slack(vector)
        candidates = numbers[_candidates(scores, depth, slack)]
        exact = _exact_scores(self._matrix[candidates], vector, self._metric)
        ranking = [
            (float(score), self._row(number))
            for score, number in zip(exact, candidates, strict=True)
        ]
        ranking.sort(key=lambda item: (-item[0], item[1].chunk.id))
        if per_document is not None:
            ranking = _limit_per_document(ranking, per_document)
        return [RetrievalResult(chunk=row.copy(), score=score) for score, row in ranking[:limit]]

    def search_text(
        self, text: str, limit: int, filter: Filter | None, languages: tuple[str, ...]
    ) -> list[RetrievalResult]:
        """Return the chunks that contain any word of a text, ranked by BM25."""
        words = {word: None for language in languages for word in stems(language)(text)}
        ranking = self._word_index(languages).ranked([*words])
        if filter is not None:
            numbers = set(self._find(filter).tolist())
            ranking = [
                (chunk_id, score)
                for chunk_id, score in ranking
                if self._numbers[chunk_id] in numbers
            ]
        return [
            RetrievalResult(chunk=self._stored(chunk_id).copy(), score=score, retriever="text")
            for chunk_id, score in ranking[:limit]
        ]

    def _word_index(self, languages: tuple[str, ...]) -> WordIndex:
        if self._cached_word_index is None:
            ids = [*self._ids_after(None)]
            tokens = []
            for row in map(self._stored, ids):
                if row.words is None:
                    row.words = _words_of(row, languages)
                tokens.append([*row.words])
            self._cached_word_index = WordIndex.of(ids, tokens)
        return self._cached_word_index

    def page(self, after: str | None, filter: Filter | None, limit: int) -> list[Chunk]:
        """Return the first chunks by id that match a filter and come after an id."""
        page: list[Chunk] = []
        filter = None if filter is None else with_lists(filter)
        for chunk_id in self._ids_after(after):
            row = self._stored(chunk_id)
            if filter is None or holds(filter, _ParsedRow(row)):
                page.append(row.copy())
                if len(page) == limit:
                    break
        return page

    def embeddings(self, ids: Iterable[str]) -> dict[str, Float32Array]:
        """Return the embeddings of the chunks that exist, by id."""
        numbers = {
            chunk_id: self._numbers[chunk_id] for chunk_id in ids if chunk_id in self._numbers
        }
        return {
            chunk_id: (self._matrix[number] * self._norms[number]).astype(np.float32)
            for chunk_id, number in numbers.items()
        }

    def get(self, ids: Iterable[str]) -> list[Chunk]:
        """Return the chunks that exist, in the order of `ids`."""
        return [self._stored(chunk_id).copy() for chunk_id in ids if chunk_id in self._numbers]

    def count(self, filter: Filter | None) -> int:
        """Return the number of chunks that match a filter."""
        return len(self._numbers) if filter is None else len(self._find(filter))

    def matching(self, filter: Filter | None) -> list[Chunk]:
        """Return the chunks that match a filter, in no particular order."""
        numbers = self._numbers.values() if filter is None else self._find(filter)
        return [self._row(number).copy() for number in numbers]

    def hashes(self) -> dict[str, tuple[str, str]]:
        """Return the content hash and the embedding model of every chunk, by id."""
        rows = {chunk_id: self._row(number) for chunk_id, number in self._numbers.items()}
        return {
            chunk_id: (row.chunk.content_hash, row.embedding_model)
            for chunk_id, row in rows.items()
        }

    def _find(self, filter: Filter) -> NDArray[np.intp]:
        """Return the numbers of the chunks that match a filter."""
        used = len(self._rows)
        return self._index.find(with_lists(filter), self._present[:used], self._rows)

    def _stored(self, chunk_id: str) -> _Row:
        return self._row(self._numbers[chunk_id])

    def _row(self, number: int) -> _Row:
        row = self._rows[number]
        assert row is not None
        return row

    def _ids_after(self, after: str | None) -> Iterator[str]:
        if self._sorted_ids is None:
            self._sorted_ids = sorted(self._numbers)
        start = 0 if after is None else bisect_right(self._sorted_ids, after)
        for position in range(start, len(self._sorted_ids)):
            yield self._sorted_ids[position]

    def _scored(
        self, vector: Float32Array, filter: Filter | None
    ) -> tuple[NDArray[np.intp], Float32Array]:
        """Return the numbers of the chunks that a search may return, and their scores in float32.

        Args:
            vector: Query vector; with cosine, of length 1.
            filter: Filter for the chunks.
        """
        used = len(self._rows)
        searchable = self._searchable[:used]
        if filter is not None:
            numbers = self._find(filter)
            numbers = numbers[searchable[numbers]]
            # To copy a few vectors is cheaper than to compute the product with all vectors.
            if len(numbers) < used // 8:
                return numbers, _scores(self._matrix[numbers], vector, self._metric)
            return numbers, _scores(self._matrix[:used], vector, self._metric)[numbers]
        scores = _scores(self._matrix[:used], vector, self._metric)
        if searchable.all():
            return _range(used), scores
        numbers = np.flatnonzero(searchable)
        return numbers, scores[numbers]

    def _slack(self, vector: Float32Array) -> float:
        """Return how much two scores in float32 may differ from the exact ones, together.

        A sum of n products in float32 differs from the exact sum by at most ``n * 2**-24`` times
        the lengths of both vectors.
        """
        rounding = 2 * len(vector) * 2.0**-24
        if self._metric == "cosine":
            return rounding
        length = float(np.linalg.norm(vector.astype(np.float64)))
        used = self._matrix[: len(self._rows)]
        largest = max(float(used.max(initial=0.0)), -float(used.min(initial=0.0)))
        longest = largest * math.sqrt(len(vector))
        if self._metric == "inner_product":
            return rounding * length * longest
        # A squared difference in float32 may lose up to 2**-150.
        return rounding * (length + longest) + math.sqrt(len(vector)) * 2.0**-75


def stored_can_match(metric: Metric, query: Float32Array) -> bool:
    """Return whether chunks have a score for a query: a zero vector has no direction."""
    return metric != "cosine" or bool(query.any())


def _words_of(row: _Row, languages: tuple[str, ...]) -> Sequence[str]:
    """Return the words of a chunk.

    The language is the one that the chunk's metadata names, if it is one of `languages`; otherwise
    the first of `languages`.
    """
    language = languages[0]
    named = row.metadata.get(LANGUAGE_KEY)
    if len(languages) > 1 and isinstance(named, str) and named.lower() in languages:
        language = named.lower()
    return stems(language)(row.chunk.content[:SEARCHED_CHARACTERS])


def _limit_per_document(
    ranking: list[tuple[float, _Row]], per_document: int
) -> list[tuple[float, _Row]]:
    """Keep only the best `per_document` chunks of each document."""
    counts: Counter[str] = Counter()
    best = []
    for score, row in ranking:
        counts[row.chunk.document_id] += 1
        if counts[row.chunk.document_id] <= per_document:
            best.append((score, row))
    return best


def _scaled(matrix: Float32Array, metric: Metric) -> tuple[Float32Array, NDArray[np.float64]]:
    """Return vectors as the matrix stores them, and the lengths that they were divided by.

    With cosine, the vectors get length 1, and zero vectors stay zero. Otherwise, all stay as they
    are.
    """
    if metric != "cosine":
        return matrix, np.ones(len(matrix))
    norms: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    divisors = np.where(norms > 0, norms, 1.0)[:, np.newaxis]
    units = np.empty_like(matrix)
    np.divide(matrix, divisors, out=units, casting="same_kind")  # computed in float64
    return units, norms


_BLOCK_ROWS = 1024
"""Number of rows whose differences from a query are in memory at a time."""


def _scores(rows: Float32Array, vector: Float32Array, metric: Metric) -> Float32Array:
    """Return the scores of rows for a vector, in float32; with cosine, all have length 1."""
    if metric != "l2":
        products: Float32Array = rows @ vector
        return products
    scores = np.empty(len(rows), dtype=np.float32)
    with np.errstate(over="ignore"):  # far apart, and therefore last
        for start in range(0, len(rows), _BLOCK_ROWS):
            differences = rows[start : start + _BLOCK_ROWS] - vector
            squares = np.einsum("ij,ij->i", differences, differences)
            scores[start : start + _BLOCK_ROWS] = -np.sqrt(squares)
    return scores


def _exact_scores(rows: Float32Array, vector: Float32Array, metric: Metric) -> NDArray[np.float64]:
    """Return the scores of rows for a vector; with cosine, all have length 1 but for rounding.

    A matrix product may give identical rows different scores; a sum per row does not. With cosine,
    the lengths are computed as the products are, so the score of a vector for itself is exactly 1,
    as in pgvector.
    """
    exact, query = rows.astype(np.float64), vector.astype(np.float64)[np.newaxis]
    if metric == "l2":
        distances: NDArray[np.float64] = np.sqrt(((exact - query) ** 2).sum(axis=1))
        return 0.0 - distances
    products: NDArray[np.float64] = (exact * query).sum(axis=1)
    if metric == "inner_product":
        return products
    squared_lengths = (exact * exact).sum(axis=1) * (query * query).sum(axis=1)
    cosines: NDArray[np.float64] = products / np.sqrt(squared_lengths)
    return cosines.clip(-1.0, 1.0)


def _candidates(scores: Float32Array, limit: int, slack: float) -> NDArray[np.intp]:
    """Return the positions of scores that could be among the best `limit` if computed exactly.

    Args:
        scores: Scores in float32.
        limit: Number of best scores.
        slack: How much two scores may differ from the exact ones, together.
    """
    if limit >= len(scores):
        return _range(len(scores))
    worst = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    return np.flatnonzero(scores >= worst - slack)


def _range(count: int) -> NDArray[np.intp]:
    return np.arange(count, dtype=np.intp)
