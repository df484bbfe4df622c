"""Statements that `SyncPgVectorStore` runs on psycopg without SQLAlchemy's execution.

``test_direct.py`` tests the same on asyncpg.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import make_url
from support.proxy import running_proxy

from cenote import (
    StoreConnectionError,
    StoreTimeoutError,
    SyncPgVectorStore,
    VectorStoreError,
)
from cenote.postgres import watchdog
from cenote.stores.pgvector.search_hints import _Memory
from cenote.testing import embedded

QUERY = [1.0, 0.5, 0.25, 0.125]

READS: dict[str, Callable[[SyncPgVectorStore], Any]] = {
    "search": lambda store: store.search(QUERY, "n", 5),
    "filtered search": lambda store: store.search(QUERY, "n", 5, {"k": 1}),
    "diverse": lambda store: store.search(QUERY, "n", 5, per_document=1),
    "search_many": lambda store: store.search_many([QUERY, QUERY], "n", 5),
    "get": lambda store: store.get(["000001", "000002"], "n"),
    "filtered count": lambda store: store.count("n", {"k": 1}),
    "list_chunks": lambda store: store.list_chunks("n", limit=3),
    "get_all_chunks": lambda store: list(store.get_all_chunks("n")),
}
"""Operations that run directly."""


def psycopg_engine(dsn: str, **options: Any) -> Engine:
    return create_engine(make_url(dsn).set(drivername="postgresql+psycopg"), **options)


def fill(engine: Engine) -> None:
    """Write 30 chunks with the store, in namespace ``n``."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    chunks = [
        embedded(f"{n:06}", [1.0, n / 30, n % 7, 0.5], document_id=f"d{n // 10}", metadata={"k": 1})
        for n in range(30)
    ]
    store.upsert(chunks, "n")


@pytest.fixture(scope="module")
def filled_dsn(module_dsn: str) -> str:
    """Connection string of a database with 30 chunks, which the tests only read."""
    engine = psycopg_engine(module_dsn)
    fill(engine)
    engine.dispose()
    return module_dsn


def _drained(engine: Engine) -> Iterator[Engine]:
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture
def engine(filled_dsn: str) -> Iterator[Engine]:
    """Engine with one connection at most."""
    yield from _drained(psycopg_engine(filled_dsn, pool_size=1, max_overflow=0, pool_timeout=0.3))


@pytest.fixture
def other_engine(dsn: str) -> Iterator[Engine]:
    """Engine on a database of its own, with 30 chunks."""
    engine = psycopg_engine(dsn)
    fill(engine)
    yield from _drained(engine)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SQL of each statement that runs directly."""
    calls: list[str] = []
    execute = psycopg.RawCursor.execute

    def counted(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(query)
        return execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.RawCursor, "execute", counted)
    return calls


def warm(store: SyncPgVectorStore, name: str) -> Any:
    """Call a read until it needs no more preparation, and return its result."""
    for _ in range(3):
        result = READS[name](store)
    return result


def listen_to(engine: Engine) -> list[str]:
    """Return a list to which SQLAlchemy appends each statement that it executes."""
    statements: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        statements.append(sql)

    return statements


async def close(engine: Engine) -> None:
    """Dispose of an engine on the proxy, and let the proxy close its sockets."""
    engine.dispose()
    await asyncio.sleep(0.05)


# -- one call, one round trip


@pytest.mark.parametrize("name", READS)
def test_one_call_of_the_driver(engine: Engine, executed: list[str], name: str) -> None:
    """Each read calls the driver once, and returns what SQLAlchemy's execution returns."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    result = warm(store, name)
    assert result
    del executed[:]
    assert READS[name](store) == result
    assert len(executed) == 1
    statements = listen_to(engine)
    assert READS[name](store) == result
    assert len(executed) == len(statements) == 1


@pytest.mark.parametrize("timeout", [None, 10.0])
async def test_one_round_trip(filled_dsn: str, timeout: float | None) -> None:
    """A search takes one round trip, before and after its statement is prepared."""
    async with running_proxy(filled_dsn) as proxy:
        proxied = psycopg_engine(proxy.dsn, pool_size=1)
        store: SyncPgVectorStore = SyncPgVectorStore(proxied, 4, operation_timeout=timeout)
        await asyncio.to_thread(warm, store, "search")
        for _ in range(2):
            before = proxy.round_trips
            for _ in range(2):
                await asyncio.to_thread(READS["search"], store)
            assert proxy.round_trips == before + 2
            for _ in range(6):
                await asyncio.to_thread(READS["search"], store)
        await close(proxied)


