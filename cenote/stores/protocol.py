"""The specification of every vector store. The tests in `cenote.testing` prove it for a store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cenote.filters.language import Filter, FilterLike
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult, SyncResult
from cenote.ranking.fusion import DEPTH
from cenote.types import Float32Array, Metric, Vector
from cenote.validation.arguments import as_list, check_limit, check_namespace


@runtime_checkable
class VectorStore(Protocol):
    """A store of chunks and embeddings, separated by namespace, searched by similarity.

    The rules below hold for every method. Each method states what it adds to them.

    **Namespaces.** A namespace is a non-empty string, typically the name of a tenant. The id of a
    chunk is unique within its namespace. A call reads and changes only the namespaces that it
    names.

    **Strings.** Namespaces, chunk ids and document ids have at most 1,024 bytes of UTF-8, because
    an index entry must hold them. The content of a chunk, and its metadata as JSON, have at most
    128 MiB each. A string with a NUL character or a lone surrogate is an error, because Postgres
    cannot store such a string.

    **Vectors** have the store's number of dimensions and finite values. They are stored as 32-bit
    floats (16-bit floats in a store with ``halfvec``) and do not have to be normalised. A vector
    whose squared norm underflows or overflows a 32-bit float is an error, because its similarities
    would be wrong. So is a value outside the range of a 16-bit float in a store with ``halfvec``.

    **Scores.** A store has one metric, which determines the score of a stored vector v for a query
    q. A higher score is nearer, whatever the metric:

    - ``"cosine"``: ``q . v / (|q| |v|)``, the cosine similarity, from -1 to 1. A zero vector has no
      direction, so it has no score: a chunk with a zero vector can be stored and read, but no
      search by vector returns it (:meth:`search_text` can), and a search by a zero vector returns
      nothing. The score of a vector for itself is exactly 1.
    - ``"inner_product"``: ``q . v``, any finite number. It equals the cosine similarity if all
      vectors have length 1. Zero vectors have the score 0.
    - ``"l2"``: ``-|q - v|``, the negative Euclidean distance, 0 or less. The distance is in the
      units of the vectors, so ``min_score=-0.5`` is a radius of 0.5; ``1 / (1 + distance)`` would
      hide it, and round large distances to equal scores. The score of a vector for itself is
      exactly 0.

    Scores are accurate to 1e-6, and with the other metrics than cosine to 1e-6 times the lengths of
    the vectors: their product for the inner product, their sum for the distance. Identical vectors
    have identical scores.

    **Metadata** is a JSON object: keys are ``str``; values are ``str``, ``int``, ``float``,
    ``bool``, ``None``, ``list`` or ``dict``, nested at most 200 levels deep. Tuples, NaN,
    infinities and other values that JSON lacks are an error. Metadata comes back equal, with these
    exceptions for numbers, which jsonb stores in decimal:

    - A float of 1e16 or more comes back as the integer that its shortest decimal form spells:
      ``1e23`` comes back as ``10**23``, although the float ``1e23`` is not exactly that integer.
    - ``-0.0`` comes back as ``0.0``.
    - If ``1`` is overwritten with ``1.0``, or ``1.0`` with ``1``, either number may come back.

    **Filters** are dicts. A chunk matches if its metadata has every key of the filter with a
    JSON-equal value: ``1`` equals ``1.0``; ``True`` does not equal ``1``; ``None`` matches an
    explicit null, but not a missing key; lists and objects compare as a whole. An empty dict, and
    no filter (``None``), match every chunk. A value in a filter can also be an object of operators
    (``{"year": {"$gte": 2020}}``).
    Expressions are an alternative to dicts (``meta("year") >= 2020``) and can also compare columns
    (``field("document_id") == "a"``). `cenote.filters` describes the language, and
    `cenote.filters.predicates` defines each predicate.

    **Writes are atomic.** Invalid input anywhere in a batch raises an error that names the chunk,
    before anything is written. If a write fails, nothing of the batch is stored.

    **Deletions are final.** After a deletion returns, the chunks stay deleted until they are
    written again. Deleting something that does not exist is not an error.

    **Objects are not shared.** Changing a chunk after `upsert`, or a result after `search`, never
    changes the store.

    **Errors** are instances of `CenoteError` (see :mod:`cenote.errors`), with the driver's error as
    ``__cause__``. A failure never looks like an empty result. Error messages contain no content,
    metadata or vectors. Each method raises `InvalidInputError` if an argument breaks one of these
    rules; the error names the argument in its attribute ``field``.

    Many tasks of one event loop can use a store at the same time.
    """

    @property
    def dimensions(self) -> int:
        """The number of dimensions of every vector."""
        ...

    @property
    def metric(self) -> Metric:
        """The metric that determines the scores; cosine unless a store overrides it."""
        return "cosine"

    def in_session(self, session: Any) -> VectorStore:
        """Return a store whose every call joins a session or connection of the application.

        A store without transactions, such as `InMemoryVectorStore`, accepts any object and ignores
        it: nothing is rolled back there. A service and its unit tests can thus use one type.

        Args:
            session: Session or connection, which the application commits, rolls back and closes.

        Raises:
            InvalidInputError: the store cannot join `session`.
        """
        ...

    async def upsert(self, embedded_chunks: list[EmbeddedChunk], namespace: str) -> None:
        """Write chunks. A chunk replaces the stored chunk with the same id.

        If a batch contains an id more than once, the last chunk wins. A chunk that equals the
        stored one is not rewritten.

        Args:
            embedded_chunks: Batch of any length, in any order.
            namespace: Tenant to write to.

        Raises:
            DimensionMismatchError: an embedding does not have the store's number of dimensions.
            InvalidInputError: a chunk breaks another rule of the class, or its embedding model is
                not the one that the store requires.
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
            query_vector: Vector of shape (dimensions,).
            namespace: Tenant to search in.
            limit: Maximum number of results, from 1 to 10,000.
            filter: Condition that the chunks must match.
            min_score: Minimum score, in the range of the metric's scores. Chunks with a lower score
                do not match.
            per_document: Maximum number of chunks per document, 1 or more. Only the nearest
                `per_document` chunks of each document count as matching.

        Returns:
            All matching chunks, but at most `limit`, by score descending, then by id ascending in
            code-point order.

            If many chunks have identical vectors, a store with an ANN index may return others of
            them than those with the smallest ids. The index returns at least 40 chunks more than
            `limit`, and the store sorts these; it does not see further ones with the same score. An
            exact search returns the smallest ids.

        Raises:
            DimensionMismatchError: the query does not have the store's number of dimensions.
            InvalidInputError: another argument is invalid.
            VectorStoreError: the search failed.
        """
        ...

    async def delete(self, chunk_ids: list[str], namespace: str) -> None:
        """Delete chunks by id. Ids that do not exist in the namespace are ignored.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the deletion failed; nothing was deleted.
        """
        ...

    async def delete_namespace(self, namespace: str) -> None:
        """Delete all chunks of a namespace.

        Raises:
            InvalidInputError: the namespace is invalid.
            VectorStoreError: the deletion failed; nothing was deleted.
        """
        ...

    def get_all_chunks(self, namespace: str, filter: FilterLike = None) -> AsyncIterator[Chunk]:
        """Iterate over the chunks of a namespace, by id ascending in code-point order.

        Memory use does not grow with the namespace. No connection or transaction is held while the
        caller processes a chunk. The iteration is not a snapshot: a chunk that is stored throughout
        appears exactly once, while a chunk that is added or deleted meanwhile may or may not
        appear.

        Args:
            namespace: Tenant to read from.
            filter: Condition that the chunks must match.

        Raises:
            InvalidInputError: an argument is invalid. The call itself raises, not the iteration,
                except for a filter with more than 2,000 values, which a thread checks when the
                iteration starts.
            VectorStoreError: a read failed during the iteration.
        """
        ...

    async def get(self, chunk_ids: Sequence[str], namespace: str) -> list[Chunk]:
        """Read chunks by id.

        Returns:
            The chunks that exist in the namespace, each once, in the order of `chunk_ids`.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the read failed.
        """
        ...

    async def get_embeddings(
        self, chunk_ids: Sequence[str], namespace: str
    ) -> dict[str, Float32Array]:
        """Read embeddings by chunk id.

        Returns:
            The embeddings of the chunks that exist in the namespace, by id. Each has the shape
            (dimensions,), and differs from the stored vector by at most 1e-6 times the vector's
            norm.

        Raises:
            InvalidInputError: an argument is invalid.
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
            namespace: Tenant to read from.
            filter: Condition that the chunks must match.
            after: Last id of the previous page, or None for the first page.
            limit: Maximum number of chunks, from 1 to 10,000. Only the last page has fewer.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the read failed.
        """
        ...

    async def count(self, namespace: str, filter: FilterLike = None) -> int:
        """Count the chunks of a namespace that match a filter, or all of them.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the read failed.
        """
        ...

    async def list_namespaces(self) -> dict[str, int]:
        """Return the number of chunks of each non-empty namespace, by name in code-point order.

        This is the only method that reads all namespaces. It is meant for operators, not for
        tenants. In a table that is distributed over a cluster, it queries every node; the other
        methods query one.

        Raises:
            VectorStoreError: the read failed.
        """
        ...

    async def neighbours(
        self, chunk_id: str, namespace: str, *, before: int = 1, after: int = 1
    ) -> list[Chunk]:
        """Read a chunk together with the chunks before and after it in its document.

        Args:
            chunk_id: Id of the chunk.
            namespace: Tenant to read from.
            before, after: Maximum number of chunks to read before and after the chunk, 0 or more.

        Returns:
            The chunk and its neighbours, by position ascending, then by id ascending; an empty list
            if the chunk does not exist in the namespace.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the read failed.
        """
        ...

    async def delete_document(self, document_id: str, namespace: str) -> int:
        """Delete all chunks of a document.

        Returns:
            The number of deleted chunks.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the deletion failed; nothing was deleted.
        """
        ...

    async def delete_matching(self, filter: Filter | Mapping[str, Any], namespace: str) -> int:
        """Delete the chunks that match a filter.

        Returns:
            The number of deleted chunks.

        Raises:
            InvalidInputError: an argument is invalid, or the filter matches every chunk; to delete
                every chunk, use `delete_namespace`.
            VectorStoreError: the deletion failed; nothing was deleted.
        """
        ...

    async def update_metadata(
        self, metadata: Mapping[str, dict[str, Any]], namespace: str, *, merge: bool = False
    ) -> int:
        """Change the metadata of stored chunks without changing anything else.

        Args:
            metadata: New metadata by chunk id. Ids that do not exist in the namespace are ignored.
            namespace: Tenant to write to.
            merge: True to keep existing keys that the new metadata lacks; False to replace the
                metadata as a whole.

        Returns:
            The number of chunks whose metadata changed.

        Raises:
            InvalidInputError: an argument is invalid; nothing was changed.
            VectorStoreError: the write failed; nothing was changed.
        """
        ...

    async def missing(self, chunks: Sequence[Chunk], namespace: str) -> list[Chunk]:
        """Return the chunks that still have to be embedded.

        A chunk does not have to be embedded if it is stored under its id with the same
        `Chunk.content_hash`, and with the embedding model that the store requires, if it requires
        one.

        Args:
            chunks: Chunks to store.
            namespace: Tenant to read from.

        Returns:
            The chunks to embed, in the order of `chunks`.

        Raises:
            InvalidInputError: an argument is invalid.
            VectorStoreError: the read failed.
        """
        ...

    async def sync_document(
        self, document_id: str, chunks: Sequence[EmbeddedChunk | Chunk], namespace: str
    ) -> SyncResult:
        """Make a document consist of exactly these chunks: write changes, delete all other chunks.

        The change is atomic. If two calls for the same document run at the same time, the document
        ends with the chunks of the call that finishes last, never with a mixture.

        Args:
            document_id: Id of the document. Every chunk must belong to it.
            chunks: All chunks of the document, each id once, in any order. A chunk that is already
                stored with the same content (see :meth:`missing`) may be passed as a `Chunk`,
                without an embedding; the stored embedding is kept.
            namespace: Tenant to write to.

        Returns:
            The numbers of written, deleted and unchanged chunks.

        Raises:
            DimensionMismatchError: an embedding does not have the store's number of dimensions.
            InvalidInputError: as for `upsert`; or a chunk belongs to another document, appears
                twice, or is passed without an embedding although :meth:`missing` returns it.
            VectorStoreError: the write failed; nothing was changed.
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
            query_vectors: Vectors of shape (n, dimensions), n from 0 to 1,000.
            namespace, limit, filter, min_score: As for :meth:`search`, applied to each vector.

        Returns:
            The result of :meth:`search` for each vector, in the order of `query_vectors`. All
            results are in memory at once. Keep their number, n times `limit`, below 100,000: with
            500,000, Python's garbage collector stops the process for a second or more.

        Raises:
            DimensionMismatchError, InvalidInputError, VectorStoreError: as for :meth:`search`.
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
        """Find chunks that are near to a vector but differ from one another.

        The chunks are chosen from the nearest ones by maximal marginal relevance; see
        `cenote.retrievers.maximal_marginal_relevance`. Both similarities are scores of the store's
        metric.

        Args:
            query_vector, namespace, limit, filter: As for :meth:`search`.
            diversity: Weight of the differences, from 0 (only nearness counts) to 1.
            candidates: Number of nearest chunks to choose from, from `limit` to 10,000; None means
                four times `limit`, but at most 10,000.

        Returns:
            ``min(limit, matching chunks)`` results with their scores, in the order in which they
            were chosen.

        Raises:
            DimensionMismatchError, InvalidInputError, VectorStoreError: as for :meth:`search`.
        """
        ...

    async def search_text(
        self, text: str, namespace: str, limit: int = 10, filter: FilterLike = None
    ) -> list[RetrievalResult]:
        """Find the chunks that contain words of a text. Requires a store with full-text search.

        Words are compared by their stems in the store's language. Only the first 130,000 characters
        of a chunk's content, and the first 2,000 of `text`, are used. Words of more than 2,046
        bytes are ignored.

        Args:
            text: Question in natural language. A chunk that contains any of its words matches.
            namespace, limit, filter: As for :meth:`search`.

        Returns:
            At most `limit` results, by score descending, then by id ascending in code-point order.
            The list is empty if `text` has no words. Scores are positive. Each store measures them
            differently: they rank the results of one question, and cannot be compared between
            questions.

        Raises:
            ConfigurationError: the store has no full-text search.
            InvalidInputError: an argument is invalid.
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
        """Find the chunks that rank best in :meth:`search` and :meth:`search_text` combined.

        The two rankings are combined by reciprocal rank fusion; see
        `cenote.retrievers.reciprocal_rank_fusion`.

        Args:
            text, namespace, limit, filter: As for :meth:`search_text`.
            query_vector: As for :meth:`search`; typically the embedding of `text`.
            vector_weight, text_weight: Weights of the two rankings, each from 1e-9 to 1e9, or 0 to
                leave the ranking out. At least one must be positive.
            depth: Number of results of each ranking to combine, from 1 to 10,000. If `limit` is
                larger than `depth`, `limit` is used.

        Returns:
            At most `limit` results, by score descending, then by id ascending in code-point order.
            The score of a chunk is the sum of ``weight / (60 + rank)`` over the rankings that
            contain it.

        Raises:
            ConfigurationError, DimensionMismatchError, InvalidInputError, VectorStoreError: as for
                :meth:`search` and :meth:`search_text`.
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
        """Search several namespaces, one after another, and return the best results over all.

        Args:
            query_vector, limit, filter: As for :meth:`search`.
            namespaces: Tenants to search in. Duplicates are ignored.
            **options: Further arguments of :meth:`search`.

        Returns:
            Pairs of namespace and result, by score descending, then by namespace, then by id.

        Raises:
            DimensionMismatchError, InvalidInputError, VectorStoreError: as for :meth:`search`.
        """
        namespaces = as_list(
            namespaces, "namespaces must be a list of namespaces", field="namespaces"
        )
        for namespace in namespaces:
            check_namespace(namespace)
        check_limit(limit)
        results = [
            (namespace, result)
            for namespace in dict.fromkeys(namespaces)
            for result in await self.search(query_vector, namespace, limit, filter, **options)
        ]
        results.sort(key=lambda pair: (-pair[1].score, pair[0], pair[1].chunk.id))
        return results[:limit]
