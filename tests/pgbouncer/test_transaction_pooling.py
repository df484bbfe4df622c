"""A store by way of PgBouncer in transaction mode: another server process each transaction."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from commands import REPOSITORY, output_of, run
from database import execute, scalar
from pooler import running_pgbouncer
from sqlalchemy import URL, delete, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote import (
    ChunkRow,
    EmbeddedChunk,
    MigrationError,
    PgVectorStore,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.connections import create_engine
from cenote.indexes import reindex
from cenote.mapping import chunk_table
from cenote.row_security import set_row_security
from cenote.testing import MakeStore, VectorStoreContract, embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.0]
NO_PREPARED_STATEMENTS = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}


def engine_of(url: URL, **options: Any) -> AsyncEngine:
    """As docs/reliability.md says."""
    return create_async_engine(url, connect_args=NO_PREPARED_STATEMENTS, **options)


def batch(writer: int, ids: str = "") -> list[EmbeddedChunk]:
    """Chunks that say who wrote them."""
    return [embedded(f"{ids}{n}", [1, n, 1, 1], content=f"by {writer}") for n in range(10)]


@pytest.fixture
def pooler(dsn: str) -> Iterator[URL]:
    with running_pgbouncer(dsn) as url:
        yield url


@pytest.fixture
async def pooled(pooler: URL) -> AsyncIterator[AsyncEngine]:
    """An engine of 16 connections to the pooler, which has two to the server."""
    engine = engine_of(pooler, pool_size=16, max_overflow=0)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.fixture(scope="class")
def class_pooler(class_dsn: str) -> Iterator[URL]:
    with running_pgbouncer(class_dsn) as url:
        yield url


class TestContract(VectorStoreContract):
    """The contract, while others take turns with the store on the two connections."""

    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, class_pooler: URL
    ) -> AsyncIterator[MakeStore]:
        engine = engine_of(class_pooler)

        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            languages = options.get("text_search", "").replace(", ", "_")
            options |= {"table_name": "cenote_chunks" + languages}
            if languages:  # on a direct connection
                await PgVectorStore(class_engine, dimensions, **options).apply_migrations()
            store = PgVectorStore(engine, dimensions, **options)
            async with engine.begin() as connection:
                await connection.execute(delete(chunk_table(store.config)))
            return store

        others = [asyncio.create_task(self._take_turns(engine)) for _ in range(3)]
        yield make
        for task in others:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await engine.dispose()

    async def _take_turns(self, engine: AsyncEngine) -> None:
        while True:
            async with engine.begin() as connection:
                await connection.execute(text("SELECT pg_sleep(0.002)"))


async def test_sixteen_tasks_over_two_connections(pooled: AsyncEngine, engine: AsyncEngine) -> None:
    """Each reads what it wrote; nothing is mixed."""
    store = PgVectorStore(pooled, 4)
    seen: set[int] = set()

    async def work(number: int) -> None:
        ids = f"{number:02}-"
        for turn in range(10):
            await store.upsert(batch(turn, ids), "n")
            assert len(await store.search(QUERY, "n", 7, filter={"a": None})) == 0
            assert len(await store.search(QUERY, "n", 7, ef_search=50 + number)) == 7
            chunks = await store.get([f"{ids}{n}" for n in range(10)], "n")
            assert {chunk.content for chunk in chunks} == {f"by {turn}"}
            await store.update_metadata({f"{ids}0": {"turn": turn}}, "n")
            async with pooled.begin() as connection:
                seen.add(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)
            await store.delete([f"{ids}9"], "n")

    await asyncio.gather(*(work(number) for number in range(16)))
    assert len(seen) == 2
    assert await store.count("n") == 16 * 9
    assert len(await stored(store, "n")) == 16 * 9
    assert await left_on(pooled) == [(None, None, 0, 0)] * 2


async def left_on(engine: AsyncEngine) -> list[Any]:
    """What each of the two server processes keeps of those that came before."""
    query = text(
        "SELECT nullif(current_setting('cenote.namespace', true), ''),"
        " (SELECT string_agg(name, ' ') FROM pg_settings WHERE source = 'session'"
        "  AND (name LIKE 'hnsw.%' OR name LIKE '%timeout' OR name LIKE '%mem')),"
        " (SELECT count(*) FROM pg_prepared_statements),"
        " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"
    )
    async with AsyncExitStack() as stack:  # both at once, which no process can serve alone
        both = [await stack.enter_async_context(engine.begin()) for _ in range(2)]
        return [tuple((await one.execute(query)).one()) for one in both]


async def test_two_tenants_over_one_connection(dsn: str, engine: AsyncEngine) -> None:
    """Row-level security shows each its own rows, and nothing to who names no tenant."""
    await _secure(engine, dsn)
    with running_pgbouncer(dsn, servers=1, role="cenote_app") as url:
        pooled = engine_of(url)
        store = PgVectorStore(pooled, 4, row_security=True)
        seen: set[int] = set()

        async def work(tenant: str, number: int) -> None:
            for turn in range(8):
                await store.upsert([embedded(f"{tenant}{number}")], tenant)
                ids = await found(store, QUERY, tenant, 100)
                assert f"{tenant}{number}" in ids
                assert all(one.startswith(tenant) for one in ids)
                async with pooled.begin() as connection:
                    assert (await connection.scalars(select(ChunkRow.id))).all() == []
                    seen.add(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)
                    async with store.tenant(connection, tenant):
                        rows = await connection.scalars(select(ChunkRow.namespace))
                        assert set(rows) == {tenant}, turn

        await asyncio.gather(*(work(tenant, n) for tenant in ("a", "b") for n in range(4)))
        assert len(seen) == 1
        await pooled.dispose()


async def _secure(engine: AsyncEngine, dsn: str) -> None:
    """Policies, and a role that they are for."""
    store = PgVectorStore(engine, 4)
    await set_row_security(engine, store.config, on=True)
    await execute(
        engine,
        "DO $$ BEGIN CREATE ROLE cenote_app LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
        f"ALTER ROLE cenote_app PASSWORD '{engine.url.password or 'unused'}'",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON cenote_chunks TO cenote_app",
    )


async def test_a_time_limit(pooled: AsyncEngine) -> None:
    """The cancelled statements free their server processes."""
    store = PgVectorStore(pooled, 4, operation_timeout=1)
    await store.upsert(batch(1), "n")
    slow: Any = text("(SELECT true FROM pg_sleep(60))")
    calls = (store.search(QUERY, "n", where=slow) for _ in range(4))
    ended = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert {type(one) for one in ended} == {StoreTimeoutError}
    store = PgVectorStore(pooled, 4, operation_timeout=20)
    assert await store.count("n") == 10


async def test_prepared_statements(pooler: URL) -> None:
    """Without the arguments they are lost on the way; the error says what to do."""
    engine = create_async_engine(pooler, pool_size=16, max_overflow=0)
    store = PgVectorStore(engine, 4)

    async def work() -> None:
        for _ in range(10):
            await store.count("n")

    ended = await asyncio.gather(*(work() for _ in range(16)), return_exceptions=True)
    errors = [one for one in ended if one is not None]
    assert errors
    assert all(isinstance(one, VectorStoreError) for one in errors)
    lost = [one for one in errors if getattr(one, "sqlstate", None) in ("26000", "42P05")]
    assert lost
    assert all("prepared_statement_cache_size=0" in str(one) for one in lost)
    await engine.dispose()


async def test_in_the_connection_string(pooler: URL) -> None:
    """`connect` takes the arguments there; PgBouncer is to ignore `jit`."""
    arguments = {name: str(value) for name, value in NO_PREPARED_STATEMENTS.items()}
    dsn = pooler.update_query_dict(arguments).render_as_string(hide_password=False)
    async with await PgVectorStore.connect(dsn, 4, min_size=4) as store:
        await store.upsert(batch(1), "n")
        counts = await asyncio.gather(*(store.count("n") for _ in range(40)))
        assert counts == [10] * 40


def test_the_page(empty_dsn: str) -> None:
    """What docs/reliability.md shows runs as it stands there, and prints what it says."""
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    codes = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (code,) = [one for one in codes if "statement_cache_size" in one]
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


# -- what needs a session

OPERATIONS: dict[str, Callable[[PgVectorStore], Awaitable[Any]]] = {
    "apply_migrations": lambda store: store.apply_migrations(),
    "reindex": lambda store: reindex(store.engine, store.config),
    "bulk_load": lambda store: store.bulk_load(batch(1), "n", ann_index="rebuild"),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_what_needs_a_session_is_refused(
    pooled: AsyncEngine, engine: AsyncEngine, name: str
) -> None:
    """Before it leaves a lock on a process of others'."""
    with pytest.raises(MigrationError, match="run it on a direct connection"):
        await OPERATIONS[name](PgVectorStore(pooled, 4))
    assert await left_on(pooled) == [(None, None, 0, 0)] * 2


