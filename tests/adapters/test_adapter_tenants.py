"""The LlamaIndex and Haystack adapters across tenants with similar names and equal ids.

Every method of one tenant's adapter is called with arguments that try to reach the others. It finds
and changes rows of its own tenant only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)
from support import deployment
from support.database import execute
from support.deployment import GRANTS, Deployment
from support.llama_nodes import engine_for_any_loop, make_query, node, where

from cenote import CenoteError, InMemoryVectorStore, PgVectorStore, VectorStore
from cenote.adapters.haystack import CenoteDocumentStore, CenoteEmbeddingRetriever
from cenote.adapters.llama_index import CenoteVectorStore
from cenote.testing import stored
from cenote.testing.helpers import SQL_LOOKALIKES

roles = deployment.roles

ACME = "acme"
OTHERS = [
    *("ACME", "Acme", "acme ", " acme", "acme\t", "acme\u200b", "\ufeffacme", "acm\u0435"),
    *("acme%", "%", "_", "acm_", "acme\\", "acme'", 'acme"', "acme,", "acme:a", "acme/a", "{acme}"),
    *("caf\u00e9", "cafe\u0301", "null", "None", "*"),
    "acme' OR '1'='1",
    "acme') OR (true",
    *SQL_LOOKALIKES,
]
NEAR = [1.0, 0.0, 0.0, 0.0]
HOSTILE = ["namespace", "tenant", "_namespace", *SQL_LOOKALIKES, "namespace' OR '1'='1"]


@pytest.fixture(params=["memory", "postgres", "secured"])
async def store(request: pytest.FixtureRequest, roles: Deployment) -> VectorStore:
    """An empty store in memory, in Postgres, and in Postgres with row-level security."""
    if request.param == "memory":
        return InMemoryVectorStore(4, text_search="simple")
    options: Any = {"text_search": "simple", "row_security": request.param == "secured"}
    await PgVectorStore(roles.owner, 4, **options).apply_migrations()
    await execute(roles.owner, GRANTS.format("cenote_chunks"))
    return PgVectorStore(roles.app, 4, **options)


async def contents(store: VectorStore) -> dict[str, Any]:
    """Return the chunks and vectors of all other tenants."""
    found = {}
    for namespace in OTHERS:
        chunks = await stored(store, namespace)
        vectors = await store.get_embeddings([chunk.id for chunk in chunks], namespace)
        found[namespace] = [
            (chunk.id, chunk.document_id, chunk.content, chunk.metadata, [*vectors[chunk.id]])
            for chunk in chunks
        ]
    return found


# -- LlamaIndex ------------------------------------------------------------------------------------


async def llama_adapters(store: VectorStore) -> dict[str, CenoteVectorStore]:
    """Return an adapter for each tenant, with the same two nodes of the same document."""
    adapters = {}
    for namespace in (ACME, *OTHERS):
        adapter = CenoteVectorStore(store, namespace)
        nodes = [node(id, f"cat {namespace}", "doc", namespace=namespace, k=1) for id in "ab"]
        await adapter.async_add(nodes)
        adapters[namespace] = adapter
    return adapters


def _comparison(key: str, operator: str, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


LLAMA_FILTERS = [
    *(where(key, "==", other) for key in HOSTILE for other in ("ACME", "%")),
    *(where(key, "!=", ACME) for key in HOSTILE),
    *(where(key, "nin", [ACME]) for key in HOSTILE),
    *(where("namespace", "in", OTHERS[start : start + 9]) for start in range(0, len(OTHERS), 9)),
    *(where("namespace", "text_match", text) for text in ("%", "_", "", *SQL_LOOKALIKES)),
    *(where("namespace", "text_match_insensitive", text) for text in ("ACME", "%", "_", "")),
    where("namespace", "is_empty"),
    *(where(key, "!=", "nobody") for key in ("ref_doc_id", "doc_id", "document_id")),
    *(where("doc_id", "text_match", text) for text in ("%", "", "' OR true --")),
    MetadataFilters(
        filters=[_comparison("k", "==", 1), _comparison("namespace", "!=", ACME)],
        condition=FilterCondition.OR,
    ),
    MetadataFilters(filters=[_comparison("namespace", "==", ACME)], condition=FilterCondition.NOT),
    MetadataFilters(filters=[], condition=FilterCondition.NOT),
    MetadataFilters(filters=[], condition=FilterCondition.OR),
]


async def test_llama_index_reads(store: VectorStore) -> None:
    """Queries and reads return nodes of their tenant, whatever filters, ids and documents say."""
    adapters = await llama_adapters(store)
    adapter = adapters[ACME]
    own = f"cat {ACME}"

    async def query(**options: Any) -> list[str]:
        found = await adapter.aquery(make_query(**options))
        return [result.get_content() for result in found.nodes or ()]

    assert await query() == [own, own]
    for filters in LLAMA_FILTERS:
        for texts in (
            await query(filters=filters),
            [result.get_content() for result in await adapter.aget_nodes(filters=filters)],
        ):
            assert texts in ([], [own, own])
    ids = ["a", f"{OTHERS[0]}/a", "ACME", *SQL_LOOKALIKES]
    for mode in (
        VectorStoreQueryMode.DEFAULT,
        VectorStoreQueryMode.MMR,
        VectorStoreQueryMode.TEXT_SEARCH,
        VectorStoreQueryMode.HYBRID,
    ):
        for options in (
            {"query_str": "cat"},
            {"query_str": "ACME OR cat"},
            {"query_str": "cat", "node_ids": ids},
            {"query_str": "cat", "doc_ids": ["doc", *SQL_LOOKALIKES]},
        ):
            texts = await query(mode=mode, **options)
            assert {*texts} == {own}
            assert len(texts) == (1 if "node_ids" in options else 2)
    assert [result.node_id for result in await adapter.aget_nodes(ids)] == ["a"]
    for namespace, other in adapters.items():
        found = await other.aquery(make_query())
        assert {result.get_content() for result in found.nodes or ()} == {f"cat {namespace}"}


async def test_llama_index_changes(store: VectorStore) -> None:
    """Additions and deletions change nodes of their tenant only."""
    adapter = (await llama_adapters(store))[ACME]
    before = await contents(store)

    async def changed(change: Awaitable[Any], left: list[str]) -> None:
        await change
        assert [result.node_id for result in await adapter.aget_nodes()] == left
        assert await contents(store) == before
        await adapter.async_add([node(id, f"cat {ACME}", "doc", namespace=ACME) for id in "ab"])

    await changed(adapter.async_add([node("a", "dog", "other", namespace="ACME")]), ["a", "b"])
    await changed(adapter.adelete("doc"), [])
    for document in ("ACME", "%", "", "d_c", *SQL_LOOKALIKES):
        if document:
            await changed(adapter.adelete(document), ["a", "b"])
    await changed(adapter.adelete_nodes(["a", "ACME/b", *SQL_LOOKALIKES]), ["b"])
    await changed(adapter.adelete_nodes(["a"], where("namespace", "!=", "nobody")), ["b"])
    await changed(adapter.adelete_nodes(filters=where("namespace", "!=", ACME)), ["a", "b"])
    await changed(adapter.adelete_nodes(filters=where("doc_id", "text_match", "")), [])
    for filters in LLAMA_FILTERS:
        try:
            await adapter.adelete_nodes(filters=filters)
        except CenoteError:  # a filter that matches everything
            pass
        else:
            assert {result.node_id for result in await adapter.aget_nodes()} in (set(), {"a", "b"})
        await adapter.async_add([node(id, f"cat {ACME}", "doc", namespace=ACME) for id in "ab"])
    await changed(adapter.aclear(), [])  # compares the others' contents, too


async def test_llama_index_rejects_another_namespace(store: VectorStore) -> None:
    """The keyword arguments that are passed to the store cannot name another namespace."""
    adapters = await llama_adapters(store)
    adapter: Any = adapters[ACME]
    before = await contents(store)
    calls: list[Callable[..., Awaitable[Any]]] = [
        lambda **other: adapter.async_add([node("c", "cat")], **other),
        lambda **other: adapter.adelete("doc", **other),
        lambda **other: adapter.adelete_nodes(["a"], **other),
        lambda **other: adapter.adelete_nodes(filters=where("k", "==", 1), **other),
        lambda **other: adapter.aquery(make_query(), **other),
        lambda **other: adapter.aquery(make_query(mode=VectorStoreQueryMode.MMR), **other),
        lambda **other: adapter.aget_nodes(["a"], **other),
        lambda **other: adapter.aclear(**other),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="namespace"):
            await call(namespace=OTHERS[0])
    assert await contents(store) == before
    assert await store.count(ACME) == 2


# -- Haystack --------------------------------------------------------------------------------------


def documents(namespace: str) -> list[Document]:
    """Return a tenant's two documents. The ids are the same for all tenants."""
    return [
        Document(
            id=id,
            content=f"cat {namespace}",
            embedding=NEAR,
            meta={"namespace": namespace, "source_id": "doc", "k": 1, "day": "2026-01-01"},
        )
        for id in "ab"
    ]


