"""Faults of the server and the network: no acknowledged row is lost, and callers get an error.

``CENOTE_TORTURE`` multiplies the number of faults (``make torture``).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from support.cancellation import CancelledAt, When
from support.database import execute
from support.drivers import (
    SYNCHRONOUS,
    another_engine,
    engine_on,
    on_asynchronous_drivers,
    on_both_stores,
    on_every_driver,
    store_on,
)
from support.operations import OPERATIONS, QUERY, batch
from support.proxy import Proxy, running_proxy

from cenote import (
    ConfigurationError,
    PgVectorStore,
    StoreConnectionError,
    StoreTimeoutError,
    VectorStore,
    VectorStoreError,
)
from cenote.embedded import EmbeddedPostgres
from cenote.postgres import watchdog
from cenote.postgres.dsn import create_engine
from cenote.stores.pgvector import retry
from cenote.testing import embedded, found, stored

TORTURE = int(os.environ.get("CENOTE_TORTURE", "1"))
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    async with running_proxy(dsn) as proxy:
        yield proxy


# -- the server ends


@on_every_driver
async def test_killed_server(tmp_path: Path, driver: str) -> None:
    """After SIGKILL during upserts, acknowledged batches are stored, and batches are whole."""
    folder = tmp_path / "data"
    acknowledged: dict[str, int] = {}
    rounds = 2 * TORTURE
    for round_ in range(rounds):
        with EmbeddedPostgres(folder) as server:
            engine = engine_on(driver, server.url, pool_size=4)
            store = store_on(engine, 4)
            await store.apply_migrations()
            await _check(store, acknowledged)
            if round_ == rounds - 1:
                await engine.dispose()
                break
            writers = [
                asyncio.create_task(_write(store, f"n{number}", round_ * 10_000, acknowledged))
                for number in range(4)
            ]
            await asyncio.sleep(random.Random(round_).uniform(0.5, 1.5))
            _kill(server)
            errors = await asyncio.gather(*writers, return_exceptions=True)
            assert {type(error) for error in errors} == {StoreConnectionError}
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            await engine.dispose()
    assert sum(acknowledged.values()) > 0


async def _write(
    store: PgVectorStore, namespace: str, start: int, acknowledged: dict[str, int]
) -> None:
    """Write one batch after another to the same ids, until the server has ended."""
    number = start
    while True:
        number += 1
        await store.upsert(batch(number), namespace)
        acknowledged[namespace] = number


async def _check(store: PgVectorStore, acknowledged: dict[str, int]) -> None:
    """Check that each namespace has the last acknowledged batch, or the next one."""
    for namespace, number in acknowledged.items():
        chunks = await stored(store, namespace)
        assert len(chunks) == 200
        # All chunks are from the last acknowledged batch, or from a later one that was committed
        # but not acknowledged.
        (content,) = {chunk.content for chunk in chunks}
        assert int(content.removeprefix("by ")) >= number


def _kill(server: EmbeddedPostgres) -> None:
    """Kill the server like an out-of-memory killer."""
    folder = str(server.url.query["host"])
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and folder in process.info["cmdline"]:
            for member in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)
            process.wait(10)
            return
    raise AssertionError("there is no such server")


@on_every_driver
async def test_connections_ended_by_the_server(store: PgVectorStore, engine: AsyncEngine) -> None:
    """All connections end repeatedly; operations that may be retried succeed."""
    other = another_engine(engine)
    await store.upsert(batch(0), "n")
    stop = asyncio.Event()
    completed = Counter[int]()

    async def load(number: int) -> None:
        while not stop.is_set():
            await store.upsert(batch(number, 20, ids=str(number)), "n")
            assert len(await store.search(QUERY, "n", 5)) == 5
            assert len(await store.get(["0001"], "n")) == 1
            completed[number] += 1

    loads = [asyncio.create_task(load(number)) for number in range(1, 4)]
    for _ in range(10 * TORTURE):
        # An operation is retried once. When every task has completed a round since the last time,
        # no operation loses a second connection, however slow the machine is.
        rounds = [completed[number] + 2 for number in range(1, 4)]
        while any(completed[number] < end for number, end in enumerate(rounds, 1)):
            for finished in [task for task in loads if task.done()]:
                await finished  # raises its error
            await asyncio.sleep(0.01)
        async with other.connect() as connection:
            await connection.execute(text(TERMINATE))
    stop.set()
    await asyncio.gather(*loads)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await other.dispose()


@on_every_driver
async def test_no_retry_in_the_callers_transaction(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """The transaction is lost with its changes, and the caller gets an error."""
    other = another_engine(engine)
    async with AsyncSession(engine) as session:
        await store.upsert([embedded("a")], "n", session=session)
        async with other.connect() as connection:
            await connection.execute(text(TERMINATE))
        with pytest.raises(StoreConnectionError):
            await store.upsert([embedded("b")], "n", session=session)
        await session.rollback()
    assert await store.count("n") == 0
    await other.dispose()


@on_every_driver
async def test_no_retry_of_deletions_that_return_a_count(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """A deletion that returns a count is not retried after a lost connection."""
    other = another_engine(engine)
    await store.upsert([embedded("a")], "n")
    async with other.connect() as connection:
        await connection.execute(text(TERMINATE))
    with pytest.raises(StoreConnectionError):
        await store.delete_document("doc", "n")
    assert await store.delete_document("doc", "n") == 1
    await other.dispose()


@on_every_driver
async def test_retry_of_an_iterator(store: PgVectorStore, engine: AsyncEngine) -> None:
    """A batch from an iterator is complete in the second attempt, too."""
    other = another_engine(engine)
    assert await store.count("n") == 0
    async with other.connect() as connection:
        await connection.execute(text(TERMINATE))
    chunks: Any = iter(batch(1))
    await store.upsert(chunks, "n")
    assert await store.count("n") == 200
    await other.dispose()


# -- the network


@on_every_driver
async def test_cut_network(proxy: Proxy, driver: str) -> None:
    """Each operation is retried on a new connection or raises an error, and no task hangs."""
    engine = engine_on(driver, proxy.dsn, pool_size=3)
    store = store_on(engine, 4)
    await store.upsert(batch(1), "n")
    for _ in range(10 * TORTURE):
        tasks = [asyncio.create_task(store.search(QUERY, "n")) for _ in range(3)]
        await asyncio.sleep(random.uniform(0, 0.02))
        proxy.cut()
        for result in await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20):
            assert isinstance(result, StoreConnectionError) or len(result) == 10  # type: ignore[arg-type]
    assert len(await store.search(QUERY, "n")) == 10
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@on_both_stores
async def test_silent_network(proxy: Proxy, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation raises an error after the time limit, also in the caller's transaction."""
    monkeypatch.setattr(watchdog, "CANCEL_SECONDS", 1.0)
    engine = engine_on(driver, proxy.dsn, pool_size=3)
    store = store_on(engine, 4)
    limited = store_on(engine, 4, operation_timeout=0.5)
    await store.upsert(batch(1), "n")
    if driver == SYNCHRONOUS:  # the time to connect is not limited there
        await asyncio.to_thread(_fill, engine.pool)
    async with AsyncSession(engine) as session:
        assert await store.count("n", session=session) == 200
        proxy.open.clear()
        start = time.monotonic()
        calls: list[Awaitable[Any]] = [
            limited.search(QUERY, "n"),
            limited.upsert(batch(2), "n"),
            limited.count("n", session=session),
        ]
        errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert [type(error) for error in errors] == [StoreTimeoutError] * 3
        assert "no answer within 0.5 s" in str(errors[0])
        assert time.monotonic() - start < 5
        proxy.open.set()
        proxy.cut()
        await session.rollback()
    assert await store.count("n") == 200
    assert {chunk.content for chunk in await stored(store, "n")} in ({"by 1"}, {"by 2"})
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


