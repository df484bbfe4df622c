"""Behaviour specific to the Postgres store: transactions, plans, round trips, the pool."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import numpy as np
import pytest
from sqlalchemy import QueuePool, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.library import Passage
from support.plans import explain
from support.proxy import running_proxy

from cenote import (
    Chunk,
    ChunkRow,
    ConfigurationError,
    EmbeddedChunk,
    InvalidInputError,
    PgVectorStore,
    StoreConnectionError,
    VectorStoreError,
)
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.postgres.extension import prepare
from cenote.postgres.vector import to_wire
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.125]


def many(count: int, seed: int = 0, **fields: Any) -> list[EmbeddedChunk]:
    """Chunks with random vectors."""
    vectors = np.random.default_rng(seed).standard_normal((count, 4))
    return [embedded(f"{row:05}", vector, **fields) for row, vector in enumerate(vectors)]


def checked_out(engine: AsyncEngine) -> int:
    """Return the number of connections in use."""
    assert isinstance(engine.pool, QueuePool)
    return engine.pool.checkedout()


# -- searching -------------------------------------------------------------------------------------


async def test_the_ann_index_and_the_exact_path_agree(store: PgVectorStore) -> None:
    """On a set large enough for the index, both return the same results, within the limit."""
    await store.upsert(many(EXACT_UP_TO + 500), "large")
    for limit in (1, 10, 300):
        default = await store.search(QUERY, "large", limit)
        exact = await store.search(QUERY, "large", limit, exact=True)
        assert len(default) == len(exact) == limit
        scores = [result.score for result in default]
        assert scores == sorted(scores, reverse=True)
        recall = len({r.chunk.id for r in default} & {r.chunk.id for r in exact}) / limit
        assert recall >= 0.98


@pytest.mark.parametrize("max_scan_tuples", [1, 500])
async def test_results_are_complete_when_the_scan_stops_short(
    dsn: str, engine: AsyncEngine, max_scan_tuples: int
) -> None:
    """The exact branch takes over if the scan gives up among another tenant's rows."""
    database = make_url(dsn).database
    async with engine.begin() as connection:
        await connection.execute(
            text(f'ALTER DATABASE "{database}" SET hnsw.max_scan_tuples = {max_scan_tuples}')
        )
    store = PgVectorStore(engine, 4, partitions=0, table_name="plain", hnsw_ef_search=10)
    await store.apply_migrations()
    near = [embedded(f"{n:05}", [1, 0.001 * n, 0, 0]) for n in range(3 * EXACT_UP_TO)]
    far = [embedded(f"{n:05}", [-1, 0, 0.001 * n, 0]) for n in range(EXACT_UP_TO + 100)]
    await store.upsert(near, "large")
    await store.upsert(far, "small")
    await engine.dispose()  # new connections have the setting
    for limit in (10, 40, EXACT_UP_TO + 50):
        default = await found(store, [1, 0, 0, 0], "small", limit)
        assert len(default) == limit
        assert default == await found(store, [1, 0, 0, 0], "small", limit, exact=True)


async def test_any_limit_under_any_condition(store: PgVectorStore) -> None:
    """Settings that are computed from limit and condition stay in their ranges."""
    matching = EXACT_UP_TO + 200
    await store.upsert(many(matching, metadata={"k": 1}), "n")
    await store.upsert([embedded("other", [1, 0, 0, 0], metadata={"k": 2})], "n")
    for limit in (1, 999, matching + 5, 10**9, 10**18, 10**30):
        for where in (None, store.model.position == 0):
            results = await store.search(QUERY, "n", limit, {"k": 1}, where=where)
            assert len(results) == min(limit, matching)
            assert "other" not in {result.chunk.id for result in results}


