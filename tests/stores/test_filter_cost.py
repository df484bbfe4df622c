"""The cost of a filter, whatever its shape: how long it stalls the event loop, and what it keeps.

``CENOTE_TORTURE`` makes four methods use each of 2,000 shapes, not one method each of 600, and
four methods instead of two use the longest values (``make attack``, ``make torture``).
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import psutil
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from support.attacks import Recorded
from support.database import scalar
from support.filters import random_filter
from support.stalls import longest_stall

from cenote import ChunkRow, InMemoryVectorStore, PgVectorStore, meta
from cenote.filters import MAX_PREDICATES, Filter, field
from cenote.filters.compiler import Conditions
from cenote.stores.pgvector.searching import MAX_STATEMENT_PARAMETERS
from cenote.testing import embedded, stored

TORTURE = int(os.environ.get("CENOTE_TORTURE", "1"))
QUERY = [1.0, 0.5, 0.25, 0.125]
SHAPES = 2000 if TORTURE > 1 else 600
"""600 fill the caches, which hold at most 128 statements with filters."""
RANDOM_FILTERS = 2 if TORTURE > 1 else 1
MOST_SECONDS = 0.05
MEGABYTE = 2**20

Method = Callable[[Any, Filter], Coroutine[Any, Any, Any]]

READS: dict[str, Method] = {
    "count": lambda store, filter: store.count("n", filter),
    "list_chunks": lambda store, filter: store.list_chunks("n", filter, limit=3),
    "get_all_chunks": lambda store, filter: stored(store, "n", filter),
    "search": lambda store, filter: store.search(QUERY, "n", 5, filter),
    "per_document": lambda store, filter: store.search(QUERY, "n", 5, filter, per_document=1),
    "search_many": lambda store, filter: store.search_many([QUERY, QUERY], "n", 5, filter),
    "search_text": lambda store, filter: store.search_text("text", "n", 5, filter),
    "search_hybrid": lambda store, filter: store.search_hybrid("text", QUERY, "n", 5, filter),
    "delete": lambda store, filter: store.delete_matching(filter & (meta("no") == 1), "n"),
}


async def _in_session(store: PgVectorStore, filter: Filter) -> None:
    async with AsyncSession(store.engine) as session:
        await store.search(QUERY, "n", 5, filter, session=session)


async def _statement(store: PgVectorStore, filter: Filter) -> None:
    statement = store.search_statement(QUERY, "n", 5, filter)
    async with AsyncSession(store.engine) as session:
        await session.execute(statement)


POSTGRES_READS: dict[str, Method] = {
    **READS,
    "where": lambda store, filter: store.search(QUERY, "n", 5, filter, where=ChunkRow.position > 0),
    "session": _in_session,
    "statement": _statement,
}


@pytest.fixture
async def store(empty_engine: AsyncEngine) -> AsyncIterator[PgVectorStore]:
    """A store with full text and one connection."""
    engine = create_async_engine(empty_engine.url, pool_size=1, max_overflow=0)
    store = PgVectorStore(engine, 4, text_search="english")
    await store.apply_migrations()
    await _fill(store)
    yield store
    await engine.dispose()


@pytest.fixture
async def memory() -> InMemoryVectorStore:
    store = InMemoryVectorStore(4, text_search="english")
    await _fill(store)
    return store


async def _fill(store: Any) -> None:
    metadata = [{f"k{key}": n % (key + 2) for key in range(20)} for n in range(50)]
    await store.upsert([embedded(f"{n:04}", metadata=metadata[n]) for n in range(50)], "n")


# -- stalls of the event loop


def _longest_filters(name: str) -> list[Filter]:
    most = MAX_PREDICATES - (name == "delete")
    filters = [random_filter(random.Random(seed), most) for seed in range(RANDOM_FILTERS)]
    if name == "statement":
        return [_for_statement(seed) for seed in range(RANDOM_FILTERS + 1)]
    return [*filters, _with_many_kinds(most)]


def _with_many_kinds(most: int) -> Filter:
    """Return a filter with many different kinds of predicates, each of which is compiled."""
    parts: list[Filter] = []
    length = 1
    while most >= 2 * length:
        path = meta(*["a"] * length)
        parts += [path > 1, path.like("a")]
        most -= 2 * length
        length += 1
    filter = parts[0]
    for part in parts[1:]:
        filter |= part
    return ~filter


def _for_statement(seed: int) -> Filter:
    """Return a filter of about the maximum for `search_statement`."""
    source = random.Random(seed)
    while True:
        filter = random_filter(source, MAX_STATEMENT_PARAMETERS // 2)
        if MAX_STATEMENT_PARAMETERS - 5 < Conditions(filter).weight <= MAX_STATEMENT_PARAMETERS:
            return filter


async def _stall(read: Method, store: Any, filter: Any) -> float:
    """Return the longest stall of a read.

    A long one is measured up to ten times, because even the CPU time of the same work varies by
    half with the other work of a busy machine.
    """
    stall = await longest_stall(read(store, filter))
    for _ in range(9):
        if stall > MOST_SECONDS:
            stall = min(stall, await longest_stall(read(store, filter)))
    return stall


async def test_longest_filters(
    store: PgVectorStore, memory: InMemoryVectorStore, attacked: Recorded
) -> None:
    """The longest filters stall the event loop for less than 50 ms, in either store."""
    stalls: dict[tuple[str, str], float] = {}
    for target, reads in ((store, POSTGRES_READS), (memory, READS)):
        for name, read in reads.items():
            await read(target, meta("k1") == 1)
            of_filters = [await _stall(read, target, filter) for filter in _longest_filters(name)]
            stalls[type(target).__name__, name] = max(of_filters)
    attacked("longest filters", len(stalls), _check_stalls(stalls))


VALUE_METHODS = ["count", "search_hybrid"]
if TORTURE > 1:
    VALUE_METHODS += ["search", "get_all_chunks"]
LONG = [f"{n:064}" for n in range(43_000)]
SHORT = [f"{n:06}" for n in range(110_000)]

LONG_VALUES: dict[str, Callable[[], Any]] = {
    "strings": lambda: {"k": {"$in": LONG}},
    "short strings": lambda: {"k": {"$in": SHORT}},
    "numbers": lambda: {"k": {"$nin": [*range(104_000)]}},
    "lists": lambda: {"k": {"$in": [[n, {"a": n}] for n in range(25_000)]}},
    "any": lambda: {"k": {"$any": LONG}},
    "all": lambda: {"k": {"$all": LONG}},
    "list": lambda: {"k": LONG},
    "text": lambda: {"k": "x" * 4_000_000},
    "expression": lambda: ~meta("k").in_(LONG),
    "path": lambda: meta("k", "l").in_(LONG),
    "column": lambda: field("id").in_(LONG),
    "short column": lambda: field("id").in_(SHORT),
    "number column": lambda: ~field("position").in_(range(104_000)),
}


async def test_longest_values(
    store: PgVectorStore, memory: InMemoryVectorStore, attacked: Recorded
) -> None:
    """The longest values stall the event loop for less than 50 ms, in either store."""
    stalls: dict[tuple[str, str], float] = {}
    for values, make in LONG_VALUES.items():
        filter = make()
        for target in (store, memory):
            for name in VALUE_METHODS:
                stall = await _stall(READS[name], target, filter)
                stalls[type(target).__name__, f"{name} {values}"] = stall
    attacked("filters with the longest values", len(stalls), _check_stalls(stalls))


def _check_stalls(stalls: dict[tuple[str, str], float]) -> str:
    lines = [f"{' '.join(key)}: {1000 * stall:.0f} ms" for key, stall in stalls.items()]
    print(*lines, sep="\n")
    longest = max(stalls.values())
    assert longest < MOST_SECONDS, lines
    return f"the longest stall of the event loop is {1000 * longest:.0f} ms"


# -- memory


async def _backend_memory(store: PgVectorStore) -> int:
    """Return the bytes of the server process of the store's only connection."""
    query = "SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts"
    return int(await scalar(store.engine, query))


