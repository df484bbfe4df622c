"""LlamaIndex's vector store over a store of cenote's. Needs the extra ``cenote[llama-index]``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from typing import Any, NoReturn

from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import Field
from pydantic_core import to_jsonable_python

from cenote.adapters.checks import check_share, objects
from cenote.adapters.llama_filters import as_filter, check_filters
from cenote.adapters.loops import LoopThread
from cenote.errors import InvalidInputError
from cenote.filters import And, Filter, field
from cenote.jsonvalues import canonical_json
from cenote.models import Chunk, EmbeddedChunk, RetrievalResult
from cenote.predicates import json_token
from cenote.stores import VectorStore
from cenote.validation import shown

__all__ = ["CenoteVectorStore"]


class CenoteVectorStore(BasePydanticVectorStore):
    """One namespace of a store, as LlamaIndex's vector store.

    Asynchronous methods run in the caller's event loop, on the store's own engine; synchronous ones
    in a thread with connections of its own, which `close` closes. An index with ``use_async=True``
    in synchronous code makes an event loop for each call, for which the engine needs a `NullPool`.
    Further keywords of a method are those of the store's, such as ``session=``.

    A node's id is the chunk's, its content the content, its source (``ref_doc_id``) the document,
    or the node's own id where it has none, its ``start_char_idx`` the position. Its metadata, which
    may be nested, are the chunk's; beside them, under ``_node_content``, is the rest of the node
    as JSON, so that it comes back whole. LlamaIndex itself leaves the bytes of media out of that,
    and turns dates and the like into texts. What `VectorStore.update_metadata` changes shows in
    the nodes; with ``merge=True`` it leaves that key alone. Chunks without it, such as those that
    were written otherwise, come as `TextNode`; a node of a class that is not LlamaIndex's comes as
    a `TextNode` or a `Node`. None comes with its embedding.

    Similarities are cosine similarities, -1 to 1, but in the modes that look for words (see
    `VectorStore.search_text` and `VectorStore.search_hybrid`), for which the store has full text.

    Args:
        store: the store.
        namespace: whose nodes these are.
        embedding_model: the name of what makes the embeddings, which is stored beside each chunk.
    """

    stores_text: bool = Field(default=True, exclude=True)
    is_embedding_query: bool = Field(default=True, exclude=True)
    namespace: str
    embedding_model: str

    _store: VectorStore
    _thread: LoopThread

    def __init__(
        self, store: VectorStore, namespace: str, *, embedding_model: str = "llama-index"
    ) -> None:
        super().__init__(namespace=namespace, embedding_model=embedding_model)  # type: ignore[call-arg]
        self._store = store
        self._thread = LoopThread(store)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes it down."""
        return "CenoteVectorStore"

    @property
    def client(self) -> VectorStore:
        """The store, for what LlamaIndex has no word for."""
        return self._store

    def close(self) -> None:
        """Close the connections that synchronous calls opened; the store stays as it is."""
        self._thread.close()

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a CenoteVectorStore holds connections and cannot be pickled; take to_dict(), and "
            "CenoteVectorStore.from_dict(data, store=store) over there"
        )

    # -- writing

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes, replacing those whose id is stored; returns their ids."""
        return self._thread.run(self._added(self._thread.store, nodes, **kwargs))

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes, replacing those whose id is stored; returns their ids."""
        return await self._added(self._store, nodes, **kwargs)

    async def _added(
        self, store: VectorStore, nodes: Sequence[BaseNode], **kwargs: Any
    ) -> list[str]:
        several = objects(nodes, BaseNode, field="nodes")
        chunks = [_embedded(node, self.embedding_model) for node in several]
        await store.upsert(chunks, self.namespace, **kwargs)
        return [node.node_id for node in several]

    # -- removing

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document."""
        store = self._thread.store
        self._thread.run(store.delete_document(ref_doc_id, self.namespace, **delete_kwargs))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove the nodes of a document."""
        await self._store.delete_document(ref_doc_id, self.namespace, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove nodes; see :meth:`adelete_nodes`."""
        store = self._thread.store
        self._thread.run(self._deleted(store, node_ids, filters, **delete_kwargs))

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Remove nodes.

        Args:
            node_ids: which; those that are not there are passed over.
            filters: what they must match, of these ids or of all.
            **delete_kwargs: further arguments of the store's method.

        Raises:
            InvalidInputError: there are neither ids nor filters, or the filters match everything.
        """
        await self._deleted(self._store, node_ids, filters, **delete_kwargs)

    async def _deleted(
        self,
        store: VectorStore,
        node_ids: list[str] | None,
        filters: MetadataFilters | None,
        **kwargs: Any,
    ) -> None:
        if filters is not None:
            check_filters(filters)
        if filters is not None and filters.filters:
            await store.delete_matching(_matching(node_ids, filters), self.namespace, **kwargs)
        elif node_ids is not None:
            await store.delete(node_ids, self.namespace, **kwargs)
        else:
            raise InvalidInputError(
                "delete_nodes() needs node_ids or filters; clear() removes everything",
                field="node_ids",
            )

    def clear(self) -> None:
        """Remove every node of the namespace."""
        self._thread.run(self._thread.store.delete_namespace(self.namespace))

    async def aclear(self) -> None:
        """Remove every node of the namespace."""
        await self._store.delete_namespace(self.namespace)

    # -- reading

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Read nodes, by id ascending; see :meth:`aget_nodes`."""
        return self._thread.run(self._nodes(self._thread.store, node_ids, filters))

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """Read nodes, by id ascending.

        Args:
            node_ids: which, all when None; those that are not there are left out.
            filters: what they must match.
        """
        return await self._nodes(self._store, node_ids, filters)

    async def _nodes(
        self, store: VectorStore, node_ids: list[str] | None, filters: MetadataFilters | None
    ) -> list[BaseNode]:
        matching = _matching(node_ids, filters)
        return [_node(chunk) async for chunk in store.get_all_chunks(self.namespace, matching)]

    # -- searching

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to an embedding; see :meth:`aquery`."""
        return self._thread.run(self._queried(self._thread.store, query, **kwargs))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes nearest to an embedding.

        Args:
            query: in mode ``DEFAULT``, ``MMR``, ``TEXT_SEARCH`` (``SPARSE`` is the same) or
                ``HYBRID``, whose ``alpha`` is the weight of the vectors, 0 to 1. An empty list of
                ``node_ids``, which `VectorStoreIndex.as_retriever` gives, restricts nothing; one of
                ``doc_ids`` matches nothing. What is about other modes is not looked at.
            **kwargs: further arguments of the store's method; and ``mmr_threshold``, where the
                query has none: 0 (unlike one another) to 1 (by nearness alone), 0.5 by default.

        An index that holds images or `IndexNode` beside texts gives the ids of those alone to
        its retriever, which then finds no texts; ``VectorIndexRetriever(index)`` finds all.

        Raises:
            NotImplementedError: the mode is another one.
            ConfigurationError: the store has no full text, and the mode needs it.
            InvalidInputError: this is no query, or it lacks an embedding or the text, names fields,
                or breaks another rule.
        """
        return await self._queried(self._store, query, **kwargs)

    async def _queried(
        self, store: VectorStore, query: VectorStoreQuery, **kwargs: Any
    ) -> VectorStoreQueryResult:
        if not isinstance(query, VectorStoreQuery):
            raise InvalidInputError(
                f"query must be a VectorStoreQuery, not {type(query).__name__}", field="query"
            )
        if not isinstance(query.mode, str) or query.mode not in _MODES:
            asked_for = query.mode.value if isinstance(query.mode, Enum) else query.mode
            raise NotImplementedError(
                f"the query mode {shown(asked_for)} is not supported; there are "
                + ", ".join(repr(one.value) for one in _MODES)
            )
        mode = VectorStoreQueryMode(query.mode)
        _refuse_fields(query)
        some = None if isinstance(query.node_ids, list) and not query.node_ids else query.node_ids
        matching = _matching(some, query.filters, query.doc_ids)
        where = self.namespace, query.similarity_top_k, matching
        if mode == VectorStoreQueryMode.DEFAULT:
            return _result(await store.search(_vector(query), *where, **kwargs))
        if mode == VectorStoreQueryMode.MMR:
            kwargs["diversity"] = 1 - _mmr_threshold(query, kwargs.pop("mmr_threshold", None))
            return _result(await store.search_diverse(_vector(query), *where, **kwargs))
        if mode == VectorStoreQueryMode.HYBRID:
            alpha = 0.5 if query.alpha is None else query.alpha
            check_share(alpha, field="alpha")
            kwargs |= {"vector_weight": alpha, "text_weight": 1 - alpha}
            where = self.namespace, _limit(query, query.hybrid_top_k), matching
            asked: tuple[Any, ...] = (_text(query), _vector(query), *where)
            return _result(await store.search_hybrid(*asked, **kwargs))
        where = self.namespace, _limit(query, query.sparse_top_k), matching
        return _result(await store.search_text(_text(query), *where, **kwargs))


# -- queries ---------------------------------------------------------------------------------------


_MODES = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.MMR,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.HYBRID,
)


def _refuse_fields(query: VectorStoreQuery) -> None:
    for name in ("embedding_field", "output_fields"):
        if getattr(query, name) is not None:
            raise InvalidInputError(
                f"the query has {name}, but a node has one embedding and comes whole; leave it out",
                field=name,
            )


def _vector(query: VectorStoreQuery) -> list[float]:
    if query.query_embedding is None:
        raise InvalidInputError(
            "the query has no query_embedding; embed the text first, as a retriever does",
            field="query_embedding",
        )
    return query.query_embedding


def _text(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise InvalidInputError(
            "the query has no query_str, whose words this mode looks for", field="query_str"
        )
    return query.query_str


def _mmr_threshold(query: VectorStoreQuery, given: float | None) -> float:
    threshold = query.mmr_threshold if query.mmr_threshold is not None else given
    if threshold is None:
        return 0.5
    check_share(threshold, field="mmr_threshold")
    return threshold


def _limit(query: VectorStoreQuery, own: int | None) -> int:
    """How many nodes a mode is to find."""
    return query.similarity_top_k if own is None else own


def _matching(
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


def _result(found: list[RetrievalResult]) -> VectorStoreQueryResult:
    return VectorStoreQueryResult(
        nodes=[_node(result.chunk) for result in found],
        similarities=[result.score for result in found],
        ids=[result.chunk.id for result in found],
    )


# -- nodes -----------------------------------------------------------------------------------------

_REST = "_node_content"
"""Where LlamaIndex, too, keeps what of a node is not its metadata."""

_CLASSES: dict[str, type[BaseNode]] = {
    one.class_name(): one for one in (TextNode, ImageNode, IndexNode, Node, Document, ImageDocument)
}


def _embedded(node: BaseNode, embedding_model: str) -> EmbeddedChunk:
    if node.embedding is None:
        raise InvalidInputError(
            f"node {shown(node.node_id)} has no embedding; embed it first, as a VectorStoreIndex "
            "does",
            field="embedding",
            chunk_id=node.node_id,
        )
    try:
        source = node.ref_doc_id
    except ValueError:
        raise InvalidInputError(
            f"node {shown(node.node_id)} has several sources, and belongs to one document",
            field="document_id",
            chunk_id=node.node_id,
        ) from None
    chunk = Chunk(
        id=node.node_id,
        document_id=source or node.node_id,
        content=node.get_content(),
        position=getattr(node, "start_char_idx", None) or 0,
        metadata=_metadata(node),
    )
    return EmbeddedChunk(chunk=chunk, embedding=node.embedding, embedding_model=embedding_model)


def _metadata(node: BaseNode) -> dict[str, Any]:
    """The node's metadata, and what is not in another field of the chunk.

    The metadata are in both, for jsonb keeps neither the order of keys nor the form of numbers, on
    which the node's hash and what a model reads of it depend.
    """
    if _REST in node.metadata:
        raise InvalidInputError(
            f"node {shown(node.node_id)}: the key {_REST!r} of the metadata is LlamaIndex's own; "
            "rename it",
            field="metadata",
            chunk_id=node.node_id,
        )
    try:
        json.dumps(node.metadata, allow_nan=False, default=_jsonable)  # model_dump makes NaN null
        dumped = node.model_dump(mode="json", exclude={"embedding"})
    except (TypeError, ValueError, RecursionError):  # LlamaIndex's own quotes the object
        raise InvalidInputError(
            f"node {shown(node.node_id)} holds what is not JSON, such as NaN or an object; "
            "convert it first",
            field="metadata",
            chunk_id=node.node_id,
        ) from None
    if isinstance(node, TextNode):  # others hold more than a text
        del dumped["text"]
    return {**dumped["metadata"], _REST: json.dumps(dumped, ensure_ascii=False)}


def _jsonable(value: Any) -> Any:
    """What pydantic makes of a set, a date and the like, with its NaN."""
    return to_jsonable_python(value, inf_nan_mode="constants")


def _node(chunk: Chunk) -> BaseNode:
    metadata = dict(chunk.metadata)
    rest = metadata.pop(_REST, None)
    if rest is None:
        return _foreign(chunk)
    node = json.loads(rest)
    node.setdefault("text", chunk.content)
    node["metadata"] = _current(node["metadata"], metadata)
    otherwise = Node if "text_resource" in node else TextNode
    return _CLASSES.get(node["class_name"], otherwise).from_dict(node)


def _foreign(chunk: Chunk) -> TextNode:
    """A chunk that was written by other means."""
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=chunk.document_id)}
    return TextNode(
        id_=chunk.id,
        text=chunk.content,
        metadata=chunk.metadata,
        relationships={} if chunk.document_id == chunk.id else source,
    )


def _current(written: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """The metadata as they were written, but for what has changed since."""
    kept = {
        key: value if json_token(canonical_json(value)) == json_token(stored[key]) else stored[key]
        for key, value in written.items()
        if key in stored
    }
    return kept | {key: value for key, value in stored.items() if key not in kept}
