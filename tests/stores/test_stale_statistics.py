"""Stale or wrong statistics of the server: plans change, and results stay complete.

The planner's statistics, and what a store remembers about a namespace, are estimates. The results
must not depend on them.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from support.database import execute, scalar
from support.driver import insert

from cenote import PgVectorStore, meta
from cenote.testing import found, stored

QUERY = [1.0, 0.5, 0.25, 0.125]
SMALL, LARGE = 10, 5000

RELATIONS = (
    "SELECT oid FROM pg_class WHERE relname LIKE 'cenote_chunks%' OR relname LIKE 'ix_cenote%'"
    " OR relname LIKE 'pk_cenote%'"
)

STATISTICS = {
    "none": [
        f"UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE oid IN ({RELATIONS})",
        f"DELETE FROM pg_statistic WHERE starelid IN ({RELATIONS})",
    ],
    "no rows": [
        "ANALYZE cenote_chunks",
        f"UPDATE pg_class SET reltuples = 0, relpages = 1 WHERE oid IN ({RELATIONS})",
    ],
    "a billion rows": [
        "ANALYZE cenote_chunks",
        f"UPDATE pg_class SET reltuples = 1e9, relpages = 1e8 WHERE oid IN ({RELATIONS})",
    ],
    "many rows in few pages": [
        f"UPDATE pg_class SET reltuples = 1e9, relpages = 1 WHERE oid IN ({RELATIONS})"
    ],
    "one namespace": [
        "ALTER TABLE cenote_chunks ALTER namespace SET (n_distinct = 1)",
        "ANALYZE cenote_chunks",
    ],
    "another table's": [
        # Analyzed with one namespace that has since been replaced.
        "CREATE TEMP TABLE saved ON COMMIT DROP AS SELECT * FROM cenote_chunks",
        "UPDATE cenote_chunks SET namespace = 'x', metadata = '{\"k\": 0}',"
        " id = namespace || id, document_id = 'one'",
        "ANALYZE cenote_chunks",
        "DELETE FROM cenote_chunks",
        "INSERT INTO cenote_chunks SELECT * FROM saved",
    ],
}
"""Statements that make the statistics wrong, by what the planner believes afterwards."""


@pytest.fixture
async def store(engine: AsyncEngine) -> PgVectorStore:
    """A store whose table is not analyzed behind the test's back."""
    tables = await scalar(
        engine,
        "SELECT string_agg(relname, ',') FROM pg_class WHERE relname ~ '^cenote_chunks_p\\d+$'",
    )
    for table in tables.split(","):
        await execute(engine, f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    return PgVectorStore(engine, 4)


async def check(store: PgVectorStore, namespace: str, rows: int) -> None:
    """Check that all reads of a namespace are complete.

    The rows are those of `support.driver.insert`.
    """
    engine = store.engine
    filters: list[tuple[Any, int]] = [
        (None, rows),
        ({"k": 3}, rows // 10),
        (meta("k") >= 8, rows // 5),
        ({"k": 99}, 0),
    ]
    async with engine.connect() as connection:
        for filter, matching in filters:
            for limit in (10, 1000):
                expected = min(limit, matching)
                exact = await found(store, QUERY, namespace, limit, filter, exact=True)
                assert len(exact) == expected
                await _check_search(store, namespace, limit, filter, exact, connection)
        assert await store.count(namespace) == rows
        assert await store.count(namespace, {"k": 3}) == rows // 10
        assert len(await stored(store, namespace)) == rows
        assert len(await stored(store, namespace, {"k": 3})) == rows // 10
        (many,) = await store.search_many([QUERY], namespace, 1000)
        assert len(many) == min(1000, rows)
        per_document = await store.search(QUERY, namespace, 50, per_document=1)
        assert len(per_document) == min(50, -(-rows // 10))
        assert (await store.list_namespaces()).get(namespace, 0) == rows


async def _check_search(
    store: PgVectorStore,
    namespace: str,
    limit: int,
    filter: Any,
    exact: list[str],
    connection: AsyncConnection,
) -> None:
    """Compare the ways to search with an exact search, which is compared with SQL elsewhere."""
    ways: list[dict[str, Any]] = [{}, {}, {"session": connection}]
    for options in ways:
        results = await store.search(QUERY, namespace, limit, filter, **options)
        ids = [result.chunk.id for result in results]
        assert len(ids) == len({*ids}) == len(exact)
        order = [(-result.score, result.chunk.id) for result in results]
        assert order == sorted(order)
        if len(exact) < limit:  # everything that matches
            assert {*ids} == {*exact}
        assert len({*ids} & {*exact}) >= 0.8 * len(exact)


@pytest.mark.parametrize("statistics", STATISTICS)
async def test_wrong_statistics(store: PgVectorStore, engine: AsyncEngine, statistics: str) -> None:
    """Small and large namespaces are complete, before and after the store has learnt of them."""
    sizes = {"large": LARGE, "small": SMALL, "other": 300}
    for namespace, rows in sizes.items():
        await insert(engine, namespace, rows)
    await execute(engine, *STATISTICS[statistics])
    for _ in range(2):
        for namespace, rows in {**sizes, "nobody": 0}.items():
            await check(store, namespace, rows)


async def test_a_namespace_that_grows_and_shrinks(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """One store searches all the time, with the statistics of the first size."""
    await insert(engine, "n", SMALL)
    await insert(engine, "neighbour", 2000)
    await execute(engine, "ANALYZE cenote_chunks")
    await check(store, "n", SMALL)
    await insert(engine, "n", LARGE - SMALL, first=SMALL)
    await check(store, "n", LARGE)
    assert store._partition_searches.hints.places.get("n") is not None
    await store.delete_namespace("n")
    await check(store, "n", 0)
    await insert(engine, "n", SMALL)
    await check(store, "n", SMALL)
    await execute(engine, "ANALYZE cenote_chunks")
    await insert(engine, "n", LARGE - SMALL, first=SMALL)
    await execute(engine, "ANALYZE cenote_chunks")
    await check(store, "n", LARGE)
    # Dead rows stay in the index, because nothing vacuums.
    await execute(
        engine, f"DELETE FROM cenote_chunks WHERE namespace = 'n' AND position >= {SMALL}"
    )
    await check(store, "n", SMALL)
    await check(store, "neighbour", 2000)


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_prepared_statements_outlive_statistics(
    store: PgVectorStore, engine: AsyncEngine, mode: str, dsn: str
) -> None:
    """Plans that were made for another size of the table return complete results."""
    async with await PgVectorStore.connect(
        f"{dsn}&options=-c%20plan_cache_mode%3D{mode}", 4, max_size=2
    ) as prepared:
        await insert(engine, "n", SMALL)
        for _ in range(7):
            assert len(await found(prepared, QUERY, "n", 100, {"k": 3})) == 1
            assert len(await found(prepared, QUERY, "n", 100)) == SMALL
        await insert(engine, "n", LARGE - SMALL, first=SMALL)
        for _ in range(3):
            await check(prepared, "n", LARGE)
        await store.delete_namespace("n")
        await check(prepared, "n", 0)