async def test_plans_use_the_index_and_one_partition(engine: AsyncEngine) -> None:
    """Every plan of the server does, generic or custom, with and without a filter.

    Before the first ANALYZE the planner takes 3,000 rows for a few and sorts them instead, which
    is slower and as complete.
    """
    store = PgVectorStore(engine, 384, table_name="wide")
    await store.apply_migrations()
    vectors = np.random.default_rng(0).standard_normal((3 * EXACT_UP_TO, 384))
    chunks = [
        embedded(str(n), vector, metadata={"lang": "en" if n % 3 else "es", "tags": [1]})
        for n, vector in enumerate(vectors)
    ]
    await store.upsert(chunks, "n")
    async with engine.connect() as connection:
        await connection.execute(text("ANALYZE wide"))
        for mode in ("force_custom_plan", "force_generic_plan", "auto"):
            for filter in ({}, {"lang": "en"}, {"lang": "en", "tags": [1]}):
                plan = await _plan(connection, store, vectors[0], filter, mode, after=12)
                if filter and mode == "auto":
                    assert "metadata @> '{" in plan  # made for this filter's values
                assert "_embedding_idx" in plan
                assert "(never executed)" in plan  # the exact branch
                executed = [line for line in plan.splitlines() if "never executed" not in line]
                scanned = {name[:3] for line in executed for name in line.split(" on wide_")[1:]}
                assert len(scanned) == 1


@pytest.mark.parametrize(("column_type", "dimensions"), [("vector", 1536), ("halfvec", 3072)])
async def test_wide_vectors(engine: AsyncEngine, column_type: Any, dimensions: int) -> None:
    """Wide vectors are indexed and stored in their rows: an exact search reads no TOAST table."""
    store = PgVectorStore(engine, dimensions, column_type=column_type, table_name="wide")
    await store.apply_migrations()
    generator = np.random.default_rng(0)
    near = generator.standard_normal((EXACT_UP_TO + 100, 8)) @ generator.standard_normal(
        (8, dimensions)
    )
    chunks = [embedded(f"{n:05}", vector, content="x" * 3000) for n, vector in enumerate(near)]
    await store.bulk_load(chunks, "n")
    hits = 0
    for query in near[:20] + 0.1:
        exact = {result.chunk.id for result in await store.search(query, "n", exact=True)}
        hits += len(exact & {result.chunk.id for result in await store.search(query, "n")})
    assert hits >= 0.98 * 200
    async with engine.connect() as connection:
        pieces = await connection.execute(
            text(
                "SELECT c.reltuples FROM pg_class p JOIN pg_class c ON c.oid = p.reltoastrelid "
                "WHERE p.relname LIKE 'wide_p__'"
            )
        )
        assert sum(max(found, 0) for (found,) in pieces) <= 2 * len(
            chunks
        )  # only contents are there
    assert await store.check_schema() == []


async def _plan(
    connection: Any,
    store: PgVectorStore,
    query: Any,
    filter: dict[str, Any],
    mode: str,
    *,
    after: int = 0,
) -> str:
    await prepare(connection, migrations="nothing")
    conditions = Conditions(as_filter(filter))
    statement = store._searches.search(conditions, 10, exact=False)
    parameters = _search_parameters(store, query, "n") | conditions.parameters
    parameters["query"] = str(np.asarray(query).tolist())
    return await explain(connection, statement, mode, parameters, after=after)


def _search_parameters(store: PgVectorStore, query: Any, namespace: str) -> dict[str, Any]:
    wire = to_wire(np.asarray([query], dtype=np.float32), store.config.column_type)[0]
    return {"namespace": namespace, "query": wire, **store._searches.search_parameters(10)}


@pytest.mark.parametrize("rows", [0, 20, EXACT_UP_TO + 100])
async def test_a_search_puts_the_session_settings_back(
    store: PgVectorStore, engine: AsyncEngine, rows: int
) -> None:
    """A transaction keeps its settings after a search, even if it finds nothing."""
    await store.upsert(many(rows), "n")
    statement = store._searches.search(Conditions(None), 10, exact=False)
    settings = text(
        "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
    )
    async with engine.begin() as connection:
        await prepare(connection, migrations="nothing")
        await connection.execute(text("SET LOCAL hnsw.ef_search = 77"))
        results = await connection.execute(statement, _search_parameters(store, QUERY, "n"))
        assert len(results.all()) == min(rows, 10)
        assert (await connection.execute(settings)).one() == ("77", "off")


@pytest.mark.parametrize("ef_search", [0, 1001, 2.5, None, True])
def test_ef_search_has_a_range(engine: AsyncEngine, ef_search: Any) -> None:
    """A store rejects an ef_search outside pgvector's range."""
    with pytest.raises(ConfigurationError) as error:
        PgVectorStore(engine, 4, hnsw_ef_search=ef_search)
    assert error.value.setting == "hnsw_ef_search"


