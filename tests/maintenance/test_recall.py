"""Measuring the recall of the ANN index, and storing an ``ef_search`` in the index."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support import deployment
from support.commands import cenote, output_of, run
from support.database import VERSION, execute, programs, scalar
from support.deployment import Deployment
from support.drivers import on_both_stores, store_on
from support.library import Passage

from cenote import (
    ConfigurationError,
    InvalidInputError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    SyncPgVectorStore,
    VectorStoreError,
)
from cenote.inspection.recall_comment import MeasuredRecall, parse_comment
from cenote.maintenance import reindex, repartition
from cenote.maintenance.recall import record_recall
from cenote.maintenance.recall_output import check_picture, table_of_report
from cenote.models import NamespaceRecall, RecallPoint, RecallReport
from cenote.progress import RecallProgress, progress_bar
from cenote.stores.pgvector.sql.vector_search import DEFAULT_EF_SEARCH
from cenote.testing import embedded, found
from cenote.types import IndexKind, Metric

TABLE = "measured"
INDEX = "ix_measured_embedding"
DIMENSIONS = 32
OPTIONS: dict[str, Any] = {
    "table_name": TABLE,
    "partitions": 2,
    "hnsw_m": 4,
    "hnsw_ef_construction": 16,
}
"""Settings of a table with a poor graph, which needs many candidates."""

SIGNS: dict[str, Any] = {"table_name": "signs", "partitions": 0, "index": "bit"}
SIGNS_INDEX = "ix_signs_embedding"
SIZES = {"large": 2_500, "middle": 1_500, "small": 300}
MEASURED = MeasuredRecall(ef_search=77, recall=0.985, rows=5_000, date=date(2026, 1, 31))
COMMENT = "SELECT obj_description('{}'::regclass)"

roles = deployment.roles
deployed = deployment.deployed


@pytest.fixture(scope="module")
def filled_dsn(module_dsn: str) -> str:
    """Connection string of a database with three namespaces of random vectors."""

    async def load() -> None:
        engine = create_async_engine(make_url(module_dsn).set(drivername="postgresql+asyncpg"))
        store = PgVectorStore(engine, DIMENSIONS, **OPTIONS)
        await fill(store, SIZES)
        await engine.dispose()

    asyncio.run(load())
    return module_dsn


@pytest.fixture(scope="module")
def signs_dsn(filled_dsn: str) -> str:
    """Connection string of the same database, with a second table whose index is of kind bit."""

    async def load() -> None:
        engine = create_async_engine(make_url(filled_dsn).set(drivername="postgresql+asyncpg"))
        await fill(PgVectorStore(engine, DIMENSIONS, **SIGNS), {"large": 1_400, "small": 300})
        await engine.dispose()

    asyncio.run(load())
    return filled_dsn


@pytest.fixture
async def signs(signs_dsn: str) -> AsyncIterator[PgVectorStore]:
    """Return a store over the table with an index of kind bit, which has no comment."""
    engine = engine_by_index(signs_dsn)
    await execute(engine, f"COMMENT ON INDEX {SIGNS_INDEX} IS NULL")
    yield PgVectorStore(engine, DIMENSIONS, **SIGNS)
    await engine.dispose()


def engine_by_index(dsn: str) -> AsyncEngine:
    """Return an engine whose planner prefers the ANN index, also in a table of few small rows.

    Without it, the planner may compare all signs, and choose others of equally near candidates.
    """
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    return create_async_engine(url, connect_args={"server_settings": {"enable_sort": "off"}})


async def fill(store: PgVectorStore, sizes: dict[str, int]) -> None:
    """Create the table of a store, and fill namespaces of these sizes with random vectors."""
    await store.apply_migrations()
    random = np.random.default_rng(0)
    async with store.deferred_ann_index():
        for name, number in sizes.items():
            vectors = random.standard_normal((number, DIMENSIONS))
            await store.bulk_load(
                [embedded(f"{row:05}", vector) for row, vector in enumerate(vectors)], name
            )
    await execute(store.engine, "ANALYZE")


@pytest.fixture
async def store(filled_dsn: str) -> AsyncIterator[PgVectorStore]:
    """Return a store over the three namespaces, whose index has no comment."""
    engine = create_async_engine(make_url(filled_dsn).set(drivername="postgresql+asyncpg"))
    await execute(engine, f"COMMENT ON INDEX {INDEX} IS NULL")
    yield PgVectorStore(engine, DIMENSIONS, **OPTIONS)
    await engine.dispose()


def report_of(
    recalls: dict[int, float], table: str = TABLE, kind: IndexKind = "vector"
) -> RecallReport:
    """Return a report with one namespace: recall by ef_search, or by rerank for kind bit."""
    points = tuple(
        RecallPoint(
            ef_search=value,
            rerank=value if kind == "bit" else None,
            recall=recall,
            p50_ms=1.0,
        )
        for value, recall in recalls.items()
    )
    measured = NamespaceRecall(
        namespace="large", rows=2_500, queries=10, exact_p50_ms=1.0, points=points
    )
    return RecallReport(
        table=table,
        kind=kind,
        limit=10,
        sampled=True,
        namespaces=(measured,),
        exact=(),
        left_out=(),
        exact_p50_ms=1.0,
        points=points,
    )


def another(store: PgVectorStore, **options: Any) -> PgVectorStore:
    """Return a new store over the same table."""
    return PgVectorStore(store.engine, DIMENSIONS, **OPTIONS | options)


def used_ef_search(store: PgVectorStore[Any], **options: Any) -> int:
    """Return the ``ef_search`` with which the store searches for one result."""
    return int(store._searches.search_parameters(1, **options)["ef_search"])


# -- measuring -------------------------------------------------------------------------------------


async def test_recall_of_the_largest_namespaces(store: PgVectorStore) -> None:
    """Recall grows with ef_search, in each namespace and overall; small namespaces are exact."""
    states: list[RecallProgress] = []
    report = await store.measure_recall(ef_search=(800, 60, 300), progress=states.append)
    assert [(measured.namespace, measured.rows) for measured in report.namespaces] == [
        ("large", 2_500),
        ("middle", 1_500),
    ]
    assert (report.table, report.limit, report.sampled) == (TABLE, 10, True)
    assert (report.exact, report.left_out) == (("small",), ())
    assert [point.ef_search for point in report.points] == [60, 300, 800]
    for points in (report.points, *(measured.points for measured in report.namespaces)):
        recalls = [point.recall for point in points]
        assert recalls == sorted(recalls)
        assert 0.3 < recalls[0] < recalls[-1] <= 1
    assert report.worst()[0].recall == min(
        measured.points[0].recall for measured in report.namespaces
    )
    assert all(measured.queries == 100 for measured in report.namespaces)
    assert [state.queries for state in states] == [*range(1, 201)]
    assert states[-1].done
    again = await store.measure_recall(ef_search=[60])
    assert again.points[0].recall == report.points[0].recall  # the same rows are sampled
    json.dumps(report.as_dict())


async def test_recall_equals_that_of_the_searches(store: PgVectorStore) -> None:
    """The recall of the user's own queries is the share of the exact ids that searches find."""
    queries = np.random.default_rng(1).standard_normal((20, DIMENSIONS))
    report = await store.measure_recall(["middle"], queries, limit=5, ef_search=[1, 90])
    assert not report.sampled
    assert report.namespaces[0].queries == 20
    for point in report.points:
        hits = 0
        for query in queries:
            expected = await found(store, query, "middle", 5, exact=True)
            hits += len(
                {*expected} & {*await found(store, query, "middle", 5, ef_search=point.ef_search)}
            )
        assert point.recall == pytest.approx(hits / 100)
    # A search for 5 results considers at least 45 candidates, so that is what was measured.
    assert [point.ef_search for point in report.points] == [45, 90]


