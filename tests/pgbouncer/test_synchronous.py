"""A synchronous store behind PgBouncer in transaction mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, create_engine, delete, text
from sqlalchemy.engine import make_url
from support.pooler import running_pgbouncer
from support.synchronous import Awaited

from cenote import MigrationError, StoreConnectionError, SyncPgVectorStore
from cenote.orm.factory import chunk_table
from cenote.testing import MakeStore, VectorStoreContract

NO_PREPARED_STATEMENTS = {"prepare_threshold": None}


@pytest.fixture(scope="class")
def class_pooler(class_dsn: str) -> Iterator[URL]:
    with running_pgbouncer(class_dsn) as url:
        yield url.set(drivername="postgresql+psycopg")


class TestContract(VectorStoreContract):
    """The contract holds while other clients use the same two connections to the server."""

    @pytest.fixture
    def make_store(self, class_dsn: str, class_pooler: URL) -> Iterator[MakeStore]:
        engine = create_engine(class_pooler, connect_args=NO_PREPARED_STATEMENTS)
        direct = create_engine(make_url(class_dsn).set(drivername="postgresql+psycopg"))
        stop = threading.Event()

        async def make(dimensions: int, **options: Any) -> Any:
            languages = options.get("text_search", "").replace(", ", "_")
            options |= {"table_name": "cenote_chunks" + languages}
            if languages:  # migrations require a direct connection
                SyncPgVectorStore(direct, dimensions, **options).apply_migrations()
            store: SyncPgVectorStore = SyncPgVectorStore(engine, dimensions, **options)
            with engine.begin() as connection:
                connection.execute(delete(chunk_table(store.config)))
            return Awaited(store)

        def use_connections() -> None:
            while not stop.is_set():
                with engine.begin() as connection:
                    connection.execute(text("SELECT pg_sleep(0.002)"))

        other_clients = [threading.Thread(target=use_connections) for _ in range(3)]
        for client in other_clients:
            client.start()
        yield make
        stop.set()
        for client in other_clients:
            client.join()
        direct.dispose()
        engine.dispose()


def test_migrations_are_rejected(dsn: str) -> None:
    """Schema changes need a session, which a pooler in transaction mode does not give."""
    with running_pgbouncer(dsn) as url:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"), connect_args=NO_PREPARED_STATEMENTS
        )
        store: SyncPgVectorStore = SyncPgVectorStore(engine, 4)
        with pytest.raises(MigrationError, match="pool_mode=transaction"):
            store.apply_migrations()
        engine.dispose()


@pytest.mark.parametrize("ignored", ["jit", "jit, options", "extra_float_digits"])
def test_connect(dsn: str, ignored: str) -> None:
    """`connect` omits its ``jit=off`` if the pooler rejects it, but no option of the string."""
    with running_pgbouncer(dsn, ignored=ignored) as pooler:
        url = pooler.set(drivername="postgresql")
        with SyncPgVectorStore.connect(
            url.render_as_string(hide_password=False), 4, min_size=3
        ) as store:
            assert store.count("n") == 0
            with store.engine.connect() as first, store.engine.connect() as second:
                assert first.scalar(text("SELECT 1")) == second.scalar(text("SELECT 1")) == 1
        if "options" not in ignored:
            url = url.update_query_dict({"options": "-c statement_timeout=5s"})
            with pytest.raises(StoreConnectionError, match="options"):
                SyncPgVectorStore.connect(url.render_as_string(hide_password=False), 4)
