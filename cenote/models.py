"""Records that stores accept and return: frozen dataclasses that need no database session."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cenote.types import Metadata, Vector

__all__ = ["Chunk", "EmbeddedChunk", "RetrievalResult", "SyncResult"]


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
            (``PgVectorStore(engine, model=...)``); see `PgVectorStore.upsert`.
            `InMemoryVectorStore` has no table: it accepts any column for use in filters.
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
        score: Relevance; higher is better. The scale depends on `retriever`: the cosine similarity
            to the query, -1 to 1, for ``"vector"``; a text rank greater than 0 for ``"text"`` and
            ``"bm25"``; the fused score of both rankings for ``"hybrid"``.
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
