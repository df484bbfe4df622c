"""Statements that run on the driver's connections, without SQLAlchemy's execution.

The engine's listeners, limits and errors work as if SQLAlchemy executed each statement.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Engine, NullPool, Text, TypeDecorator, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.database import execute, scalar
from support.driver import insert
from support.proxy import running_proxy

from cenote import (
    ChunkMixin,
    ConfigurationError,
    PgVectorStore,
    StoreConnectionError,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded, found

QUERY = [1.0, 0.5, 0.25, 0.125]
LARGE = EXACT_UP_TO + 200
TERMINATE_OTHERS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)

READS: dict[str, Callable[[PgVectorStore], Coroutine[Any, Any, Any]]] = {
    "search": lambda store: store.search(QUERY, "n", 5),
    "filtered search": lambda store: store.search(QUERY, "n", 5, {"k": 1}),
    "exact search": lambda store: store.search(QUERY, "n", 5, exact=True),
    "diverse": lambda store: store.search(QUERY, "n", 5, per_document=1),
    "search_many": lambda store: store.search_many([QUERY, QUERY], "n", 5),
    "get": lambda store: store.get(["000001", "000002"], "n"),
    "count": lambda store: store.count("n"),
    "filtered count": lambda store: store.count("n", {"k": 1}),
    "list_chunks": lambda store: store.list_chunks("n", limit=3),
    "get_all_chunks": lambda store: _all_chunks(store),
}
"""Operations that run directly."""


async def _all_chunks(store: PgVectorStore) -> list[Any]:
    return [chunk async for chunk in store.get_all_chunks("n")]


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SQL of each call of the driver's `fetch`."""
    calls: list[str] = []
    fetch = asyncpg.Connection.fetch

    async def counted(self: Any, query: str, *args: Any, **options: Any) -> Any:
        calls.append(query)
        return await fetch(self, query, *args, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
    return calls


@pytest.fixture
async def one(dsn: str) -> AsyncIterator[AsyncEngine]:
    """Engine with one connection at most."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.3)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


async def warm(store: PgVectorStore, name: str) -> Any:
    """Call a read until it needs no more preparation, and return its result."""
    for _ in range(3):
        result = await READS[name](store)
    return result


def listen_to(engine: AsyncEngine) -> list[str]:
    """Return a list to which SQLAlchemy appends each statement that it executes."""
    executed: list[str] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        executed.append(sql)

    return executed


# -- one call, one round trip


@pytest.mark.parametrize("name", READS)
async def test_one_call_of_the_driver(engine: AsyncEngine, fetches: list[str], name: str) -> None:
    """Each read calls the driver once, and returns what SQLAlchemy's execution returns."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 30)
    result = await warm(store, name)
    del fetches[:]
    assert await READS[name](store) == result
    assert len(fetches) == 1
    executed = listen_to(engine)
    assert await READS[name](store) == result
    assert len(fetches) == 1
    assert len(executed) == 1
    assert result


@pytest.mark.parametrize("size", [5, LARGE])
@pytest.mark.parametrize("filter", [None, {"k": 1}, {"k": {"$ne": 1}}])
async def test_one_round_trip(
    dsn: str, engine: AsyncEngine, size: int, filter: dict[str, Any] | None
) -> None:
    """A search takes one round trip once its statement is prepared."""
    await insert(engine, "n", size)
    async with running_proxy(dsn) as proxy:
        url = make_url(proxy.dsn).set(drivername="postgresql+asyncpg", query={"ssl": "disable"})
        proxied = create_async_engine(url, pool_size=1)
        store = PgVectorStore(proxied, 4)
        for _ in range(4):
            await store.search(QUERY, "n", 3, filter)
        before = proxy.round_trips
        for _ in range(5):
            await store.search(QUERY, "n", 3, filter)
        assert proxy.round_trips == before + 5
        await proxied.dispose()


@pytest.mark.parametrize("name", READS)
async def test_a_new_connection_is_prepared(
    dsn: str, engine: AsyncEngine, fetches: list[str], name: str
) -> None:
    """Without a pool, each read opens one connection and closes it."""
    await insert(engine, "n", 30)
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    unpooled = create_async_engine(url, poolclass=NullPool)
    connections = []
    event.listen(unpooled.sync_engine, "connect", lambda *_: connections.append(1))
    store = PgVectorStore(unpooled, 4)
    expected = await warm(PgVectorStore(engine, 4), name)
    await warm(store, name)
    del connections[:], fetches[:]
    assert await READS[name](store) == expected
    assert len(connections) == 1
    assert sum("cenote_chunks" in sql for sql in fetches) == 1
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    for _ in range(50):  # the server ends processes a moment later
        if await scalar(engine, query) == 1:
            break
        await asyncio.sleep(0.1)
    assert await scalar(engine, query) == 1


# -- listeners


LISTENERS: dict[str, Callable[[AsyncEngine, list[Any]], Any]] = {
    "before_cursor_execute": lambda engine, seen: event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2])
    ),
    "after_cursor_execute": lambda engine, seen: event.listen(
        engine.sync_engine, "after_cursor_execute", lambda *args: seen.append(args[2])
    ),
    "before_execute": lambda engine, seen: event.listen(
        engine.sync_engine, "before_execute", lambda *args: seen.append(args[1])
    ),
    "do_execute": lambda engine, seen: event.listen(
        engine.sync_engine, "do_execute", lambda *args: seen.append(args[1])
    ),
    "echo": lambda engine, seen: _echo(engine, seen),
    "log": lambda engine, seen: _log(engine, seen),
}
"""Ways to observe an engine's statements."""


