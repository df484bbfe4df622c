"""Rebuilding the ANN index while the table is read and written."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.commands import cenote, clean_environment, output_of
from support.database import execute

from cenote import (
    Chunk,
    ConfigurationError,
    EmbeddedChunk,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    schema,
)
from cenote.maintenance import reindex, reindex_plan
from cenote.postgres import locks
from cenote.postgres.dsn import create_engine
from cenote.progress import IndexProgress
from cenote.testing import embedded, found


@pytest.fixture(params=[0, 4], ids=["plain", "partitioned"])
async def store(empty_engine: AsyncEngine, request: pytest.FixtureRequest) -> PgVectorStore:
    """Return a store with 2,000 chunks of four tenants, in a plain or a partitioned table."""
    store = PgVectorStore(empty_engine, 8, partitions=request.param)
    await store.apply_migrations()
    for tenant in "abcd":
        await store.upsert(chunks(500), tenant)
    return store


def chunks(number: int, first: int = 0) -> list[EmbeddedChunk]:
    """Return chunks with reproducible random vectors."""
    vectors = np.random.default_rng(first).standard_normal((number, 8), dtype=np.float32)
    return [
        EmbeddedChunk(
            chunk=Chunk(id=f"{first + index:06}", document_id="d", content="text"),
            embedding=vector,
            embedding_model="m",
        )
        for index, vector in enumerate(vectors)
    ]


def with_parameters(
    store: PgVectorStore, *, hnsw_m: int = 8, hnsw_ef_construction: int = 32
) -> SchemaConfig:
    """Return the store's configuration with other HNSW parameters."""
    return replace(store.config, hnsw_m=hnsw_m, hnsw_ef_construction=hnsw_ef_construction)


async def index_names(engine: AsyncEngine) -> list[str]:
    """Return all indexes of the table and its partitions: name, parameters, validity."""
    query = text(
        "SELECT relname || ' ' || coalesce(array_to_string(reloptions, ','), '') || indisvalid"
        " FROM pg_class JOIN pg_index ON indexrelid = oid"
        " WHERE starts_with(indrelid::regclass::text, 'cenote_chunks')"
        " AND relname NOT LIKE '%version%' ORDER BY 1"
    )
    async with engine.connect() as connection:
        return [*await connection.scalars(query)]


async def test_reindex_changes_the_parameters(store: PgVectorStore) -> None:
    """Names stay the same, no index is left over, and searches use the new index."""
    before = await index_names(store.engine)
    progress: list[IndexProgress] = []
    await reindex(store.engine, with_parameters(store), progress=progress.append)
    after = await index_names(store.engine)
    expected = [
        name.replace("m=16,ef_construction=64", "m=8,ef_construction=32") for name in before
    ]
    assert after == expected
    assert before != after
    assert await schema.check(store.engine, with_parameters(store)) == []
    builds = store.config.partitions or 1
    assert [(step.number, step.of) for step in progress if step.phase == "built"] == [
        (number, builds) for number in range(1, builds + 1)
    ]
    assert all(0 <= step.fraction <= 1 for step in progress)
    async with store.engine.connect() as connection:
        await connection.execute(text("SET enable_seqscan = off"))
        plan = await connection.scalars(
            text(
                "EXPLAIN SELECT id FROM cenote_chunks WHERE namespace = 'a'"
                " ORDER BY embedding <=> '[1,1,1,1,1,1,1,1]' LIMIT 5"
            )
        )
        assert "embedding" in "\n".join(plan)


async def test_lock_and_settings_are_released(store: PgVectorStore) -> None:
    """No pooled connection keeps the lock or the settings of a build."""
    await reindex(store.engine, with_parameters(store), memory="77MB", workers=0)
    connections = [store.engine.connect() for _ in range(3)]
    opened = [await connection.__aenter__() for connection in connections]
    for connection in opened:
        assert await connection.scalar(text("SHOW maintenance_work_mem")) != "77MB"
        count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert await connection.scalar(text(count)) == 0
    for connection in connections:
        await connection.__aexit__(None, None, None)