def _client_memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


async def test_memory_of_shapes(store: PgVectorStore, attacked: Recorded) -> None:
    """Shapes of every length keep less than 64 MB in the client and on the server.

    The longest filters keep nothing: neither a statement nor a prepared statement.
    """
    await _use_shapes(store, range(100))
    client, backend = _client_memory(), await _backend_memory(store)
    await _use_shapes(store, range(100, 100 + SHAPES))
    grown_client = (_client_memory() - client) / MEGABYTE
    grown_backend = (await _backend_memory(store) - backend) / MEGABYTE
    assert grown_client < 64
    assert grown_backend < 64
    longest = "SELECT max(length(statement)) FROM pg_prepared_statements"
    assert await scalar(store.engine, longest) < 30_000
    growth = f"client {grown_client:.0f} MB, server process {grown_backend:.0f} MB"
    attacked("filters of new shapes", SHAPES, f"memory kept: {growth}")


async def _use_shapes(store: PgVectorStore, seeds: range) -> None:
    names = [*POSTGRES_READS]
    for seed in seeds:
        source = random.Random(seed)
        length = 1 + seed % (MAX_PREDICATES - 1)
        filter = random_filter(source, length)
        for name in names[seed % 3 :: 3] if TORTURE > 1 else [names[seed % len(names)]]:
            if name == "statement" and Conditions(filter).weight > MAX_STATEMENT_PARAMETERS:
                name = "session"
            await POSTGRES_READS[name](store, filter)


async def test_memory_of_the_longest_filters(store: PgVectorStore, attacked: Recorded) -> None:
    """One of the longest filters keeps less than 1 MB in the client and on the server."""
    most = 0
    for name, read in POSTGRES_READS.items():
        *first, last = _longest_filters(name)
        for filter in first:
            await read(store, filter)
        client, backend = _client_memory(), await _backend_memory(store)
        await read(store, last)
        kept = _client_memory() - client, await _backend_memory(store) - backend
        print(f"{name}: client {kept[0] / 1024:.0f} kB, server {kept[1] / 1024:.0f} kB")
        assert max(kept) < MEGABYTE, name
        most = max(most, *kept)
    result = f"at most {most // 1024} kB kept by one, in the client or on the server"
    attacked("longest filters, memory", len(POSTGRES_READS), result)
