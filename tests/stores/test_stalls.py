"""Long operations let other tasks of the event loop run."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from support.attacks import Recorded
from support.stalls import longest_stall

from cenote import EmbeddedChunk, InMemoryVectorStore, PgVectorStore, VectorStore
from cenote.filters.language import field, meta
from cenote.responsive import run_in_thread
from cenote.retrievers import BM25Retriever
from cenote.stores.memory.namespace import Namespace
from cenote.testing import embedded, found

DIMENSIONS = 256
ROWS = 6000
LONGEST_STALL = {"memory": 0.05, "Postgres": 0.1}
"""Seconds. Measured: up to 0.02 and 0.05. Without pauses and threads, `search_many` by 1,000
vectors took 1.7 s in memory and `search_diverse` 0.6 s in both."""


def chunks() -> list[EmbeddedChunk]:
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIMENSIONS))
    return [
        embedded(
            f"{number:05}",
            vector.astype(np.float32),
            document_id=f"d{number // 20}",
            content=f"passage {number} of a text about many things " * 10,
            position=number,
            metadata={"number": number, "title": f"title {number}", "lang": "en"},
        )
        for number, vector in enumerate(vectors)
    ]


def queries(count: int) -> list[list[float]]:
    generator = np.random.default_rng(2)
    vectors: list[list[float]] = generator.standard_normal((count, DIMENSIONS)).tolist()
    return vectors


Operation = Callable[[Any], Coroutine[Any, Any, Any]]

SEARCHES: dict[str, Operation] = {
    "search_many": lambda store: store.search_many(queries(40), "n", 2000, exact=True),
    "search_many by 1,000 vectors": lambda store: store.search_many(queries(1000), "n", 1),
    "search_diverse": lambda store: store.search_diverse(queries(1)[0], "n", 300, candidates=ROWS),
    "get_embeddings": lambda store: store.get_embeddings(
        [f"{number:05}" for number in range(ROWS)] * 3, "n"
    ),
}

IN_MEMORY: dict[str, Operation] = {
    **SEARCHES,
    "search": lambda store: store.search(queries(1)[0], "n", ROWS),
    "search with a pattern": lambda store: store.search(
        queries(1)[0], "n", 1, field("content").like("%many%9_9%things%x")
    ),
    "search per document": lambda store: store.search(queries(1)[0], "n", ROWS, per_document=3),
    "search_text": lambda store: store.search_text("passage about things", "n", ROWS),
    "search_hybrid": lambda store: store.search_hybrid("text 7", queries(1)[0], "n", ROWS),
    "count": lambda store: store.count("n", field("content").ilike("%MANY%9_9%things%x")),
    "list_chunks": lambda store: store.list_chunks("n", meta("title").like("%x%"), limit=5),
    "get": lambda store: store.get([f"{number:05}" for number in range(ROWS)], "n"),
    "BM25Retriever": lambda store: BM25Retriever(store).retrieve("passage text", "n", 10),
}


async def longest_stalls(
    store: VectorStore, operations: dict[str, Operation], limit: float
) -> dict[str, float]:
    """Return the longest stall of each operation in seconds, by name.

    A stall beyond the limit is measured up to ten times: even CPU time varies on a busy machine.
    """
    stalls = {}
    for name, call in operations.items():
        stalls[name] = await longest_stall(call(store))
        for _ in range(9):
            if stalls[name] > limit:
                stalls[name] = min(stalls[name], await longest_stall(call(store)))
    return stalls


def check_stalls(stalls: dict[str, float], limit: float) -> str:
    """Check that no stall is too long, and return a line for the table of attacks."""
    assert {name: round(stall, 3) for name, stall in stalls.items() if stall > limit} == {}
    return f"the longest stall of the event loop is {1000 * max(stalls.values()):.0f} ms"


async def test_postgres_lets_other_tasks_run(engine: AsyncEngine, attacked: Recorded) -> None:
    """Large results, many vectors and diverse searches do not stall the loop."""
    store = PgVectorStore(engine, DIMENSIONS, table_name="stalls")
    await store.apply_migrations()
    await store.bulk_load(chunks(), "n")
    await store.search_many(queries(1), "n", 2000, exact=True)  # compiles the statement: 40 ms
    limit = LONGEST_STALL["Postgres"]
    stalls = await longest_stalls(store, SEARCHES, limit)
    attacked("long operations (Postgres)", len(stalls), check_stalls(stalls, limit))


async def test_memory_lets_other_tasks_run(attacked: Recorded) -> None:
    """Long reads of the in-memory store do not stall the loop."""
    store = InMemoryVectorStore(DIMENSIONS, text_search="english")
    await store.upsert(chunks(), "n")
    limit = LONGEST_STALL["memory"]
    stalls = await longest_stalls(store, IN_MEMORY, limit)
    attacked("long operations (in memory)", len(stalls), check_stalls(stalls, limit))


# -- threads of the in-memory store ----------------------------------------------------------------


class Slow:
    """Makes the searches of a namespace run in threads until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started = threading.Event()
        self.release = threading.Event()
        search: Any = Namespace.search

        def slow_search(namespace: Namespace, *arguments: Any) -> Any:
            self.started.set()
            assert self.release.wait(20)
            return search(namespace, *arguments)

        monkeypatch.setattr(Namespace, "search", slow_search)
        monkeypatch.setattr(Namespace, "search_seconds", lambda *arguments: 1.0)

    async def start(self, store: VectorStore) -> asyncio.Task[list[str]]:
        """Start a search, and return when it is running."""
        self.started.clear()
        task = asyncio.create_task(found(store, [1, 0, 0, 0], "n"))
        while not self.started.is_set():  # noqa: ASYNC110 - a thread sets the event
            await asyncio.sleep(0.001)
        return task


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