async def haystack_adapters(store: VectorStore) -> dict[str, CenoteDocumentStore]:
    adapters = {}
    for namespace in (ACME, *OTHERS):
        adapters[namespace] = CenoteDocumentStore(store, namespace)
        await adapters[namespace].write_documents_async(documents(namespace))
    return adapters


def _filter(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


HAYSTACK_FILTERS: list[dict[str, Any]] = [
    *(_filter(f"{prefix}{key}", "==", "ACME") for key in HOSTILE for prefix in ("", "meta.")),
    *(_filter(f"{prefix}{key}", "!=", ACME) for key in HOSTILE for prefix in ("", "meta.")),
    *(_filter(f"meta.{key}", "not in", [ACME]) for key in HOSTILE),
    _filter("meta.namespace", "in", OTHERS),
    _filter("id", "!=", "nobody"),
    _filter("id", "in", ["a", "ACME/a", *SQL_LOOKALIKES]),
    _filter("content", "!=", f"cat {ACME}"),
    _filter("meta.day", ">", "2020-01-01"),  # Haystack's own code decides about each document
    {"operator": "NOT", "conditions": [_filter("meta.namespace", "==", ACME)]},
    {
        "operator": "OR",
        "conditions": [_filter("meta.k", "==", 1), _filter("meta.namespace", "!=", ACME)],
    },
    {
        "operator": "OR",
        "conditions": [
            _filter("meta.day", ">", "2020-01-01"),
            _filter("meta.namespace", "!=", ACME),
        ],
    },
]


async def test_haystack_reads(store: VectorStore) -> None:
    """Searches, reads and statistics cover documents of their tenant only."""
    adapters = await haystack_adapters(store)
    adapter = adapters[ACME]
    retriever = CenoteEmbeddingRetriever(adapter, top_k=50)
    accepted = 0
    for filters in (None, *HAYSTACK_FILTERS):
        try:
            read = await adapter.filter_documents_async(filters)
        except FilterError:
            continue
        accepted += 1
        retrieved = (await retriever.run_async(NEAR, filters))["documents"]
        nearest = await adapter.embedding_retrieval_async(NEAR, filters, 50)
        for found in (read, retrieved, nearest):
            assert {document.content for document in found} <= {f"cat {ACME}"}
            assert [document.id for document in found] in ([], ["a"], ["a", "b"])
        if filters is not None:
            assert await adapter.count_documents_by_filter_async(filters) == len(read)
            unique = await adapter.count_unique_metadata_by_filter_async(filters, ["namespace"])
            assert unique == {"namespace": min(1, len(read))}
        values = await adapter.get_metadata_field_unique_values_async("namespace", filters=filters)
        assert values in (([ACME], 1), ([], 0))
    assert accepted > len(HAYSTACK_FILTERS) / 2
    assert await adapter.count_documents_async() == 2
    assert await adapter.get_metadata_field_min_max_async("namespace") == {
        "min": ACME,
        "max": ACME,
    }
    for term in ("ACME", "%", "_", *SQL_LOOKALIKES):
        found_values, _ = await adapter.get_metadata_field_unique_values_async("namespace", term)
        assert found_values in ([], [ACME])
    assert "only_globex" not in await adapter.get_metadata_fields_info_async()
    for namespace, other in adapters.items():
        found = await other.embedding_retrieval_async(NEAR)
        assert {document.content for document in found} == {f"cat {namespace}"}


async def test_haystack_changes(store: VectorStore) -> None:
    """Writes, updates and deletions change documents of their tenant only."""
    adapter = (await haystack_adapters(store))[ACME]
    before = await contents(store)

    async def reset() -> None:
        await adapter.write_documents_async(documents(ACME), DuplicatePolicy.OVERWRITE)

    for filters in HAYSTACK_FILTERS:
        try:
            updated = await adapter.update_by_filter_async(filters, {"seen": "by acme"})
            assert updated <= 2
            await reset()
            assert await adapter.delete_by_filter_async(filters) == updated
        except FilterError:
            pass
        await reset()
    assert await contents(store) == before
    await adapter.delete_documents_async(["a", "ACME/b", "acme ", *SQL_LOOKALIKES])
    assert [document.id for document in await adapter.filter_documents_async()] == ["b"]
    await reset()
    await adapter.delete_all_documents_async()
    assert await adapter.count_documents_async() == 0
    # The ids exist for other tenants; for this one they are new.
    assert await adapter.write_documents_async(documents(ACME), DuplicatePolicy.FAIL) == 2
    assert await adapter.write_documents_async(documents(ACME), DuplicatePolicy.SKIP) == 0
    with pytest.raises(DuplicateDocumentError) as error:
        await adapter.write_documents_async(documents(ACME), DuplicatePolicy.FAIL)
    assert "ACME" not in str(error.value)
    assert await contents(store) == before


# -- the synchronous methods -----------------------------------------------------------------------


def test_synchronous_methods(dsn: str) -> None:
    """The copies of a store that synchronous calls use keep the adapter's namespace."""
    store = PgVectorStore(engine_for_any_loop(dsn), 4)
    llama = {name: CenoteVectorStore(store, name) for name in (ACME, "ACME")}
    hay = {name: CenoteDocumentStore(store, f"h {name}") for name in (ACME, "ACME")}
    for name in (ACME, "ACME"):
        llama[name].add([node("a", f"cat {name}", "doc")])
        hay[name].write_documents(documents(name))
    llama[ACME].delete("doc")
    hay[ACME].delete_all_documents()
    assert [result.get_content() for result in llama["ACME"].get_nodes()] == ["cat ACME"]
    assert [found.content for found in hay["ACME"].embedding_retrieval(NEAR)] == ["cat ACME"] * 2
    assert llama[ACME].get_nodes() == hay[ACME].filter_documents() == []
    assert hay[ACME].count_documents() == 0
    for name in (ACME, "ACME"):
        llama[name].close()
        hay[name].close()
