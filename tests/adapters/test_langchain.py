"""The LangChain adapter: LangChain's test suites, and behaviour that the suites do not cover."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore as LangChainVectorStore
from langchain_tests.integration_tests.vectorstores import (
    EMBEDDING_SIZE,
    VectorStoreIntegrationTests,
)
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from support.synchronous import sync_store

from cenote import (
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
    meta,
)
from cenote.adapters.langchain import CenoteVectorStore


@pytest.fixture
def postgres(dsn: str) -> PgVectorStore:
    """A store with the suites' dimensions that works in any event loop."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    store = PgVectorStore(engine, EMBEDDING_SIZE, table_name="langchain")
    asyncio.run(store.apply_migrations())
    return store


@pytest.fixture(scope="module")
def sync_postgres(module_dsn: str) -> Iterator[SyncPgVectorStore]:
    """A synchronous store with the suites' dimensions."""
    with sync_store(module_dsn, EMBEDDING_SIZE, table_name="langchain") as store:
        yield store


class TestPostgres(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, postgres: PgVectorStore) -> Iterator[LangChainVectorStore]:
        store = CenoteVectorStore(postgres, self.get_embeddings(), "acme")
        yield store
        store.close()


class TestSyncPostgres(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, sync_postgres: SyncPgVectorStore) -> LangChainVectorStore:
        return CenoteVectorStore(sync_postgres, self.get_embeddings(), uuid.uuid4().hex)


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[LangChainVectorStore]:
        store = CenoteVectorStore(
            InMemoryVectorStore(EMBEDDING_SIZE), self.get_embeddings(), "acme"
        )
        yield store
        store.close()


@pytest.fixture(params=["memory", "postgres", "sync memory", "sync postgres"])
def adapter(request: pytest.FixtureRequest) -> Iterator[CenoteVectorStore]:
    """The adapter, once with each kind of store."""
    store: Any
    if request.param == "memory":
        store = InMemoryVectorStore(EMBEDDING_SIZE)
    elif request.param == "sync memory":
        store = SyncInMemoryVectorStore(EMBEDDING_SIZE)
    else:
        store = request.getfixturevalue(request.param.replace(" ", "_"))
    embedding = VectorStoreIntegrationTests.get_embeddings()
    adapter = CenoteVectorStore(store, embedding, uuid.uuid4().hex)
    yield adapter
    adapter.close()


TEXTS = ["one", "two", "three", "four"]


def test_added_texts_are_found(adapter: CenoteVectorStore) -> None:
    """Texts get ids and are found by similarity, with filters, options and MMR."""
    metadatas = [{"document_id": "numbers", "n": number} for number in range(4)]
    ids = adapter.add_texts(TEXTS, metadatas)
    assert len(set(ids)) == 4
    ((document, score),) = adapter.similarity_search_with_score("two", k=1)
    assert (document.page_content, document.id) == ("two", ids[1])
    assert score == pytest.approx(1.0)
    assert adapter.similarity_search("two", 4, {"n": {"$gte": 2}})[0].metadata["n"] >= 2
    assert len(adapter.similarity_search("two", 4, meta("n") < 3)) == 3
    assert adapter.similarity_search("two", 4, per_document=1) == [document]
    (_, relevance), *_ = adapter.similarity_search_with_relevance_scores("two", k=2)
    assert relevance == pytest.approx(1.0)
    vector = adapter.embeddings.embed_query("two")
    assert adapter.similarity_search_by_vector(vector, k=1) == [document]
    diverse = adapter.max_marginal_relevance_search("two", k=2, fetch_k=4)
    assert diverse[0] == document
    assert adapter.max_marginal_relevance_search_by_vector(vector, k=1) == [document]


