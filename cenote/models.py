"""Records that stores accept and return: frozen dataclasses that need no database session."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from cenote.types import IndexKind, Metadata, Vector

__all__ = [
    "Chunk",
    "EmbeddedChunk",
    "NamespaceRecall",
    "RecallPoint",
    "RecallReport",
    "RetrievalResult",
    "SyncResult",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A piece of a document.

    The ``repr`` omits content and metadata, so that a chunk in a log reveals no secrets.

    Attributes:
        id: Identifier, unique within its namespace; at most 1,024 bytes of UTF-8.
        document_id: Identifier of the document that contains the chunk; at most 1,024 bytes of
            UTF-8.
        content: Text of the chunk.
        position: Position within the document: any 64-bit integer, by convention counted from 0.
        metadata: A JSON object. :class:`cenote.stores.VectorStore` specifies which values survive
            a round trip.
        content_hash: Text that identifies the content; defaults to its SHA-256 in lower-case hex.
    """

    id: str
    document_id: str
    content: str = field(repr=False)
    position: int = 0
    metadata: Metadata = field(default_factory=dict, repr=False, hash=False)
    content_hash: str = ""

    def __post_init__(self) -> None:
        hash_given = not isinstance(self.content_hash, str) or self.content_hash != ""
        if isinstance(self.content, str) and not hash_given:
            # "surrogatepass", because the store rejects invalid Unicode with an error that names
            # the field and the chunk.
            digest = hashlib.sha256(self.content.encode("utf-8", "surrogatepass")).hexdigest()
            object.__setattr__(self, "content_hash", digest)

    @staticmethod
    def make_id(document_id: str, position: int) -> str:
        """Return the conventional id of a chunk: ``"<document_id>:<position>"``.

        The same pair always gets the same id, and different pairs get different ids.
        """
        return f"{document_id}:{position}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmbeddedChunk:
    """A chunk with its embedding.

    Attributes:
        chunk: The chunk.
        embedding: A list, tuple or numpy array of shape (dimensions,). It does not have to be
            normalised.
        embedding_model: Name of the model that computed the embedding.
        columns: Values for user columns, by attribute name, in a store with a user model
            (``PgVectorStore(engine, model=...)``, ``InMemoryVectorStore(model=...)``); see
            `PgVectorStore.upsert`. `InMemoryVectorStore` without a model accepts any name.
    """

    chunk: Chunk
    embedding: Vector = field(repr=False)
    embedding_model: str
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

    @property
    def dimensions(self) -> int:
        """Number of dimensions of the embedding."""
        return len(self.embedding)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmbeddedChunk):
            return NotImplemented
        return (
            self.chunk == other.chunk
            and self.embedding_model == other.embedding_model
            and self.columns == other.columns
            and np.array_equal(np.asarray(self.embedding), np.asarray(other.embedding))
        )

    def __hash__(self) -> int:
        return hash((self.chunk, self.embedding_model))


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalResult:
    """A chunk found by a search, with its score.

    Attributes:
        chunk: The chunk.
        score: Relevance; higher is better. The scale depends on `retriever`: the score of the
            store's metric (see `VectorStore`) for ``"vector"``; a text rank greater than 0 for
            ``"text"`` and ``"bm25"``; the fused score of both rankings for ``"hybrid"``.
        retriever: Kind of search that found the chunk: ``"vector"``, ``"text"`` or ``"hybrid"`` for
            the searches of a store, or the name that a retriever sets.
    """

    chunk: Chunk
    score: float
    retriever: str = "vector"


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncResult:
    """Numbers of chunks that synchronising a document wrote, removed and left alone.

    Attributes:
        written: Number of chunks that were new or changed.
        removed: Number of stored chunks that were deleted.
        unchanged: Number of chunks that were already stored with the same values.
    """

    written: int
    removed: int
    unchanged: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallPoint:
    """Recall and speed of ANN searches with one value of ``ef_search``, or of `rerank`.

    Attributes:
        ef_search: The value with which the searches ran.
        recall: Share of the exact results that the ANN searches found, 0 to 1: the mean over all
            queries. A result that is exactly as near as the last exact one counts as found.
        p50_ms: Median duration of a search, in milliseconds.
        rerank: Number of candidates that an index of kind ``"bit"`` found, and that were compared
            again with their stored vectors; None for other kinds.
    """

    ef_search: int
    recall: float
    p50_ms: float
    rerank: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamespaceRecall:
    """Recall and speed of searches in one namespace.

    Attributes:
        namespace: Tenant that was searched.
        rows: Number of its chunks.
        queries: Number of query vectors.
        exact_p50_ms: Median duration of an exact search, in milliseconds.
        points: One measurement for each measured value, in ascending order.
    """

    namespace: str
    rows: int
    queries: int
    exact_p50_ms: float
    points: tuple[RecallPoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallReport:
    """Recall and speed of the ANN index at several values of ``ef_search``, or of `rerank`.

    `PgVectorStore.measure_recall` creates it.

    Attributes:
        table: Name of the chunk table, with its schema if the store has one.
        kind: Kind of the measured index.
        limit: Number of results of each search.
        sampled: True if the query vectors were stored rows, False if they were the caller's. Each
            sampled row is left out of its own results.
        namespaces: Measured namespaces, the largest first.
        exact: Names of namespaces that were not measured, because a search compares all of their
            chunks exactly.
        left_out: Names of namespaces that were not measured, because larger ones were.
        exact_p50_ms: Median duration of an exact search over all measured namespaces, in
            milliseconds; None if none was measured.
        points: One measurement over all queries for each measured value, in ascending order; empty
            if no namespace was measured.
    """

    table: str
    kind: IndexKind
    limit: int
    sampled: bool
    namespaces: tuple[NamespaceRecall, ...]
    exact: tuple[str, ...]
    left_out: tuple[str, ...]
    exact_p50_ms: float | None
    points: tuple[RecallPoint, ...]

    @property
    def setting(self) -> Literal["ef_search", "rerank"]:
        """Name of the setting whose values were measured: for kind ``"bit"``, it is `rerank`."""
        return "rerank" if self.kind == "bit" else "ef_search"

    def value(self, point: RecallPoint) -> int:
        """Return the measured value of a point: its ``ef_search``, or its `rerank`."""
        value: int = getattr(point, self.setting)
        return value

    def worst(self) -> tuple[RecallPoint, ...]:
        """Return the lowest recall of any namespace for each measured value, in ascending order."""
        by_value = zip(*(measured.points for measured in self.namespaces), strict=True)
        return tuple(min(points, key=lambda point: point.recall) for points in by_value)

    def smallest(self, target: float) -> RecallPoint | None:
        """Return the worst namespace's measurement at the smallest value that is enough.

        Args:
            target: Recall that every measured namespace must reach.

        Returns:
            None if no measured value reaches the target.
        """
        return next((point for point in self.worst() if point.recall >= target), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict, for JSON."""
        return asdict(self)
