"""The document store and the retriever."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from haystack import component, default_from_dict, default_to_dict
from haystack.core.errors import SerializationError
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
from haystack.utils import Secret

from cenote.adapters._sync import StoreRunner
from cenote.adapters.haystack.documents import Documents
from cenote.adapters.haystack.filters import translate
from cenote.errors import ConfigurationError
from cenote.postgres.dsn import create_engine
from cenote.stores import PgVectorStore, SyncVectorStore, VectorStore
from cenote.validation.arguments import MAX_LIMIT, is_integer, safe_repr

__all__ = ["CenoteDocumentStore", "CenoteEmbeddingRetriever"]

Result = TypeVar("Result")

_SAVED_MODULE = "cenote.adapters.haystack"
"""Module that saved pipelines name. Public, because pipelines are loaded by later versions too."""


class CenoteDocumentStore:
    """Haystack document store for one namespace of a cenote store.

    With a `VectorStore`, asynchronous methods run in the caller's event loop and use the store's
    engine. Synchronous methods run in a background thread with its own connections, which `close`
    closes.

    With a `SyncVectorStore`, synchronous methods run in the caller's thread, without an event loop.
    With ``store.in_session(session)`` they join the transaction of a session. Asynchronous methods
    run in another thread.

    Documents are returned in ascending order of id and equal to what was written, except for their
    scores. Dates, UUIDs and other objects in the meta are converted to JSON; see
    `cenote.adapters.metadata`. Embeddings are rounded to the store's 32-bit floats (16-bit in a
    ``halfvec`` store), and numbers in the meta are stored as `VectorStore` describes. Documents
    without an embedding are stored with a zero vector, and embedding searches never return them.

    Parts of a document that a chunk has no column for (a content of None, a blob, a sparse
    embedding) are stored in the metadata under the key ``_haystack``. The chunk's ``document_id``
    is the meta's ``source_id``, which Haystack's splitters set, or the document's own id.

    Filters mean the same as in Haystack's in-memory store. There are more operators, such as
    ``like`` and ``array_contains``; see `cenote.adapters.haystack.filters`. The store narrows down
    a filter with dates, and Haystack's own code then decides about each document in Python; the
    store evaluates all other filters alone. A comparison that raises an error in Haystack because
    of a document's value does not match that document. A comparison of a date with a text of more
    than 1,000 characters does not match either. Filters by ``embedding``, ``sparse_embedding``,
    ``blob``, ``score`` and ``meta`` as a whole are rejected.

    Args:
        store: Store that holds the documents.
        namespace: Namespace to read and write.
        embedding_model: Name of the embedding model, stored with each chunk.
    """

    __module__ = _SAVED_MODULE

    def __init__(
        self,
        store: VectorStore | SyncVectorStore,
        namespace: str,
        *,
        embedding_model: str = "haystack",
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._embedding_model = embedding_model
        self._runner = StoreRunner(store)
        self._serialized: dict[str, Any] | None = None

    @classmethod
    def from_connection_string(
        cls,
        connection_string: Secret,
        dimensions: int,
        namespace: str,
        *,
        embedding_model: str = "haystack",
        **settings: Any,
    ) -> Self:
        """Create a document store with its own engine, which can be saved in pipelines.

        The engine connects at the first use. The table must exist.

        Args:
            connection_string: Connection string as for `PgVectorStore.connect`. Only a secret from
                an environment variable can be saved.
            dimensions: Number of dimensions of every vector.
            namespace: Namespace to read and write.
            embedding_model: Name of the embedding model, stored with each chunk.
            **settings: Additional arguments for `PgVectorStore`, such as ``table_name``.

        Raises:
            ConfigurationError: An argument is invalid.
        """
        if not isinstance(connection_string, Secret):
            raise ConfigurationError(
                "connection_string must be a Secret, such as Secret.from_env_var(...), not "
                f"{type(connection_string).__name__}",
                setting="connection_string",
            )
        dsn: Any = connection_string.resolve_value()
        store: PgVectorStore[Any] = PgVectorStore(create_engine(dsn), dimensions, **settings)
        document_store = cls(store, namespace, embedding_model=embedding_model)
        document_store._serialized = {
            "connection_string": connection_string,
            "dimensions": dimensions,
            "namespace": namespace,
            "embedding_model": embedding_model,
            **settings,
        }
        return document_store

    def _run(self, operation: Callable[[Documents], Coroutine[Any, Any, Result]]) -> Result:
        return self._runner.run(lambda store: operation(self._documents(store)))

    async def _run_async(
        self, operation: Callable[[Documents], Coroutine[Any, Any, Result]]
    ) -> Result:
        return await self._runner.run_async(lambda store: operation(self._documents(store)))

    def _documents(self, store: VectorStore) -> Documents:
        return Documents(store, self._namespace, self._embedding_model)

    def close(self) -> None:
        """Close the connections of the background thread. The store itself stays open."""
        self._runner.close()

    async def close_async(self) -> None:
        """Close all connections that this object opened, but not those of a store passed to it."""
        self._runner.close()
        if self._serialized is not None and isinstance(self._store, PgVectorStore):
            await self._store.engine.dispose()

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for :meth:`from_dict`.

        Raises:
            SerializationError: This object was created with a store, whose engine cannot be saved.
            ValueError: The connection string is not a secret from an environment variable.
        """
        if self._serialized is None:
            raise SerializationError(
                "a CenoteDocumentStore created with a store cannot be saved: create it with "
                "CenoteDocumentStore.from_connection_string(Secret.from_env_var(...), ...)"
            )
        secret: Secret = self._serialized["connection_string"]
        return default_to_dict(self, **self._serialized | {"connection_string": secret.to_dict()})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Create a document store from the output of :meth:`to_dict`."""
        parameters = dict(data["init_parameters"])
        secret = Secret.from_dict(parameters.pop("connection_string"))
        return cls.from_connection_string(secret, **parameters)

    # -- Haystack's protocol

    def count_documents(self) -> int:
        """Count the documents."""
        return self._run(lambda stored: stored.count())

    async def count_documents_async(self) -> int:
        """Count the documents."""
        return await self._run_async(lambda stored: stored.count())

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the matching documents with their embeddings, in ascending order of id.

        Raises:
            FilterError: Haystack rejects the filters, or the store does not support them.
        """
        return self._run(lambda stored: stored.read(filters))

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """Return the matching documents; see :meth:`filter_documents`."""
        return await self._run_async(lambda stored: stored.read(filters))

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write all documents or none, and return the number of written documents.

        ``FAIL`` and ``SKIP`` look up stored ids before the write, not in the same statement. If two
        writers add the same new id concurrently, neither may see the other's, and the last write
        wins.

        Args:
            documents: Documents to write. If an id appears more than once, ``SKIP`` keeps the first
                document with that id and ``OVERWRITE`` the last.
            policy: Treatment of stored ids. ``NONE`` means ``FAIL``.

        Raises:
            DuplicateDocumentError: Under ``FAIL``, an id is already stored or appears twice.
            InvalidInputError: A document cannot be stored. The error names the document.
            ValueError: `documents` is not a list of documents.
        """
        return self._run(lambda stored: stored.write(documents, policy))

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents; see :meth:`write_documents`."""
        return await self._run_async(lambda stored: stored.write(documents, policy))

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete documents by id. Unknown ids are ignored."""
        self._run(lambda stored: stored.delete(document_ids))

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """Delete documents by id. Unknown ids are ignored."""
        await self._run_async(lambda stored: stored.delete(document_ids))

    # -- methods that Haystack's other integrations share

    def delete_all_documents(self) -> None:
        """Delete all documents of the namespace."""
        self._run(lambda stored: stored.delete_all())

    async def delete_all_documents_async(self) -> None:
        """Delete all documents of the namespace."""
        await self._run_async(lambda stored: stored.delete_all())

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the matching documents and return their number.

        Deletes in one statement, or page by page if the filters contain dates.
        """
        return self._run(lambda stored: stored.delete_matching(filters))

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """Delete the matching documents; see :meth:`delete_by_filter`."""
        return await self._run_async(lambda stored: stored.delete_matching(filters))

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set meta keys of the matching documents, page by page, and return their number."""
        return self._run(lambda stored: stored.update(filters, meta))

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set meta keys of the matching documents; see :meth:`update_by_filter`."""
        return await self._run_async(lambda stored: stored.update(filters, meta))

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Count the matching documents."""
        return self._run(lambda stored: stored.count(filters))

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """Count the matching documents."""
        return await self._run_async(lambda stored: stored.count(filters))

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: Sequence[str]
    ) -> dict[str, int]:
        """Count the distinct values of meta keys among the matching documents.

        This method and the other ``*_metadata_*`` methods read all matching documents, page by
        page.
        """
        return self._run(lambda stored: stored.count_unique(filters, metadata_fields))

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: Sequence[str]
    ) -> dict[str, int]:
        """Count distinct values; see :meth:`count_unique_metadata_by_filter`."""
        return await self._run_async(lambda stored: stored.count_unique(filters, metadata_fields))

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """Return the type of each meta key: boolean, int, float or keyword.

        If the types differ between documents, the document with the greatest id decides.
        """
        return self._run(lambda stored: stored.fields_info())

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """Return the type of each meta key; see :meth:`get_metadata_fields_info`."""
        return await self._run_async(lambda stored: stored.fields_info())

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """Return the minimum and maximum of a meta key; both None if it mixes texts and numbers."""
        return self._run(lambda stored: stored.min_max(metadata_field))

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """Return minimum and maximum; see :meth:`get_metadata_field_min_max`."""
        return await self._run_async(lambda stored: stored.min_max(metadata_field))

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """Return one page of the distinct values of a meta key, and their total number.

        Args:
            metadata_field: Meta key, with or without the prefix ``meta.``.
            search_term: Text that the values must contain, ignoring case.
            from_: Number of values to skip.
            size: Maximum number of values to return.
            filters: Filters that the documents must match.
        """
        return self._run(
            lambda stored: stored.unique_values(metadata_field, search_term, from_, size, filters)
        )

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """Return distinct values; see :meth:`get_metadata_field_unique_values`."""
        return await self._run_async(
            lambda stored: stored.unique_values(metadata_field, search_term, from_, size, filters)
        )

    # -- searching

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> list[Document]:
        """Return the documents most similar to a vector, without their embeddings.

        Scores are those of the store's metric; see `VectorStore`.
        """
        return self._run(lambda stored: stored.nearest(query_embedding, filters, top_k))

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> list[Document]:
        """Return the documents most similar to a vector; see :meth:`embedding_retrieval`."""
        return await self._run_async(lambda stored: stored.nearest(query_embedding, filters, top_k))


@component
class CenoteEmbeddingRetriever:
    """Component that retrieves the documents most similar to an embedding.

    Documents are returned without their embeddings. Scores are those of the store's metric; see
    `VectorStore`.

    Args:
        document_store: Document store to search.
        filters: Filters that the documents must match.
        top_k: Maximum number of documents, from 1 to 10,000.
        filter_policy: Policy that replaces `filters` with the filters of a run, or merges them.

    Raises:
        TypeError: `document_store` is not a `CenoteDocumentStore`.
        ValueError: `top_k` is not an integer from 1 to 10,000, or `filter_policy` is not a
            `FilterPolicy`.
    """

    __module__ = _SAVED_MODULE

    def __init__(
        self,
        document_store: CenoteDocumentStore,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: FilterPolicy = FilterPolicy.REPLACE,
    ) -> None:
        if not isinstance(document_store, CenoteDocumentStore):
            raise TypeError(
                f"document_store must be a CenoteDocumentStore, not {type(document_store).__name__}"
            )
        if not is_integer(top_k, least=1, most=MAX_LIMIT):
            raise ValueError(
                f"top_k must be an integer from 1 to {MAX_LIMIT:,}, not {safe_repr(top_k)}"
            )
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        if not isinstance(filter_policy, FilterPolicy):
            raise ValueError(
                f"filter_policy must be a FilterPolicy, not {type(filter_policy).__name__}"
            )
        self.filter_policy = filter_policy

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for :meth:`from_dict`; see `CenoteDocumentStore.to_dict`."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CenoteEmbeddingRetriever:
        """Create a retriever from the output of :meth:`to_dict`."""
        parameters = dict(data["init_parameters"])
        store = CenoteDocumentStore.from_dict(parameters["document_store"])
        parameters["document_store"] = store
        if "filter_policy" in parameters:
            parameters["filter_policy"] = FilterPolicy.from_str(parameters["filter_policy"])
        retriever: CenoteEmbeddingRetriever = default_from_dict(
            cls, data | {"init_parameters": parameters}
        )
        return retriever

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieve documents.

        Args:
            query_embedding: Embedding of the query.
            filters: Filters of this run; see `filter_policy`.
            top_k: Maximum number of documents of this run, from 0 to 10,000.

        Raises:
            FilterError: Haystack rejects the filters, or the store does not support them.
            ValueError: `top_k` is not an integer from 0 to 10,000.
        """
        retrieve = self.document_store.embedding_retrieval
        return {"documents": retrieve(query_embedding, *self._run_options(filters, top_k))}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieve documents; see :meth:`run`."""
        retrieve = self.document_store.embedding_retrieval_async
        return {"documents": await retrieve(query_embedding, *self._run_options(filters, top_k))}

    def _run_options(
        self, filters: dict[str, Any] | None, top_k: int | None
    ) -> tuple[dict[str, Any] | None, int]:
        """Return the filters and the `top_k` of a run."""
        translate(self.filters)  # apply_filter_policy() assumes valid filters
        translate(filters)
        merged = apply_filter_policy(self.filter_policy, self.filters, filters)
        return merged, self.top_k if top_k is None else top_k