async def test_rows_do_not_find_themselves(
    store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that finds only the sampled row itself has a recall of 0."""
    search = store.search

    async def itself(vector: Any, namespace: str, limit: int, **options: Any) -> Any:
        results = await search(vector, namespace, limit, **options)
        near = [result for result in results if result.score > 0.999]
        return results if options.get("exact") else near

    monkeypatch.setattr(store, "search", itself)
    report = await store.measure_recall(["large"], ef_search=[60])
    assert report.points[0].recall == 0


@on_both_stores
async def test_equal_vectors_count_as_found(empty_engine: AsyncEngine) -> None:
    """Which of many equally near chunks a search finds does not change its recall."""
    store = store_on(empty_engine, 4, partitions=0)
    await store.apply_migrations()
    await store.bulk_load(
        [embedded(f"{n:05}", [1, n % 300 / 100, 0, 0]) for n in range(1_200)], "n"
    )
    report = await store.measure_recall(ef_search=[60])
    assert report.points[0].recall == 1


async def test_only_small_namespaces(store: PgVectorStore) -> None:
    """Nothing is measured in a namespace whose chunks are compared exactly."""
    report = await store.measure_recall(["small"])
    assert (report.namespaces, report.exact, report.points) == ((), ("small",), ())
    assert report.exact_p50_ms is None
    assert report.smallest(0.5) is None
    with pytest.raises(VectorStoreError, match="no measured namespace"):
        await store.apply_recall(report)


async def test_namespaces_beyond_the_largest_are_left_out(
    store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded number of namespaces is measured, unless the caller names them."""
    monkeypatch.setattr("cenote.stores.pgvector.measuring.MEASURED_NAMESPACES", 1)
    queries = np.eye(DIMENSIONS)[:2]
    report = await store.measure_recall(queries=queries, ef_search=[60])
    assert [measured.namespace for measured in report.namespaces] == ["large"]
    assert (report.left_out, report.exact) == (("middle",), ("small",))
    report = await store.measure_recall(["middle", "large"], queries, ef_search=[60])
    assert [measured.namespace for measured in report.namespaces] == ["large", "middle"]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"namespaces": "large"}, "namespaces"),
        ({"namespaces": []}, "namespaces"),
        ({"namespaces": ["large", "nobody"]}, "namespaces"),
        ({"namespaces": [""]}, "namespace"),
        ({"queries": []}, "queries"),
        ({"queries": 3}, "queries"),
        ({"queries": [[1.0, 2.0]]}, "query_vector"),
        ({"queries": np.zeros((1, DIMENSIONS))}, "queries"),
        ({"limit": 1}, "limit"),
        ({"limit": 2.0}, "limit"),
        ({"ef_search": []}, "ef_search"),
        ({"ef_search": 40}, "ef_search"),
        ({"ef_search": [1001]}, "ef_search"),
        ({"rerank": [100]}, "rerank"),
        ({"ef_search": [60], "rerank": [100]}, "rerank"),
    ],
)
async def test_invalid_arguments(
    store: PgVectorStore, arguments: dict[str, Any], field: str
) -> None:
    """The error names the argument."""
    with pytest.raises(InvalidInputError) as error:
        await store.measure_recall(**arguments)
    assert error.value.field == field


