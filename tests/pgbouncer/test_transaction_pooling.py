"""A store behind PgBouncer in transaction mode.

Each transaction may run in another server process.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import URL, delete, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.commands import REPOSITORY, output_of, run
from support.database import execute, scalar
from support.pooler import running_pgbouncer

from cenote import (
    ChunkRow,
    ConfigurationError,
    EmbeddedChunk,
    MigrationError,
    PgVectorStore,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.maintenance import reindex, set_row_security
from cenote.orm.factory import chunk_table
from cenote.postgres.dsn import create_engine
from cenote.testing import MakeStore, VectorStoreContract, embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.0]
NO_PREPARED_STATEMENTS = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}


def engine_of(url: URL, **options: Any) -> AsyncEngine:
    """Create an engine with the options that docs/pgbouncer.md recommends."""
    return create_async_engine(url, connect_args=NO_PREPARED_STATEMENTS, **options)


def batch(writer: int, ids: str = "") -> list[EmbeddedChunk]:
    """Return ten chunks whose contents name their writer."""
    return [embedded(f"{ids}{n}", [1, n, 1, 1], content=f"by {writer}") for n in range(10)]


@pytest.fixture
def pooler(dsn: str) -> Iterator[URL]:
    with running_pgbouncer(dsn) as url:
        yield url


@pytest.fixture
async def pooled(pooler: URL) -> AsyncIterator[AsyncEngine]:
    """An engine with 16 connections to the pooler, which has two connections to the server."""
    engine = engine_of(pooler, pool_size=16, max_overflow=0)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.fixture(scope="class")
def class_pooler(class_dsn: str) -> Iterator[URL]:
    with running_pgbouncer(class_dsn) as url:
        yield url


class TestContract(VectorStoreContract):
    """The contract holds while other clients use the same two connections to the server."""

    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, class_pooler: URL
    ) -> AsyncIterator[MakeStore]:
        engine = engine_of(class_pooler)

        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            languages = options.get("text_search", "").replace(", ", "_")
            options |= {"table_name": "cenote_chunks" + languages}
            if languages:  # migrations require a direct connection
                await PgVectorStore(class_engine, dimensions, **options).apply_migrations()
            store = PgVectorStore(engine, dimensions, **options)
            async with engine.begin() as connection:
                await connection.execute(delete(chunk_table(store.config)))
            return store

        other_clients = [asyncio.create_task(self._use_connections(engine)) for _ in range(3)]
        yield make
        for task in other_clients:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*other_clients, return_exceptions=True)
        await engine.dispose()

    async def _use_connections(self, engine: AsyncEngine) -> None:
        while True:
            async with engine.begin() as connection:
                await connection.execute(text("SELECT pg_sleep(0.002)"))


async def test_many_tasks_over_two_connections(pooled: AsyncEngine, engine: AsyncEngine) -> None:
    """Each task reads what it wrote, and no setting or lock stays on a server process."""
    store = PgVectorStore(pooled, 4)
    backend_pids: set[int] = set()

    async def use_store(number: int) -> None:
        ids = f"{number:02}-"
        for turn in range(10):
            await store.upsert(batch(turn, ids), "n")
            assert len(await store.search(QUERY, "n", 7, filter={"a": None})) == 0
            assert len(await store.search(QUERY, "n", 7, ef_search=50 + number)) == 7
            chunks = await store.get([f"{ids}{n}" for n in range(10)], "n")
            assert {chunk.content for chunk in chunks} == {f"by {turn}"}
            await store.update_metadata({f"{ids}0": {"turn": turn}}, "n")
            async with pooled.begin() as connection:
                backend_pids.add(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)
            await store.delete([f"{ids}9"], "n")

    await asyncio.gather(*(use_store(number) for number in range(16)))
    assert len(backend_pids) == 2
    assert await store.count("n") == 16 * 9
    assert len(await stored(store, "n")) == 16 * 9
    assert await session_state(pooled) == [(None, None, 0, 0)] * 2


async def session_state(engine: AsyncEngine) -> list[Any]:
    """Return the state that earlier clients left on each of the two server processes.

    The state is the namespace of row-level security, changed settings, and the numbers of prepared
    statements and advisory locks.
    """
    query = text(
        "SELECT nullif(current_setting('cenote.namespace', true), ''),"
        " (SELECT string_agg(name, ' ') FROM pg_settings WHERE source = 'session'"
        "  AND (name LIKE 'hnsw.%' OR name LIKE '%timeout' OR name LIKE '%mem')),"
        " (SELECT count(*) FROM pg_prepared_statements),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"
    )
    async with AsyncExitStack() as stack:  # two open transactions occupy both server processes
        connections = [await stack.enter_async_context(engine.begin()) for _ in range(2)]
        return [tuple((await connection.execute(query)).one()) for connection in connections]


async def test_two_tenants_over_one_connection(dsn: str, engine: AsyncEngine) -> None:
    """Row-level security shows each tenant its own rows, and none without a tenant."""
    await _secure(engine, dsn)
    with running_pgbouncer(dsn, servers=1, role="cenote_app") as url:
        pooled = engine_of(url)
        store = PgVectorStore(pooled, 4, row_security=True)
        backend_pids: set[int] = set()

        async def use_store(tenant: str, number: int) -> None:
            for turn in range(8):
                await store.upsert([embedded(f"{tenant}{number}")], tenant)
                ids = await found(store, QUERY, tenant, 100)
                assert f"{tenant}{number}" in ids
                assert all(id.startswith(tenant) for id in ids)
                async with pooled.begin() as connection:
                    assert (await connection.scalars(select(ChunkRow.id))).all() == []
                    backend_pids.add(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)
                    async with store.tenant(connection, tenant):
                        rows = await connection.scalars(select(ChunkRow.namespace))
                        assert set(rows) == {tenant}, turn

        await asyncio.gather(*(use_store(tenant, n) for tenant in ("a", "b") for n in range(4)))
        assert len(backend_pids) == 1
        await pooled.dispose()


async def _secure(engine: AsyncEngine, dsn: str) -> None:
    """Set row-level security and create a role that is subject to it."""
    store = PgVectorStore(engine, 4)
    await set_row_security(engine, store.config, on=True)
    await execute(
        engine,
        "DO $$ BEGIN CREATE ROLE cenote_app LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
        f"ALTER ROLE cenote_app PASSWORD '{engine.url.password or 'unused'}'",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON cenote_chunks TO cenote_app",
    )


async def test_time_limits(pooled: AsyncEngine) -> None:
    """A statement cancelled by a time limit frees its server process."""
    store = PgVectorStore(pooled, 4, operation_timeout=1)
    await store.upsert(batch(1), "n")
    slow: Any = text("(SELECT true FROM pg_sleep(60))")
    calls = (store.search(QUERY, "n", where=slow) for _ in range(4))
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert {type(result) for result in results} == {StoreTimeoutError}
    store = PgVectorStore(pooled, 4, operation_timeout=20)
    assert await store.count("n") == 10


async def test_prepared_statements(pooler: URL) -> None:
    """Without the recommended options, the error of a prepared statement names them."""
    engine = create_async_engine(pooler, pool_size=16, max_overflow=0)
    store = PgVectorStore(engine, 4)

    async def use_store() -> None:
        for _ in range(10):
            await store.count("n")

    results = await asyncio.gather(*(use_store() for _ in range(16)), return_exceptions=True)
    errors = [result for result in results if result is not None]
    assert errors
    assert all(isinstance(error, VectorStoreError) for error in errors)
    statement_errors = [
        error for error in errors if getattr(error, "sqlstate", None) in ("26000", "42P05")
    ]
    assert statement_errors
    assert all("prepared_statement_cache_size=0" in str(error) for error in statement_errors)
    await engine.dispose()


async def test_options_in_the_connection_string(pooler: URL) -> None:
    """`connect` accepts the options in the connection string; PgBouncer ignores `jit`."""
    arguments = {name: str(value) for name, value in NO_PREPARED_STATEMENTS.items()}
    dsn = pooler.update_query_dict(arguments).render_as_string(hide_password=False)
    async with await PgVectorStore.connect(dsn, 4, min_size=4) as store:
        await store.upsert(batch(1), "n")
        counts = await asyncio.gather(*(store.count("n") for _ in range(40)))
        assert counts == [10] * 40


async def test_a_pooler_that_rejects_jit(dsn: str) -> None:
    """`connect` omits its default settings if the pooler rejects them, as Neon's does.

    A setting that the connection string contains is the caller's, and named in an error.
    """
    arguments = {name: str(value) for name, value in NO_PREPARED_STATEMENTS.items()}
    with running_pgbouncer(dsn, ignored="extra_float_digits") as pooler:
        url = pooler.update_query_dict(arguments)
        string = url.render_as_string(hide_password=False)
        async with await PgVectorStore.connect(string, 4, min_size=4) as store:
            await store.upsert(batch(1), "n")
            counts = await asyncio.gather(*(store.count("n") for _ in range(40)))
            assert counts == [10] * 40
        for name in ("jit", "statement_timeout"):
            string = url.update_query_dict({name: "0"}).render_as_string(hide_password=False)
            with pytest.raises(ConfigurationError, match=f"'{name}'.*ignore_startup_parameters"):
                await PgVectorStore.connect(string, 4)


def test_the_program_of_the_documentation(empty_dsn: str) -> None:
    """The code in docs/pgbouncer.md runs and prints what the page shows."""
    page = (REPOSITORY / "docs" / "pgbouncer.md").read_text(encoding="utf-8")
    codes = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (code,) = [code for code in codes if "statement_cache_size" in code]
    direct = make_url(empty_dsn).set(drivername="postgresql+asyncpg")
    with running_pgbouncer(empty_dsn) as pooled:
        printed = output_of(
            run(
                *(sys.executable, "-W", "error", "-c", code),
                DATABASE_URL=direct.render_as_string(hide_password=False),
                POOLED_URL=pooled.render_as_string(hide_password=False),
            )
        )
    assert printed == "0\n"


# -- operations that need a session

OPERATIONS: dict[str, Callable[[PgVectorStore], Awaitable[Any]]] = {
    "apply_migrations": lambda store: store.apply_migrations(),
    "reindex": lambda store: reindex(store.engine, store.config),
    "bulk_load": lambda store: store.bulk_load(batch(1), "n", ann_index="rebuild"),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_operations_that_need_a_session_are_rejected(
    pooled: AsyncEngine, engine: AsyncEngine, name: str
) -> None:
    """The error is raised before a lock is left on a shared server process."""
    with pytest.raises(MigrationError, match="connect to the server directly"):
        await OPERATIONS[name](PgVectorStore(pooled, 4))
    assert await session_state(pooled) == [(None, None, 0, 0)] * 2


async def test_migrations_with_prepared_statements_are_rejected(
    pooled: AsyncEngine, pooler: URL
) -> None:
    """The lock or a prepared statement fails, and no lock is left on a server process."""
    caching = create_async_engine(pooler)
    for _ in range(5):
        with pytest.raises(MigrationError, match=r"server directly|prepared statement"):
            await PgVectorStore(caching, 4).apply_migrations()
    await caching.dispose()
    assert [state[-1] for state in await session_state(pooled)] == [0, 0]


@pytest.mark.parametrize("name", OPERATIONS)
async def test_session_mode(dsn: str, name: str) -> None:
    """In session mode, all operations work with prepared statements."""
    with running_pgbouncer(dsn, "session") as url:
        engine = create_engine(url.render_as_string(hide_password=False))
        await OPERATIONS[name](PgVectorStore(engine, 4))
        await engine.dispose()


async def test_migration_over_one_session(empty_dsn: str) -> None:
    """In session mode, a migration succeeds over a single server connection."""
    with running_pgbouncer(empty_dsn, "session", servers=1) as url:
        engine = create_engine(url.render_as_string(hide_password=False))
        await PgVectorStore(engine, 4).apply_migrations()
        await engine.dispose()


async def test_bulk_load_with_an_index(pooled: AsyncEngine, engine: AsyncEngine) -> None:
    """A bulk load writes into the live index, even if the table is empty."""
    store = PgVectorStore(pooled, 4)
    assert await store.bulk_load(batch(1), "n") == 10
    assert await store.check_schema() == []
    assert await store.count("n") == 10
    assert await session_state(pooled) == [(None, None, 0, 0)] * 2
    assert await scalar(engine, "SELECT count(*) FROM cenote_chunks") == 10


async def test_bulk_load_without_an_index(pooled: AsyncEngine, engine: AsyncEngine) -> None:
    """The rows are stored, and the error says that the index has to be built."""
    await execute(engine, "DROP INDEX ix_cenote_chunks_embedding")
    store = PgVectorStore(pooled, 4)
    with pytest.raises(MigrationError, match="connect to the server directly") as error:
        await store.bulk_load(batch(1), "n")
    assert "cenote reindex" in error.value.__notes__[0]
    assert await store.count("n") == 10
    assert await session_state(pooled) == [(None, None, 0, 0)] * 2
