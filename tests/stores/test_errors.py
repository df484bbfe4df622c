"""Errors of the Postgres store: schema, server and connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.database import execute
from support.drivers import SYNCHRONOUS, another_engine, on_both_stores, store_on
from support.library import Passage

from cenote import InvalidInputError, PgVectorStore, StoreConnectionError, VectorStoreError
from cenote.testing import embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.125]


@on_both_stores
async def test_a_missing_table(engine: AsyncEngine, driver: str) -> None:
    """Every call raises an error with a hint and the driver's error as its cause."""
    store = store_on(engine, 4, table_name="missing", partitions=0)
    call_hint = "run store.apply" if driver == SYNCHRONOUS else "run await store.apply"
    command = "cenote migrate -x dimensions=4 -x table_name=missing -x partitions=0 upgrade head"
    calls: Iterator[Any] = iter(
        [
            store.search(QUERY, "n"),
            store.upsert([embedded("a")], "n"),
            store.delete(["a"], "n"),
            store.delete_namespace("n"),
            stored(store, "n"),
        ]
    )
    for call in calls:
        with pytest.raises(VectorStoreError, match=command) as error:
            await call
        assert call_hint in str(error.value)
        driver_errors = asyncpg.UndefinedTableError, psycopg.errors.UndefinedTable
        assert isinstance(error.value.__cause__, driver_errors)
        assert error.value.sqlstate == "42P01"


@on_both_stores
async def test_a_missing_extension(empty_engine: AsyncEngine, driver: str) -> None:
    """The hint is `apply_migrations`, or for a user model the application's migrations."""
    call = "store.apply_" if driver == SYNCHRONOUS else "await store.apply_"
    with pytest.raises(VectorStoreError, match=rf"no vector extension; run {call}"):
        await store_on(empty_engine, 4).search(QUERY, "n")
    with pytest.raises(VectorStoreError, match=r"no vector extension; run your own migrations"):
        await store_on(empty_engine, model=Passage).search(QUERY, "n")


@on_both_stores
async def test_missing_prepared_statements(engine: AsyncEngine, driver: str) -> None:
    """The hint names the setting of the driver that makes it work behind a pooler."""
    pooled = another_engine(engine, pool_size=1, max_overflow=0)
    store = store_on(pooled, 4)
    for _ in range(8):  # psycopg prepares a statement when it is executed for the sixth time
        await store.count("n")
    # psycopg notices a DEALLOCATE that is not in a block.
    await execute(pooled, "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    setting = "prepare_threshold" if driver == SYNCHRONOUS else "statement_cache_size=0"
    with pytest.raises(VectorStoreError, match=setting) as error:
        await store.count("n")
    assert error.value.sqlstate == "26000"
    await pooled.dispose()


async def test_an_old_extension(engine: AsyncEngine) -> None:
    """A version of pgvector that is too old raises an error."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        )
    with pytest.raises(VectorStoreError, match=r"pgvector 0\.7\.4; cenote requires 0\.8"):
        await PgVectorStore(engine, 4).search(QUERY, "n")


@pytest.mark.parametrize(
    ("dimensions", "column_type", "message"),
    [
        (5, "vector", r"is vector\(4\), expected vector\(5\)"),
        (4, "halfvec", r"expected halfvec\(4\)"),
    ],
)
async def test_a_table_with_other_dimensions_or_type(
    engine: AsyncEngine, dimensions: int, column_type: Any, message: str
) -> None:
    """The first call raises an error that names both column types."""
    store = PgVectorStore(engine, dimensions, column_type=column_type)
    with pytest.raises(VectorStoreError, match=message):
        await store.search([1.0] * dimensions, "empty")
    with pytest.raises(VectorStoreError, match=message):
        await stored(store, "empty")


async def test_a_table_that_is_not_a_chunk_table(engine: AsyncEngine) -> None:
    """The hint is to choose another table_name."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (id text, namespace text)"))
    with pytest.raises(VectorStoreError, match="choose another table_name"):
        await PgVectorStore(engine, 4, table_name="mine").search(QUERY, "n")


async def test_a_closed_store(dsn: str) -> None:
    """A closed store raises an error instead of opening connections."""
    store = await PgVectorStore.connect(dsn, 4)
    await store.close()
    with pytest.raises(VectorStoreError, match="closed"):
        await store.search(QUERY, "n")


async def test_an_unreachable_server() -> None:
    """A refused connection raises StoreConnectionError, without the password."""
    engine = create_async_engine("postgresql+asyncpg://postgres:s3cret@127.0.0.1:1/x")
    with pytest.raises(StoreConnectionError) as error:
        await PgVectorStore(engine, 4).search(QUERY, "n")
    assert "s3cret" not in str(error.value)


async def test_a_connection_ended_by_the_server(store: PgVectorStore, engine: AsyncEngine) -> None:
    """A read is retried on a new connection."""
    await store.upsert([embedded("a")], "n")
    terminate = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    other = create_async_engine(engine.url)
    async with other.connect() as connection:
        await connection.execute(terminate)
    await other.dispose()
    assert await found(store, QUERY, "n") == ["a"]


async def test_invalid_input_opens_no_connection() -> None:
    """Invalid input is rejected before a connection is opened."""
    engine = create_async_engine("postgresql+asyncpg://postgres@127.0.0.1:1/x")
    store = PgVectorStore(engine, 4)
    with pytest.raises(InvalidInputError):
        await store.upsert([embedded("a", [0.0])], "n")
    with pytest.raises(InvalidInputError):
        await store.search(QUERY, "n", 0)
    await store.upsert([], "n")
    assert await store.search([0, 0, 0, 0], "n") == []