async def test_a_missing_index_is_not_measured(engine: AsyncEngine) -> None:
    """Without an ANN index all searches are exact, which would look like perfect recall."""
    store = PgVectorStore(engine, 4)
    await store.upsert([embedded("a")], "n")
    await execute(engine, "DROP INDEX ix_cenote_chunks_embedding")
    with pytest.raises(VectorStoreError, match="no valid ANN index"):
        await store.measure_recall()


async def test_a_table_without_index_is_not_measured(empty_engine: AsyncEngine) -> None:
    """The error says that every search of a table of kind none is exact."""
    store = PgVectorStore(empty_engine, 4, partitions=0, index="none")
    await store.apply_migrations()
    await store.upsert([embedded("a")], "n")
    with pytest.raises(VectorStoreError, match=r"no valid ANN index .* every search is exact"):
        await store.measure_recall()


async def test_a_replaced_index_is_not_reported(
    empty_engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the index was rebuilt during the measurement, the report would mix two indexes."""
    store = PgVectorStore(empty_engine, 4, partitions=0)
    await store.apply_migrations()
    await store.bulk_load([embedded(f"{n:05}", [1, n, 0, 0]) for n in range(1_100)], "n")
    search = store.search

    async def rebuild(*arguments: Any, **options: Any) -> Any:
        await reindex(store.engine, replace(store.config, index="bit"))
        monkeypatch.setattr(store, "search", search)
        return await search(*arguments, **options)

    monkeypatch.setattr(store, "search", rebuild)
    with pytest.raises(VectorStoreError, match="was replaced while its recall was measured"):
        await store.measure_recall(ef_search=[60])
    assert (await store.measure_recall(rerank=[100])).kind == "bit"


@pytest.mark.parametrize(
    ("metric", "index"), [("l2", "vector"), ("inner_product", "halfvec"), ("cosine", "halfvec")]
)
async def test_metrics_and_kinds(empty_dsn: str, metric: Metric, index: IndexKind) -> None:
    """Recall is that of the table's metric. Zero vectors are queries unless they find nothing."""
    engine = engine_by_index(empty_dsn)
    store = PgVectorStore(engine, 8, partitions=0, metric=metric, index=index)
    await store.apply_migrations()
    vectors = np.random.default_rng(5).standard_normal((1_200, 8))
    vectors[::5] = 0  # a fifth of the chunks are equally near
    chunks = [embedded(f"{row:05}", vector) for row, vector in enumerate(vectors)]
    await store.bulk_load(chunks, "n")
    report = await store.measure_recall(ef_search=[400])
    assert (report.kind, report.setting) == (index, "ef_search")
    assert (report.namespaces[0].queries == 100) is (metric == "l2")
    assert 0.95 < report.points[0].recall <= 1
    queries = np.array([np.zeros(8), np.ones(8)])
    if metric == "cosine":
        with pytest.raises(InvalidInputError, match="zero vectors"):
            await store.measure_recall(queries=queries)
    else:
        report = await store.measure_recall(queries=queries, ef_search=[400])
        assert report.points[0].recall > 0.9
    if metric == "l2":  # checked before anything is read
        with pytest.raises(InvalidInputError, match="too large for metric='l2'"):
            await store.measure_recall(["nobody"], [[1e20] * 8])
    await engine.dispose()


# -- kind "bit" ------------------------------------------------------------------------------------


async def test_recall_by_rerank(signs: PgVectorStore) -> None:
    """The recall of an index of signs grows with the number of candidates that are re-ranked."""
    report = await signs.measure_recall()
    assert (report.kind, report.setting, report.exact) == ("bit", "rerank", ("small",))
    points = report.points
    assert [point.rerank for point in points] == [100, 200, 500, 1000]
    assert [point.ef_search for point in points] == [150, 200, 500, 1000]
    assert list(map(report.value, points)) == [100, 200, 500, 1000]
    recalls = [point.recall for point in points]
    assert recalls == sorted(recalls)
    assert 0.3 < recalls[0] < recalls[-1] - 0.1
    smallest = report.smallest(recalls[1])
    assert smallest is not None
    assert smallest.rerank == 200
    assert json.loads(json.dumps(report.as_dict()))["points"][0]["rerank"] == 100


async def test_recall_by_rerank_equals_that_of_the_searches(signs: PgVectorStore) -> None:
    """The report has the values that searches use: rounded up, and at least the limit and 40."""
    queries = np.random.default_rng(1).standard_normal((20, DIMENSIONS))
    report = await signs.measure_recall(["large"], queries, limit=5, rerank=[1, 50, 60, 150])
    assert [point.rerank for point in report.points] == [50, 100, 200]
    for requested, point in zip([1, 60, 150], report.points, strict=True):
        hits = 0
        for query in queries:
            expected = await found(signs, query, "large", 5, exact=True)
            hits += len({*expected} & {*await found(signs, query, "large", 5, rerank=requested)})
        assert point.recall == pytest.approx(hits / 100)
    report = await signs.measure_recall(["large"], queries[:1], limit=10_000, rerank=[10_000])
    assert [point.rerank for point in report.points] == [10_000]


async def test_a_measured_rerank_is_stored_and_read(signs: PgVectorStore) -> None:
    """The smallest rerank that reaches the target is stored with its ef_search, and used."""
    report = await signs.measure_recall(rerank=[100, 500, 1000])
    target = report.points[1].recall
    assert await signs.apply_recall(report, target) == 500
    measured = parse_comment(await scalar(signs.engine, COMMENT.format(SIGNS_INDEX)))
    assert measured is not None
    assert (measured.rerank, measured.ef_search, measured.rows) == (500, 500, 1_700)
    assert signs._searches.rows_to_fetch(1) == 500

    second = PgVectorStore(signs.engine, DIMENSIONS, **SIGNS)
    few = PgVectorStore(signs.engine, DIMENSIONS, **SIGNS, rerank=100)
    differs = False
    for query in np.random.default_rng(2).standard_normal((8, DIMENSIONS)):
        ids = await found(second, query, "large")
        assert ids == await found(few, query, "large", rerank=500)
        differs |= ids != await found(few, query, "large")
    assert differs
    # The stored values do not change what another measurement finds.
    second_report = await second.measure_recall(rerank=[100])
    assert second_report.points[0].ef_search == 150
    assert second_report.points[0].recall == report.points[0].recall


async def test_a_rerank_that_is_too_small(signs: PgVectorStore) -> None:
    """The error suggests more candidates, or an index that stores more of a vector."""
    report = report_of({100: 0.8, 200: 0.9}, table="signs", kind="bit")
    with pytest.raises(VectorStoreError) as error:
        await signs.apply_recall(report)
    assert str(error.value) == (
        "no measured rerank reaches a recall of 0.98 in every namespace: the best is 0.9000, with "
        "200; measure larger values, or rebuild the index as another kind (cenote reindex --index "
        "halfvec, for up to 4,000 dimensions)"
    )


@pytest.mark.parametrize(
    ("arguments", "field", "message"),
    [
        ({"ef_search": [60]}, "ef_search", "pass values of rerank"),
        ({"ef_search": [60], "rerank": [100]}, "ef_search", "pass values of rerank"),
        ({"rerank": []}, "rerank", "must not be empty"),
        ({"rerank": 100}, "rerank", "must be a list"),
        ({"rerank": [0]}, "rerank", "from 1 to 10,000"),
        ({"rerank": [10_001]}, "rerank", "from 1 to 10,000"),
    ],
)
async def test_invalid_arguments_for_an_index_of_signs(
    signs: PgVectorStore, arguments: dict[str, Any], field: str, message: str
) -> None:
    """ef_search is not what limits the recall of an index of kind bit, so it is not measured."""
    with pytest.raises(InvalidInputError, match=message) as error:
        await signs.measure_recall(**arguments)
    assert error.value.field == field


async def test_reports_of_another_kind(store: PgVectorStore, signs: PgVectorStore) -> None:
    """A report about an index that was rebuilt as another kind is not stored."""
    with pytest.raises(MigrationError, match=r"kind 'bit' was measured, and .* of kind 'vector'"):
        await store.apply_recall(report_of({500: 1.0}, kind="bit"))
    with pytest.raises(MigrationError, match=r"kind 'vector' was measured, and .* of kind 'bit'"):
        await signs.apply_recall(report_of({60: 1.0}, table="signs"))


async def test_a_synchronous_store_measures_rerank(signs: PgVectorStore, signs_dsn: str) -> None:
    """A synchronous store measures the same recall."""
    url = make_url(signs_dsn).set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args={"options": "-c enable_sort=off"})
    twin = SyncPgVectorStore(engine, DIMENSIONS, **SIGNS)
    report = await asyncio.to_thread(twin.measure_recall, rerank=[200])
    twin.close()
    engine.dispose()
    assert report.points[0].recall == (await signs.measure_recall(rerank=[200])).points[0].recall