class _Handler(logging.Handler):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def _echo(engine: AsyncEngine, seen: list[Any]) -> None:
    logging.getLogger("sqlalchemy.engine").addHandler(_Handler(seen))
    engine.echo = True


def _log(engine: AsyncEngine, seen: list[Any]) -> None:
    logging.getLogger("sqlalchemy.engine").addHandler(_Handler(seen))
    logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)


@pytest.fixture
def _restored_log() -> Any:
    logger = logging.getLogger("sqlalchemy.engine")
    level, handlers = logger.level, logger.handlers[:]
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


@pytest.mark.usefixtures("_restored_log")
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("name", LISTENERS)
async def test_listeners_see_each_statement(
    engine: AsyncEngine, fetches: list[str], name: str, early: bool
) -> None:
    """Listeners see each statement, whether they were added before or after the first search."""
    seen: list[Any] = []
    await insert(engine, "n", 30)
    if early:
        LISTENERS[name](engine, seen)
    store = PgVectorStore(engine, 4)
    results = {read: await warm(store, read) for read in READS}
    if early:
        assert fetches == []
    else:
        assert fetches
        LISTENERS[name](engine, seen)
    for read, call in READS.items():
        del seen[:], fetches[:]
        assert await call(store) == results[read]
        assert fetches == []
        statements = [words for words in map(str, seen) if "\nFROM cenote_chunks" in words]
        # An engine with execution options, like the store's, copies `echo` when it is created.
        assert len(statements) == (0 if name == "echo" and not early else 1), read