WRITES: dict[str, Operation] = {
    "upsert": lambda store: store.upsert([embedded("b")], "n"),
    "delete": lambda store: store.delete(["a"], "n"),
    "delete_document": lambda store: store.delete_document("doc", "n"),
    "delete_matching": lambda store: store.delete_matching({"n": 1}, "n"),
    "update_metadata": lambda store: store.update_metadata({"a": {"n": 2}}, "n"),
    "sync_document": lambda store: store.sync_document("doc", [embedded("b")], "n"),
}


@pytest.mark.parametrize("write", WRITES)
async def test_writes_wait_for_running_searches(slow: Slow, write: str) -> None:
    """A search in a thread does not see a write, and a search that comes after the write does."""
    store = InMemoryVectorStore(4)
    await store.upsert([embedded("a", metadata={"n": 1})], "n")
    first = await slow.start(store)
    writing = asyncio.create_task(WRITES[write](store))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(store.search([1, 0, 0, 0], "n"))
    await asyncio.sleep(0.01)
    assert [chunk.metadata for chunk in await store.get(["a"], "n")] == [{"n": 1}]
    await store.upsert([embedded("c")], "other")  # other namespaces do not wait
    assert not writing.done()
    slow.release.set()
    assert await first == ["a"]
    await writing
    ids = {result.chunk.id: result.chunk.metadata for result in await second}
    expected: dict[str, Any] = {
        "upsert": {"a": {"n": 1}, "b": {}},
        "update_metadata": {"a": {"n": 2}},
        "sync_document": {"b": {}},
    }
    assert ids == expected.get(write, {})


