"""Writes, round trips and connections of the Postgres store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import numpy as np
import psycopg
import pytest
from sqlalchemy import QueuePool, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.chunks import random_chunks
from support.commands import asyncpg_url
from support.drivers import connect_on, engine_on, on_both_stores, store_on
from support.proxy import running_proxy

from cenote import Chunk, ChunkRow, InvalidInputError, PgVectorStore, VectorStoreError
from cenote.filters import field, meta
from cenote.testing import embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.125]


def checked_out(engine: AsyncEngine) -> int:
    """Return the number of connections in use."""
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.checkedout()


# -- round trips and connections


@on_both_stores
async def test_round_trips(dsn: str, driver: str) -> None:
    """A search, a page and a deletion take one round trip; an upsert takes three."""
    async with (
        running_proxy(dsn) as proxy,
        await connect_on(driver, proxy.dsn, 4, max_size=1) as store,
    ):

        async def round_trips(call: Any) -> int:
            for _ in range(3):  # prepares the connection and the statements
                await call()
            before = proxy.round_trips
            await call()
            return proxy.round_trips - before

        await store.upsert(random_chunks(200), "n")
        assert await round_trips(lambda: store.search(QUERY, "n")) == 1
        assert await round_trips(lambda: store.search(QUERY, "n", 5, {"k": [1]})) == 1
        assert await round_trips(lambda: stored(store, "n")) == 1
        assert await round_trips(lambda: store.delete(["00001"], "n")) == 1
        assert await round_trips(lambda: store.delete_namespace("other")) == 1
        assert await round_trips(lambda: store.upsert(random_chunks(200), "n")) == 3


NEVER: list[Any] = [
    meta("x").in_([]),
    {"$or": []},
    {"k": 1, "$or": []},
    {"k": {"$in": []}},
    meta("k").exists() & (meta("x").in_([]) | meta("y").any_of([])),
    ~(meta("x").not_in([]) | (field("position") == 1)),
    {"$not": {"$and": []}},
]
"""Filters that match no chunk, whatever the chunks contain."""


async def answers_without_chunks(store: PgVectorStore, filter: Any, **options: Any) -> list[Any]:
    """Call every operation that takes a filter; all arguments but the filter match chunks."""
    return [
        await store.search(QUERY, "n", 5, filter, **options),
        await store.search(QUERY, "n", 5, filter, where=ChunkRow.position == 0, **options),
        await store.search_many([QUERY, QUERY], "n", 5, filter, **options),
        await store.search_diverse(QUERY, "n", 5, filter, **options),
        await store.search_text("word", "n", 5, filter, **options),
        await store.search_hybrid("word", QUERY, "n", 5, filter, **options),
        await store.search_namespaces(QUERY, ["n", "m"], 5, filter, **options),
        await store.count("n", filter, **options),
        await store.list_chunks("n", filter, **options),
        await stored(store, "n", filter, **options),
        await stored(store, "n", filter, where=ChunkRow.position == 0, **options),
        await store.delete_matching(filter, "n", **options),
    ]


@pytest.mark.parametrize("filter", NEVER, ids=str)
async def test_a_filter_that_never_matches_sends_nothing(dsn: str, filter: Any) -> None:
    """The answer is empty without a round trip, also within the caller's transaction."""
    async with (
        running_proxy(dsn) as proxy,
        await PgVectorStore.connect(proxy.dsn, 4, max_size=1) as store,
        store.engine.connect() as connection,
    ):
        await store.upsert(random_chunks(3, metadata={"k": 1}), "n", session=connection)
        words = PgVectorStore(store.engine, 4, text_search="simple")
        before = proxy.round_trips
        empty: list[Any] = [[], [], [[], []], [], [], [], [], 0, [], [], [], 0]
        assert await answers_without_chunks(words, filter) == empty
        assert await answers_without_chunks(words, filter, session=connection) == empty
        assert proxy.round_trips == before
        assert await store.count("n", session=connection) == 3


async def test_a_filter_that_never_matches_is_checked(engine: AsyncEngine) -> None:
    """All arguments are checked first, the columns of the filter too."""
    store = PgVectorStore(engine, 4, text_search="simple")
    bad: Any = {"$or": []} | {"$and": [field("nonexistent") == 1]}
    never: Any = {"$or": []}
    calls: list[Callable[[], Any]] = [
        lambda: store.search(QUERY, "n", 5, bad),
        lambda: store.search_many([QUERY], "n", 5, bad),
        lambda: store.search_text("word", "n", 5, bad),
        lambda: store.search_hybrid("word", QUERY, "n", 5, bad),
        lambda: store.count("n", bad),
        lambda: store.list_chunks("n", bad),
        lambda: stored(store, "n", bad),
        lambda: store.delete_matching(bad, "n"),
        lambda: store.search([1.0], "n", 5, never),
        lambda: store.search(QUERY, "n", 0, never),
        lambda: store.search_many([[1.0]], "n", 5, never),
        lambda: store.search_diverse(QUERY, "n", 5, never, diversity=2),
        lambda: store.list_chunks("n", never, after="\x00"),
        lambda: store.count("", never),
        lambda: store.count("n", never, session=1),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InvalidInputError):
            await call()


