"""Haystack's `DocumentStore` over a store of cenote's. Needs the extra ``cenote[haystack]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from haystack import component, default_from_dict, default_to_dict
from haystack.core.errors import SerializationError
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy, apply_filter_policy
from haystack.utils import Secret

from cenote.adapters.checks import is_whole
from cenote.adapters.haystack_documents import Documents
from cenote.adapters.haystack_filters import wanted
from cenote.adapters.loops import LoopThread
from cenote.connections import create_engine
from cenote.errors import ConfigurationError
from cenote.stores import PgVectorStore, VectorStore
from cenote.validation import shown

__all__ = ["CenoteDocumentStore", "CenoteEmbeddingRetriever"]


class CenoteDocumentStore:
    """One namespace of a store, as Haystack's document store.

    Asynchronous methods run in the caller's event loop, on the store's own engine; synchronous ones
    in a thread with connections of its own, which `close` closes.

    Documents come back as they were written, by id ascending, but for their scores; embeddings are
    rounded to the store's 32-bit floats (16-bit in a store for ``halfvec``), and numbers of the
    meta are kept as `VectorStore` says. What a chunk has no place for (a content of None, a blob, a
    sparse embedding) is in the metadata under the key ``_haystack``. Documents without an embedding
    are stored with a zero vector, and never found by one. The chunk's ``document_id`` is the
    ``source_id`` of the meta, where Haystack's splitters put it, else the document's id.

    Filters mean what they mean in Haystack's own in-memory store. Those with dates are narrowed
    down by the store and decided in Python, document by document; all others by the store alone.
    A comparison that Haystack refuses because of what it finds in a document does not hold of that
    document, nor does one of a date with a text of more than 1,000 characters. Filters by
    ``embedding``, ``sparse_embedding``, ``blob``, ``score`` and ``meta`` as a whole are refused.

    Args:
        store: the store.
        namespace: whose documents these are.
        embedding_model: the name of what makes the embeddings, which is stored beside each chunk.
    """

    def __init__(
        self, store: VectorStore, namespace: str, *, embedding_model: str = "haystack"
    ) -> None:
        self._here = Documents(store, namespace, embedding_model)
        self._thread = LoopThread(store)
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
        """One on an engine of its own, which pipelines can be saved with and loaded from.

        It connects when it is first used. The table must exist.

        Args:
            connection_string: as of `PgVectorStore.connect`. Only a secret from an environment
                variable can be saved.
            dimensions: the length of every vector.
            namespace, embedding_model: as of the constructor.
            **settings: further arguments of `PgVectorStore`, such as ``table_name``.

        Raises:
            ConfigurationError: an argument cannot work.
        """
        if not isinstance(connection_string, Secret):
            raise ConfigurationError(
                "connection_string must be a Secret, such as Secret.from_env_var(...), not "
                f"{type(connection_string).__name__}",
                setting="connection_string",
            )
        dsn: Any = connection_string.resolve_value()
        store: PgVectorStore[Any] = PgVectorStore(create_engine(dsn), dimensions, **settings)
        made = cls(store, namespace, embedding_model=embedding_model)
        made._serialized = {
            "connection_string": connection_string,
            "dimensions": dimensions,
            "namespace": namespace,
            "embedding_model": embedding_model,
            **settings,
        }
        return made

    @property
    def _apart(self) -> Documents:
        """The same documents, for the thread."""
        return Documents(self._thread.store, self._here.namespace, self._here.embedding_model)

    def close(self) -> None:
        """Close the connections that synchronous calls opened; the store stays as it is."""
        self._thread.close()

    async def close_async(self) -> None:
        """Close all connections that were opened here: not those of a store that was given."""
        self._thread.close()
        store = self._here.store
        if self._serialized is not None and isinstance(store, PgVectorStore):
            await store.engine.dispose()

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` takes.

        Raises:
            SerializationError: the store was given, and its engine cannot be written down.
            ValueError: the connection string is no secret from an environment variable.
        """
        if self._serialized is None:
            raise SerializationError(
                "this CenoteDocumentStore was made of a live store, which cannot be saved; make it "
                "by CenoteDocumentStore.from_connection_string(Secret.from_env_var(...), ...)"
            )
        secret: Secret = self._serialized["connection_string"]
        return default_to_dict(self, **self._serialized | {"connection_string": secret.to_dict()})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The store that :meth:`to_dict` wrote down."""
        parameters = dict(data["init_parameters"])
        secret = Secret.from_dict(parameters.pop("connection_string"))
        return cls.from_connection_string(secret, **parameters)

    # -- Haystack's protocol

    def count_documents(self) -> int:
        """How many documents there are."""
        return self._thread.run(self._apart.count())

    async def count_documents_async(self) -> int:
        """How many documents there are."""
        return await self._here.count()

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match, by id ascending, with their embeddings.

        Raises:
            FilterError: Haystack refuses the filters, or a store cannot answer them.
        """
        return self._thread.run(self._apart.read(filters))

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """The documents that match; see :meth:`filter_documents`."""
        return await self._here.read(filters)

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents, all or none; returns how many.

        Whether an id is stored is looked up before the write, not within it: of two writers of
        one new id at once, under ``FAIL`` or ``SKIP``, neither may see the other's, and the last
        one wins.

        Args:
            documents: with unique ids, or of each id ``SKIP`` takes the first and ``OVERWRITE``
                the last.
            policy: what to do about ids that are stored already; ``NONE`` is ``FAIL``.

        Raises:
            DuplicateDocumentError: an id is stored, or appears twice, under ``FAIL``.
            InvalidInputError: a document cannot be stored; names it.
            ValueError: these are no documents.
        """
        return self._thread.run(self._apart.write(documents, policy))

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents; see :meth:`write_documents`."""
        return await self._here.write(documents, policy)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Remove documents by id; those that are not there are passed over."""
        self._thread.run(self._apart.delete(document_ids))

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """Remove documents by id; those that are not there are passed over."""
        await self._here.delete(document_ids)

    # -- what its integrations have besides

    def delete_all_documents(self) -> None:
        """Remove every document of the namespace."""
        self._thread.run(self._apart.delete_all())

    async def delete_all_documents_async(self) -> None:
        """Remove every document of the namespace."""
        await self._here.delete_all()

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Remove the documents that match; returns how many.

        At once, or page by page where the filters have dates.
        """
        return self._thread.run(self._apart.delete_matching(filters))

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """Remove the documents that match; see :meth:`delete_by_filter`."""
        return await self._here.delete_matching(filters)

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set keys of the meta of the documents that match, page by page; returns how many."""
        return self._thread.run(self._apart.update(filters, meta))

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set keys of the meta; see :meth:`update_by_filter`."""
        return await self._here.update(filters, meta)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        return self._thread.run(self._apart.count(filters))

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """How many documents match."""
        return await self._here.count(filters)

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: Sequence[str]
    ) -> dict[str, int]:
        """How many different values keys of the meta have among the documents that match.

        As the three that follow, it reads the documents one page after another.
        """
        return self._thread.run(self._apart.count_unique(filters, metadata_fields))

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: Sequence[str]
    ) -> dict[str, int]:
        """How many different values; see :meth:`count_unique_metadata_by_filter`."""
        return await self._here.count_unique(filters, metadata_fields)

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The type of each key of the meta: boolean, int, float or keyword; the last one found."""
        return self._thread.run(self._apart.fields_info())

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """The type of each key of the meta; see :meth:`get_metadata_fields_info`."""
        return await self._here.fields_info()

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least and the greatest value of a key: None if there are texts among numbers."""
        return self._thread.run(self._apart.min_max(metadata_field))

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """The least and the greatest value; see :meth:`get_metadata_field_min_max`."""
        return await self._here.min_max(metadata_field)

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """A page of the different values of a key, and how many there are.

        Args:
            metadata_field: the key, with or without ``meta.``.
            search_term: what the values must hold, in any case.
            from_, size: the page.
            filters: which documents to look at.
        """
        found = self._apart.unique_values(metadata_field, search_term, from_, size, filters)
        return self._thread.run(found)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """A page of the different values; see :meth:`get_metadata_field_unique_values`."""
        return await self._here.unique_values(metadata_field, search_term, from_, size, filters)

    # -- searching

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> list[Document]:
        """The documents nearest to a vector, without their embeddings.

        Scores are cosine similarities, -1 to 1.
        """
        return self._thread.run(self._apart.nearest(query_embedding, filters, top_k))

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
    ) -> list[Document]:
        """The documents nearest to a vector; see :meth:`embedding_retrieval`."""
        return await self._here.nearest(query_embedding, filters, top_k)