@asynccontextmanager
async def traffic(store: PgVectorStore) -> AsyncIterator[dict[str, int]]:
    """Write and read during the block. Every call must succeed."""
    completed = {"writes": 0, "reads": 0}
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await store.upsert(chunks(5, 10_000 + completed["writes"]), "a")
            completed["writes"] += 1

    async def read() -> None:
        query = np.ones(8, dtype=np.float32)
        while not stop.is_set():
            assert len(await store.search(query, "b", limit=10)) == 10
            completed["reads"] += 1

    tasks = [asyncio.create_task(write()), asyncio.create_task(read())]
    try:
        yield completed
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_reads_and_writes_during_a_rebuild(store: PgVectorStore) -> None:
    """All calls succeed, searches are complete, and the new index contains all written rows."""
    async with traffic(store) as completed:
        await until(lambda: all(completed.values()))
        await reindex(store.engine, with_parameters(store))
        await reindex(store.engine, with_parameters(store, hnsw_m=10))
    assert await schema.check(store.engine, with_parameters(store, hnsw_m=10)) == []
    written = [chunk.id async for chunk in store.get_all_chunks("a")]
    assert len(written) == 500 + completed["writes"] + 4
    async with store.engine.connect() as connection:
        await connection.execute(text("SET enable_seqscan = off"))
        await connection.execute(text("SET hnsw.ef_search = 1000"))
        await connection.execute(text("SET hnsw.iterative_scan = relaxed_order"))
        by_index = await connection.scalars(
            text(
                "SELECT id FROM cenote_chunks WHERE namespace = 'a'"
                " ORDER BY embedding <=> '[1,1,1,1,1,1,1,1]' LIMIT 10000"
            )
        )
        assert sorted(by_index) == written


async def test_reindex_after_cancelled_runs(store: PgVectorStore) -> None:
    """Reindex succeeds after runs that were cancelled at different times."""
    before = await index_names(store.engine)
    for delay in (0.02, 0.08, 0.2):
        task = asyncio.create_task(reindex(store.engine, with_parameters(store)))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await reindex(store.engine, with_parameters(store, hnsw_m=16, hnsw_ef_construction=64))
    assert await index_names(store.engine) == before


async def test_leftover_indexes_are_found_and_dropped(store: PgVectorStore) -> None:
    """`check_schema` reports the index of a killed build, and the next run drops it."""
    partition = "cenote_chunks_p01" if store.config.partitions else "cenote_chunks"
    left_over = f"{partition}_embedding_idx_new"
    if not store.config.partitions:
        left_over = "ix_cenote_chunks_embedding_new"
    before = await index_names(store.engine)
    async with store.engine.begin() as connection:
        await connection.execute(
            text(
                f"CREATE INDEX {left_over} ON {partition} USING hnsw (embedding vector_cosine_ops)"
            )
        )
        await connection.execute(
            text(
                f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{left_over}'::regclass"
            )
        )
    (finding,) = await store.check_schema()
    assert finding.kind == "index_left_over"
    assert left_over in finding.subject
    config = with_parameters(store, hnsw_m=16, hnsw_ef_construction=64)
    plan = [
        str(statement.compile(dialect=store.engine.dialect))
        for statement in await reindex_plan(store.engine, config)
    ]
    assert plan[0].strip() == f"DROP INDEX CONCURRENTLY public.{left_over}"
    await reindex(store.engine, config)
    assert await index_names(store.engine) == before