async def test_ef_search_of_a_call(store: PgVectorStore, engine: AsyncEngine) -> None:
    """A call's ef_search reaches the scan in both forms of a search; invalid values do not."""
    await store.upsert(many(EXACT_UP_TO + 100), "n")
    sent: list[Any] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, sql: str, parameters: Any, *rest: Any) -> None:
        sent.append(parameters)

    await store.search(QUERY, "n")
    await store.search(QUERY, "n", ef_search=77)
    async with engine.connect() as connection:
        await connection.execute(store.search_statement(QUERY, "n", ef_search=78))
    for parameters, ef_search in zip(sent[-3:], ("200", "77", "78"), strict=True):
        assert ef_search in parameters
    for bad in (0, 1001, "40", True):
        with pytest.raises(InvalidInputError) as error:
            await store.search(QUERY, "n", ef_search=bad)  # type: ignore[arg-type]
        assert error.value.field == "ef_search"


# -- round trips and connections -------------------------------------------------------------------


async def test_round_trips(dsn: str) -> None:
    """A search, a page and a deletion take one round trip; an upsert takes three."""
    async with (
        running_proxy(dsn) as proxy,
        await PgVectorStore.connect(proxy.dsn, 4, max_size=1) as store,
    ):

        async def round_trips(call: Any) -> int:
            await call()  # prepares connection and statement
            before = proxy.round_trips
            await call()
            return proxy.round_trips - before

        await store.upsert(many(200), "n")
        assert await round_trips(lambda: store.search(QUERY, "n")) == 1
        assert await round_trips(lambda: store.search(QUERY, "n", 5, {"k": [1]})) == 1
        assert await round_trips(lambda: stored(store, "n")) == 1
        assert await round_trips(lambda: store.delete(["00001"], "n")) == 1
        assert await round_trips(lambda: store.delete_namespace("other")) == 1
        assert await round_trips(lambda: store.upsert(many(200), "n")) == 3