@component
class CenoteEmbeddingRetriever:
    """Finds the documents nearest to an embedding.

    They come without their embeddings; their scores are cosine similarities, -1 to 1.

    Args:
        document_store: where to search.
        filters: what the documents must match.
        top_k: the most documents, 1 or more.
        filter_policy: whether filters of a run replace these, or are merged with them.

    Raises:
        TypeError: this is another kind of document store.
        ValueError: `top_k` is less than 1, or `filter_policy` is none.
    """

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
        if not is_whole(top_k, least=1):
            raise ValueError(f"top_k must be an integer of 1 or more, not {shown(top_k)}")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        if not isinstance(filter_policy, FilterPolicy):
            raise ValueError(
                f"filter_policy must be a FilterPolicy, not {type(filter_policy).__name__}"
            )
        self.filter_policy = filter_policy

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` takes; see `CenoteDocumentStore.to_dict`."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CenoteEmbeddingRetriever:
        """The retriever that :meth:`to_dict` wrote down."""
        parameters = dict(data["init_parameters"])
        store = CenoteDocumentStore.from_dict(parameters["document_store"])
        parameters["document_store"] = store
        if "filter_policy" in parameters:
            parameters["filter_policy"] = FilterPolicy.from_str(parameters["filter_policy"])
        made: CenoteEmbeddingRetriever = default_from_dict(
            cls, data | {"init_parameters": parameters}
        )
        return made

    @component.output_types(documents=list[Document])
    def run(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Find documents.

        Args:
            query_embedding: what to look for.
            filters: of this run; see `filter_policy`.
            top_k: of this run, 0 or more.

        Raises:
            FilterError: Haystack refuses the filters, or a store cannot answer them.
            ValueError: `top_k` is negative.
        """
        search = self.document_store.embedding_retrieval
        return {"documents": search(query_embedding, *self._asked(filters, top_k))}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Find documents; see :meth:`run`."""
        search = self.document_store.embedding_retrieval_async
        return {"documents": await search(query_embedding, *self._asked(filters, top_k))}

    def _asked(
        self, filters: dict[str, Any] | None, top_k: int | None
    ) -> tuple[dict[str, Any] | None, int]:
        for one in (self.filters, filters):  # before Haystack looks into them
            wanted(one)
        merged = apply_filter_policy(self.filter_policy, self.filters, filters)
        return merged, self.top_k if top_k is None else top_k