async def test_listeners_of_all_engines(
    engine: AsyncEngine, fetches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener of the class `Engine` sees each statement."""
    monkeypatch.setattr(Engine, "_has_events", False)  # stays True without its last listener
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 30)
    result = await warm(store, "search")
    seen = []

    def listener(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        seen.append(sql)

    event.listen(Engine, "before_cursor_execute", listener)
    del fetches[:]
    try:
        assert await READS["search"](store) == result
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    assert len(seen) == 1
    assert fetches == []


async def test_handle_error(engine: AsyncEngine) -> None:
    """A listener of `handle_error` is told about an error of a search."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 30)
    await warm(store, "search")
    codes = []
    event.listen(
        engine.sync_engine,
        "handle_error",
        lambda context: codes.append(context.original_exception.__cause__.sqlstate),
    )
    await execute(engine, "ALTER TABLE cenote_chunks RENAME TO elsewhere")
    with pytest.raises(VectorStoreError):
        await store.search(QUERY, "n")
    assert "42P01" in codes


async def test_events_of_the_pool(engine: AsyncEngine, fetches: list[str]) -> None:
    """Each read checks one connection out and in, with the pool's events."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 30)
    events: list[str] = []
    for name in ("checkout", "checkin", "reset"):
        event.listen(engine.sync_engine, name, lambda *args, name=name, **_: events.append(name))
    await warm(store, "search")
    del events[:], fetches[:]
    await READS["search"](store)
    assert fetches
    assert events == ["checkout", "reset", "checkin"]


async def test_customized_prepared_statements(dsn: str, fetches: list[str]) -> None:
    """With SQLAlchemy's settings for poolers, SQLAlchemy executes the statements."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    for options in (
        {"prepared_statement_cache_size": 0},
        {"prepared_statement_name_func": lambda: f"cenote_{uuid.uuid4()}"},
    ):
        engine = create_async_engine(url, connect_args=options, pool_size=1)
        store = PgVectorStore(engine, 4)
        await store.upsert([embedded("a")], "n")
        for _ in range(4):
            assert await found(store, QUERY, "n") == ["a"]
        assert not any("cenote_chunks" in sql for sql in fetches), (options, fetches)
        await engine.dispose()


# -- types of the application's model


class Base(DeclarativeBase):
    pass


class Reversed(TypeDecorator[str]):
    """Text that is stored in reverse, like encrypted text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value[::-1]

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value[::-1]


class Secret(ChunkMixin, Base, dimensions=4, partitions=2):
    """A chunk model whose content is converted."""

    __tablename__ = "secrets"

    content: Mapped[str] = mapped_column(Reversed)


@pytest.fixture
async def converted(empty_engine: AsyncEngine) -> AsyncEngine:
    """Engine on a database with the tables of `Base`."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    return empty_engine


async def test_converted_results(converted: AsyncEngine, fetches: list[str]) -> None:
    """A column's conversion applies to all reads, on both ways."""
    store = PgVectorStore(converted, model=Secret)
    async with AsyncSession(converted) as session:
        fields = {"namespace": "n", "document_id": "d", "position": 0, "metadata_": {}}
        fields |= {"content_hash": "", "embedding_model": "model"}
        session.add(Secret(id="a", content="secret", embedding=[1, 0, 0, 0], **fields))
        session.add(Secret(id="b", content="other", embedding=[0, 1, 0, 0], **fields))
        await session.commit()
    assert await scalar(converted, "SELECT content FROM secrets WHERE id = 'a'") == "terces"
    listened = False
    for _ in range(2):
        for _ in range(4):
            results = await store.search(QUERY, "n")
            assert [r.chunk.content for r in results] == ["secret", "other"]
            assert [c.content for c in await store.get(["a"], "n")] == ["secret"]
            assert await store.count("n") == 2
        if not listened:
            assert any("count" in sql for sql in fetches)
            listen_to(converted)
            listened = True


# -- errors


async def test_killed_connections_between_searches(engine: AsyncEngine, dsn: str) -> None:
    """After the server ended all connections, the next search of each task succeeds.

    One retry replaces the whole pool.
    """
    admin = create_async_engine(engine.url)
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 30)
    expected = await warm(store, "search")
    for kill_first in (True, False):
        await asyncio.gather(*(READS["search"](store) for _ in range(5)))
        assert engine.pool.checkedin() >= 3  # type: ignore[attr-defined]
        assert await scalar(admin, TERMINATE_OTHERS) >= 3
        if kill_first:
            await asyncio.sleep(0.2)  # the driver notices, or not yet
        assert await READS["search"](store) == expected
        for _ in range(5):
            assert await READS["search"](store) == expected
        results = await asyncio.gather(*(READS["search"](store) for _ in range(5)))
        assert results == [expected] * 5
    await admin.dispose()


