"""The adapters with a synchronous store: threads, event loops, sessions and errors."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from haystack import Document as HaystackDocument
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from llama_index.core import VectorStoreIndex
from sqlalchemy import event
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from support.llama_nodes import Words, ids, make_query, node
from support.synchronous import sync_store

from cenote import (
    DimensionMismatchError,
    InMemoryVectorStore,
    InvalidInputError,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
    SyncVectorStore,
)
from cenote.adapters import langchain, llama_index
from cenote.adapters.haystack import CenoteDocumentStore, CenoteEmbeddingRetriever

V = [1.0, 0.0, 0.0, 0.0]
Place = tuple[threading.Thread, object]


def here() -> Place:
    """Return the current thread and its running event loop."""
    return threading.current_thread(), asyncio._get_running_loop()


class Embedding(Embeddings):
    """Constant embedding that records where it is called."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.places.append(here())
        return [V for _ in texts]

    def embed_query(self, text: str) -> list[float]:
        self.places.append(here())
        return V


class AsyncEmbedding(Embedding):
    """The same, with methods that wait for the event loop."""

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(0.001)
        return self.embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        await asyncio.sleep(0.001)
        return self.embed_query(text)


@pytest.fixture(scope="module")
def module_store(module_dsn: str) -> Iterator[SyncPgVectorStore]:
    with sync_store(module_dsn, 4) as store:
        yield store


@pytest.fixture
def namespace() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def statements(module_store: SyncPgVectorStore) -> Iterator[list[Place]]:
    """Where the engine executes statements."""
    places: list[Place] = []

    def record(*_: object) -> None:
        places.append(here())

    event.listen(module_store.engine, "before_cursor_execute", record)
    yield places
    event.remove(module_store.engine, "before_cursor_execute", record)


def add_and_search_langchain(store: SyncVectorStore, namespace: str) -> list[str | None]:
    adapter = langchain.CenoteVectorStore(store, Embedding(), namespace)
    adapter.add_documents([Document(id="a", page_content="text")])
    assert adapter.get_by_ids(["a"]) == adapter.max_marginal_relevance_search("text")
    return [document.id for document in adapter.similarity_search("text")]


def add_and_search_llama_index(store: SyncVectorStore, namespace: str) -> list[str | None]:
    adapter = llama_index.CenoteVectorStore(store, namespace)
    adapter.add([node("a", "cat")])
    assert ids(adapter.get_nodes()) == ["a"]
    return [*(adapter.query(make_query()).ids or [])]


def add_and_search_haystack(store: SyncVectorStore, namespace: str) -> list[str | None]:
    adapter = CenoteDocumentStore(store, namespace)
    adapter.write_documents([HaystackDocument(id="a", embedding=V)])
    assert adapter.count_documents() == len(adapter.filter_documents())
    found = CenoteEmbeddingRetriever(adapter).run(V)["documents"]
    return [document.id for document in found]


AddAndSearch = Callable[[SyncVectorStore, str], list[str | None]]
for_each_adapter = pytest.mark.parametrize(
    "add_and_search",
    [add_and_search_langchain, add_and_search_llama_index, add_and_search_haystack],
    ids=["langchain", "llama_index", "haystack"],
)


@for_each_adapter
def test_no_thread_and_no_event_loop(
    add_and_search: AddAndSearch,
    module_store: SyncPgVectorStore,
    namespace: str,
    statements: list[Place],
) -> None:
    """Synchronous methods execute their statements in the caller's thread."""
    threads = threading.enumerate()
    assert add_and_search(module_store, namespace) == ["a"]
    assert threading.enumerate() == threads
    assert set(statements) == {(threading.current_thread(), None)}


@for_each_adapter
def test_caller_transaction(
    add_and_search: AddAndSearch, module_store: SyncPgVectorStore, namespace: str
) -> None:
    """The methods of an adapter on a bound store join the session, and are rolled back with it."""
    with Session(module_store.engine) as session:
        assert add_and_search(module_store.in_session(session), namespace) == ["a"]
        assert module_store.count(namespace) == 0
        session.rollback()
    assert module_store.count(namespace) == 0
    with Session(module_store.engine) as session:
        add_and_search(module_store.in_session(session), namespace)
        session.commit()
    assert module_store.count(namespace) == 1


def test_session_as_argument(module_store: SyncPgVectorStore, namespace: str) -> None:
    """LlamaIndex's methods pass a synchronous session to the store."""
    adapter = llama_index.CenoteVectorStore(module_store, namespace)
    with Session(module_store.engine) as session:
        adapter.add([node("a", "cat", "pets"), node("b", "dog")], session=session)
        adapter.delete("pets", session=session)
        assert adapter.query(make_query(), session=session).ids == ["b"]
        assert adapter.get_nodes() == []
        session.rollback()
    assert adapter.get_nodes() == []
    with pytest.raises(InvalidInputError, match="session"):
        adapter.add([node("a", "cat")], session=object())


@for_each_adapter
def test_inside_an_event_loop(
    add_and_search: AddAndSearch, module_store: SyncPgVectorStore, namespace: str
) -> None:
    """Synchronous methods also work where an event loop runs, as in a notebook."""

    async def main() -> list[str | None]:
        return add_and_search(module_store, namespace)

    assert asyncio.run(main()) == ["a"]


