"""The LlamaIndex adapter: indexes, retrievers, pipelines, queries and deletions."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from sqlalchemy.ext.asyncio import create_async_engine
from support.commands import output_of, run
from support.llama_nodes import (
    Lines,
    Words,
    engine_for_any_loop,
    ids,
    make_query,
    node,
    where,
)
from support.synchronous import sync_store

from cenote import (
    DimensionMismatchError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
)
from cenote.adapters.llama_index import CenoteVectorStore


@pytest.fixture(scope="module")
def sync_postgres(module_dsn: str) -> Iterator[SyncPgVectorStore]:
    """A synchronous store with four dimensions and full-text search."""
    options: Any = {"table_name": "worded", "text_search": "english"}
    with sync_store(module_dsn, 4, **options) as store:
        yield store


@pytest.fixture(params=["memory", "postgres", "sync memory", "sync postgres"])
def adapter(request: pytest.FixtureRequest) -> Iterator[CenoteVectorStore]:
    """The adapter, once with each kind of store."""
    store: Any
    if request.param == "memory":
        store = InMemoryVectorStore(4)
    elif request.param == "sync memory":
        store = SyncInMemoryVectorStore(4)
    elif request.param == "postgres":
        store = PgVectorStore(engine_for_any_loop(request.getfixturevalue("dsn")), 4)
    else:
        store = request.getfixturevalue("sync_postgres")
        for namespace in ("acme", "other"):
            store.delete_namespace(namespace)
    adapter = CenoteVectorStore(store, "acme")
    yield adapter
    adapter.close()


# -- through LlamaIndex ----------------------------------------------------------------------------

PETS = Document(id_="pets", text="cat cat\ncat dog", metadata={"year": 2020, "tags": ["a", "b"]})
COAST = Document(id_="coast", text="sea sea\nsea sun", metadata={"year": 2024, "tags": []})


def index_of(adapter: CenoteVectorStore, **options: Any) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(
        [PETS, COAST],
        storage_context=StorageContext.from_defaults(vector_store=adapter),
        embed_model=Words(),
        transformations=[Lines()],
        **options,
    )


def test_index_life_cycle(adapter: CenoteVectorStore) -> None:
    """An index can be created, searched, extended, reduced and opened again."""
    index = index_of(adapter)
    found = index.as_retriever(similarity_top_k=2).retrieve("cat")
    assert ids(found) == ["pets:0", "pets:1"]
    assert [result.score for result in found] == pytest.approx([1, 0.5**0.5])
    assert found[0].text == "cat cat"
    assert found[0].node.ref_doc_id == "pets"
    assert found[0].metadata == PETS.metadata

    recent = index.as_retriever(similarity_top_k=9, filters=where("year", ">=", 2021))
    assert ids(recent.retrieve("cat")) == ["coast:0", "coast:1"]
    assert ids(index.as_retriever(doc_ids=["coast"]).retrieve("cat")) == ["coast:0", "coast:1"]

    index.insert(Document(id_="beach", text="dog sea"))
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("dog sea")) == ["beach:0"]
    index.update_ref_doc(Document(id_="beach", text="sun"))
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("sun")) == ["beach:0"]
    index.delete_ref_doc("beach")
    index.delete_nodes(["pets:0"])
    reopened = VectorStoreIndex.from_vector_store(adapter, embed_model=Words())
    assert ids(reopened.as_retriever(similarity_top_k=9).retrieve("cat")) == [
        "pets:1",
        "coast:0",
        "coast:1",
    ]
    adapter.clear()
    assert reopened.as_retriever().retrieve("cat") == []
    assert adapter.get_nodes() == []


async def test_asynchronous_methods(adapter: CenoteVectorStore) -> None:
    """Asynchronous and synchronous methods of one adapter return the same nodes."""
    index = VectorStoreIndex.from_vector_store(adapter, embed_model=Words())
    await index.ainsert_nodes(Lines()([PETS, COAST]))
    retriever = index.as_retriever(similarity_top_k=2, filters=where("tags", "contains", "a"))
    assert ids(await retriever.aretrieve("cat")) == ["pets:0", "pets:1"]
    assert ids(await asyncio.to_thread(retriever.retrieve, "cat")) == ["pets:0", "pets:1"]
    await index.adelete_ref_doc("coast")
    await index.adelete_nodes(["pets:1"])
    assert ids(await adapter.aget_nodes()) == ["pets:0"]
    await adapter.aclear()
    assert await adapter.aget_nodes() == []


def test_use_async_in_synchronous_code(adapter: CenoteVectorStore) -> None:
    """An index with `use_async=True` works if the engine keeps no connections."""
    index = index_of(adapter, use_async=True)
    assert ids(index.as_retriever(similarity_top_k=1).retrieve("sea")) == ["coast:0"]


def test_other_embedding_models(adapter: CenoteVectorStore) -> None:
    """Any embedding model works if its dimensions are the store's."""
    index = VectorStoreIndex.from_vector_store(adapter, embed_model=MockEmbedding(embed_dim=4))
    index.insert_nodes([TextNode(id_="a", text="text")])
    assert ids(index.as_retriever().retrieve("other")) == ["a"]
    other = VectorStoreIndex.from_vector_store(adapter, embed_model=MockEmbedding(embed_dim=5))
    with pytest.raises(DimensionMismatchError):
        other.as_retriever().retrieve("other")