@pytest.mark.parametrize("name", READS)
async def test_killed_connection_during_a_read(engine: AsyncEngine, name: str) -> None:
    """A read whose connection ends while it waits is retried."""
    admin = create_async_engine(engine.url)
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 30)
    expected = await warm(store, name)
    async with admin.connect() as locker:
        await locker.execute(text("LOCK TABLE cenote_chunks_p02 IN ACCESS EXCLUSIVE MODE"))
        await locker.execute(text("LOCK TABLE cenote_chunks IN ACCESS EXCLUSIVE MODE"))
        reading = asyncio.create_task(READS[name](store))
        await _wait_for_lock(admin)
        await locker.execute(text(TERMINATE_OTHERS))
        await asyncio.sleep(0.05)
        assert not reading.done()
        await locker.rollback()
        assert await reading == expected
    await admin.dispose()


async def _wait_for_lock(engine: AsyncEngine) -> None:
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    for _ in range(100):
        if await scalar(engine, query):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("nothing waits for a lock")


@pytest.fixture
async def locked(one: AsyncEngine, engine: AsyncEngine) -> AsyncIterator[PgVectorStore]:
    """A store with one connection, whose table is locked."""
    store = PgVectorStore(one, 4)
    await insert(engine, "n", 30)
    for name in READS:
        await warm(store, name)
    async with engine.connect() as locker:
        await locker.execute(text("LOCK TABLE cenote_chunks IN ACCESS EXCLUSIVE MODE"))
        yield store
        await locker.rollback()
    assert len(await store.search(QUERY, "n", 5)) == 5
    assert await store.count("n") == 30