# -- applying --------------------------------------------------------------------------------------


async def test_a_measured_ef_search_is_stored_and_read(store: PgVectorStore) -> None:
    """The smallest value that reaches the target in every namespace is stored in the index."""
    report = await store.measure_recall(ef_search=(60, 300, 800))
    worst = report.worst()
    target = worst[1].recall
    assert await store.apply_recall(report, target) == 300
    assert used_ef_search(store) == 300

    comment = await scalar(store.engine, COMMENT.format(INDEX))
    measured = parse_comment(comment)
    assert measured is not None
    assert (measured.ef_search, measured.rows) == (300, sum(SIZES.values()))
    assert target - 0.0001 < measured.recall <= target

    for operation in ("search", "search_many", "count"):
        second = another(store)
        assert used_ef_search(second) == DEFAULT_EF_SEARCH  # nothing was read yet
        vector = np.ones(DIMENSIONS)
        if operation == "search":
            await second.search(vector, "large")
        elif operation == "search_many":
            await second.search_many([vector], "large")
        else:
            await second.count("large")
        assert used_ef_search(second) == 300
        assert used_ef_search(second, ef_search=90) == 90
        assert used_ef_search(second.with_own_pool()) == 300


async def test_the_first_search_uses_the_measured_value(store: PgVectorStore) -> None:
    """The first search of a store already runs with the measured ef_search."""
    await record_recall(store.engine, store.config, replace(MEASURED, ef_search=46), "vector")
    queries = np.random.default_rng(2).standard_normal((8, DIMENSIONS))
    differs = False
    for query in queries:
        first = await found(another(store), query, "large", 5)
        assert first == await found(another(store), query, "large", 5, ef_search=46)
        differs |= first != await found(another(store, hnsw_ef_search=800), query, "large", 5)
    assert differs
    own_pool = another(store).with_own_pool()
    await own_pool.search(queries[0], "large", 5)
    assert used_ef_search(own_pool) == 46
    await own_pool.engine.dispose()


