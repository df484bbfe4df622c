"""Nodes, queries and the adapter fixture for the tests of the LlamaIndex adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import (
    BaseNode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote import (
    InMemoryVectorStore,
    PgVectorStore,
)
from cenote.adapters.llama_index import CenoteVectorStore


class Words(BaseEmbedding):
    """Embedding that counts four words."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(text.count(word)) for word in ("cat", "dog", "sea", "sun")]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Lines(TransformComponent):
    """Splitter that cuts documents into lines. LlamaIndex's own splitters load tokenizers."""

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[BaseNode]:
        return [
            TextNode(
                id_=f"{document.node_id}:{number}",
                text=line,
                metadata=document.metadata,
                relationships={NodeRelationship.SOURCE: document.as_related_node_info()},
            )
            for document in nodes
            for number, line in enumerate(document.get_content().splitlines())
        ]


def engine_for_any_loop(dsn: str) -> AsyncEngine:
    """Return an engine without a pool, which works in any event loop."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    return create_async_engine(url, poolclass=NullPool)


@pytest.fixture(name="adapter", params=["memory", "postgres"])
def llama_adapter(request: pytest.FixtureRequest) -> Iterator[CenoteVectorStore]:
    """The adapter, once with each kind of store."""
    store: Any = InMemoryVectorStore(4)
    if request.param == "postgres":
        store = PgVectorStore(engine_for_any_loop(request.getfixturevalue("dsn")), 4)
    adapter = CenoteVectorStore(store, "acme")
    yield adapter
    adapter.close()


def node(id: str, text: str = "", document: str | None = None, **metadata: Any) -> TextNode:
    """Return a node with its embedding."""
    source = RelatedNodeInfo(node_id=document or "")
    return TextNode(
        id_=id,
        text=text,
        metadata=metadata,
        embedding=Words().get_text_embedding(text) if text else [1.0, 0, 0, 0],
        relationships={NodeRelationship.SOURCE: source} if document else {},
    )


def where(key: str, operator: str, value: Any = None) -> MetadataFilters:
    """Return filters with one comparison."""
    comparison = MetadataFilter(key=key, operator=FilterOperator(operator), value=value)
    return MetadataFilters(filters=[comparison])


def ids(nodes: Sequence[Any]) -> list[str]:
    """Return the ids of nodes, or of nodes with scores."""
    return [node.node_id for node in nodes]


def make_query(**options: Any) -> VectorStoreQuery:
    """Return a query for the first axis."""
    return VectorStoreQuery(query_embedding=[1.0, 0, 0, 0], similarity_top_k=9, **options)