@pytest.mark.parametrize("awaited", [False, True])
def test_ingestion_pipeline(adapter: CenoteVectorStore, awaited: bool) -> None:
    """A pipeline replaces changed documents and deletes missing ones."""
    pipeline = IngestionPipeline(
        transformations=[Lines(), Words()],
        vector_store=adapter,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )

    def ingest(*documents: Document) -> list[str]:
        if awaited:
            asyncio.run(pipeline.arun(documents=list(documents)))
        else:
            pipeline.run(documents=list(documents))
        return [node.get_content() for node in adapter.get_nodes()]

    assert ingest(PETS, COAST) == ["sea sea", "sea sun", "cat cat", "cat dog"]
    assert ingest(Document(id_="pets", text="dog"), COAST) == ["sea sea", "sea sun", "dog"]
    assert ingest(COAST) == ["sea sea", "sea sun"]


def test_images_and_index_nodes_with_texts(adapter: CenoteVectorStore) -> None:
    """The index's own retriever finds no texts; `VectorIndexRetriever` finds all nodes."""
    image = ImageNode(id_="image", text="cat", image_url="https://example.org/cat.png")
    pointer = IndexNode(id_="pointer", text="cat sun", index_id="other")
    index = VectorStoreIndex(
        [node("text", "cat"), image, pointer],
        storage_context=StorageContext.from_defaults(vector_store=adapter),
        embed_model=Words(),
    )
    assert ids(index.as_retriever(similarity_top_k=9).retrieve("cat")) == ["image", "pointer"]
    found = VectorIndexRetriever(index, similarity_top_k=9).retrieve("cat")
    assert ids(found) == ["image", "text", "pointer"]
    assert isinstance(found[0].node, ImageNode)


# -- queries and deletions -------------------------------------------------------------------------


@pytest.fixture
def adapter_with_nodes(adapter: CenoteVectorStore) -> CenoteVectorStore:
    """The adapter with four nodes of two documents."""
    adapter.add(
        [
            node("1", "cat", "pets", n=1),
            node("2", "cat cat dog", "pets", n=2),
            node("3", "cat dog", "pets", n=3),
            node("4", "cat sea", "coast", n=4),
        ]
    )
    return adapter


def test_query_restrictions(adapter_with_nodes: CenoteVectorStore) -> None:
    """Node ids, document ids, filters and the store's options restrict a query."""
    assert adapter_with_nodes.query(make_query()).ids == ["1", "2", "3", "4"]
    assert adapter_with_nodes.query(make_query(node_ids=[])).ids == ["1", "2", "3", "4"]
    assert adapter_with_nodes.query(make_query(node_ids=["4", "2", "9"])).ids == ["2", "4"]
    assert adapter_with_nodes.query(make_query(doc_ids=["coast"])).ids == ["4"]
    assert adapter_with_nodes.query(make_query(doc_ids=[])).ids == []
    assert adapter_with_nodes.query(
        make_query(doc_ids=["pets"], filters=where("n", ">", 1))
    ).ids == ["2", "3"]
    assert adapter_with_nodes.query(make_query(), per_document=1).ids == ["1", "4"]
    assert adapter_with_nodes.query(make_query(), min_score=0.8).ids == ["1", "2"]
    result = adapter_with_nodes.query(make_query(node_ids=["4"]))
    assert result.similarities == pytest.approx([0.5**0.5])
    assert ids(result.nodes or []) == ["4"]
    opposite = VectorStoreQuery(query_embedding=[-1.0, 0, 0, 0])
    assert adapter_with_nodes.query(opposite).similarities == pytest.approx([-(0.5**0.5)])