async def test_numeric_document_ids() -> None:
    """Numbers, including 0, become document ids; without a value, the chunk's id does."""
    store = InMemoryVectorStore(EMBEDDING_SIZE)
    adapter = CenoteVectorStore(store, VectorStoreIntegrationTests.get_embeddings(), "acme")
    metadatas = [{"document_id": value} for value in (0, 7, "", None)]
    await adapter.aadd_texts(TEXTS, metadatas, ids=["a", "b", "c", "d"])
    chunks = await store.get(["a", "b", "c", "d"], "acme")
    assert [chunk.document_id for chunk in chunks] == ["0", "7", "c", "d"]


async def test_asynchronous_methods(adapter: CenoteVectorStore) -> None:
    """Asynchronous and synchronous methods of one adapter return the same documents."""
    ids = await adapter.aadd_texts(TEXTS, ids=["a", None, "c", "d"])
    assert ids[0] == "a"
    assert await asyncio.to_thread(adapter.get_by_ids, ids) == await adapter.aget_by_ids(ids)
    vector = await adapter.embeddings.aembed_query("three")
    (three,) = await adapter.asimilarity_search("three", k=1)
    assert three.id == "c"
    assert await adapter.asimilarity_search_by_vector(vector, k=1) == [three]
    assert (await adapter.amax_marginal_relevance_search("three", k=1)) == [three]
    assert (await adapter.amax_marginal_relevance_search_by_vector(vector, k=1)) == [three]
    await adapter.adelete(["c"])
    assert await adapter.aget_by_ids(["c"]) == []


def test_delete_requires_ids_or_a_filter(adapter: CenoteVectorStore) -> None:
    """`delete` without arguments raises an error instead of deleting everything."""
    adapter.add_documents([Document(page_content=text, metadata={"t": text}) for text in TEXTS])
    with pytest.raises(InvalidInputError):
        adapter.delete()
    assert adapter.delete(filter={"t": {"$in": ["one", "two"]}}) is True
    assert len(adapter.similarity_search("one", k=9)) == 2


async def test_unknown_keywords_are_rejected() -> None:
    """A keyword that has no effect raises an error: the wrong documents could be deleted."""
    store = InMemoryVectorStore(EMBEDDING_SIZE)
    adapter = CenoteVectorStore(store, VectorStoreIntegrationTests.get_embeddings(), "acme")
    documents = [Document(page_content=text) for text in TEXTS]
    await adapter.aadd_documents(documents, ids=TEXTS, batch_size=2)
    for call in (
        lambda: adapter.adelete(["one"], namespace="other"),
        lambda: adapter.adelete(filter={"n": 1}, namespace="other"),
        lambda: adapter.aadd_documents(documents, namespace="other"),
        lambda: adapter.aadd_texts(TEXTS, namespace="other"),
    ):
        with pytest.raises(InvalidInputError, match="another namespace") as error:
            await call()
        assert error.value.field == "namespace"
    with pytest.raises(InvalidInputError, match="not both"):
        await adapter.adelete(["one"], filter={"n": 1})
    assert await store.count("acme") == len(TEXTS)


async def test_large_limits_are_rejected() -> None:
    """The limits of the store apply to ``k`` and ``fetch_k``."""
    store = InMemoryVectorStore(EMBEDDING_SIZE)
    adapter = CenoteVectorStore(store, VectorStoreIntegrationTests.get_embeddings(), "acme")
    for name, call in (
        ("limit", adapter.asimilarity_search("one", k=10_001)),
        ("k", adapter.amax_marginal_relevance_search("one", k=10_001)),
        ("fetch_k", adapter.amax_marginal_relevance_search("one", fetch_k=10_001)),
    ):
        with pytest.raises(InvalidInputError, match="10,000") as error:
            await call
        assert error.value.field == name


async def test_afrom_texts(postgres: PgVectorStore) -> None:
    """`afrom_texts` writes into the given store and namespace."""
    embedding = VectorStoreIntegrationTests.get_embeddings()
    adapter = await CenoteVectorStore.afrom_texts(
        TEXTS, embedding, store=postgres, namespace="other"
    )
    assert len(await adapter.asimilarity_search("one", k=9)) == 4
    assert await postgres.list_namespaces() == {"other": 4}