def test_a_new_connection_is_prepared_by_one_query(
    filled_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query checks the extension and reads the types' oids, on both ways."""
    unpooled = psycopg_engine(filled_dsn, poolclass=NullPool)
    store: SyncPgVectorStore = SyncPgVectorStore(unpooled, 4)
    expected = warm(store, "search_many")
    with unpooled.connect():
        pass  # SQLAlchemy's own queries on the first connection
    calls: list[str] = []
    execute = psycopg.Cursor.execute

    def counted(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(str(query))
        return execute(self, query, *arguments, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    for _ in range(2):
        del calls[:]
        assert READS["search_many"](store) == expected
        assert ["halfvec" in calls[0], "cenote_chunks" in calls[1], len(calls)] == [True, True, 2]
        listen_to(unpooled)


def test_connections_are_as_before(engine: Engine, executed: list[str]) -> None:
    """After a search, the pool's connection has transactions, and none is open."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    warm(store, "search")
    assert executed
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert not driver.autocommit
        assert driver.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        connection.execute(text("DELETE FROM cenote_chunks"))
        connection.rollback()
    assert len(READS["search"](store)) == 5
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    READS["search"](SyncPgVectorStore(autocommit, 4))
    with autocommit.connect() as connection:
        connection.execute(text("VACUUM cenote_chunks"))


# -- listeners and settings


class _Handler(logging.Handler):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("kind", ["event", "event of all engines", "log"])
def test_listeners_see_each_statement(
    engine: Engine,
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    early: bool,
) -> None:
    """Listeners see each statement, whether they were added before or after the first search."""
    monkeypatch.setattr(Engine, "_has_events", False)  # stays True without its last listener
    seen: list[Any] = []
    handler, logger = _Handler(seen), logging.getLogger("sqlalchemy.engine")
    level = logger.level

    def listener(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
        seen.append(sql)

    def listen() -> None:
        if kind == "log":
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
        else:
            event.listen(engine if kind == "event" else Engine, "before_cursor_execute", listener)

    try:
        if early:
            listen()
        store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
        results = {name: warm(store, name) for name in READS}
        assert bool(executed) != early
        if not early:
            listen()
        for name, read in READS.items():
            del seen[:], executed[:]
            assert read(store) == results[name]
            assert executed == []
            assert sum("\nFROM cenote_chunks" in str(words) for words in seen) == 1, name
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if kind == "event of all engines":
            event.remove(Engine, "before_cursor_execute", listener)


def test_events_of_the_pool(engine: Engine, executed: list[str]) -> None:
    """Each read checks one connection out and in, with the pool's events."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    events: list[str] = []
    for kind in ("checkout", "checkin", "reset"):
        event.listen(engine, kind, lambda *_, kind=kind, **__: events.append(kind))
    warm(store, "search")
    del events[:], executed[:]
    READS["search"](store)
    assert executed
    assert events == ["checkout", "reset", "checkin"]


class _InstrumentedCursor(psycopg.Cursor[Any]):
    """A cursor that an instrumentation puts in place of psycopg's."""

    seen: list[Any] = []  # noqa: RUF012

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        self.seen.append(query)
        return super().execute(query, *arguments, **options)


class _InstrumentedConnection(psycopg.Connection[Any]):
    """A connection that an instrumentation puts in place of psycopg's."""


@pytest.mark.parametrize("kind", ["cursor", "connection"])
def test_instrumented_connections(filled_dsn: str, executed: list[str], kind: str) -> None:
    """SQLAlchemy executes the statements if the connections or their cursors are not psycopg's."""
    instrumented = psycopg_engine(filled_dsn)
    _InstrumentedCursor.seen = []

    @event.listens_for(instrumented, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, options: dict[str, Any]) -> Any:
        options["cursor_factory"] = _InstrumentedCursor
        if kind == "connection":
            return _InstrumentedConnection.connect(*arguments, **options)
        return None

    store: SyncPgVectorStore = SyncPgVectorStore(instrumented, 4)
    for _ in range(3):
        assert len(READS["search"](store)) == 5
    assert executed == []
    assert sum("FROM cenote_chunks" in str(sql) for sql in _InstrumentedCursor.seen) == 3
    instrumented.dispose()


@pytest.mark.parametrize(("threshold", "prepares"), [(None, False), (5, True), (0, True)])
def test_prepared_statements(filled_dsn: str, threshold: int | None, prepares: bool) -> None:
    """The connection's threshold applies: poolers need None. Long filters are not prepared."""
    engine = psycopg_engine(filled_dsn, pool_size=1, connect_args={"prepare_threshold": threshold})
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)

    def prepared_after(filter: dict[str, Any]) -> int:
        for _ in range(8):
            store.search(QUERY, "n", 5, filter)
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            query = "SELECT statement FROM pg_prepared_statements"
            found = driver.execute(query, prepare=False).fetchall()
        return sum("FROM cenote_chunks" in statement for (statement,) in found)

    short = prepared_after({"k": 1})
    assert bool(short) == prepares
    assert prepared_after({f"k{number}": number for number in range(30)}) == short
    engine.dispose()


# -- errors


def test_killed_connections_between_searches(other_engine: Engine, dsn: str) -> None:
    """After the server ended all connections, the next search of each thread succeeds.

    One retry replaces the whole pool.
    """
    store: SyncPgVectorStore = SyncPgVectorStore(other_engine, 4)
    expected = warm(store, "search")
    barrier = threading.Barrier(4)

    def search(_: int) -> Any:
        barrier.wait()
        return READS["search"](store)

    terminate = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    with psycopg.connect(dsn, autocommit=True) as admin, ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            connections = [other_engine.connect() for _ in range(4)]
            for connection in connections:
                connection.close()
            assert admin.execute(terminate).fetchone() == (4,)
            for _ in range(5):  # the pool hands its connections out in turn
                assert READS["search"](store) == expected
            assert list(threads.map(search, range(4))) == [expected] * 4


@pytest.mark.parametrize("name", READS)
def test_operation_timeout(engine: Engine, filled_dsn: str, name: str) -> None:
    """The store's timeout ends the read, and the pool gets a clean connection."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4, operation_timeout=0.15)
    expected = warm(store, name)
    with psycopg.connect(filled_dsn) as locker:
        locker.execute("LOCK TABLE cenote_chunks IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(StoreTimeoutError) as caught:
            READS[name](store)
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        locker.rollback()
    assert READS[name](store) == expected


async def test_a_silent_network(filled_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read ends although a cancellation gets no answer, and is not retried.

    A retry would open a connection, whose time is not limited.
    """
    monkeypatch.setattr(watchdog, "CANCEL_SECONDS", 0.3)
    async with running_proxy(filled_dsn) as proxy:
        proxied = psycopg_engine(proxy.dsn, pool_size=1)
        store: SyncPgVectorStore = SyncPgVectorStore(proxied, 4, operation_timeout=0.2)
        expected = await asyncio.to_thread(warm, store, "search")
        proxy.open.clear()
        with pytest.raises(StoreTimeoutError, match="no answer within") as caught:
            await asyncio.wait_for(asyncio.to_thread(READS["search"], store), 10)
        assert isinstance(caught.value.__cause__, TimeoutError)
        proxy.open.set()
        assert await asyncio.to_thread(READS["search"], store) == expected
        await close(proxied)


def test_statement_timeout(filled_dsn: str) -> None:
    """The server's timeout is not the store's, and the connection stays in use."""
    options = "-c statement_timeout=200"
    short = psycopg_engine(filled_dsn, pool_size=1, connect_args={"options": options})
    store: SyncPgVectorStore = SyncPgVectorStore(short, 4, operation_timeout=30)
    expected = warm(store, "search")
    with short.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
    with psycopg.connect(filled_dsn) as locker:
        locker.execute("LOCK TABLE cenote_chunks IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(VectorStoreError) as error:
            READS["search"](store)
        locker.rollback()
    assert error.value.sqlstate == "57014"
    assert not isinstance(error.value, StoreConnectionError | StoreTimeoutError)
    assert READS["search"](store) == expected
    with short.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == pid
    short.dispose()


def errors_of(engine: Engine, call: Callable[[], Any]) -> list[VectorStoreError]:
    """Return the errors of a call that runs directly, and then through SQLAlchemy."""
    errors = []
    for _ in range(2):
        with pytest.raises(VectorStoreError) as caught:
            call()
        errors.append(caught.value)
        listen_to(engine)
    return errors


def test_a_busy_pool(engine: Engine) -> None:
    """A search that waits too long for a connection raises the same error on both ways."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    warm(store, "search")
    with engine.connect():
        direct, through_sqlalchemy = errors_of(engine, lambda: READS["search"](store))
    assert type(direct) is type(through_sqlalchemy)
    assert str(direct) == str(through_sqlalchemy)
    assert type(direct.__cause__) is type(through_sqlalchemy.__cause__)


async def test_an_unreachable_server(filled_dsn: str) -> None:
    """A refused connection is the same error on both ways."""
    async with running_proxy(filled_dsn) as proxy:
        engine = psycopg_engine(proxy.dsn)
        store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
        await asyncio.to_thread(warm, store, "search")
        await close(engine)
    direct, through_sqlalchemy = errors_of(engine, lambda: READS["search"](store))
    assert isinstance(direct, StoreConnectionError)
    assert str(direct) == str(through_sqlalchemy)


def test_errors_quote_no_values(other_engine: Engine) -> None:
    """Neither an error nor its causes contain vectors, filters or namespaces."""
    store: SyncPgVectorStore = SyncPgVectorStore(other_engine, 4)
    query, filter = [0.8125, 1.0, 0.0, 0.0], {"k": "secret-value"}
    for _ in range(3):
        store.search(query, "tenant-acme", 5, filter)
    reads: list[Callable[[], Any]] = [
        lambda: store.search(query, "tenant-acme", 5, filter),
        lambda: store.get(["secret-id"], "tenant-acme"),
    ]
    for statement in ("RENAME COLUMN content TO renamed", "RENAME TO elsewhere"):
        with other_engine.begin() as connection:
            connection.execute(text("ALTER TABLE cenote_chunks " + statement))
        for read in reads:
            with pytest.raises(VectorStoreError) as caught:
                read()
            error: BaseException | None = caught.value
            while error is not None:
                shown = "".join(traceback.format_exception(error, limit=0))
                shown += repr(vars(error)) + repr(error.args) + str(getattr(error, "diag", None))
                assert not any(word in shown for word in ("secret", "0.8125", "tenant-acme"))
                error = error.__cause__ or error.__context__


def test_a_character_that_the_encoding_lacks(filled_dsn: str) -> None:
    """The error is the same on both ways, and does not contain the text."""
    latin = psycopg_engine(filled_dsn, connect_args={"client_encoding": "latin1"})
    store: SyncPgVectorStore = SyncPgVectorStore(latin, 4)
    warm(store, "get")
    direct, through_sqlalchemy = errors_of(latin, lambda: store.get(["SECRET\u20ac"], "n"))
    assert direct.sqlstate == through_sqlalchemy.sqlstate == "22P05"
    assert str(direct) == str(through_sqlalchemy)
    error: BaseException | None = direct
    while error is not None:
        assert "SECRET" not in str(error) + repr(error.args)
        error = error.__cause__ or error.__context__
    assert len(READS["get"](store)) == 2
    latin.dispose()


def test_an_interrupted_search(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that may be in the middle of an answer does not return to the pool."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    expected = warm(store, "search")
    with engine.connect() as connection:
        pid = connection.scalar(text("SELECT pg_backend_pid()"))

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(psycopg.RawCursor, "execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            READS["search"](store)
    assert READS["search"](store) == expected
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) != pid


# -- threads


def test_eight_threads_on_many_partitions(other_engine: Engine) -> None:
    """Threads whose store forgets hints all the time get their own results."""
    store: SyncPgVectorStore = SyncPgVectorStore(other_engine, 4, operation_timeout=30)
    namespaces = [f"n{number}" for number in range(24)]
    for namespace in namespaces:
        store.upsert([embedded(f"{namespace}:{n}", QUERY) for n in range(3)], namespace)

    def work(first: int) -> None:
        for step in range(60):
            namespace = namespaces[(first * 3 + step) % len(namespaces)]
            found = store.search(QUERY, namespace, 3)
            assert [r.chunk.id for r in found] == [f"{namespace}:{n}" for n in range(3)]
            if step % 10 == first:
                store._store._partition_searches.hints.places.forget(namespace)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


def test_hints_of_threads(monkeypatch: pytest.MonkeyPatch, quick_switches: None) -> None:
    """A memory of hints can be used by threads while entries end and are evicted."""
    monkeypatch.setattr("cenote.stores.pgvector.search_hints._MAX_HINTS", 3)
    monkeypatch.setattr("cenote.stores.pgvector.search_hints._MAX_USES", 2)
    memory: _Memory[int] = _Memory()
    ends = time.monotonic() + 0.5

    def work(number: int) -> None:
        step = number
        while time.monotonic() < ends:
            step += 1
            memory.put(step % 5, step)
            memory.get(step % 3)
            memory.forget((step + 1) % 5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(memory) <= 5


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Let threads take turns much more often."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