async def test_cancelled_searches_and_writes(slow: Slow) -> None:
    """A write waits for the thread of a cancelled search; a cancelled write holds up nothing."""
    store = InMemoryVectorStore(4)
    await store.upsert([embedded("a")], "n")
    search = await slow.start(store)
    search.cancel()
    cancelled_write = asyncio.create_task(store.delete(["a"], "n"))
    write = asyncio.create_task(store.upsert([embedded("b")], "n"))
    await asyncio.sleep(0.01)
    cancelled_write.cancel()
    results = await asyncio.gather(search, cancelled_write, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert not write.done()
    slow.release.set()
    async with asyncio.timeout(20):
        await write
        assert await found(store, [1, 0, 0, 0], "n") == ["a", "b"]


async def test_a_namespace_is_deleted_during_a_search(slow: Slow) -> None:
    """The deletion does not wait, and what is written afterwards is there."""
    store = InMemoryVectorStore(4)
    await store.upsert([embedded("a")], "n")
    search = await slow.start(store)
    waiting = asyncio.create_task(store.upsert([embedded("b")], "n"))
    await asyncio.sleep(0.01)
    await store.delete_namespace("n")
    assert await store.count("n") == 0
    slow.release.set()
    assert await search == ["a"]
    await waiting
    assert await found(store, [1, 0, 0, 0], "n") == ["b"]


async def test_searches_and_writes_at_the_same_time() -> None:
    """Each search sees all chunks of a write or none."""
    store = InMemoryVectorStore(4)
    size = 1500
    batches = [
        [embedded(f"{number:04}", metadata={"batch": batch}) for number in range(size)]
        for batch in range(2)
    ]
    await store.upsert(batches[0], "n")

    async def write() -> None:
        for batch in range(12):
            await store.upsert(batches[batch % 2], "n")
            await asyncio.sleep(0)

    async def search() -> None:
        while not writing.done():
            results = await store.search([1, 0, 0, 0], "n", size)
            assert len(results) == size
            assert len({result.chunk.metadata["batch"] for result in results}) == 1

    writing = asyncio.create_task(write())
    async with asyncio.timeout(60):
        await asyncio.gather(writing, search(), search(), search())


# -- threads ---------------------------------------------------------------------------------------


async def test_threads_see_context_variables() -> None:
    """A computation in a thread belongs to the operation that started it."""
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("of the caller")
    assert await run_in_thread(variable.get) == "of the caller"


async def test_threads_of_the_application_may_wait_for_a_store() -> None:
    """If all threads of `asyncio.to_thread` wait for searches, the searches run all the same."""
    store = InMemoryVectorStore(4)
    await store.upsert([embedded(f"{number:04}") for number in range(1500)], "n")
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))

    def search() -> int:
        searching = store.search([1, 0, 0, 0], "n", 1500)
        return len(asyncio.run_coroutine_threadsafe(searching, loop).result(20))

    assert await asyncio.to_thread(search) == 1500


@pytest.mark.skipif(not hasattr(os, "fork"), reason="requires fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_start_again_after_a_fork() -> None:
    """A server that loads the application before it forks can search in every process."""

    async def search() -> int:
        return await run_in_thread(os.getpid)

    asyncio.run(search())
    child = os.fork()
    if child == 0:
        os._exit(0 if asyncio.run(search()) == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0


async def test_cancelled_diverse_searches_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The computation ends soon after its task is cancelled."""
    store = InMemoryVectorStore(DIMENSIONS)
    await store.upsert(chunks(), "n")
    threads = sys.modules["cenote.responsive"]
    started: list[Any] = []
    start_in_thread = threads.start_in_thread

    def start(*arguments: Any) -> Any:
        started.append(start_in_thread(*arguments))
        return started[-1]

    monkeypatch.setattr(threads, "start_in_thread", start)
    search = asyncio.create_task(store.search_diverse(queries(1)[0], "n", ROWS, candidates=ROWS))
    while not started:  # noqa: ASYNC110 - a monkeypatched function appends
        await asyncio.sleep(0.01)
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    async with asyncio.timeout(2):  # the whole computation takes 10 s
        while not started[0].done():  # noqa: ASYNC110 - a thread ends
            await asyncio.sleep(0.01)
