"""The contract every store obeys. ``cenote.testing`` holds the tests that prove it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cenote.filters import Filter, FilterLike
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult, SyncResult
from cenote.ranking import DEPTH
from cenote.types import Float32Array, Vector
from cenote.validation import check_limit, check_namespace, listed


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
    nothing. Values may be operators (``{"year": {"$gte": 2020}}``), and expressions say the same
    (``meta("year") >= 2020``), also of columns (``field("document_id")``): see `cenote.filters` for
    the language and `cenote.predicates` for what each test means.

    **Writes are whole.** Bad input anywhere in a batch is refused before anything is written,
    with an error that names the chunk; a failure during the write leaves nothing of the batch.

    **Objects are not shared.** Changing a chunk after `upsert`, or a result after `search`, never
    changes the store.

    **Errors** are of cenote's tree (:mod:`cenote.errors`), the driver's error as ``__cause__``;
    an error is never an empty result. Their messages hold no content, metadata or vectors.

    A store may be used by many tasks of one event loop at once.
    """

    @property
    def dimensions(self) -> int:
        """The length of every vector."""
        ...

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
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        per_document: int | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector.

        Args:
            query_vector: shape (dimensions,).
            namespace: where to look.
            limit: the most results to return, 1 or more.
            filter: what the chunks must match.
            min_score: the least score, -1 to 1; what is below it does not match.
            per_document: the most chunks of one document, 1 or more: its nearest ones match, and
                others do not.

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

    def get_all_chunks(self, namespace: str, filter: FilterLike = None) -> AsyncIterator[Chunk]:
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

    async def get(self, chunk_ids: Sequence[str], namespace: str) -> list[Chunk]:
        """Read chunks by their ids.

        Returns:
            Those that the namespace holds, each once, in the order of `chunk_ids`.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the read failed.
        """
        ...

    async def get_embeddings(
        self, chunk_ids: Sequence[str], namespace: str
    ) -> dict[str, Float32Array]:
        """Read embeddings by the ids of their chunks.

        Returns:
            Those of the chunks that the namespace holds, by id, each of shape (dimensions,): as
            they are stored, correct to 1e-6 of their length.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the read failed.
        """
        ...

    async def list_chunks(
        self,
        namespace: str,
        filter: FilterLike = None,
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> list[Chunk]:
        """Read one page of a namespace's chunks, by id ascending in code-point order.

        Args:
            namespace: where to look.
            filter: what the chunks must match.
            after: the last id of the page before; None for the first page.
            limit: the most chunks to return, 1 or more; fewer come on the last page only.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the read failed.
        """
        ...

    async def count(self, namespace: str, filter: FilterLike = None) -> int:
        """Count a namespace's chunks, or those that match a filter.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the read failed.
        """
        ...

    async def list_namespaces(self) -> dict[str, int]:
        """Count the chunks of every namespace that has any, by name in code-point order.

        The one method that looks at all of them: it is for the operator, not for a tenant. Of a
        table that is distributed over a cluster it asks every node; the others ask one.

        Raises:
            VectorStoreError: the read failed.
        """
        ...

    async def neighbours(
        self, chunk_id: str, namespace: str, *, before: int = 1, after: int = 1
    ) -> list[Chunk]:
        """Read a chunk with those around it in its document, by position and id ascending.

        Args:
            chunk_id: the chunk.
            namespace: where it is.
            before, after: how many chunks of the same document to read on either side, if there
                are so many.

        Returns:
            The chunk among its neighbours; empty if the namespace does not hold it.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the read failed.
        """
        ...

    async def delete_document(self, document_id: str, namespace: str) -> int:
        """Remove a document's chunks; returns how many there were.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the deletion failed; nothing was removed.
        """
        ...

    async def delete_matching(self, filter: Filter | Mapping[str, Any], namespace: str) -> int:
        """Remove the chunks that a filter matches; returns how many there were.

        Raises:
            InvalidInputError: an argument breaks a rule above, or the filter is one that matches
                everything; that is what `delete_namespace` is for.
            VectorStoreError: the deletion failed; nothing was removed.
        """
        ...

    async def update_metadata(
        self, metadata: Mapping[str, dict[str, Any]], namespace: str, *, merge: bool = False
    ) -> int:
        """Change the metadata of stored chunks and nothing else of them.

        Args:
            metadata: the new metadata by chunk id. Ids that the namespace does not hold are passed
                over.
            namespace: where the chunks are.
            merge: keep the keys that the new metadata lack, instead of replacing all of them.

        Returns:
            How many chunks have other metadata now.

        Raises:
            InvalidInputError: an argument breaks a rule above; nothing is changed.
            VectorStoreError: the write failed; nothing is changed.
        """
        ...

    async def missing(self, chunks: Sequence[Chunk], namespace: str) -> list[Chunk]:
        """Which chunks have to be embedded, before that is paid for.

        Args:
            chunks: the chunks as they are to be stored.
            namespace: where.

        Returns:
            Those that are not stored under their id with the same `Chunk.content_hash`, by the
            embedding model that the store insists on, if it does; in their order.

        Raises:
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the read failed.
        """
        ...

    async def sync_document(
        self, document_id: str, chunks: Sequence[EmbeddedChunk | Chunk], namespace: str
    ) -> SyncResult:
        """Make a document's stored chunks these: write what changed, remove what is gone.

        All at once or not at all. Of two at once on one document, the one that is last decides;
        there is never a mixture.

        Args:
            document_id: the document; the chunks' own.
            chunks: all of its chunks, each id once, in any order. Those that :meth:`missing` does
                not name may come as a `Chunk`, and keep the embedding that is stored.
            namespace: where.

        Returns:
            How many chunks were written, removed, and left alone.

        Raises:
            DimensionMismatchError, InvalidInputError: as `upsert` does; or a chunk belongs to
                another document, appears twice, or has no embedding and is not stored with this
                content.
            VectorStoreError: the write failed; nothing is changed.
        """
        ...

    async def search_many(
        self,
        query_vectors: Sequence[Vector],
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
    ) -> list[list[RetrievalResult]]:
        """Search for several vectors at once.

        Args:
            query_vectors: shape (n, dimensions), n of 0 or more.
            namespace, limit, filter, min_score: of each search, as of :meth:`search`.

        Returns:
            What :meth:`search` returns for each vector, in their order.

        Raises:
            DimensionMismatchError, InvalidInputError, VectorStoreError: as :meth:`search`.
        """
        ...

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
        """Find chunks that are near to a vector and unlike one another.

        By maximal marginal relevance among the nearest; see
        `cenote.ranking.maximal_marginal_relevance`.

        Args:
            query_vector, namespace, limit, filter: as of :meth:`search`.
            diversity: 0 (by nearness alone) to 1.
            candidates: how many of the nearest to choose from; four times the limit when None.

        Returns:
            ``min(limit, matching chunks)`` results in the order in which they were chosen, each
            with its score.

        Raises:
            DimensionMismatchError, InvalidInputError, VectorStoreError: as :meth:`search`.
        """
        ...

    async def search_text(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find the chunks that have words of a text, in a store with full text.

        Words are compared by their stems, in the language of the store. Of a content the first
        130,000 characters count, of the text the first 2,000.

        Args:
            text: what is asked, in plain language: a chunk that has any of its words matches.
            namespace, limit, filter: as of :meth:`search`.

        Returns:
            At most `limit` results, by score descending, equal scores by id ascending in
            code-point order; none for a text without words. Scores are more than 0, and of a
            measure of the store's own: they order the answers to one question, and say nothing
            across questions.

        Raises:
            ConfigurationError: the store has no full text.
            InvalidInputError: an argument breaks a rule above.
            VectorStoreError: the search failed.
        """
        ...

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
        """Find the chunks that are best by :meth:`search` and :meth:`search_text` together.

        By reciprocal rank fusion of both; see `cenote.ranking.reciprocal_rank_fusion`.

        Args:
            text, namespace, limit, filter: as of :meth:`search_text`.
            query_vector: as of :meth:`search`; typically the text's embedding.
            vector_weight, text_weight: of the two rankings, each from 1e-9 to 1e9, or 0, which
                leaves the ranking out; not both 0.
            depth: how many results of each to fuse, at least; a limit that is larger counts
                instead.

        Returns:
            At most `limit` results, by score descending, equal scores by id ascending in
            code-point order. The score of a chunk is the sum of ``weight / (60 + place)``.

        Raises:
            ConfigurationError, DimensionMismatchError, InvalidInputError, VectorStoreError: as
                both.
        """
        ...

    async def search_namespaces(
        self,
        query_vector: Vector,
        namespaces: Sequence[str],
        limit: int = 10,
        filter: FilterLike = None,
        **options: Any,
    ) -> list[tuple[str, RetrievalResult]]:
        """Search several namespaces, each of which the caller names.

        A search in each, one after another, and the best of all.

        Args:
            query_vector, limit, filter: as of :meth:`search`.
            namespaces: where to look; each once.
            **options: further arguments of :meth:`search`.

        Returns:
            Namespaces and results, by score descending; equal scores by namespace, then by id.

        Raises:
            DimensionMismatchError, InvalidInputError, VectorStoreError: as :meth:`search`.
        """
        namespaces = listed(
            namespaces, "namespaces must be a list of namespaces", field="namespaces"
        )
        for namespace in namespaces:
            check_namespace(namespace)
        check_limit(limit)
        found = [
            (namespace, result)
            for namespace in dict.fromkeys(namespaces)
            for result in await self.search(query_vector, namespace, limit, filter, **options)
        ]
        found.sort(key=lambda pair: (-pair[1].score, pair[0], pair[1].chunk.id))
        return found[:limit]