async def test_a_store_in_use_reads_the_measured_value(
    store: PgVectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search reads the value once a minute, so a store need not be created anew."""
    await store.search(np.ones(DIMENSIONS), "large")
    await record_recall(store.engine, store.config, MEASURED, "vector")
    await store.search(np.ones(DIMENSIONS), "large")
    assert used_ef_search(store) == DEFAULT_EF_SEARCH
    monkeypatch.setattr("cenote.stores.pgvector.executor._CHECK_SECONDS", 0)
    await store.search(np.ones(DIMENSIONS), "large")
    assert used_ef_search(store) == 77


async def test_an_explicit_ef_search_overrides_the_measured_one(store: PgVectorStore) -> None:
    """A store with hnsw_ef_search uses it, whatever the index records."""
    await record_recall(store.engine, store.config, MEASURED, "vector")
    explicit = another(store, hnsw_ef_search=DEFAULT_EF_SEARCH)
    await explicit.search(np.ones(DIMENSIONS), "large")
    assert used_ef_search(explicit) == DEFAULT_EF_SEARCH
    assert explicit._searches.measured == MEASURED


async def test_a_target_that_nothing_reaches(store: PgVectorStore) -> None:
    """The error names the best value, and nothing is stored."""
    with pytest.raises(VectorStoreError, match=r"recall of 0\.98 .* best is 0\.9000, with 100"):
        await store.apply_recall(report_of({60: 0.8, 100: 0.9}))
    assert await scalar(store.engine, COMMENT.format(INDEX)) is None


@pytest.mark.parametrize("target", [0, 1.1, "0.98", None, float("nan"), True])
async def test_invalid_targets(store: PgVectorStore, target: Any) -> None:
    """A target is a number greater than 0 and at most 1."""
    with pytest.raises(InvalidInputError) as error:
        await store.apply_recall(report_of({60: 1.0}), target)
    assert error.value.field == "target"


async def test_invalid_reports(store: PgVectorStore) -> None:
    """A report of another table, or something else, is rejected."""
    with pytest.raises(InvalidInputError, match="the report is about table 'other'"):
        await store.apply_recall(report_of({60: 1.0}, table="other"))
    with pytest.raises(InvalidInputError, match="must be a RecallReport, not dict"):
        await store.apply_recall({})  # type: ignore[arg-type]


async def test_comments_of_the_user(store: PgVectorStore) -> None:
    """A comment of the user is ignored by stores, and not overwritten."""
    await execute(store.engine, f"COMMENT ON INDEX {INDEX} IS 'cenote recall: mine'")
    with pytest.raises(MigrationError, match="has a comment of your own"):
        await store.apply_recall(report_of({60: 1.0}))
    second = another(store)
    await second.search(np.ones(DIMENSIONS), "large")
    assert used_ef_search(second) == DEFAULT_EF_SEARCH
    assert await scalar(store.engine, COMMENT.format(INDEX)) == "cenote recall: mine"


GOOD = '{"ef_search": 77, "recall": 0.985, "rows": 5000, "date": "2026-01-31"}'


def test_the_comment_can_be_read_back() -> None:
    """The comment is one line of JSON after a prefix."""
    assert MEASURED.comment() == "cenote recall: " + GOOD
    assert parse_comment(MEASURED.comment()) == MEASURED
    rounded = parse_comment(replace(MEASURED, recall=0.97999).comment())
    assert rounded is not None
    assert rounded.recall == 0.9799  # never rounded up
    signs = replace(MEASURED, rerank=500)
    assert signs.comment() == "cenote recall: " + GOOD.replace("}", ', "rerank": 500}')
    assert parse_comment(signs.comment()) == signs


@pytest.mark.parametrize(
    "comment",
    [
        None,
        "",
        "mine",
        GOOD,
        "cenote recall: ",
        "cenote recall: " + GOOD + " and more",
        "cenote recall: " + GOOD.replace("77", "0"),
        "cenote recall: " + GOOD.replace("77", "1001"),
        "cenote recall: " + GOOD.replace("77", "77.0"),
        "cenote recall: " + GOOD.replace("77", "true"),
        "cenote recall: " + GOOD.replace("0.985", "NaN"),
        "cenote recall: " + GOOD.replace("0.985", "1.5"),
        "cenote recall: " + GOOD.replace("5000", "-1"),
        "cenote recall: " + GOOD.replace("5000", "9" * 300),
        "cenote recall: " + GOOD.replace("2026-01-31", "20260131"),
        "cenote recall: " + GOOD.replace("2026-01-31", "soon"),
        "cenote recall: " + GOOD.replace('"2026-01-31"', "7"),
        "cenote recall: " + GOOD.replace("}", ', "more": 1}'),
        "cenote recall: " + GOOD.replace("}", ', "rerank": 0}'),
        "cenote recall: " + GOOD.replace("}", ', "rerank": 10001}'),
        "cenote recall: " + GOOD.replace("}", ', "rerank": "500"}'),
        "cenote recall: [1]",
        "cenote recall: " + "[" * 100_000,
    ],
)
def test_other_comments_are_ignored(comment: str | None) -> None:
    """Whatever cenote did not write is no measurement, and no error."""
    assert parse_comment(comment) is None


async def test_an_application_role_cannot_apply(roles: Deployment) -> None:
    """The owner of the index stores the value; other roles get an error, and read it."""
    store = PgVectorStore(roles.owner, 4)
    await store.apply_migrations()
    await execute(roles.owner, deployment.GRANTS.format("cenote_chunks"))
    report = report_of({60: 0.99}, table="cenote_chunks")
    app_store = PgVectorStore(roles.app, 4)
    with pytest.raises(MigrationError, match="connect as the owner"):
        await app_store.apply_recall(report)
    assert await store.apply_recall(report) == 60
    app_store = PgVectorStore(roles.app, 4)
    await app_store.count("n")
    assert used_ef_search(app_store) == 60


async def test_row_level_security(deployed: Deployment) -> None:
    """Measuring named tenants needs no privilege; everything else needs to see all rows."""
    store = deployed.owner_store
    report = report_of({60: 0.99}, table="cenote_chunks")
    with pytest.raises(VectorStoreError, match="BYPASSRLS"):
        await store.apply_recall(report)
    with pytest.raises(VectorStoreError, match="BYPASSRLS"):
        await store.measure_recall()
    chunks = [embedded(f"{n}", [1, n, n % 7, n % 11]) for n in range(1_100)]
    await deployed.store().upsert(chunks, "acme")
    measured = await deployed.store().measure_recall(["acme", "globex"], ef_search=[60])
    assert [found.namespace for found in measured.namespaces] == ["acme"]
    assert measured.exact == ("globex",)
    assert measured.points[0].recall > 0.5

    admin_store = PgVectorStore(deployed.admin, 4, **deployment.OPTIONS)
    assert await admin_store.apply_recall(report) == 60
    comment = await scalar(deployed.admin, COMMENT.format("ix_cenote_chunks_embedding"))
    recorded = parse_comment(comment)
    assert recorded is not None
    assert recorded.rows == 1_103  # of both tenants
    app_store = deployed.store()
    await app_store.search([1.0, 0, 0, 0], "acme")
    assert used_ef_search(app_store) == 60


@on_both_stores
async def test_an_index_with_another_name(library: AsyncEngine) -> None:
    """On a table with an index of another name, that index has the comment."""
    await execute(library, "ALTER INDEX ix_passages_embedding RENAME TO mine")
    store = store_on(library, model=Passage)
    await store.apply_recall(report_of({60: 0.99}, table="passages"))
    comment = await scalar(library, COMMENT.format("mine"))
    assert parse_comment(comment) is not None
    second = store_on(library, model=Passage)
    await second.count("n")
    assert used_ef_search(second) == 60


# -- the comment's life ----------------------------------------------------------------------------


@pytest.fixture(params=[0, 2], ids=["plain", "partitioned"])
async def small(empty_engine: AsyncEngine, request: pytest.FixtureRequest) -> PgVectorStore:
    """Return a store with few rows, whose index records an ef_search of 77."""
    store = PgVectorStore(empty_engine, 4, partitions=request.param)
    await store.apply_migrations()
    await store.upsert([embedded(f"{n}", [1, n, 0, 0]) for n in range(20)], "n")
    await record_recall(empty_engine, store.config, MEASURED, "vector")
    return store


async def test_reindex_drops_the_comment(
    small: PgVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The new index has no measurement, and a warning says so."""
    await reindex(small.engine, replace(small.config, hnsw_m=8, hnsw_ef_construction=32))
    assert warnings(caplog) == [
        "the measured ef_search 77 of index ix_cenote_chunks_embedding was dropped with the index: "
        "run cenote recall --apply again"
    ]
    assert await scalar(small.engine, COMMENT.format("ix_cenote_chunks_embedding")) is None
    caplog.clear()
    await reindex(small.engine, small.config)
    assert warnings(caplog) == []


async def test_repartition_drops_the_comment(
    small: PgVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A rewrite drops a measurement with a warning, and rejects other comments as before."""
    index = "ix_cenote_chunks_embedding"
    await execute(small.engine, "COMMENT ON INDEX pk_cenote_chunks IS 'mine'")
    config = SchemaConfig(dimensions=4, partitions=3)
    with pytest.raises(MigrationError, match="comments on indexes"):
        await repartition(small.engine, config)
    await execute(small.engine, "COMMENT ON INDEX pk_cenote_chunks IS NULL")
    assert warnings(caplog) == []
    assert await repartition(small.engine, config)
    assert len(warnings(caplog)) == 1
    assert await scalar(small.engine, COMMENT.format(index)) is None

    await execute(small.engine, f"COMMENT ON INDEX {index} IS 'mine'")
    with pytest.raises(MigrationError, match="comments on indexes"):
        await repartition(small.engine, replace(config, partitions=0))


async def test_a_bulk_load_drops_the_comment(
    small: PgVectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A bulk load that builds the index anew drops the measurement with a warning."""
    await small.bulk_load([embedded("new")], "n", ann_index="rebuild")
    assert len(warnings(caplog)) == 1
    assert await scalar(small.engine, COMMENT.format("ix_cenote_chunks_embedding")) is None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of cenote."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("cenote") and record.levelno == logging.WARNING
    ]


async def test_pg_dump_keeps_the_comment(
    small: PgVectorStore, empty_dsn: str, tmp_path: Path
) -> None:
    """A store over a restored table searches with the measured ef_search."""
    binaries = programs(int(await scalar(small.engine, VERSION)))
    dump = str(tmp_path / "dump")
    tables = "--table=cenote_chunks*"
    output_of(run(str(binaries / "pg_dump"), "-Fc", tables, "--file", dump, empty_dsn))
    await execute(small.engine, "DROP TABLE cenote_chunks")
    output_of(run(str(binaries / "pg_restore"), "--clean", "--if-exists", "-d", empty_dsn, dump))
    await small.engine.dispose()
    restored = PgVectorStore(small.engine, 4)
    assert await restored.count("n") == 20
    assert used_ef_search(restored) == 77


async def test_growth_is_reported(small: PgVectorStore) -> None:
    """A finding says that the table has at least ten times the rows; an unknown number does not."""
    async with small.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("VACUUM ANALYZE cenote_chunks"))
    for rows, reported in [(3, False), (2, True)]:
        await record_recall(small.engine, small.config, replace(MEASURED, rows=rows), "vector")
        findings = await small.check_schema()
        assert bool(findings) is reported
    (finding,) = findings
    assert finding.kind == "recall_outdated"
    assert finding.subject == "index ix_cenote_chunks_embedding"
    assert "with 2 rows" in finding.actual
    assert "about 20" in finding.actual
    assert finding.hint == "run cenote recall --apply"


