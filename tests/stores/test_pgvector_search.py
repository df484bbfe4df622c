"""Searches of the Postgres store: complete results, plans and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from support.chunks import random_chunks
from support.drivers import on_both_stores
from support.plans import explain

from cenote import ConfigurationError, InvalidInputError, PgVectorStore
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.postgres.extension import prepare
from cenote.postgres.vector import to_wire
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded, found

QUERY = [1.0, 0.5, 0.25, 0.125]


async def test_approximate_results_agree_with_exact_results(store: PgVectorStore) -> None:
    """At least 98 % of the exact results are found by the index, best first."""
    await store.upsert(random_chunks(EXACT_UP_TO + 500), "large")
    for limit in (1, 10, 300):
        default = await store.search(QUERY, "large", limit)
        exact = await store.search(QUERY, "large", limit, exact=True)
        assert len(default) == len(exact) == limit
        scores = [result.score for result in default]
        assert scores == sorted(scores, reverse=True)
        recall = len({r.chunk.id for r in default} & {r.chunk.id for r in exact}) / limit
        assert recall >= 0.98


@pytest.mark.parametrize("max_scan_tuples", [1, 500])
async def test_results_are_complete_if_the_index_scan_ends_early(
    dsn: str, engine: AsyncEngine, max_scan_tuples: int
) -> None:
    """The exact branch finds all results if the scan gives up among another tenant's rows."""
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
    await engine.dispose()  # the setting applies to new connections
    for limit in (10, 40, EXACT_UP_TO + 50):
        default = await found(store, [1, 0, 0, 0], "small", limit)
        assert len(default) == limit
        assert default == await found(store, [1, 0, 0, 0], "small", limit, exact=True)


async def test_results_are_complete_for_any_limit_and_condition(store: PgVectorStore) -> None:
    """A search returns min(limit, matching rows) results, for limits up to 10,000."""
    matching = EXACT_UP_TO + 200
    await store.upsert(random_chunks(matching, metadata={"k": 1}), "n")
    await store.upsert([embedded("other", [1, 0, 0, 0], metadata={"k": 2})], "n")
    for limit in (1, 999, matching + 5, 10_000):
        for where in (None, store.model.position == 0):
            results = await store.search(QUERY, "n", limit, {"k": 1}, where=where)
            assert len(results) == min(limit, matching)
            assert "other" not in {result.chunk.id for result in results}


async def test_identical_vectors(store: PgVectorStore) -> None:
    """The ANN index returns any of 3,000 identical vectors, an exact search the smallest ids."""
    await store.upsert([embedded(f"{number:04}") for number in range(3000)], "n")
    for limit in (10, 100, 2999):
        for _ in range(2):  # without a hint, and with one
            results = await store.search(QUERY, "n", limit)
            assert len({result.chunk.id for result in results}) == limit
            assert {result.score for result in results} == {results[0].score}
        exact = await found(store, QUERY, "n", limit, exact=True)
        assert exact == [f"{number:04}" for number in range(limit)]