@for_each_adapter
def test_in_memory(add_and_search: AddAndSearch) -> None:
    """A synchronous store in memory serves unit tests, and ignores the session."""
    store = SyncInMemoryVectorStore(4)
    assert add_and_search(store.in_session(None), "acme") == ["a"]
    assert store.count("acme") == 1


def test_where_embeddings_run(module_store: SyncPgVectorStore, namespace: str) -> None:
    """Synchronous methods call the synchronous functions of an embedding, in the same thread."""
    embedding = AsyncEmbedding()
    adapter = langchain.CenoteVectorStore(module_store, embedding, namespace)
    adapter.add_texts(["text"], ids=["a"])
    assert [document.id for document in adapter.similarity_search("text")] == ["a"]
    assert embedding.places == [(threading.current_thread(), None)] * 2


async def test_asynchronous_methods_run_in_a_thread(
    module_store: SyncPgVectorStore, namespace: str, statements: list[Place]
) -> None:
    """Embeddings are awaited in the event loop. Statements run elsewhere and do not block it."""
    embedding = AsyncEmbedding()
    lang = langchain.CenoteVectorStore(module_store, embedding, namespace)
    await lang.aadd_texts(["text"], ids=["a"])
    assert [document.id for document in await lang.asimilarity_search("text")] == ["a"]
    assert embedding.places == [here()] * 2
    await lang.adelete(["a"])
    index = llama_index.CenoteVectorStore(module_store, namespace)
    await index.async_add([node("b", "cat")])
    assert ids(await index.aget_nodes()) == (await index.aquery(make_query())).ids == ["b"]
    stack = CenoteDocumentStore(module_store, namespace)
    assert await stack.delete_by_filter_async({"field": "id", "operator": "==", "value": "b"}) == 1
    assert await stack.count_documents_async() == 0
    assert statements
    for thread, loop in statements:
        assert thread is not threading.current_thread()
        assert loop is None


async def test_asynchronous_methods_of_a_bound_store(
    module_store: SyncPgVectorStore, namespace: str
) -> None:
    """Asynchronous methods join the session, too, also the session of a `scoped_session`."""
    scoped = scoped_session(sessionmaker(module_store.engine))
    with scoped() as session:
        bound = module_store.in_session(scoped())
        adapter = langchain.CenoteVectorStore(bound, Embedding(), namespace)
        await adapter.aadd_texts(["text"], ids=["a"])
        assert [document.id for document in await adapter.aget_by_ids(["a"])] == ["a"]
        session.rollback()
        assert await adapter.aget_by_ids(["a"]) == []


def test_use_async_in_synchronous_code(module_store: SyncPgVectorStore, namespace: str) -> None:
    """An index with `use_async=True` works on an engine with a pool."""
    adapter = llama_index.CenoteVectorStore(module_store, namespace)
    index = VectorStoreIndex.from_vector_store(adapter, embed_model=Words(), use_async=True)
    for name in ("a", "b"):
        index.insert_nodes([node(name, "cat")])
    assert ids(index.as_retriever().retrieve("cat")) == ["a", "b"]


def test_threads_share_an_adapter(module_store: SyncPgVectorStore, namespace: str) -> None:
    """Eight threads use one adapter at the same time."""
    adapter = CenoteDocumentStore(module_store, namespace)

    def write(number: int) -> int:
        adapter.write_documents([HaystackDocument(id=str(number), embedding=V)])
        return len(adapter.embedding_retrieval(V, top_k=100))

    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(write, range(32)))
    assert min(counts) >= 1
    assert max(counts) == adapter.count_documents() == 32


def test_errors(module_store: SyncPgVectorStore, namespace: str) -> None:
    """Errors are the same as those of an adapter with an asynchronous store."""
    adapters: list[Any] = [
        langchain.CenoteVectorStore(store, Embedding(), namespace)
        for store in (module_store, InMemoryVectorStore(4))
    ]
    calls: list[tuple[type[Exception], Callable[[Any], object]]] = [
        (InvalidInputError, lambda adapter: adapter.similarity_search("text", k=0)),
        (InvalidInputError, lambda adapter: adapter.delete()),
        (DimensionMismatchError, lambda adapter: adapter.similarity_search_by_vector([1.0])),
        (TypeError, lambda adapter: adapter.similarity_search("text", unknown=1)),
    ]
    for kind, call in calls:
        messages = []
        for adapter in adapters:
            with pytest.raises(kind) as error:
                call(adapter)
            messages.append(str(error.value).rpartition("VectorStore.")[2])
        assert messages[0] == messages[1]
    adapters[1].close()


def test_close_keeps_the_store_open(module_store: SyncPgVectorStore, namespace: str) -> None:
    """`close` of an adapter has nothing to close."""
    adapter = langchain.CenoteVectorStore(module_store, Embedding(), namespace)
    adapter.add_texts(["text"])
    adapter.close()
    assert len(adapter.similarity_search("text")) == 1
    assert module_store.count(namespace) == 1