async def test_what_needs_a_session_with_prepared_statements(
    pooled: AsyncEngine, pooler: URL
) -> None:
    """Is refused, too, whichever of the two it runs into first."""
    caching = create_async_engine(pooler)
    for _ in range(5):
        with pytest.raises(MigrationError, match=r"direct connection|prepared statement"):
            await PgVectorStore(caching, 4).apply_migrations()
    await caching.dispose()
    assert [one[-1] for one in await left_on(pooled)] == [0, 0]


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_session_is_enough(dsn: str, name: str) -> None:
    """In session mode all of it works, with prepared statements."""
    with running_pgbouncer(dsn, "session") as url:
        engine = create_engine(url.render_as_string(hide_password=False))
        await OPERATIONS[name](PgVectorStore(engine, 4))
        await engine.dispose()


async def test_no_session_left(empty_dsn: str) -> None:
    """A pooler in session mode that has one for the migration alone: it is none of the others."""
    with running_pgbouncer(empty_dsn, "session", servers=1) as url:
        engine = create_engine(url.render_as_string(hide_password=False))
        await PgVectorStore(engine, 4).apply_migrations()
        await engine.dispose()


async def test_a_bulk_load(pooled: AsyncEngine, engine: AsyncEngine) -> None:
    """Goes into the live index, though the table is empty."""
    store = PgVectorStore(pooled, 4)
    assert await store.bulk_load(batch(1), "n") == 10
    assert await store.check_schema() == []
    assert await store.count("n") == 10
    assert await left_on(pooled) == [(None, None, 0, 0)] * 2
    assert await scalar(engine, "SELECT count(*) FROM cenote_chunks") == 10


async def test_a_bulk_load_without_an_index(pooled: AsyncEngine, engine: AsyncEngine) -> None:
    """The rows are stored, and the error says that the index is still to be built."""
    await execute(engine, "DROP INDEX ix_cenote_chunks_embedding")
    store = PgVectorStore(pooled, 4)
    with pytest.raises(MigrationError, match="direct connection") as error:
        await store.bulk_load(batch(1), "n")
    assert "cenote reindex" in error.value.__notes__[0]
    assert await store.count("n") == 10
    assert await left_on(pooled) == [(None, None, 0, 0)] * 2
