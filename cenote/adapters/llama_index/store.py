"""The vector store."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NoReturn

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import Field

from cenote.adapters._arguments import check_share, list_of
from cenote.adapters._sync import StoreRunner
from cenote.adapters.llama_index.filters import as_filter, check_filters
from cenote.adapters.llama_index.nodes import embedded_chunk, node_of
from cenote.errors import InvalidInputError
from cenote.filters.language import And, Filter, field
from cenote.models import RetrievalResult
from cenote.stores import SyncVectorStore, VectorStore
from cenote.validation.arguments import safe_repr

__all__ = ["CenoteVectorStore"]


class CenoteVectorStore(BasePydanticVectorStore):
    """LlamaIndex vector store for one namespace of a cenote store.

    With a `VectorStore`, asynchronous methods run in the caller's event loop and use the store's
    engine. Synchronous methods run in a background thread with its own connections, which `close`
    closes. In synchronous code, an index with ``use_async=True`` creates an event loop for each
    call; the engine then needs a `NullPool`.

    With a `SyncVectorStore`, synchronous methods run in the caller's thread, without an event loop.
    With ``store.in_session(session)`` they join the transaction of a session. Asynchronous methods
    run in another thread.

    Methods pass additional keyword arguments, such as ``session=``, to the store.

    The chunk of a node has the node's id, its content, its ``start_char_idx`` as position and its
    source (``ref_doc_id``) as document id. A node without a source uses its own id as document id.
    The chunk's metadata are the node's metadata, which may be nested, and the key
    ``_node_content`` with the rest of the node as JSON, from which the whole node is restored.
    LlamaIndex's JSON omits the bytes of media. Dates, UUIDs and other objects in metadata are
    converted to JSON; see `cenote.adapters.metadata`.

    Nodes show changes made by `VectorStore.update_metadata`; with ``merge=True`` it keeps
    ``_node_content``. Chunks without that key, such as those written by other means, are returned
    as `TextNode`. A node of a class that LlamaIndex does not define is returned as a `TextNode` or
    a `Node`. Nodes are returned without their embeddings.

    Similarities are scores of the store's metric; see `VectorStore`. The modes that search by words
    need a store with full-text search and return the scores of `VectorStore.search_text` and
    `VectorStore.search_hybrid`.

    Args:
        store: Store that holds the nodes.
        namespace: Namespace to read and write.
        embedding_model: Name of the embedding model, stored with each chunk.
    """

    stores_text: bool = Field(default=True, exclude=True)
    is_embedding_query: bool = Field(default=True, exclude=True)
    namespace: str
    embedding_model: str

    _store: VectorStore | SyncVectorStore
    _runner: StoreRunner

    def __init__(
        self,
        store: VectorStore | SyncVectorStore,
        namespace: str,
        *,
        embedding_model: str = "llama-index",
    ) -> None:
        super().__init__(namespace=namespace, embedding_model=embedding_model)  # type: ignore[call-arg]
        self._store = store
        self._runner = StoreRunner(store)

    @classmethod
    def class_name(cls) -> str:
        """Return the class name that LlamaIndex uses in serialized data."""
        return "CenoteVectorStore"

    @property
    def client(self) -> Any:
        """The `store` argument, for operations that LlamaIndex does not offer."""
        return self._store

    def close(self) -> None:
        """Close the connections of the background thread. The store itself stays open."""
        self._runner.close()

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a CenoteVectorStore holds connections and cannot be pickled: send to_dict() and call "
            "CenoteVectorStore.from_dict(data, store=store) in the other process"
        )

    # -- writing

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes, replace stored ones with the same id, and return the ids."""
        return self._runner.run(lambda store: self._add(store, nodes, **kwargs))

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes, replace stored ones with the same id, and return the ids."""
        return await self._runner.run_async(lambda store: self._add(store, nodes, **kwargs))

    async def _add(self, store: VectorStore, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        nodes = list_of(nodes, BaseNode, field="nodes")
        chunks = [embedded_chunk(node, self.embedding_model) for node in nodes]
        await store.upsert(chunks, self.namespace, **kwargs)
        return [node.node_id for node in nodes]

    # -- deleting

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self._runner.run(lambda store: self._delete(store, ref_doc_id, **delete_kwargs))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        await self._runner.run_async(lambda store: self._delete(store, ref_doc_id, **delete_kwargs))

    async def _delete(self, store: VectorStore, ref_doc_id: str, **kwargs: Any) -> None:
        await store.delete_document(ref_doc_id, self.namespace, **kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes; see :meth:`adelete_nodes`."""
        self._runner.run(
            lambda store: self._delete_nodes(store, node_ids, filters, **delete_kwargs)
        )

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete nodes by id, by filter, or by both.

        Args:
            node_ids: Ids of the nodes to delete; None for any id. Unknown ids are ignored.
            filters: Filters that the nodes must match.
            **delete_kwargs: Additional arguments for the store's method.

        Raises:
            InvalidInputError: There are neither ids nor filters, or the filters match everything.
        """
        await self._runner.run_async(
            lambda store: self._delete_nodes(store, node_ids, filters, **delete_kwargs)
        )

    async def _delete_nodes(
        self,
        store: VectorStore,
        node_ids: list[str] | None,
        filters: MetadataFilters | None,
        **kwargs: Any,
    ) -> None:
        if filters is not None:
            check_filters(filters)
        if filters is not None and filters.filters:
            await store.delete_matching(_condition(node_ids, filters), self.namespace, **kwargs)
        elif node_ids is not None:
            await store.delete(node_ids, self.namespace, **kwargs)
        else:
            raise InvalidInputError(
                "delete_nodes() requires node_ids or filters: to delete all nodes, call clear()",
                field="node_ids",
            )

    def clear(self) -> None:
        """Delete all nodes of the namespace."""
        self._runner.run(lambda store: store.delete_namespace(self.namespace))

    async def aclear(self) -> None:
        """Delete all nodes of the namespace."""
        await self._runner.run_async(lambda store: store.delete_namespace(self.namespace))

    # -- reading

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return nodes in ascending order of id; see :meth:`aget_nodes`."""
        return self._runner.run(lambda store: self._get_nodes(store, node_ids, filters))

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Return nodes in ascending order of id.

        Args:
            node_ids: Ids of the nodes; None for all nodes. Unknown ids are ignored.
            filters: Filters that the nodes must match.
        """
        return await self._runner.run_async(lambda store: self._get_nodes(store, node_ids, filters))

    async def _get_nodes(
        self, store: VectorStore, node_ids: list[str] | None, filters: MetadataFilters | None
    ) -> list[BaseNode]:
        condition = _condition(node_ids, filters)
        return [node_of(chunk) async for chunk in store.get_all_chunks(self.namespace, condition)]

    # -- searching

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes for a query; see :meth:`aquery`."""
        return self._runner.run(lambda store: self._query(store, query, **kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find nodes for a query.

        An index that contains images or `IndexNode` objects in addition to texts passes only their
        ids to its own retriever, which therefore finds no texts. ``VectorIndexRetriever(index)``
        finds all nodes.

        Args:
            query: Query in mode ``DEFAULT``, ``MMR``, ``TEXT_SEARCH``, ``SPARSE`` (the same as
                ``TEXT_SEARCH``) or ``HYBRID``, in which ``alpha`` is the weight of the vectors, 0
                to 1. An empty list of ``node_ids``, which `VectorStoreIndex.as_retriever` passes,
                does not restrict the results; an empty list of ``doc_ids`` matches nothing. Fields
                for other modes are ignored.
            **kwargs: Additional arguments for the store's method. ``mmr_threshold`` is the default
                for queries without one: 0 (maximum diversity) to 1 (similarity only), 0.5 if not
                given.

        Raises:
            NotImplementedError: The mode is not supported.
            ConfigurationError: The mode needs full-text search, which the store does not have.
            InvalidInputError: The query is not a `VectorStoreQuery`, lacks the embedding or the
                text that its mode needs, names fields, or has an invalid value.
        """
        return await self._runner.run_async(lambda store: self._query(store, query, **kwargs))

    async def _query(
        self, store: VectorStore, query: VectorStoreQuery, **kwargs: Any
    ) -> VectorStoreQueryResult:
        if not isinstance(query, VectorStoreQuery):
            raise InvalidInputError(
                f"query must be a VectorStoreQuery, not {type(query).__name__}", field="query"
            )
        if not isinstance(query.mode, str) or query.mode not in _MODES:
            name = query.mode.value if isinstance(query.mode, Enum) else query.mode
            raise NotImplementedError(
                f"the query mode {safe_repr(name)} is not supported: use one of "
                + ", ".join(repr(mode.value) for mode in _MODES)
            )
        mode = VectorStoreQueryMode(query.mode)
        _check_no_fields(query)
        unrestricted = isinstance(query.node_ids, list) and not query.node_ids
        node_ids = None if unrestricted else query.node_ids
        condition = _condition(node_ids, query.filters, query.doc_ids)
        where = self.namespace, query.similarity_top_k, condition
        if mode == VectorStoreQueryMode.DEFAULT:
            return _result(await store.search(_vector(query), *where, **kwargs))
        if mode == VectorStoreQueryMode.MMR:
            kwargs["diversity"] = 1 - _mmr_threshold(query, kwargs.pop("mmr_threshold", None))
            return _result(await store.search_diverse(_vector(query), *where, **kwargs))
        if mode == VectorStoreQueryMode.HYBRID:
            alpha = 0.5 if query.alpha is None else query.alpha
            check_share(alpha, field="alpha")
            kwargs |= {"vector_weight": alpha, "text_weight": 1 - alpha}
            where = self.namespace, _limit(query, query.hybrid_top_k), condition
            arguments: tuple[Any, ...] = (_text(query), _vector(query), *where)
            return _result(await store.search_hybrid(*arguments, **kwargs))
        where = self.namespace, _limit(query, query.sparse_top_k), condition
        return _result(await store.search_text(_text(query), *where, **kwargs))


# -- queries ---------------------------------------------------------------------------------------


_MODES = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.MMR,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.HYBRID,
)


def _check_no_fields(query: VectorStoreQuery) -> None:
    for name in ("embedding_field", "output_fields"):
        if getattr(query, name) is not None:
            raise InvalidInputError(
                f"the query has {name}, which cenote does not support: leave it out, because nodes "
                "have one embedding and are returned whole",
                field=name,
            )


def _vector(query: VectorStoreQuery) -> list[float]:
    if query.query_embedding is None:
        raise InvalidInputError(
            "the query has no query_embedding: embed the text first, as a retriever does",
            field="query_embedding",
        )
    return query.query_embedding


def _text(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise InvalidInputError(
            "the query has no query_str: this mode searches for its words", field="query_str"
        )
    return query.query_str


def _mmr_threshold(query: VectorStoreQuery, default: float | None) -> float:
    threshold = query.mmr_threshold if query.mmr_threshold is not None else default
    if threshold is None:
        return 0.5
    check_share(threshold, field="mmr_threshold")
    return threshold


def _limit(query: VectorStoreQuery, mode_top_k: int | None) -> int:
    """Return the maximum number of nodes: the mode's own setting or ``similarity_top_k``."""
    return query.similarity_top_k if mode_top_k is None else mode_top_k


def _condition(
    node_ids: list[str] | None,
    filters: MetadataFilters | None,
    doc_ids: list[str] | None = None,
) -> Filter:
    parts = []
    if node_ids is not None:
        parts.append(field("id").in_(node_ids))
    if doc_ids is not None:
        parts.append(field("document_id").in_(doc_ids))
    if filters is not None:
        parts.append(as_filter(filters))
    return And(tuple(parts))


def _result(results: list[RetrievalResult]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[node_of(result.chunk) for result in results],
        similarities=[result.score for result in results],
        ids=[result.chunk.id for result in results],
    )
