"""The contract every store obeys. ``cenote.testing`` holds the tests that prove it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.types import Vector


@runtime_checkable
class VectorStore(Protocol):
    """Chunks with their embeddings, kept apart by namespace and searched by cosine similarity.

    **Namespaces.** Every call names one: non-empty text, typically a tenant. A chunk's id is unique
    within its namespace, and no call reads or changes another namespace.

    **Text.** Namespaces, ids and document ids are at most 1,024 bytes of UTF-8, so that an index
    entry can hold them; a content, and metadata as JSON, at most 128 MiB. No text may hold a NUL
    character or a lone surrogate, which Postgres cannot store.

    **Vectors** have the store's number of dimensions and hold finite numbers; they are kept as
    32-bit floats (16-bit in a store for ``halfvec``) and need not be normalised. A vector so small
    or so large that its squared norm leaves the range of a 32-bit float is refused, because its
    similarities would be wrong. A zero vector has no direction: it is stored and iterated, and
    never found; a search for a zero vector finds nothing.

    **Metadata** is a JSON object: ``str`` keys; ``str``, ``int``, ``float``, ``bool``, ``None``,
    ``list`` and ``dict`` values, nested at most 200 deep. It comes back equal, numbers by value, as
    jsonb keeps them: a float of 1e16 or more comes back as the integer its shortest decimal form
    spells (``1e23`` as ``10**23``, which is not the same number as the float), and ``-0.0`` as
    ``0.0``; whether ``1`` rewritten as ``1.0`` comes back as the one or the other is open. Tuples,
    NaN, infinities and anything else that JSON lacks are refused.

    **Filters** are dicts: a chunk matches when its metadata has every key of the filter with a
    JSON-equal value. ``1`` equals ``1.0``; ``True`` does not equal ``1``; ``None`` matches an
    explicit null and not a missing key; lists and objects match whole. ``{}`` and ``None`` filter
    nothing.

    **Writes are whole.** Bad input anywhere in a batch is refused before anything is written,
    with an error that names the chunk; a failure during the write leaves nothing of the batch.

    **Objects are not shared.** Changing a chunk after `upsert`, or a result after `search`, never
    changes the store.

    **Errors** are of cenote's tree (:mod:`cenote.errors`), the driver's error as ``__cause__``;
    an error is never an empty result. Their messages hold no content, metadata or vectors.

    A store may be used by many tasks of one event loop at once.
    """

    async def upsert(self, embedded_chunks: list[EmbeddedChunk], namespace: str) -> None:
        """Write chunks, replacing those whose id the namespace already holds.

        Where one id appears twice in the batch, the last one wins. A chunk that is already stored
        exactly so is not rewritten.

        Args:
            embedded_chunks: the batch, of any length, in any order.
            namespace: where to write.

        Raises:
            DimensionMismatchError: an embedding has another number of dimensions than the store.
            InvalidInputError: a chunk breaks another rule above, or comes from another embedding
                model than the one the store was told to insist on.
            VectorStoreError: the write failed; nothing of the batch is stored.
        """
        ...

    async def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: dict[str, Any] | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector.

        Args:
            query_vector: shape (dimensions,).
            namespace: where to look.
            limit: the most results to return, 1 or more.
            filter: what the chunks' metadata must hold.

        Returns:
            Exactly ``min(limit, matching chunks)`` results (zero vectors do not match), by score
            descending; equal scores by id ascending in code-point order. Scores are cosine
            similarities, -1 to 1, correct to 1e-6; identical vectors score identically.

        Raises:
            DimensionMismatchError: the query has another number of dimensions than the store.
            InvalidInputError: another argument breaks a rule above.
            VectorStoreError: the search failed.
        """
        ...

    async def delete(self, chunk_ids: list[str], namespace: str) -> None:
        """Remove chunks. Ids that the namespace does not hold are passed over.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the deletion failed; nothing was removed.
        """
        ...

    async def delete_namespace(self, namespace: str) -> None:
        """Remove every chunk of a namespace, which may be empty already.

        Raises:
            InvalidInputError: the namespace breaks a rule above.
            VectorStoreError: the deletion failed; nothing was removed.
        """
        ...

    def get_all_chunks(
        self, namespace: str, filter: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        """Iterate over a namespace's chunks, by id ascending in code-point order.

        Memory stays flat however large the namespace is, and nothing (no connection, no
        transaction) is held while the caller works on a chunk. The iteration is no snapshot: a
        chunk that is stored throughout is seen exactly once, one that comes or goes meanwhile may
        be seen or not.

        Args:
            namespace: what to iterate.
            filter: what the chunks' metadata must hold.

        Raises:
            InvalidInputError: at the call itself, when an argument breaks a rule above.
            VectorStoreError: during the iteration, when a read fails.
        """
        ...