def _fill(pool: Any) -> None:
    """Open all connections of a pool."""
    for connection in [pool.connect() for _ in range(pool.size())]:
        connection.close()


@on_both_stores
async def test_silent_network_at_the_end(
    proxy: Proxy, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A COMMIT without an answer raises an error after the time limit, too."""
    monkeypatch.setattr(watchdog, "CANCEL_SECONDS", 1.0)
    engine = engine_on(driver, proxy.dsn)
    store = store_on(engine, 4)
    limited = store_on(engine, 4, operation_timeout=0.5)
    await store.upsert(batch(1), "n")

    @event.listens_for(engine.sync_engine, "commit", once=True)
    def _(connection: Any) -> None:
        proxy.open.clear()

    start = time.monotonic()
    with pytest.raises(StoreTimeoutError, match=r"no answer within 0\.5 s"):
        await asyncio.wait_for(limited.upsert(batch(2), "n"), 20)
    assert time.monotonic() - start < 5
    proxy.open.set()
    assert await store.count("n") == 200
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.mark.parametrize("driver", [SYNCHRONOUS], indirect=True)
async def test_a_slow_commit(store: PgVectorStore, engine: AsyncEngine) -> None:
    """The time limit cancels no COMMIT: one that only waits for a replica would succeed."""
    limited = store_on(engine, 4, operation_timeout=0.3)
    await execute(
        engine,
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$",
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON cenote_chunks"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    await limited.upsert([embedded("a")], "n")
    assert await stored(store, "n")


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), "1", True])
def test_invalid_time_limits(engine: AsyncEngine, seconds: Any) -> None:
    """Invalid time limits are rejected."""
    with pytest.raises(ConfigurationError) as error:
        PgVectorStore(engine, 4, operation_timeout=seconds)
    assert error.value.setting == "operation_timeout"


# -- other clients


@on_every_driver
async def test_deadlock_with_another_client(store: PgVectorStore, engine: AsyncEngine) -> None:
    """The store's transaction is rolled back because of the deadlock, and retried."""
    await store.upsert(batch(1, 2), "n")
    async with engine.connect() as other:
        # Postgres ends the transaction that detects the deadlock: let it be the store's.
        await other.execute(text("SET deadlock_timeout = '1h'"))
        lock = text("SELECT 1 FROM cenote_chunks WHERE id = :id FOR UPDATE")
        await other.execute(lock, {"id": "0001"})
        upsert = asyncio.create_task(store.upsert(batch(2, 2), "n"))
        await asyncio.sleep(0.3)
        await other.execute(lock, {"id": "0000"})
        await asyncio.sleep(0.3)
        assert not upsert.done()
        await other.rollback()
        await other.execute(text("RESET deadlock_timeout"))
        await asyncio.wait_for(upsert, 10)
    assert {chunk.content for chunk in await stored(store, "n")} == {"by 2"}


@on_every_driver
async def test_columns_altered_under_prepared_statements(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """Stale statements on all pooled connections are prepared again."""
    await store.upsert(batch(1), "n")
    await asyncio.gather(*(store.search(QUERY, "n") for _ in range(5)))
    for column_type in ("varchar(99)", "text"):
        await execute(engine, f"ALTER TABLE cenote_chunks ALTER content TYPE {column_type}")
        answers = await asyncio.gather(*(store.search(QUERY, "n") for _ in range(5)))
        assert [len(answer) for answer in answers] == [10] * 5
        assert len(await stored(store, "n")) == 200


async def test_statement_timeout_of_the_server(dsn: str) -> None:
    """The error contains the SQLSTATE, and the statement is not retried."""
    engine = create_engine(dsn + "&options=-c%20statement_timeout%3D300", pool_size=1)
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    slow: Any = text("(SELECT true FROM pg_sleep(3))")
    start = asyncio.get_running_loop().time()
    with pytest.raises(VectorStoreError) as error:
        await store.search(QUERY, "n", where=slow)
    assert error.value.sqlstate == "57014"
    assert asyncio.get_running_loop().time() - start < 2
    assert await found(store, QUERY, "n") == ["a"]
    await engine.dispose()


async def test_too_many_connections(tmp_path: Path) -> None:
    """Rejected calls raise an error with the SQLSTATE, and keep no connection."""
    with EmbeddedPostgres(tmp_path / "data") as server:
        admin = create_engine(server.dsn, pool_size=1)
        await PgVectorStore(admin, 4).apply_migrations()
        await execute(
            admin, "CREATE ROLE few LOGIN CONNECTION LIMIT 3", "GRANT ALL ON cenote_chunks TO few"
        )
        engine = create_async_engine(
            server.url.set(drivername="postgresql+asyncpg", username="few"), pool_size=10
        )
        store = PgVectorStore(engine, 4)
        slow: Any = text("(SELECT true FROM pg_sleep(0.2))")
        calls = (store.search(QUERY, "n", where=slow) for _ in range(10))
        results = await asyncio.gather(*calls, return_exceptions=True)
        errors = [result for result in results if isinstance(result, StoreConnectionError)]
        assert {error.sqlstate for error in errors} == {"53300"}
        assert all(result == [] for result in results if result not in errors)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()
        await admin.dispose()


# -- cancellation


def test_the_list_of_operations_is_complete() -> None:
    """`OPERATIONS` has every method of the protocol that runs statements, and bulk_load."""
    methods = {name for name in dir(VectorStore) if not name.startswith("_")}
    assert OPERATIONS.keys() == (methods - {"dimensions", "in_session", "metric"}) | {"bulk_load"}


# -- retries

COUNTING = {"update_metadata", "sync_document", "delete_document", "delete_matching"}


def _stale_plan() -> VectorStoreError:
    error = VectorStoreError("the plan is stale")
    error._is_stale_plan = True
    return error


@on_every_driver
@pytest.mark.parametrize("name", OPERATIONS)
async def test_number_of_attempts(name: str, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of attempts depends on the error and on the operation's retry rule."""
    monkeypatch.setattr(retry, "_PAUSE_SECONDS", 0)
    engine = engine_on(driver, "postgresql://nobody@nowhere/nothing")
    store = store_on(engine, 4, text_search="simple")

    async def attempts(error: Callable[[], VectorStoreError]) -> int:
        count = 0

        @asynccontextmanager
        async def fail(*_: Any, **__: Any) -> AsyncIterator[None]:
            nonlocal count
            count += 1
            raise error()
            yield

        monkeypatch.setattr(store._executor, "statement", fail)
        monkeypatch.setattr(store._executor, "transaction", fail)
        with pytest.raises(VectorStoreError):
            await OPERATIONS[name](store)
        return count

    expected = {
        "bulk_load": (1, 1, 1),  # a stream can be read only once
        "search_diverse": (4, 16, 4),  # retries a search that is itself retried
        **dict.fromkeys(COUNTING, (1, 4, 2)),
    }
    lost = await attempts(lambda: StoreConnectionError("the connection is lost"))
    deadlock = await attempts(lambda: VectorStoreError("a deadlock", sqlstate="40P01"))
    stale = await attempts(_stale_plan)
    assert (lost, deadlock, stale) == expected.get(name, (2, 4, 2))


@on_asynchronous_drivers
@pytest.mark.parametrize("name", OPERATIONS)
async def test_cancellation_at_every_step(
    empty_engine: AsyncEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancelled operation keeps no connection and leaves no partial batch."""
    # psycopg lets other tasks run in calls without I/O, too, if it has not waited for 5 ms.
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0)
    store = PgVectorStore(empty_engine, 4, text_search="simple")
    await store.apply_migrations()
    await store.upsert(batch(1, 3), "n")
    await store.upsert(batch(1, 1), "m")
    moments: list[When] = ["before", "during", "after"]
    for when in moments:
        cancelled = 0
        while True:
            operation = CancelledAt(_run(store, name), cancelled + 1, when)
            task = asyncio.create_task(_await(operation))
            (result,) = await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)
            assert empty_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            if operation.waits <= cancelled:
                assert result is None
                break
            assert result is None or isinstance(result, asyncio.CancelledError)
            cancelled += 1
        assert cancelled > 1
        contents = {chunk.content for chunk in await stored(store, "n")}
        assert len(contents) == 1
        assert len(await store.search(QUERY, "n")) >= 2


async def _run(store: PgVectorStore, name: str) -> None:
    await OPERATIONS[name](store)


async def _await(awaitable: Awaitable[None]) -> None:
    await awaitable
