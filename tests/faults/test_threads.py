"""One synchronous store, shared by eight threads while the server ends their connections.

``CENOTE_TORTURE`` multiplies the duration (``make torture``).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from support.operations import QUERY, batch

from cenote import StoreConnectionError, SyncPgVectorStore

SECONDS = 2.0 * int(os.environ.get("CENOTE_TORTURE", "1"))
THREADS = 8
ROWS = 20

TERMINATE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
def engine(dsn: str) -> Iterator[Engine]:
    """An engine on psycopg with fewer connections than there are threads."""
    url = make_url(dsn).set(drivername="postgresql+psycopg")
    engine = create_engine(url, pool_size=3, max_overflow=2)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


class Worker:
    """A thread's own tenant, whose rows it writes and reads.

    Attributes:
        completed: Number of rounds without an error.
        lost: Number of operations that lost their connection.
    """

    def __init__(self, store: SyncPgVectorStore, engine: Engine, number: int) -> None:
        self.store = store
        self.completed = self.lost = 0
        self._engine = engine
        self._namespace = f"tenant {number}"
        self._number = number
        self._random = random.Random(number)
        self._written = 0

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._write()
                self._read()
                self._join_a_session()
            except StoreConnectionError:
                self.lost += 1
            else:
                self.completed += 1

    def _write(self) -> None:
        self._written += 1
        chunks = batch(self._written, ROWS, ids=f"{self._number}:")
        if self._random.random() < 0.1:
            load = self.store.bulk_load
            assert load(iter(chunks), self._namespace, ann_index="keep") == ROWS
        else:
            self.store.upsert(chunks, self._namespace)

    def _read(self) -> None:
        """Check that all reads return the last batch, and nothing of other tenants."""
        store, namespace = self.store, self._namespace
        limit = self._random.randint(1, ROWS)
        filter = {"$or": [{f"k{n}": 1} for n in range(limit)] + [{"k": {"$exists": False}}]}
        found = store.search(QUERY, namespace, limit, self._random.choice((None, filter)))
        assert len(found) == limit
        for chunks in (
            [result.chunk for result in found],
            store.get([f"{self._number}:0001"], namespace),
            list(store.get_all_chunks(namespace)),
        ):
            assert {chunk.content for chunk in chunks} == {f"by {self._written}"}
            assert {chunk.id.partition(":")[0] for chunk in chunks} == {str(self._number)}
        assert store.count(namespace, filter) == ROWS

    def _join_a_session(self) -> None:
        """Delete in a transaction of the application, and roll it back."""
        session = Session(self._engine)
        try:
            store = self.store.in_session(session)
            assert store.delete_document("doc", self._namespace) == ROWS
            assert store.count(self._namespace) == 0
        finally:
            with suppress(OperationalError):  # SQLAlchemy's ROLLBACK may lose the connection, too
                session.close()
        assert self.store.count(self._namespace) == ROWS


def test_eight_threads(engine: Engine) -> None:
    """Each thread reads what it wrote. Nothing but lost connections is raised, or left behind."""
    store: SyncPgVectorStore = SyncPgVectorStore(engine, 4, operation_timeout=60)
    admin = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    workers = [Worker(store, engine, number) for number in range(THREADS)]
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as threads:
        running = [threads.submit(worker.run, stop) for worker in workers]
        for _ in range(int(SECONDS / 0.4)):
            stop.wait(0.4)
            if any(future.done() for future in running):
                break
            with admin.connect() as connection:
                connection.execute(TERMINATE)
        stop.set()
        for future in running:
            future.result()
    assert all(worker.completed for worker in workers)
    assert sum(worker.lost for worker in workers) > 0
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    open_transactions = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state <> 'idle' AND pid <> pg_backend_pid()"
    )
    with admin.connect() as connection:
        assert connection.scalar(open_transactions) == 0