@pytest.mark.parametrize("threshold", [0.0, 0.3, None, 0.9, 1.0])
def test_mmr(adapter_with_nodes: CenoteVectorStore, threshold: float | None) -> None:
    """MMR selects the same nodes as LlamaIndex, with the query's threshold or the argument."""
    query = make_query(mode=VectorStoreQueryMode.MMR, mmr_threshold=threshold)
    query.similarity_top_k = 2
    stored = [[1.0, 0, 0, 0], [2.0, 1, 0, 0], [1.0, 1, 0, 0], [1.0, 0, 1, 0]]
    _, expected = get_top_k_mmr_embeddings(
        query.query_embedding or [],
        stored,
        similarity_top_k=2,
        embedding_ids=list("1234"),
        mmr_threshold=threshold,
    )
    result = adapter_with_nodes.query(query)
    assert result.ids == expected
    assert (result.similarities or [])[0] == pytest.approx(1)
    query.mmr_threshold = None
    assert adapter_with_nodes.query(query, mmr_threshold=threshold).ids == expected
    assert adapter_with_nodes.query(query, mmr_threshold=threshold, candidates=2).ids == ["1", "2"]


@pytest.fixture(params=["memory", "postgres", "sync postgres"])
def with_full_text(request: pytest.FixtureRequest) -> CenoteVectorStore:
    """The adapter with a store that has full-text search."""
    store: Any = InMemoryVectorStore(4, text_search="english")
    if request.param == "postgres":
        engine = engine_for_any_loop(request.getfixturevalue("dsn"))
        store = PgVectorStore(engine, 4, table_name="worded", text_search="english")
        asyncio.run(store.apply_migrations())
    elif request.param == "sync postgres":
        store = request.getfixturevalue("sync_postgres")
    return CenoteVectorStore(store, "words")


async def test_text_and_hybrid_modes(with_full_text: CenoteVectorStore) -> None:
    """The text modes search by words and filters; `alpha` weighs vectors against words."""
    await with_full_text.async_add(
        [node("1", "cat", n=1), node("2", "sea", n=2), node("3", "dog", n=3)]
    )
    text = make_query(query_str="Dogs at sea?", mode=VectorStoreQueryMode.TEXT_SEARCH)
    text.similarity_top_k = 9
    assert sorted((await with_full_text.aquery(text)).ids or []) == ["2", "3"]
    text.sparse_top_k, text.mode = 1, VectorStoreQueryMode.SPARSE
    assert len((await with_full_text.aquery(text)).ids or []) == 1
    both = make_query(mode=VectorStoreQueryMode.HYBRID, query_str="dogs", alpha=0.1)
    both.similarity_top_k, both.query_embedding = 9, [1.0, 0.1, 0.05, 0.0]
    assert (await with_full_text.aquery(both)).ids == ["3", "1", "2"]
    both.alpha = 1.0
    result = await with_full_text.aquery(both)
    assert result.ids is not None
    assert result.ids[0] == "1"
    both.alpha, both.hybrid_top_k = None, 1
    assert (await with_full_text.aquery(both)).ids == ["3"]
    both.filters = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    assert (await with_full_text.aquery(both)).ids == ["2"]


@pytest.mark.parametrize(
    "mode",
    [
        VectorStoreQueryMode.SEMANTIC_HYBRID,
        VectorStoreQueryMode.SVM,
        VectorStoreQueryMode.LOGISTIC_REGRESSION,
        VectorStoreQueryMode.LINEAR_REGRESSION,
    ],
)
async def test_unsupported_modes(mode: VectorStoreQueryMode) -> None:
    """The error names the unsupported mode and the supported ones."""
    adapter = CenoteVectorStore(InMemoryVectorStore(4), "acme")
    with pytest.raises(NotImplementedError, match=f"{mode.value}.*'default', 'mmr', "):
        await adapter.aquery(VectorStoreQuery(query_str="cat", mode=mode))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        (VectorStoreQuery(query_str="SECRET"), "query_embedding"),
        (make_query(output_fields=["text"]), "output_fields"),
        (make_query(embedding_field="other"), "embedding_field"),
        (make_query(mode=VectorStoreQueryMode.MMR, mmr_threshold=1.5), "mmr_threshold"),
        (make_query(mode=VectorStoreQueryMode.HYBRID, query_str="SECRET", alpha=7), "alpha"),
        (make_query(mode=VectorStoreQueryMode.TEXT_SEARCH), "query_str"),
        (VectorStoreQuery(query_embedding=[1.0, 0, 0, 0], similarity_top_k=10_001), "limit"),
    ],
)
async def test_invalid_queries(query: VectorStoreQuery, field: str) -> None:
    """The error names the invalid field and quotes no value."""
    adapter = CenoteVectorStore(InMemoryVectorStore(4), "acme")
    with pytest.raises(InvalidInputError, match=field) as error:
        await adapter.aquery(query)
    assert error.value.field == field
    assert "SECRET" not in str(error.value)


