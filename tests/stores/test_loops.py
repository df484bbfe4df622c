"""A store in several event loops works, or raises an error that names a remedy."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from support.database import scalar

from cenote import ConfigurationError, PgVectorStore, StoreConnectionError
from cenote.adapters._sync import LoopThread
from cenote.testing import embedded, found

QUERY = [1.0, 0.0, 0.0, 0.0]

# Connections of a closed event loop warn when they are garbage-collected.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

OPERATIONS: dict[str, Callable[[PgVectorStore], Coroutine[Any, Any, Any]]] = {
    "search": lambda store: store.search(QUERY, "n"),
    "upsert": lambda store: store.upsert([embedded("b")], "n"),
    "bulk_load": lambda store: store.bulk_load([embedded("b")], "n"),
    "check_schema": lambda store: store.check_schema(),
    "apply_migrations": lambda store: store.apply_migrations(),
}


def engine_of(dsn: str, **options: Any) -> AsyncEngine:
    return create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg"), **options)


async def fill(store: PgVectorStore) -> None:
    """Write a chunk and leave several connections in the pool."""
    await store.upsert([embedded("a")], "n")
    await asyncio.gather(*(store.search(QUERY, "n") for _ in range(3)))


def assert_disconnected(dsn: str) -> None:
    """Check that the database has no other connections, after the server has noticed their end."""

    async def wait() -> None:
        engine = engine_of(dsn, poolclass=NullPool)
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        async with asyncio.timeout(20):
            while await scalar(engine, query):  # noqa: ASYNC110 - the server sets no event
                await asyncio.sleep(0.1)

    gc.collect()
    asyncio.run(wait())


@pytest.mark.parametrize("pre_ping", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_pooled_connections_of_another_loop(dsn: str, name: str, pre_ping: bool) -> None:
    """Pooled connections of an earlier loop raise an error, and its remedy works."""
    engine = engine_of(dsn, pool_pre_ping=pre_ping)
    store = PgVectorStore(engine, 4)
    asyncio.run(fill(store))

    async def use_in_second_loop() -> None:
        for _ in range(2):
            with pytest.raises(ConfigurationError) as error:
                await OPERATIONS[name](store)
            assert error.value.setting == "engine"
            assert "await engine.dispose(close=False)" in str(error.value)
        await engine.dispose(close=False)
        await OPERATIONS[name](store)
        assert "a" in await found(store, QUERY, "n")
        await engine.dispose()

    asyncio.run(use_in_second_loop())
    assert_disconnected(dsn)


def test_dispose_at_the_end_of_each_loop(dsn: str) -> None:
    """An engine works in several loops if each loop disposes of its connections."""
    engine = engine_of(dsn)
    store = PgVectorStore(engine, 4)

    async def use() -> None:
        await fill(store)
        await engine.dispose()

    for _ in range(3):
        asyncio.run(use())
    assert_disconnected(dsn)


@pytest.mark.parametrize("name", OPERATIONS)
def test_call_from_another_loop(dsn: str, name: str) -> None:
    """A call from another loop raises an error and leaves the pooled connections usable."""

    async def main() -> None:
        engine = engine_of(dsn)
        store = PgVectorStore(engine, 4)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        for _ in range(3):
            with pytest.raises(ConfigurationError):
                await asyncio.to_thread(asyncio.run, OPERATIONS[name](store))
            async with engine.connect() as connection:  # the pooled connection still works
                await connection.execute(text("SELECT 1"))
        assert await store.count("n") == 0
        await engine.dispose()

    asyncio.run(main())


def test_engine_without_a_pool(dsn: str) -> None:
    """An engine with a NullPool works in any loop."""
    store = PgVectorStore(engine_of(dsn, poolclass=NullPool), 4)
    for _ in range(3):
        asyncio.run(fill(store))
    assert_disconnected(dsn)


def test_failed_connections_do_not_bind_the_pool(dsn: str) -> None:
    """After failed connections, the next loop can use the pool."""
    engine = engine_of(dsn, connect_args={"password": "x", "user": "nobody"})
    store = PgVectorStore(engine, 4)
    for _ in range(2):
        with pytest.raises(StoreConnectionError, match="nobody"):
            asyncio.run(fill(store))


def test_operations_at_the_end_of_a_loop(dsn: str) -> None:
    """asyncio.run() cancels running operations, which leave no partial write or connection."""
    engine = engine_of(dsn)
    store = PgVectorStore(engine, 4)
    slow: Any = text("(SELECT true FROM pg_sleep(60))")

    async def start_operations() -> None:
        await store.upsert([embedded("a")], "n")
        calls: list[Any] = [store.search(QUERY, "n", where=slow) for _ in range(3)]
        calls.append(store.upsert([embedded("b"), embedded("c")], "n"))
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.1)
        assert not tasks[0].done()

    async def count_in_next_loop() -> int:
        await engine.dispose(close=False)
        return await store.count("n")

    asyncio.run(start_operations())
    assert asyncio.run(count_in_next_loop()) in (1, 3)
    asyncio.run(engine.dispose(close=False))
    assert_disconnected(dsn)


def test_session_of_another_loop(dsn: str) -> None:
    """A session of another loop raises the same error, and has to be invalidated."""
    engine = engine_of(dsn)
    store = PgVectorStore(engine, 4)
    session = AsyncSession(engine)
    asyncio.run(store.upsert([embedded("a")], "n", session=session))

    async def write_in_second_loop() -> None:
        with pytest.raises(ConfigurationError) as error:
            await store.upsert([embedded("b")], "n", session=session)
        assert error.value.setting == "engine"
        session.sync_session.invalidate()

    asyncio.run(write_in_second_loop())


def test_two_loops_at_the_same_time(dsn: str) -> None:
    """A second loop raises the error, unless it uses a store from `with_own_pool`."""
    engine = engine_of(dsn)
    store = PgVectorStore(engine, 4)

    async def search_with_own_pool() -> list[str]:
        copy = store.with_own_pool()
        try:
            return await found(copy, QUERY, "n")
        finally:
            await copy.engine.dispose()

    async def main() -> None:
        await fill(store)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(4) as threads:
            count = loop.run_in_executor(threads, asyncio.run, store.count("n"))
            with pytest.raises(ConfigurationError):
                await count
            runs = [
                loop.run_in_executor(threads, asyncio.run, search_with_own_pool()) for _ in range(4)
            ]
            assert await asyncio.gather(*runs) == [["a"]] * 4
        assert await found(store, QUERY, "n") == ["a"]
        await engine.dispose()

    asyncio.run(main())
    assert_disconnected(dsn)


def test_synchronous_calls(dsn: str) -> None:
    """The adapters' thread uses its own pool and works after the store's loop has ended."""
    engine = engine_of(dsn)
    store = PgVectorStore(engine, 4)
    asyncio.run(fill(store))
    thread = LoopThread(store)
    for _ in range(2):
        assert thread.run(thread.store.count("n")) == 1
        thread.close()
    asyncio.run(engine.dispose(close=False))
    assert_disconnected(dsn)


def test_close_in_another_loop(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    """`close` in another loop closes the connections of `connect` and logs no warning."""
    store = asyncio.run(PgVectorStore.connect(dsn, 4, min_size=3))
    asyncio.run(store.close())
    assert [record.message for record in caplog.records if record.levelno >= 30] == []
    assert_disconnected(dsn)