async def test_statements_are_built_and_prepared_once(dsn: str) -> None:
    """Calls with filters of the same shape reuse compiled and prepared statements."""
    hits: list[Any] = []
    async with (
        running_proxy(dsn) as proxy,
        await PgVectorStore.connect(proxy.dsn, 4, max_size=1) as store,
    ):
        await store.upsert(many(200), "n")
        for limit, filter in ((10, None), (10, {"k": 1}), (300, None)):
            await store.search(QUERY, "n", limit, filter)
        before = proxy.round_trips

        @event.listens_for(store.engine.sync_engine, "after_cursor_execute")
        def _(conn: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
            hits.append(context.cache_hit.name)

        others: list[tuple[int, dict[str, Any] | None]]
        others = [(1, None), (10, {"a": "b", "c": None}), (400, None), (9, {"k": 2})]
        for limit, filter in others:
            await store.search([0.5, 1.0, limit, 0.1], "m", limit, filter)
        assert hits == ["CACHE_HIT"] * 4
        assert proxy.round_trips - before == 4


async def test_iteration_holds_no_connection(store: PgVectorStore, engine: AsyncEngine) -> None:
    """While the caller does something else, no connection is checked out."""
    await store.upsert(many(1200), "n")
    seen = 0
    async for _ in store.get_all_chunks("n"):
        assert checked_out(engine) == 0
        seen += 1
    assert seen == 1200


async def test_many_calls_share_a_small_pool(dsn: str) -> None:
    """Fifty tasks share two connections, and none is lost or leaked."""
    async with await PgVectorStore.connect(dsn, 4, min_size=2, max_size=2) as store:

        async def work(number: int) -> list[str]:
            await store.upsert(many(20, seed=number), str(number))
            return await found(store, QUERY, str(number), 100)

        results = await asyncio.gather(*(work(number) for number in range(50)))
        assert {len(result) for result in results} == {20}
        assert checked_out(store.engine) == 0


async def test_cancelled_calls_give_their_connections_back(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """A cancelled call returns its connection wherever it is interrupted."""
    await store.upsert(many(300), "n")
    for delay in (0, 0.0005, 0.001, 0.002, 0.005, 0.01):
        for call in (store.search(QUERY, "n"), store.upsert(many(300, seed=1), "n")):
            task = asyncio.create_task(call)
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert checked_out(engine) == 0
    assert len(await store.search(QUERY, "n", 500)) == 300


async def test_cancelled_upserts_return(store: PgVectorStore, engine: AsyncEngine) -> None:
    """A cancelled upsert returns and leaves all or nothing. (executemany would hang.)"""
    generator = np.random.default_rng(5)
    for attempt in range(40):
        task = asyncio.create_task(store.upsert(many(1500, seed=attempt), "n"))
        await asyncio.sleep(generator.uniform(0, 0.06))
        task.cancel()
        await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20)
        assert len(await stored(store, "n")) in (0, 1500)
        await store.delete_namespace("n")
    assert checked_out(engine) == 0


async def test_batches_are_written_in_parts(
    store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part has a bounded number of rows and bytes, and all parts are written."""
    from cenote.validation import batches

    monkeypatch.setattr(batches, "UPSERT_BYTES", 1000)
    sizes = [1, 5000, 300, 300, 300, 300, 1, 1, 2000, 1]
    batch = [embedded(str(n), content="x" * size) for n, size in enumerate(sizes)]
    await store.upsert(batch, "n")
    assert [len(chunk.content) for chunk in await stored(store, "n")] == sizes
    await store.upsert(many(3 * batches.UPSERT_ROWS + 1), "rows")
    assert len(await stored(store, "rows")) == 3 * batches.UPSERT_ROWS + 1


async def test_a_store_closes_only_what_it_opened(engine: AsyncEngine, dsn: str) -> None:
    """The application's engine stays open."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    pool = engine.pool
    await store.close()
    assert engine.pool is pool
    connected = await PgVectorStore.connect(dsn, 4)
    pool = connected.engine.pool
    await connected.close()
    assert connected.engine.pool is not pool


# -- writing ---------------------------------------------------------------------------------------


async def test_unchanged_rows_are_not_rewritten(store: PgVectorStore, engine: AsyncEngine) -> None:
    """Equal rows keep their row versions; only changed rows of a batch get new ones."""
    batch = many(50, metadata={"n": 1, "list": [1.5, None]})
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


async def test_created_at_stays_when_a_row_changes(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """created_at is the time of the first insert."""
    query = select(ChunkRow.created_at)
    await store.upsert([embedded("a")], "n")
    async with engine.connect() as connection:
        created = await connection.scalar(query)
    await store.upsert([embedded("a", content="new")], "n")
    async with engine.connect() as connection:
        assert await connection.scalar(query) == created


@pytest.mark.parametrize("isolation_level", [None, "AUTOCOMMIT", "REPEATABLE READ"])
async def test_a_batch_that_fails_leaves_nothing(dsn: str, isolation_level: str | None) -> None:
    """A failed batch leaves no rows at any isolation level of the engine."""
    options = {} if isolation_level is None else {"isolation_level": isolation_level}
    engine = create_async_engine(_asyncpg_url(dsn), **options)
    async with engine.begin() as connection:
        await connection.execute(
            text("ALTER TABLE cenote_chunks ADD CONSTRAINT no_secrets CHECK (content <> 's3cret')")
        )
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    batch = [*many(1000, content="fine"), embedded("zzz", content="s3cret")]
    with pytest.raises(VectorStoreError) as error:
        await store.upsert(batch, "n")
    assert isinstance(error.value.__cause__, asyncpg.CheckViolationError)
    assert error.value.sqlstate == "23514"
    assert "s3cret" not in str(error.value)
    assert [chunk.id for chunk in await stored(store, "n")] == ["a"]
    await engine.dispose()


async def test_overlapping_writers_on_a_strict_engine(dsn: str) -> None:
    """An engine's REPEATABLE READ applies to the application's own transactions only."""
    engine = create_async_engine(_asyncpg_url(dsn), isolation_level="REPEATABLE READ")
    store = PgVectorStore(engine, 4)
    batch = [embedded(f"{n:03}") for n in range(100)]
    await asyncio.gather(*(store.upsert(batch, "n") for _ in range(8)))
    assert len(await stored(store, "n")) == 100
    await engine.dispose()


async def test_overlapping_writers_do_not_deadlock(store: PgVectorStore) -> None:
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


# -- engines and queries of the application --------------------------------------------------------


async def test_connections_that_were_in_the_pool_before(engine: AsyncEngine) -> None:
    """Connections that were opened before are prepared at their first use by the store."""
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

    engine = create_async_engine(_asyncpg_url(dsn), json_serializer=fail, json_deserializer=fail)
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


# -- errors ----------------------------------------------------------------------------------------


async def test_a_missing_table_is_an_error_with_a_hint(engine: AsyncEngine) -> None:
    """Every call raises an error with the driver's error as its cause, never an empty result."""
    store = PgVectorStore(engine, 4, table_name="not_there", partitions=0)
    command = "cenote migrate -x dimensions=4 -x table_name=not_there -x partitions=0 upgrade head"
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
        assert isinstance(error.value.__cause__, asyncpg.UndefinedTableError)
        assert error.value.sqlstate == "42P01"


async def test_a_missing_extension_is_an_error_with_a_hint(empty_engine: AsyncEngine) -> None:
    """The error names the command. For a user model, that is not `apply_migrations`."""
    with pytest.raises(VectorStoreError, match=r"no vector extension; run await store\.apply_"):
        await PgVectorStore(empty_engine, 4).search(QUERY, "n")
    with pytest.raises(VectorStoreError, match=r"no vector extension; run your own migrations"):
        await PgVectorStore(empty_engine, model=Passage).search(QUERY, "n")


async def test_an_old_extension_is_an_error(engine: AsyncEngine) -> None:
    """An old version in pg_extension raises an error."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        )
    with pytest.raises(VectorStoreError, match=r"pgvector 0\.7\.4; cenote requires 0\.8"):
        await PgVectorStore(engine, 4).search(QUERY, "n")


@pytest.mark.parametrize(
    ("dimensions", "column_type", "says"),
    [
        (5, "vector", r"is vector\(4\), expected vector\(5\)"),
        (4, "halfvec", r"expected halfvec\(4\)"),
    ],
)
async def test_a_table_of_another_shape(
    engine: AsyncEngine, dimensions: int, column_type: Any, says: str
) -> None:
    """The first use of the store raises an error with both types and a hint."""
    store = PgVectorStore(engine, dimensions, column_type=column_type)
    with pytest.raises(VectorStoreError, match=says):
        await store.search([1.0] * dimensions, "empty")
    with pytest.raises(VectorStoreError, match=says):
        await stored(store, "empty")


async def test_a_table_of_others(engine: AsyncEngine) -> None:
    """The hint for a table of others is to choose another name."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (id text, namespace text)"))
    with pytest.raises(VectorStoreError, match="choose another table_name"):
        await PgVectorStore(engine, 4, table_name="mine").search(QUERY, "n")


async def test_a_closed_store_says_so(dsn: str) -> None:
    """A closed store raises an error instead of opening connections."""
    store = await PgVectorStore.connect(dsn, 4)
    await store.close()
    with pytest.raises(VectorStoreError, match="closed"):
        await store.search(QUERY, "n")


async def test_a_server_that_is_not_there() -> None:
    """A missing server is an error, not an empty result."""
    engine = create_async_engine("postgresql+asyncpg://postgres:s3cret@127.0.0.1:1/x")
    with pytest.raises(StoreConnectionError) as error:
        await PgVectorStore(engine, 4).search(QUERY, "n")
    assert "s3cret" not in str(error.value)


async def test_a_connection_that_the_server_ended(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """After a fail-over, a read is retried on a new connection."""
    await store.upsert([embedded("a")], "n")
    end = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    other = create_async_engine(engine.url)
    async with other.connect() as connection:
        await connection.execute(end)
    await other.dispose()
    assert await found(store, QUERY, "n") == ["a"]


async def test_invalid_input_reaches_no_server() -> None:
    """Invalid input is rejected before a connection is opened."""
    engine = create_async_engine("postgresql+asyncpg://postgres@127.0.0.1:1/x")
    store = PgVectorStore(engine, 4)
    with pytest.raises(InvalidInputError):
        await store.upsert([embedded("a", [0.0])], "n")
    with pytest.raises(InvalidInputError):
        await store.search(QUERY, "n", 0)
    await store.upsert([], "n")
    assert await store.search([0, 0, 0, 0], "n") == []


def _asyncpg_url(dsn: str) -> Any:
    return make_url(dsn).set(drivername="postgresql+asyncpg")