def test_deletions(adapter_with_nodes: CenoteVectorStore) -> None:
    """Deletions require ids, filters or both, and do not affect other namespaces."""
    other = CenoteVectorStore(adapter_with_nodes.client, "other")
    for nothing in (None, MetadataFilters(filters=[])):
        with pytest.raises(InvalidInputError, match=r"clear\(\)"):
            adapter_with_nodes.delete_nodes(filters=nothing)
    with pytest.raises(InvalidInputError, match="every"):
        adapter_with_nodes.delete_nodes(
            filters=MetadataFilters(filters=[MetadataFilters(filters=[])])
        )
    adapter_with_nodes.delete_nodes([])
    adapter_with_nodes.delete_nodes([], where("n", ">", 0))
    adapter_with_nodes.delete_nodes(["1", "9"], where("n", ">", 1))
    adapter_with_nodes.delete("nowhere")
    assert len(adapter_with_nodes.get_nodes()) == 4
    adapter_with_nodes.delete_nodes(["1", "2"], where("n", ">", 1))
    assert ids(adapter_with_nodes.get_nodes()) == ["1", "3", "4"]
    adapter_with_nodes.delete_nodes(filters=where("n", "==", 3))
    adapter_with_nodes.delete_nodes(["1"])
    assert ids(adapter_with_nodes.get_nodes()) == ["4"]
    adapter_with_nodes.delete("coast")
    adapter_with_nodes.add([node("alone", "cat")])
    assert other.get_nodes() == []
    adapter_with_nodes.delete("alone")
    assert adapter_with_nodes.get_nodes() == []


def test_get_nodes(adapter_with_nodes: CenoteVectorStore) -> None:
    """`get_nodes` reads by ids, filters or both, and ignores unknown ids."""
    assert ids(adapter_with_nodes.get_nodes(["4", "1", "9"])) == ["1", "4"]
    assert adapter_with_nodes.get_nodes([]) == []
    assert ids(adapter_with_nodes.get_nodes(["4", "1"], where("n", ">", 1))) == ["4"]
    assert ids(adapter_with_nodes.get_nodes(filters=where("ref_doc_id", "==", "coast"))) == ["4"]


async def test_caller_transaction(dsn: str) -> None:
    """The asynchronous methods join the transaction passed as `session`."""
    engine = engine_for_any_loop(dsn)
    adapter = CenoteVectorStore(PgVectorStore(engine, 4), "acme")
    async with engine.connect() as session:
        await adapter.async_add([node("1", "cat", "pets"), node("2", "dog")], session=session)
        await adapter.adelete("pets", session=session)
        assert (await adapter.aquery(make_query(doc_ids=["2"]), session=session)).ids == ["2"]
        assert await adapter.aget_nodes() == []
        await session.rollback()
    assert await adapter.aget_nodes() == []


# -- serialization ---------------------------------------------------------------------------------


async def test_serialization() -> None:
    """Serialized data contain no password, and a given store restores the adapter."""
    engine = create_async_engine("postgresql+asyncpg://me:SECRET@localhost/database")
    adapter = CenoteVectorStore(PgVectorStore(engine, 4), "acme", embedding_model="words")
    data = adapter.to_dict()
    assert data == {
        "namespace": "acme",
        "embedding_model": "words",
        "class_name": "CenoteVectorStore",
    }
    assert "SECRET" not in repr(adapter) + str(adapter) + adapter.to_json()
    restored = CenoteVectorStore.from_dict(data, store=adapter.client)
    assert (restored.namespace, restored.embedding_model) == ("acme", "words")
    assert (restored.stores_text, restored.is_embedding_query) == (True, True)
    assert restored.model_copy().client is adapter.client
    with pytest.raises(TypeError, match="store"):
        CenoteVectorStore.from_dict(data)
    with pytest.raises(TypeError, match="from_dict"):
        pickle.dumps(adapter)
    pipeline = IngestionPipeline(transformations=[Lines()], vector_store=adapter)
    assert "SECRET" not in str(pipeline.model_dump(include={"vector_store"}))


async def test_embedding_model() -> None:
    """The adapter stores its embedding model, and a store with another model rejects it."""
    store = InMemoryVectorStore(4, embedding_model="words")
    await CenoteVectorStore(store, "acme", embedding_model="words").async_add([node("a", "cat")])
    with pytest.raises(InvalidInputError, match="llama-index"):
        await CenoteVectorStore(store, "acme").async_add([node("a", "cat")])


def test_cenote_does_not_import_llama_index() -> None:
    """Only the adapter imports LlamaIndex and pydantic."""
    code = "import cenote, sys; print('llama_index' in sys.modules, 'pydantic' in sys.modules)"
    assert output_of(run(sys.executable, "-c", code)) == "False False\n"