async def test_plans_use_the_index_and_one_partition(engine: AsyncEngine) -> None:
    """Generic and custom plans scan the ANN index of one partition, with and without a filter.

    Before the first ANALYZE, the planner expects few of the 3,000 rows and sorts them all, which is
    slower but also complete.
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
                    # The plan was made for the values of this filter.
                    assert "metadata @> '{" in plan
                assert "_embedding_idx" in plan
                assert "(never executed)" in plan  # the exact branch
                executed = [line for line in plan.splitlines() if "never executed" not in line]
                scanned = {name[:3] for line in executed for name in line.split(" on wide_")[1:]}
                assert len(scanned) == 1


@pytest.mark.parametrize(("column_type", "dimensions"), [("vector", 1536), ("halfvec", 3072)])
async def test_wide_vectors(engine: AsyncEngine, column_type: Any, dimensions: int) -> None:
    """Wide vectors are indexed, and stored in their rows instead of in the TOAST table."""
    store = PgVectorStore(engine, dimensions, column_type=column_type, table_name="wide")
    await store.apply_migrations()
    generator = np.random.default_rng(0)
    basis = generator.standard_normal((8, dimensions))
    vectors = generator.standard_normal((EXACT_UP_TO + 100, 8)) @ basis
    chunks = [embedded(f"{n:05}", vector, content="x" * 3000) for n, vector in enumerate(vectors)]
    await store.bulk_load(chunks, "n")
    hits = 0
    for query in vectors[:20] + 0.1:
        exact = {result.chunk.id for result in await store.search(query, "n", exact=True)}
        hits += len(exact & {result.chunk.id for result in await store.search(query, "n")})
    assert hits >= 0.98 * 200
    async with engine.connect() as connection:
        counts = await connection.scalars(
            text(
                "SELECT c.reltuples FROM pg_class p JOIN pg_class c ON c.oid = p.reltoastrelid "
                "WHERE p.relname LIKE 'wide_p__'"
            )
        )
        # The TOAST tables contain nothing but contents.
        assert sum(max(count, 0) for count in counts) <= 2 * len(chunks)
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
    statement = store._searches.search(conditions, store._searches.rows_to_fetch(10))
    parameters = _search_parameters(store, query, "n") | conditions.parameters
    parameters["query"] = str(np.asarray(query).tolist())
    return await explain(connection, statement, mode, parameters, after=after)


def _search_parameters(store: PgVectorStore, query: Any, namespace: str) -> dict[str, Any]:
    wire = to_wire(np.asarray([query], dtype=np.float32), store.config.column_type)[0]
    return {"namespace": namespace, "query": wire, **store._searches.search_parameters(10)}


@pytest.mark.parametrize("rows", [0, 20, EXACT_UP_TO + 100])
async def test_a_search_restores_the_settings(
    store: PgVectorStore, engine: AsyncEngine, rows: int
) -> None:
    """A transaction has its own settings again after a search, even one without results."""
    await store.upsert(random_chunks(rows), "n")
    statement = store._searches.search(Conditions(None), store._searches.rows_to_fetch(10))
    settings = text(
        "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
    )
    async with engine.begin() as connection:
        await prepare(connection, migrations="nothing")
        await connection.execute(text("SET LOCAL hnsw.ef_search = 77"))
        results = await connection.execute(statement, _search_parameters(store, QUERY, "n"))
        assert len(results.all()) == min(rows, 10)
        assert (await connection.execute(settings)).one() == ("77", "off")


@pytest.mark.parametrize("ef_search", [0, 1001, 2.5, True])
def test_invalid_ef_search_of_a_store(engine: AsyncEngine, ef_search: Any) -> None:
    """A store rejects an ef_search that is not an integer from 1 to 1,000."""
    with pytest.raises(ConfigurationError) as error:
        PgVectorStore(engine, 4, hnsw_ef_search=ef_search)
    assert error.value.setting == "hnsw_ef_search"


@on_both_stores
async def test_ef_search_of_a_call(store: PgVectorStore, engine: AsyncEngine) -> None:
    """ef_search applies to `search` and `search_statement`; invalid values are rejected."""
    await store.upsert(random_chunks(EXACT_UP_TO + 100), "n")
    sent: list[Any] = []

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, sql: str, parameters: Any, *rest: Any) -> None:
        sent.append(parameters)

    await store.search(QUERY, "n")
    await store.search(QUERY, "n", ef_search=77)
    async with engine.connect() as connection:
        await connection.execute(store.search_statement(QUERY, "n", ef_search=78))
    for parameters, ef_search in zip(sent[-3:], ("150", "77", "78"), strict=True):
        values = parameters.values() if isinstance(parameters, dict) else parameters
        assert ef_search in values
    for bad in (0, 1001, "40", True):
        with pytest.raises(InvalidInputError) as error:
            await store.search(QUERY, "n", ef_search=bad)  # type: ignore[arg-type]
        assert error.value.field == "ef_search"