async def test_reindex_after_a_killed_run(store: PgVectorStore, empty_dsn: str) -> None:
    """After SIGKILL during a build, the next run does not wait, and drops what was left over."""
    before = await index_names(store.engine)
    async with store.engine.connect() as holder:
        # A concurrent build waits for this transaction.
        await holder.execute(text("SELECT count(*) FROM cenote_chunks"))
        await holder.execute(text("CREATE TEMP TABLE has_a_transaction_id ()"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cenote", "reindex", "--m", "8", "--ef-construction", "32"),
            env={**clean_environment(), "CENOTE_DATABASE_URL": empty_dsn},
        )
        async with asyncio.timeout(30):
            while len(await index_names(store.engine)) == len(before):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await holder.rollback()
    await asyncio.wait_for(reindex(store.engine, with_parameters(store)), 60)
    assert await schema.check(store.engine, with_parameters(store)) == []
    assert len(await index_names(store.engine)) == len(before)


class BlockingReader:
    """A transaction of another program that reads the table after the last build has ended.

    It must not begin earlier: a concurrent build waits for all transactions that are open when it
    starts.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._reads, self.leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read()))

    def report(self, progress: IndexProgress) -> None:
        """Begin the transaction between the last build and the swap. A progress callback."""
        if progress.number == progress.of and progress.phase == "built":
            self._thread.start()
            self._reads.wait(10)

    async def _read(self) -> None:
        engine = create_engine(self._dsn)
        async with engine.connect() as connection:
            await connection.execute(text("SELECT count(*) FROM cenote_chunks"))
            self._reads.set()
            await asyncio.to_thread(self.leave.wait, 30)
        await engine.dispose()

    async def end(self) -> None:
        """End the transaction."""
        self.leave.set()
        await asyncio.to_thread(self._thread.join)


async def test_the_swap_is_retried_while_the_table_is_read(
    empty_engine: AsyncEngine, empty_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each attempt for the lock is short, so that other callers do not wait for long."""
    caplog.set_level("INFO", "cenote")
    store = PgVectorStore(empty_engine, 4, partitions=2)
    await store.apply_migrations()
    reader = BlockingReader(empty_dsn)
    config = SchemaConfig(dimensions=4, partitions=2, hnsw_m=8)
    task = asyncio.create_task(reindex(empty_engine, config, progress=reader.report))
    await until(lambda: "in use; trying again" in caplog.text)
    assert not task.done()
    await asyncio.wait_for(store.upsert([embedded("b")], "n"), 10)
    await reader.end()
    await task
    assert await schema.check(empty_engine, config) == []
    assert await found(store, [1, 0, 0, 0], "n") == ["b"]


async def test_the_swap_fails_after_the_lock_timeout(
    empty_engine: AsyncEngine, empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to do, the old index stays in use, and the next run succeeds."""
    monkeypatch.setattr(locks, "TABLE_LOCK_TIMEOUT_SECONDS", 0.3)
    store = PgVectorStore(empty_engine, 4, partitions=2)
    await store.apply_migrations()
    config = SchemaConfig(dimensions=4, partitions=2, hnsw_m=8)
    before = await index_names(empty_engine)
    reader = BlockingReader(empty_dsn)
    with pytest.raises(MigrationError, match="end their transactions"):
        await reindex(empty_engine, config, progress=reader.report)
    await reader.end()
    assert [finding.kind for finding in await store.check_schema()] == ["index_left_over"] * 2
    await reindex(empty_engine, config)
    assert await schema.check(empty_engine, config) == []
    assert len(await index_names(empty_engine)) == len(before)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, at most 30 seconds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - nothing sets an event
            await asyncio.sleep(0.02)


async def test_a_missing_index_is_built(store: PgVectorStore) -> None:
    """Reindex builds a missing index, which is why `cenote check` suggests it."""
    before = await index_names(store.engine)
    async with store.engine.begin() as connection:
        await connection.execute(text("DROP INDEX ix_cenote_chunks_embedding"))
    await reindex(store.engine, with_parameters(store, hnsw_m=16, hnsw_ef_construction=64))
    assert await index_names(store.engine) == before


async def test_errors_of_the_progress_callback(
    store: PgVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the callback is logged; a pool without a free connection only loses progress."""

    def report(progress: IndexProgress) -> None:
        raise ZeroDivisionError(progress.phase)

    await reindex(store.engine, with_parameters(store), progress=report)
    assert "the progress callback raised an error" in caplog.text
    small_pool = create_async_engine(
        store.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    config = with_parameters(store, hnsw_m=10)
    await reindex(small_pool, config, progress=lambda progress: None)
    await small_pool.dispose()
    assert await schema.check(store.engine, config) == []


async def test_cancellation_before_the_swap(store: PgVectorStore) -> None:
    """The task ends with CancelledError, and the next run succeeds."""

    def cancel(progress: IndexProgress) -> None:
        if progress.number == progress.of and progress.phase == "built":
            task.cancel()

    task = asyncio.create_task(reindex(store.engine, with_parameters(store), progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await task
    findings = await store.check_schema()
    assert {finding.kind for finding in findings} <= {"index_left_over", "hnsw_parameters"}
    await reindex(store.engine, store.config)
    assert await store.check_schema() == []


async def test_timeouts_of_the_database_do_not_apply(store: PgVectorStore) -> None:
    """A build is not ended by `statement_timeout` or `lock_timeout` of the database."""
    async with store.engine.begin() as connection:
        name = await connection.scalar(text("SELECT quote_ident(current_database())"))
        await connection.execute(text(f"ALTER DATABASE {name} SET statement_timeout = '20ms'"))
        await connection.execute(text(f"ALTER DATABASE {name} SET lock_timeout = '20ms'"))
    await store.engine.dispose()
    async with store.engine.connect() as other:
        # A concurrent build waits for this transaction.
        await other.execute(text("SELECT count(*) FROM cenote_chunks"))
        task = asyncio.create_task(reindex(store.engine, with_parameters(store)))
        await asyncio.sleep(0.5)
        assert not task.done()
        await other.rollback()
    await task


async def test_a_name_that_another_index_uses(empty_engine: AsyncEngine) -> None:
    """Reindex raises an error before it builds an index whose name is in use."""
    store = PgVectorStore(empty_engine, 4, partitions=2)
    await store.apply_migrations()
    await execute(
        empty_engine,
        "DROP INDEX ix_cenote_chunks_embedding",
        "CREATE INDEX cenote_chunks_p01_embedding_idx ON cenote_chunks_p01 (content)",
    )
    with pytest.raises(MigrationError, match="rename it first"):
        await reindex(empty_engine, store.config)


@pytest.mark.parametrize("definition", ["hnsw (embedding vector_l2_ops)", "gin (metadata)"])
async def test_an_index_of_another_kind_is_replaced(store: PgVectorStore, definition: str) -> None:
    """Reindex replaces an index of another method or operator class under the same names."""
    before = await index_names(store.engine)
    await execute(
        store.engine,
        "DROP INDEX ix_cenote_chunks_embedding",
        f"CREATE INDEX ix_cenote_chunks_embedding ON cenote_chunks USING {definition}",
    )
    assert [finding.kind for finding in await store.check_schema()] == ["operator_class"]
    await reindex(store.engine, store.config)
    assert await store.check_schema() == []
    assert await index_names(store.engine) == before


async def test_invalid_arguments(store: PgVectorStore) -> None:
    """A missing table, another dimension and invalid parameters raise an error."""
    with pytest.raises(MigrationError, match="no chunk table 'other'"):
        await reindex(store.engine, SchemaConfig(dimensions=8, table_name="other"))
    with pytest.raises(MigrationError, match=r"is vector\(8\), expected vector\(9\)"):
        await reindex(store.engine, SchemaConfig(dimensions=9))
    with pytest.raises(ConfigurationError):
        with_parameters(store, hnsw_ef_construction=4)
    with pytest.raises(MigrationError, match="maintenance_work_mem cannot be 'a lot'"):
        await reindex(store.engine, with_parameters(store), memory="a lot")
    for not_async in (None, store.engine.sync_engine):
        with pytest.raises(ConfigurationError, match="AsyncEngine"):
            await reindex(not_async, with_parameters(store))  # type: ignore[arg-type]


async def test_the_command(store: PgVectorStore, empty_dsn: str) -> None:
    """A dry run prints the statements; parameters that are not set keep the live values."""
    url = {"CENOTE_DATABASE_URL": empty_dsn}
    before = await index_names(store.engine)
    printed = output_of(cenote("reindex", "--m", "8", "--dry-run", **url))
    assert "(m = 8, ef_construction = 64)" in printed
    assert printed.count("CREATE INDEX CONCURRENTLY") == (store.config.partitions or 1)
    assert await index_names(store.engine) == before
    output_of(cenote("reindex", "--m", "8", **url))
    assert any("m=8,ef_construction=64" in name for name in await index_names(store.engine))
    output_of(cenote("reindex", "--ef-construction", "20", "--memory", "64MB", **url))
    assert any("m=8,ef_construction=20" in name for name in await index_names(store.engine))
    output_of(cenote("reindex", "-x", "hnsw_m=6", **url, CENOTE_HNSW_EF_CONSTRUCTION="24"))
    assert any("m=6,ef_construction=24" in name for name in await index_names(store.engine))
    output_of(cenote("reindex", "--m", "8", "-x", "hnsw_m=6", **url))
    assert any("m=8,ef_construction=24" in name for name in await index_names(store.engine))
    result = cenote("reindex", "--m", "0", **url)
    assert result.returncode == 2
    assert "hnsw_m must be an integer from 2 to 100" in result.stderr
    result = cenote("reindex", "--ef-construction", "10", **url)
    assert result.returncode == 2
    assert "at least 2 * hnsw_m = 16" in result.stderr