async def test_reindex_drops_a_measured_rerank(
    empty_engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The finding about growth, and the warning of a rebuild as another kind, name rerank."""
    store = PgVectorStore(empty_engine, 4, partitions=0, index="bit")
    await store.apply_migrations()
    await store.upsert([embedded(f"{n}", [1, n, 0, 0]) for n in range(20)], "n")
    await execute(empty_engine, "ANALYZE cenote_chunks")
    measured = replace(MEASURED, rerank=500, rows=2)
    await record_recall(empty_engine, store.config, measured, "bit")
    (finding,) = await store.check_schema()
    assert (finding.kind, finding.hint) == ("recall_outdated", "run cenote recall --apply")
    assert finding.actual.startswith("its rerank was measured with 2 rows")
    await reindex(empty_engine, replace(store.config, index="halfvec"))
    assert warnings(caplog) == [
        "the measured rerank 500 of index ix_cenote_chunks_embedding was dropped with the index: "
        "run cenote recall --apply again"
    ]
    assert await scalar(empty_engine, COMMENT.format("ix_cenote_chunks_embedding")) is None


async def test_growth_is_not_reported_if_the_rows_are_unknown(engine: AsyncEngine) -> None:
    """As long as Postgres has not counted the rows, nothing is reported."""
    store = PgVectorStore(engine, 4)
    await record_recall(engine, store.config, replace(MEASURED, rows=0), "vector")
    assert await store.check_schema() == []


# -- the command -----------------------------------------------------------------------------------

COMMAND = ["recall", "-x", f"table_name={TABLE}", "--ef-search", "60", "900"]


async def test_the_command_measures(store: PgVectorStore, filled_dsn: str, tmp_path: Path) -> None:
    """The command prints recalls and durations, and draws them; without --apply, it only reads."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "recall.svg"
    output = output_of(cenote(*COMMAND, "--picture", str(picture), CENOTE_DATABASE_URL=filled_dsn))
    header, columns, large, middle, total, *_ = output.splitlines()
    assert header == ("recall@10 by ef_search, with stored rows as queries (index of kind vector)")
    assert columns.split() == ["namespace", "chunks", "queries", "60", "900"]
    assert large.split()[:3] == ["large", "2,500", "100"]
    assert middle.split()[:3] == ["middle", "1,500", "100"]
    assert total.split()[:3] == ["all", "4,000", "200"]
    assert all(0 < float(number) <= 1 for number in large.split()[3:])
    assert "p50 in milliseconds by ef_search" in output
    assert "not measured: 1 namespace with up to 1,000 chunks" in output
    assert picture.read_text().count("<svg ") == 1
    assert await scalar(store.engine, COMMENT.format(INDEX)) is None


async def test_the_command_applies(store: PgVectorStore, filled_dsn: str, tmp_path: Path) -> None:
    """--apply stores the value in the index; with --json, the output is one JSON object."""
    queries = tmp_path / "queries.npy"
    np.save(queries, np.random.default_rng(4).standard_normal((40, DIMENSIONS)))
    options = ["--queries", str(queries), "--namespace", "middle", "--namespace", "large"]
    command = [*COMMAND, *options, "--limit", "5", "--target", "0.85", "--apply"]
    output = output_of(cenote(*command, "--json", CENOTE_DATABASE_URL=filled_dsn))
    result = json.loads(output)
    assert (result["smallest_ef_search"], result["applied"], result["target"]) == (900, True, 0.85)
    assert [measured["namespace"] for measured in result["namespaces"]] == ["large", "middle"]
    assert (result["limit"], result["sampled"]) == (5, False)
    second = another(store)
    await second.count("large")
    assert used_ef_search(second) == 900
    output = output_of(cenote(*command, CENOTE_DATABASE_URL=filled_dsn))
    assert "ef_search 900 reaches 0.85 in every measured namespace" in output
    assert "it is stored in the index" in output


async def test_the_command_fails_if_nothing_reaches_the_target(
    store: PgVectorStore, filled_dsn: str
) -> None:
    """The exit status is 1, and nothing is stored."""
    command = ["recall", "-x", f"table_name={TABLE}", "--ef-search", "40", "--apply"]
    result = cenote(*command, "--namespace", "large", CENOTE_DATABASE_URL=filled_dsn)
    assert result.returncode == 1
    assert "no measured ef_search reaches a recall of 0.98" in result.stderr
    assert "an ef_search of at least 50: smaller values were raised to it" in result.stdout
    result = cenote(*command, "--namespace", "small", CENOTE_DATABASE_URL=filled_dsn)
    assert result.returncode == 1
    assert "nothing was measured" in result.stdout
    assert await scalar(store.engine, COMMENT.format(INDEX)) is None


async def test_the_command_measures_rerank(
    signs: PgVectorStore, signs_dsn: str, tmp_path: Path
) -> None:
    """For an index of kind bit, the columns of the table are values of rerank, which is stored."""
    pytest.importorskip("matplotlib")
    command = ["recall", "-x", "table_name=signs", "--rerank", "150", "1000", "--target", "0.5"]
    picture = tmp_path / "recall.svg"
    output = output_of(
        cenote(*command, "--picture", str(picture), "--apply", CENOTE_DATABASE_URL=signs_dsn)
    )
    header, columns, large, *_ = output.splitlines()
    assert header == "recall@10 by rerank, with stored rows as queries (index of kind bit)"
    assert columns.split() == ["namespace", "chunks", "queries", "200", "1000"]
    assert large.split()[:3] == ["large", "1,400", "100"]
    assert "p50 in milliseconds by rerank" in output
    assert "raises rerank to at least 200, and to the next 1, 2 or 5 times a power" in output
    assert "rerank 200 reaches 0.5 in every measured namespace" in output
    assert "it is stored in the index" in output
    assert picture.read_text().count("<svg ") == 1
    measured = parse_comment(await scalar(signs.engine, COMMENT.format(SIGNS_INDEX)))
    assert measured is not None
    assert measured.rerank == 200

    result = json.loads(output_of(cenote(*command, "--json", CENOTE_DATABASE_URL=signs_dsn)))
    assert (result["kind"], result["smallest_rerank"], result["smallest_ef_search"]) == (
        "bit",
        200,
        200,
    )
    failed = cenote(*command, "--ef-search", "60", CENOTE_DATABASE_URL=signs_dsn)
    assert failed.returncode == 2
    assert "pass values of rerank, not of ef_search" in failed.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "1.5"], "target must be greater than 0 and at most 1"),
        (["--queries", "nothing.npy"], "nothing.npy cannot be read: No such file"),
        (["--queries", "text.npy"], "it is not a .npy file of numbers"),
        (["--queries", "flat.npy"], "must contain one array of numbers"),
        (["--queries", "narrow.npy"], "has 3 dimensions"),
        (["--namespace", "nobody"], "namespaces[0] has no chunks"),
        (["--ef-search", "0"], "ef_search must be an integer from 1 to 1,000"),
        (["--picture", "recall.gif"], "must end in one of .pdf, .png, .svg"),
        (["--picture", "nowhere/recall.svg"], "there is no folder nowhere"),
    ],
)
def test_invalid_options(filled_dsn: str, tmp_path: Path, options: list[str], message: str) -> None:
    """The error is one line, and comes before anything is measured."""
    (tmp_path / "text.npy").write_text("no vectors")
    np.save(tmp_path / "flat.npy", np.ones(DIMENSIONS))
    np.save(tmp_path / "narrow.npy", np.ones((1, 3)))
    command = ["recall", "-x", f"table_name={TABLE}", *options]
    result = cenote(*command, cwd=tmp_path, CENOTE_DATABASE_URL=filled_dsn)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error names the extra."""
    monkeypatch.setattr("cenote.maintenance.recall_output.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cenote\[plot\]'"):
        check_picture(tmp_path / "recall.svg")


def test_names_in_the_table() -> None:
    """Long names are shortened, wide letters count twice, and control characters are replaced."""
    report = report_of({60: 0.9})
    measured = [
        replace(report.namespaces[0], namespace=name) for name in ("x" * 50, "\x1b[31mred", "名前")
    ]
    report = replace(report, namespaces=tuple(measured), left_out=("a", "b"))
    table = table_of_report(report, [60])
    assert "\x1b" not in table
    assert "x" * 29 + "... " in table
    _, header, *lines = table.splitlines()
    assert len(lines[2]) == len(header) - len("名前")
    assert table.endswith("not measured: 2 namespaces that are smaller than the measured ones")


def test_the_progress_bar() -> None:
    """The bar shows the number of queries, and ends the line with the last one."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    draw = progress_bar(stream=terminal)
    draw(RecallProgress(queries=200, of=200))
    assert terminal.getvalue().endswith("query 200 of 200 [" + "#" * 30 + "]\n")
