"""Signals in the middle of a synchronous store's calls.

They are the counterpart of cancelled tasks: Control-C, and the exceptions that task queues raise in
signal handlers when the time for a task is up.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text, true
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from support.operations import QUERY, batch

from cenote import EmbeddedChunk, SyncPgVectorStore

WAITING = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
BUSY = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND state <> 'idle' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


class TimeIsUpError(Exception):
    """An exception of a signal handler, like Celery's SoftTimeLimitExceeded."""


def _raise(*_: object) -> None:
    raise TimeIsUpError


SIGNALS: dict[str, tuple[signal.Signals, type[BaseException]]] = {
    "Control-C": (signal.SIGINT, KeyboardInterrupt),
    "time limit": (signal.SIGUSR1, TimeIsUpError),
}


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    engine = create_engine(make_url(dsn).set(drivername="postgresql+psycopg"), pool_size=2)
    # A process that a shell starts in the background ignores SIGINT.
    handlers: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGUSR1: _raise,
    }
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield engine
    for number, handler in previous.items():
        signal.signal(number, handler)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture
def admin(engine: Engine) -> Engine:
    """An engine for other connections."""
    return create_engine(engine.url, poolclass=NullPool)


@contextmanager
def interrupted(admin: Engine, kind: str) -> Iterator[None]:
    """Send a signal to this thread when a statement of the block waits for a lock on the table.

    The block must raise the signal's exception.
    """
    number, exception = SIGNALS[kind]
    main = threading.get_ident()

    def send() -> None:
        with admin.connect() as connection:
            while not connection.scalar(WAITING):
                connection.rollback()
                time.sleep(0.005)
        signal.pthread_kill(main, number)

    with admin.connect() as connection:
        connection.execute(text("LOCK cenote_chunks IN ACCESS EXCLUSIVE MODE"))
        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(exception):
            yield
        sender.join()
        connection.rollback()


def check_nothing_is_left(engine: Engine, admin: Engine) -> None:
    """Check that no connection is borrowed, and that no statement or transaction goes on."""
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    with admin.connect() as connection:
        while connection.scalar(BUSY):
            assert time.monotonic() < deadline, "a statement or a transaction goes on"
            connection.rollback()
            time.sleep(0.01)


CALLS: dict[str, Callable[[SyncPgVectorStore], Any]] = {
    "search": lambda store: store.search(QUERY, "n"),
    "search with a condition": lambda store: store.search(QUERY, "n", where=true()),
    "get": lambda store: store.get(["0001"], "n"),
    "upsert": lambda store: store.upsert(batch(2), "n"),
    "bulk_load": lambda store: store.bulk_load(batch(2), "n", ann_index="keep"),
    "sync_document": lambda store: store.sync_document("doc", batch(2, 5), "n"),
    "get_all_chunks": lambda store: list(store.get_all_chunks("n")),
}


@pytest.mark.parametrize(("kind", "timeout"), [("Control-C", None), ("time limit", 60)])
def test_calls(engine: Engine, admin: Engine, kind: str, timeout: float | None) -> None:
    """An interrupted call keeps no connection and no transaction, and the next one works."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4, operation_timeout=timeout)
    store.upsert(batch(1), "n")
    for call in CALLS.values():
        for _ in range(3):  # a search remembers where the namespace is
            store.search(QUERY, "n")
        with interrupted(admin, kind):
            call(store)
        check_nothing_is_left(engine, admin)
        assert {chunk.content for chunk in store.get_all_chunks("n")} == {"by 1"}
        assert len(store.search(QUERY, "n")) == 10


@pytest.mark.parametrize("kind", SIGNALS)
def test_the_callers_transaction(engine: Engine, admin: Engine, kind: str) -> None:
    """The caller's transaction ends with its session, and nothing of it is stored."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    store.upsert(batch(1), "n")
    with interrupted(admin, kind), Session(engine) as session:
        store.in_session(session).upsert(batch(2), "n")
    check_nothing_is_left(engine, admin)
    assert {chunk.content for chunk in store.get_all_chunks("n")} == {"by 1"}


@pytest.mark.parametrize("kind", SIGNALS)
def test_between_the_batches_of_a_bulk_load(engine: Engine, admin: Engine, kind: str) -> None:
    """Whole batches are stored, and loading again completes them and builds the index."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
    chunks = batch(1, 2500)
    number, exception = SIGNALS[kind]

    def stream() -> Iterator[EmbeddedChunk]:
        for position, chunk in enumerate(chunks):
            if position == 1500:
                os.kill(os.getpid(), number)
            yield chunk

    with pytest.raises(exception) as caught:
        store.bulk_load(stream(), "n")
    assert "cenote reindex" in caught.value.__notes__[0]
    check_nothing_is_left(engine, admin)
    assert store.count("n") == 1000
    assert store.bulk_load(chunks, "n") == 2500
    assert store.count("n") == 2500
    assert store.check_schema() == []
