"""What crosses cenote's API: plain frozen records that need no database session."""

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
    """A piece of a document, as the caller cut it.

    Attributes:
        id: unique within its namespace; at most 1,024 bytes of UTF-8.
        document_id: the document it was cut from; at most 1,024 bytes of UTF-8.
        content: the text.
        position: its place in the document; any 64-bit integer, counted from 0 by custom.
        metadata: a JSON object (see :class:`cenote.stores.VectorStore` for what survives).
        content_hash: what tells one content from another; the SHA-256 of the content in
            lower-case hex unless given.

    The ``repr`` leaves content and metadata out, so that a chunk in a log tells nobody's secrets.
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
            # "surrogatepass": text that is no valid Unicode is the store's to refuse, by name.
            digest = hashlib.sha256(self.content.encode("utf-8", "surrogatepass")).hexdigest()
            object.__setattr__(self, "content_hash", digest)

    @staticmethod
    def make_id(document_id: str, position: int) -> str:
        """The customary id of a document's chunk: ``"<document_id>:<position>"``.

        Different pairs give different ids, and the same pair always the same one.
        """
        return f"{document_id}:{position}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmbeddedChunk:
    """A chunk with its embedding.

    Attributes:
        chunk: the chunk.
        embedding: shape (dimensions,); a list, a tuple or a numpy array. Need not be normalised.
        embedding_model: the name of the model that made the embedding.
        columns: values for columns of your own, by attribute name, in a store for your model
            (``PgVectorStore(engine, model=...)``); see `PgVectorStore.upsert`.
            `InMemoryVectorStore`, which has no table, takes any for its filters.
    """

    chunk: Chunk
    embedding: Vector = field(repr=False)
    embedding_model: str
    columns: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)

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
    """A chunk that a search found.

    Attributes:
        chunk: the chunk.
        score: what it is worth, the higher the better, by the measure of what found it: of
            ``"vector"`` the cosine similarity to the query, -1 to 1; of ``"text"`` and ``"bm25"``
            how well its words answer, more than 0; of ``"hybrid"`` the fusion of both.
        retriever: what found it: ``"vector"``, ``"text"`` or ``"hybrid"`` for a store's search, or
            what a retriever says.
    """

    chunk: Chunk
    score: float
    retriever: str = "vector"


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncResult:
    """What became of a document's chunks.

    Attributes:
        written: how many were new or changed.
        removed: how many were stored and are no more.
        unchanged: how many were stored exactly so.
    """

    written: int
    removed: int
    unchanged: int