@pytest.mark.parametrize("name", READS)
async def test_statement_timeout(engine: AsyncEngine, dsn: str, name: str) -> None:
    """The server's timeout is an error of the store, and the connection stays in use."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    short = create_async_engine(
        url, pool_size=1, connect_args={"server_settings": {"statement_timeout": "300"}}
    )
    store = PgVectorStore(short, 4)
    await insert(engine, "n", 30)
    expected = await warm(store, name)
    pid = await scalar(short, "SELECT pg_backend_pid()")
    async with engine.connect() as locker:
        await locker.execute(text("LOCK TABLE cenote_chunks IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(VectorStoreError) as error:
            await READS[name](store)
    assert error.value.sqlstate == "57014"
    assert not isinstance(error.value, StoreConnectionError)
    assert await READS[name](store) == expected
    assert await scalar(short, "SELECT pg_backend_pid()") == pid
    await short.dispose()


@pytest.mark.parametrize("name", READS)
async def test_operation_timeout(engine: AsyncEngine, one: AsyncEngine, name: str) -> None:
    """The store's timeout ends the read, and the pool gets a clean connection."""
    store = PgVectorStore(one, 4, operation_timeout=0.3)
    await insert(engine, "n", 30)
    expected = await warm(store, name)
    async with engine.connect() as locker:
        await locker.execute(text("LOCK TABLE cenote_chunks IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(StoreTimeoutError):
            await READS[name](store)
        assert one.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert await READS[name](store) == expected


@pytest.mark.parametrize("name", READS)
async def test_cancellation(
    locked: PgVectorStore, one: AsyncEngine, engine: AsyncEngine, name: str
) -> None:
    """A cancelled read gives up its connection, and the next read gets a clean one."""
    reading = asyncio.create_task(READS[name](locked))
    await _wait_for_lock(engine)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert one.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_cancellation_at_any_moment(one: AsyncEngine, engine: AsyncEngine) -> None:
    """However far a search is, its cancellation leaves the pool whole, and no answer behind."""
    store = PgVectorStore(one, 4)
    await insert(engine, "n", 30)
    await insert(engine, "m", 3, first=100)
    expected = await warm(store, "search")
    for turns in range(12):
        reading = asyncio.create_task(READS["search"](store))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns > 6:
            await asyncio.sleep(0.0005 * (turns - 6))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert one.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert len(await store.search(QUERY, "m")) == 3
        assert await READS["search"](store) == expected


async def test_more_searches_than_connections(one: AsyncEngine, engine: AsyncEngine) -> None:
    """Searches wait for the one connection; those that wait too long fail with an error."""
    store = PgVectorStore(one, 4)
    await insert(engine, "n", 30)
    expected = await warm(store, "search")
    results = await asyncio.gather(*(READS["search"](store) for _ in range(20)))
    assert results == [expected] * 20
    async with one.connect():
        with pytest.raises(VectorStoreError) as direct:
            await store.search(QUERY, "n")
    listen_to(one)
    async with one.connect():
        with pytest.raises(VectorStoreError) as executed:
            await store.search(QUERY, "n")
    assert type(direct.value) is type(executed.value)
    assert str(direct.value) == str(executed.value)
    assert type(direct.value.__cause__) is type(executed.value.__cause__)


async def test_a_closed_store(dsn: str) -> None:
    """A closed store does not use its engine again."""
    store = await PgVectorStore.connect(dsn, 4)
    await store.upsert([embedded("a")], "n")
    for name in READS:
        await warm(store, name)
    await store.close()
    for read in READS.values():
        with pytest.raises(VectorStoreError, match="the store is closed"):
            await read(store)


def test_another_event_loop(dsn: str) -> None:
    """A warm engine in another event loop is an error that says so, and the pool stays whole."""
    engine = create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg"))
    store = PgVectorStore(engine, 4)

    async def first() -> None:
        await store.upsert([embedded("a")], "n")
        for name in READS:
            await warm(store, name)

    async def second() -> None:
        for read in READS.values():
            with pytest.raises(ConfigurationError, match="another event loop"):
                await read(store)

    with asyncio.Runner() as runner:
        runner.run(first())
        with asyncio.Runner() as other:
            other.run(second())
        runner.run(first())
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        runner.run(engine.dispose())


async def test_errors_quote_no_values(engine: AsyncEngine, dsn: str) -> None:
    """Neither an error nor its causes contain vectors, filters or namespaces."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "tenant-acme", 30)
    query, filter = [0.8125, 1.0, 0.0, 0.0], {"k": "secret-value"}
    for _ in range(3):
        await store.search(query, "tenant-acme", 5, filter)
    statements = (
        "ALTER TABLE cenote_chunks RENAME COLUMN content TO renamed",
        "ALTER TABLE cenote_chunks RENAME TO elsewhere",
    )
    for statement in statements:
        await execute(engine, statement)
        reads = (
            store.search(query, "tenant-acme", 5, filter),
            store.get(["secret-id"], "tenant-acme"),
        )
        for read in reads:
            with pytest.raises(VectorStoreError) as error:
                await read
            message = "".join(traceback.format_exception(error.value, limit=0))
            cause = error.value.__cause__
            assert cause is not None
            message += repr(vars(cause)) + repr(cause.args)
            for marker in ("secret", "0.8125", "tenant-acme"):
                assert marker not in message


async def test_an_unreachable_server(dsn: str) -> None:
    """A refused connection is an error about the connection, as before."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    async with running_proxy(dsn) as proxy:
        target = make_url(proxy.dsn).set(drivername="postgresql+asyncpg", query={"ssl": "disable"})
        engine = create_async_engine(target, pool_size=1)
        store = PgVectorStore(engine, 4)
        await store.upsert([embedded("a")], "n")
        await warm(store, "search")
        await engine.dispose()
    errors = []
    for _ in range(2):
        with pytest.raises(StoreConnectionError) as error:
            await store.search(QUERY, "n")
        errors.append(str(error.value))
        listen_to(engine)
    assert errors[0] == errors[1]
    assert url.password is None or url.password not in errors[0]
    await engine.dispose()
