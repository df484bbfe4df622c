"""LangChain's interface: its own suites, and what it adds."""

from __future__ import annotations

import asyncio
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

from cenote import InMemoryVectorStore, InvalidInputError, PgVectorStore, meta
from cenote.adapters.langchain import CenoteVectorStore


@pytest.fixture
def postgres(dsn: str) -> PgVectorStore:
    """A store of the suite's dimensions, for any event loop."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    store = PgVectorStore(engine, EMBEDDING_SIZE, table_name="langchain")
    asyncio.run(store.apply_migrations())
    return store


class TestPostgres(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, postgres: PgVectorStore) -> Iterator[LangChainVectorStore]:
        store = CenoteVectorStore(postgres, self.get_embeddings(), "acme")
        yield store
        store.close()


class TestInMemory(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Iterator[LangChainVectorStore]:
        store = CenoteVectorStore(
            InMemoryVectorStore(EMBEDDING_SIZE), self.get_embeddings(), "acme"
        )
        yield store
        store.close()


@pytest.fixture(params=["memory", "postgres"])
def adapted(request: pytest.FixtureRequest) -> Iterator[CenoteVectorStore]:
    """The adapter over either store."""
    store: Any = InMemoryVectorStore(EMBEDDING_SIZE)
    if request.param == "postgres":
        store = request.getfixturevalue("postgres")
    adapter = CenoteVectorStore(store, VectorStoreIntegrationTests.get_embeddings(), "acme")
    yield adapter
    adapter.close()


TEXTS = ["one", "two", "three", "four"]


def test_what_texts_become(adapted: CenoteVectorStore) -> None:
    """Ids are made where there are none, documents are named by a key, scores are similarities."""
    metadatas = [{"document_id": "numbers", "n": number} for number in range(4)]
    ids = adapted.add_texts(TEXTS, metadatas)
    assert len(set(ids)) == 4
    ((document, score),) = adapted.similarity_search_with_score("two", k=1)
    assert (document.page_content, document.id) == ("two", ids[1])
    assert score == pytest.approx(1.0)
    assert adapted.similarity_search("two", 4, {"n": {"$gte": 2}})[0].metadata["n"] >= 2
    assert len(adapted.similarity_search("two", 4, meta("n") < 3)) == 3
    assert adapted.similarity_search("two", 4, per_document=1) == [document]
    (_, relevance), *_ = adapted.similarity_search_with_relevance_scores("two", k=2)
    assert relevance == pytest.approx(1.0)
    vector = adapted.embeddings.embed_query("two")
    assert adapted.similarity_search_by_vector(vector, k=1) == [document]
    diverse = adapted.max_marginal_relevance_search("two", k=2, fetch_k=4)
    assert diverse[0] == document
    assert adapted.max_marginal_relevance_search_by_vector(vector, k=1) == [document]


async def test_documents_are_named_by_numbers_too() -> None:
    """0 is a name as any other, and none where the name is empty."""
    store = InMemoryVectorStore(EMBEDDING_SIZE)
    adapter = CenoteVectorStore(store, VectorStoreIntegrationTests.get_embeddings(), "acme")
    names = [{"document_id": name} for name in (0, 7, "", None)]
    await adapter.aadd_texts(TEXTS, names, ids=["a", "b", "c", "d"])
    chunks = await store.get(["a", "b", "c", "d"], "acme")
    assert [one.document_id for one in chunks] == ["0", "7", "c", "d"]


async def test_the_same_to_be_awaited(adapted: CenoteVectorStore) -> None:
    """Beside synchronous calls of the same object."""
    ids = await adapted.aadd_texts(TEXTS, ids=["a", None, "c", "d"])
    assert ids[0] == "a"
    assert await asyncio.to_thread(adapted.get_by_ids, ids) == await adapted.aget_by_ids(ids)
    vector = await adapted.embeddings.aembed_query("three")
    (three,) = await adapted.asimilarity_search("three", k=1)
    assert three.id == "c"
    assert await adapted.asimilarity_search_by_vector(vector, k=1) == [three]
    assert (await adapted.amax_marginal_relevance_search("three", k=1)) == [three]
    assert (await adapted.amax_marginal_relevance_search_by_vector(vector, k=1)) == [three]
    await adapted.adelete(["c"])
    assert await adapted.aget_by_ids(["c"]) == []


def test_deletions_name_what(adapted: CenoteVectorStore) -> None:
    """Ids or a filter; not everything by an omission."""
    adapted.add_documents([Document(page_content=one, metadata={"t": one}) for one in TEXTS])
    with pytest.raises(InvalidInputError):
        adapted.delete()
    assert adapted.delete(filter={"t": {"$in": ["one", "two"]}}) is True
    assert len(adapted.similarity_search("one", k=9)) == 2


async def test_made_of_texts(postgres: PgVectorStore) -> None:
    """Into a store and a namespace that are named."""
    embedding = VectorStoreIntegrationTests.get_embeddings()
    made = await CenoteVectorStore.afrom_texts(TEXTS, embedding, store=postgres, namespace="other")
    assert len(await made.asimilarity_search("one", k=9)) == 4
    assert await postgres.list_namespaces() == {"other": 4}