async def test_statements_are_built_and_prepared_once(dsn: str) -> None:
    """Calls with filters of the same shape reuse compiled and prepared statements."""
    hits: list[Any] = []
    async with (
        running_proxy(dsn) as proxy,
        await PgVectorStore.connect(proxy.dsn, 4, max_size=1) as store,
    ):
        await store.upsert(random_chunks(200), "n")

        @event.listens_for(store.engine.sync_engine, "after_cursor_execute")
        def _(conn: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
            hits.append(context.cache_hit.name)

        for namespace in ("n", "n", "m"):
            for limit, filter in ((10, None), (10, {"k": 1}), (300, None)):
                await store.search(QUERY, namespace, limit, filter)
        hits.clear()
        before = proxy.round_trips
        same_shapes: list[tuple[int, dict[str, Any] | None]]
        same_shapes = [(1, None), (10, {"a": "b", "c": None}), (400, None), (9, {"k": 2})]
        for namespace in ("n", "m"):
            for limit, filter in same_shapes:
                await store.search([0.5, 1.0, limit, 0.1], namespace, limit, filter)
        assert hits == ["CACHE_HIT"] * 8
        assert proxy.round_trips - before == 8


async def test_iteration_holds_no_connection(store: PgVectorStore, engine: AsyncEngine) -> None:
    """While the caller processes a chunk, no connection is checked out."""
    await store.upsert(random_chunks(1200), "n")
    count = 0
    async for _ in store.get_all_chunks("n"):
        assert checked_out(engine) == 0
        count += 1
    assert count == 1200


async def page_sizes(store: PgVectorStore) -> list[tuple[int, int]]:
    """Iterate over the namespace n, and return the limit and the number of rows of each page."""
    pages: list[tuple[int, int]] = []

    def record(conn: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        pages.append((context.compiled_parameters[0]["page_size"], cursor.rowcount))

    event.listen(store.engine.sync_engine, "after_cursor_execute", record)
    try:
        ids = [chunk.id async for chunk in store.get_all_chunks("n")]
    finally:
        event.remove(store.engine.sync_engine, "after_cursor_execute", record)
    assert ids == sorted(set(ids))
    assert len(ids) == sum(rows for _, rows in pages) == await store.count("n")
    return pages


@pytest.mark.parametrize("large", [{"content": "x" * 100_000}, {"metadata": {"x": "y" * 100_000}}])
async def test_pages_of_large_chunks_have_few_rows(
    store: PgVectorStore, large: dict[str, Any]
) -> None:
    """`get_all_chunks` reads about two megabytes at a time, after a first page of 250 rows."""
    await store.upsert(random_chunks(340, **large), "n")
    limits, rows = zip(*await page_sizes(store), strict=True)
    assert limits == (250, 20, 20, 20, 20, 20)
    assert rows == (250, 20, 20, 20, 20, 10)


async def test_pages_adapt_to_the_size_of_the_chunks(store: PgVectorStore) -> None:
    """Each page is sized by the rows before it, within bounds."""
    small = random_chunks(5100, content="short")
    await store.upsert(small, "n")
    assert [rows for _, rows in await page_sizes(store)] == [250, 2000, 2000, 850]
    enlarged = [
        embedded(item.chunk.id, item.embedding, content="x" * 10**6) for item in small[240:260]
    ]
    await store.upsert(enlarged, "n")
    first, second, *_ = await page_sizes(store)
    assert first == (250, 250)
    assert 40 < second[0] < 60  # ten of the first 250 chunks have a million characters
    await store.delete_namespace("n")
    await store.upsert(small[:250], "n")
    assert [rows for _, rows in await page_sizes(store)] == [250, 0]


async def test_a_page_has_at_least_one_row(
    store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that are larger than a page are read one by one."""
    monkeypatch.setattr("cenote.stores.pgvector.reading.PAGE_BYTES", 100)
    await store.upsert(random_chunks(252), "n")
    assert await page_sizes(store) == [(250, 250), (1, 1), (1, 1), (1, 0)]


async def test_a_busy_task_shares_its_connection(dsn: str) -> None:
    """A task that searches without a pause does not keep other tasks from the only connection."""
    engine = create_async_engine(asyncpg_url(dsn), pool_size=1, max_overflow=0, pool_timeout=2)
    store = PgVectorStore(engine, 4)
    await store.upsert(random_chunks(20), "n")

    async def search_forever() -> None:
        while True:
            await store.search(QUERY, "n")

    busy = asyncio.create_task(search_forever())
    await asyncio.sleep(0.1)
    for _ in range(20):
        assert len(await store.search(QUERY, "n")) == 10
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)
    assert checked_out(engine) == 0
    await engine.dispose()


async def test_many_calls_share_a_small_pool(dsn: str) -> None:
    """Fifty concurrent tasks share two connections, and all of them succeed."""
    async with await PgVectorStore.connect(dsn, 4, min_size=2, max_size=2) as store:

        async def write_and_search(number: int) -> list[str]:
            await store.upsert(random_chunks(20, seed=number), str(number))
            return await found(store, QUERY, str(number), 100)

        results = await asyncio.gather(*(write_and_search(number) for number in range(50)))
        assert {len(result) for result in results} == {20}
        assert checked_out(store.engine) == 0


async def test_cancelled_calls_return_their_connections(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """A call returns its connection to the pool, whenever it is cancelled."""
    await store.upsert(random_chunks(300), "n")
    for delay in (0, 0.0005, 0.001, 0.002, 0.005, 0.01):
        for call in (store.search(QUERY, "n"), store.upsert(random_chunks(300, seed=1), "n")):
            task = asyncio.create_task(call)
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert checked_out(engine) == 0
    assert len(await store.search(QUERY, "n", 500)) == 300


async def test_cancelled_upserts_are_atomic(store: PgVectorStore, engine: AsyncEngine) -> None:
    """A cancelled upsert ends and writes all rows or none; executemany would hang."""
    generator = np.random.default_rng(5)
    for attempt in range(40):
        task = asyncio.create_task(store.upsert(random_chunks(1500, seed=attempt), "n"))
        await asyncio.sleep(generator.uniform(0, 0.06))
        task.cancel()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)
        assert len(await stored(store, "n")) in (0, 1500)
        await store.delete_namespace("n")
    assert checked_out(engine) == 0


async def test_batches_are_written_in_parts(
    store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upsert writes all rows of a batch, in statements of limited rows and bytes."""
    from cenote.validation import batches

    monkeypatch.setattr(batches, "UPSERT_BYTES", 1000)
    sizes = [1, 5000, 300, 300, 300, 300, 1, 1, 2000, 1]
    batch = [embedded(str(n), content="x" * size) for n, size in enumerate(sizes)]
    await store.upsert(batch, "n")
    assert [len(chunk.content) for chunk in await stored(store, "n")] == sizes
    await store.upsert(random_chunks(3 * batches.UPSERT_ROWS + 1), "rows")
    assert len(await stored(store, "rows")) == 3 * batches.UPSERT_ROWS + 1


async def test_close_leaves_the_applications_engine_open(engine: AsyncEngine, dsn: str) -> None:
    """`close` disposes of the engine of `connect`, but not of an engine passed to the store."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    pool = engine.pool
    await store.close()
    assert engine.pool is pool
    connected = await PgVectorStore.connect(dsn, 4)
    pool = connected.engine.pool
    await connected.close()
    assert connected.engine.pool is not pool


# -- writing


async def test_unchanged_rows_are_not_rewritten(store: PgVectorStore, engine: AsyncEngine) -> None:
    """Equal rows keep their row versions; only changed rows of a batch get new ones."""
    batch = random_chunks(50, metadata={"n": 1, "list": [1.5, None]})
    await store.upsert(batch, "n")

    async def versions() -> dict[str, Any]:
        query = text("SELECT id, xmin::text || ctid::text FROM cenote_chunks")
        async with engine.connect() as connection:
            return dict((await connection.execute(query)).all())

    before = await versions()
    await store.upsert(batch, "n")
    assert await versions() == before
    changed = [batch[3], embedded("00007", batch[7].embedding, metadata={"n": 2})]
    await store.upsert(changed, "n")
    after = await versions()
    assert {chunk_id for chunk_id in after if after[chunk_id] != before[chunk_id]} == {"00007"}


async def test_created_at_is_kept_when_a_row_changes(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """created_at remains the time of the first insert."""
    query = select(ChunkRow.created_at)
    await store.upsert([embedded("a")], "n")
    async with engine.connect() as connection:
        created = await connection.scalar(query)
    await store.upsert([embedded("a", content="new")], "n")
    async with engine.connect() as connection:
        assert await connection.scalar(query) == created


@on_both_stores
@pytest.mark.parametrize("isolation_level", [None, "AUTOCOMMIT", "REPEATABLE READ"])
async def test_a_failed_batch_leaves_no_rows(
    dsn: str, driver: str, isolation_level: str | None
) -> None:
    """A failed batch leaves no rows at any isolation level of the engine."""
    options = {} if isolation_level is None else {"isolation_level": isolation_level}
    engine = engine_on(driver, dsn, **options)
    async with engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE cenote_chunks ADD CONSTRAINT no_secrets CHECK (content <> 's3cret')")
        )
    store = store_on(engine, 4)
    await store.upsert([embedded("a")], "n")
    batch = [*random_chunks(1000, content="fine"), embedded("zzz", content="s3cret")]
    with pytest.raises(VectorStoreError) as error:
        await store.upsert(batch, "n")
    violations = asyncpg.CheckViolationError, psycopg.errors.CheckViolation
    assert isinstance(error.value.__cause__, violations)
    assert error.value.sqlstate == "23514"
    assert "s3cret" not in str(error.value)
    assert [chunk.id for chunk in await stored(store, "n")] == ["a"]
    await engine.dispose()


async def test_concurrent_upserts_on_a_repeatable_read_engine(dsn: str) -> None:
    """The store's own transactions are READ COMMITTED, so concurrent upserts succeed."""
    engine = create_async_engine(asyncpg_url(dsn), isolation_level="REPEATABLE READ")
    store = PgVectorStore(engine, 4)
    batch = [embedded(f"{n:03}") for n in range(100)]
    await asyncio.gather(*(store.upsert(batch, "n") for _ in range(8)))
    assert len(await stored(store, "n")) == 100
    await engine.dispose()


async def test_concurrent_writers_do_not_deadlock(store: PgVectorStore) -> None:
    """Concurrent upserts and deletions of the same ids in opposite orders do not deadlock."""
    ids = [f"{number:03}" for number in range(150)]

    async def write(number: int) -> None:
        order = ids if number % 2 else ids[::-1]
        for round_number in range(6):
            content = f"{number} {round_number}"
            await store.upsert([embedded(chunk_id, content=content) for chunk_id in order], "n")
            if number % 3 == 0:
                await store.delete(order[::2], "n")
            if number == 4:
                await store.delete_namespace("n")

    await asyncio.gather(*(write(number) for number in range(8)))
    await store.upsert([embedded(chunk_id) for chunk_id in ids], "n")
    assert [chunk.id for chunk in await stored(store, "n")] == ids


# -- engines and queries of the application


async def test_connections_opened_before_the_store(engine: AsyncEngine) -> None:
    """The store prepares pooled connections that were opened before it existed."""
    async with engine.connect() as first, engine.connect() as second:
        await first.execute(text("SELECT 1"))
        await second.execute(text("SELECT 1"))
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    assert await asyncio.gather(*(found(store, QUERY, "n") for _ in range(4))) == [["a"]] * 4


async def test_an_engine_with_a_json_serializer(dsn: str) -> None:
    """The store does not use the engine's JSON serializer for metadata."""

    def fail(value: Any) -> Any:
        raise AssertionError("the engine's serializer was called")

    engine = create_async_engine(asyncpg_url(dsn), json_serializer=fail, json_deserializer=fail)
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a", metadata={"k": [1]})], "n")
    (result,) = await store.search(QUERY, "n", filter={"k": [1]})
    assert result.chunk.metadata == {"k": [1]}
    await engine.dispose()


async def test_orm_queries_beside_the_store(store: PgVectorStore, engine: AsyncEngine) -> None:
    """ORM queries load chunks with plain attributes, and the vector only on request."""
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import undefer

    await store.upsert([embedded("a", [1, 2, 3, 4], metadata={"k": "v"})], "n")
    statements: list[str] = []
    event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    async with AsyncSession(engine) as session:
        row = (await session.scalars(select(ChunkRow))).one()
        assert (row.namespace, row.id, row.content) == ("n", "a", "some text")
        assert row.metadata_ == {"k": "v"}
        assert "embedding AS" not in statements[-1]
        session.expunge_all()
        query = select(ChunkRow).options(undefer(ChunkRow.embedding))
        row = (await session.scalars(query)).one()
        assert row.embedding.dtype == np.float32
        assert row.embedding.tolist() == [1, 2, 3, 4]
        nearest = select(ChunkRow.id).order_by(ChunkRow.embedding.cosine_distance([1, 0, 0, 0]))
        assert (await session.scalars(nearest)).all() == ["a"]


async def test_rows_written_by_the_orm_are_found(store: PgVectorStore, engine: AsyncEngine) -> None:
    """The store finds rows that the ORM has written."""
    from sqlalchemy.ext.asyncio import AsyncSession

    async with AsyncSession(engine) as session, session.begin():
        session.add(
            ChunkRow(
                namespace="n",
                id="a",
                document_id="d",
                content="text",
                position=1,
                metadata_={"k": 1},
                content_hash="h",
                embedding=np.array([1, 0, 0, 0]),
                embedding_model="m",
            )
        )
    (result,) = await store.search([1, 0, 0, 0], "n", filter={"k": 1})
    assert result.chunk == Chunk(
        id="a", document_id="d", content="text", position=1, metadata={"k": 1}, content_hash="h"
    )
