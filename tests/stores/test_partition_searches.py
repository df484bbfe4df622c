"""Searches that name a partition: whatever a store remembers, its results are complete.

Each test changes the database under a running store, after the store has remembered where a
namespace is and how large it is.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.database import APP_ROLE, execute, scalar
from support.driver import ids_of, insert, partition_of, reference, watch
from support.drivers import on_both_stores, store_on
from support.plans import explain

from cenote import PgVectorStore, SchemaConfig, VectorStoreError
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.maintenance import repartition
from cenote.migrate.versions import version_table
from cenote.postgres.extension import prepare
from cenote.stores.pgvector import search_hints
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO, rows_to_fetch
from cenote.testing import embedded

QUERY = [1.0, 0.5, 0.25, 0.125]
LARGE = EXACT_UP_TO + 200


@pytest.fixture
def sent(engine: AsyncEngine) -> list[str]:
    """SQL of all statements that the engine's connections send."""
    return watch(engine)


@pytest.fixture
def paths(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Function that returns the paths of the searches since its last call."""
    caplog.set_level(logging.DEBUG, "cenote.telemetry")

    def read() -> list[str]:
        found = [path for r in caplog.records if (path := getattr(r, "cenote_path", None))]
        caplog.clear()
        return found

    return read


async def partition_with(engine: AsyncEngine, namespace: str, table: str = "cenote_chunks") -> str:
    """Return the name of the table that holds a namespace."""
    query = f"SELECT tableoid::regclass FROM {table} WHERE namespace = '{namespace}' LIMIT 1"
    return str(await scalar(engine, query.replace("regclass", "regclass::text")))


async def remember(store: PgVectorStore, sent: list[str], namespace: str) -> str:
    """Search until the store names the namespace's partition, and return the partition."""
    for _ in range(3):
        await ids_of(store, QUERY, namespace)
    partition = partition_of(sent[-1])
    assert partition is not None, sent[-1]
    return partition


def ten_minutes_later(store: PgVectorStore) -> None:
    """Make everything that a store remembers as old as hints can get."""
    searches = store._partition_searches
    searches._loaded = -search_hints._MAX_SECONDS
    for hints in (searches.hints.places, searches.hints.filters):
        for entry in hints._entries.values():
            entry.ends = 0


# -- partitions that change


async def test_repartitioning_under_a_running_store(engine: AsyncEngine, sent: list[str]) -> None:
    """Results are complete while partitions change, and their names get other contents."""
    store = PgVectorStore(engine, 4)
    sizes = {f"n{number}": 3 + number for number in range(12)} | {"large": LARGE}
    for namespace, size in sizes.items():
        await insert(engine, namespace, size)
    expected = {n: await ids_of(store, QUERY, n, 40, exact=True) for n in sizes}
    places = {}
    stop = asyncio.Event()

    async def search(namespace: str) -> int:
        searches = 0
        while not stop.is_set():
            ids = await ids_of(store, QUERY, namespace, 40)
            if namespace == "large":
                assert len(ids) == 40
                assert len({*ids} & {*expected[namespace]}) >= 36
            else:
                assert ids == expected[namespace]
            searches += 1
            await asyncio.sleep(0)
        return searches

    for namespace in sizes:
        places[namespace] = await remember(store, sent, namespace)
    maintenance = create_async_engine(engine.url)
    moved = set()
    searchers = [asyncio.create_task(search(namespace)) for namespace in (*sizes, "large")]
    for partitions in (4, 8, 4, 0, 4):
        assert await repartition(maintenance, SchemaConfig(dimensions=4, partitions=partitions))
        for namespace in sizes if partitions else ():
            now = await partition_with(maintenance, namespace)
            moved |= {namespace} if places[namespace] != now else set()
            places[namespace] = now
        await asyncio.sleep(0.1)
    stop.set()
    assert all(await asyncio.gather(*searchers))
    assert len(moved) > 3
    ten_minutes_later(store)  # names of partitions are used again, instead of the plain table's
    for namespace in sizes:
        assert await remember(store, sent, namespace) == places[namespace]
        ids = await ids_of(store, QUERY, namespace, 40)
        assert ids == expected[namespace] or len({*ids} & {*expected[namespace]}) >= 36
    await maintenance.dispose()


@pytest.mark.parametrize("size", [5, LARGE])
async def test_a_plain_table_becomes_partitioned_and_plain_again(
    engine: AsyncEngine, sent: list[str], size: int
) -> None:
    """A store that remembers a plain table finds all rows of a partitioned one, and vice versa."""
    assert await repartition(engine, SchemaConfig(dimensions=4, partitions=0))
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", size)
    await insert(engine, "other", size, first=10**5)
    exact = await ids_of(store, QUERY, "n", 40, exact=True)
    for partitions in (4, 0):
        for _ in range(4):
            assert await ids_of(store, QUERY, "n", 40) == exact
        assert "attached" in sent[-1]  # a statement with a hint
        assert await repartition(engine, SchemaConfig(dimensions=4, partitions=partitions))
        for _ in range(4):
            assert await ids_of(store, QUERY, "n", 40) == exact
        ten_minutes_later(store)


async def test_a_hint_in_use_ends_after_ten_minutes(
    engine: AsyncEngine, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace that is searched all the time is looked for again after ten minutes.

    Otherwise, after a plain table was partitioned, the chunk table would always be searched.
    """
    assert await repartition(engine, SchemaConfig(dimensions=4, partitions=0))
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 5)
    for _ in range(3):
        await ids_of(store, QUERY, "n")
    assert await repartition(engine, SchemaConfig(dimensions=4, partitions=4))
    now = time.monotonic()
    for seconds in range(0, 700, 50):
        monkeypatch.setattr(time, "monotonic", lambda seconds=seconds: now + seconds)
        assert len(await ids_of(store, QUERY, "n")) == 5
    assert partition_of(sent[-1]) == await partition_with(engine, "n")


async def _detach(engine: AsyncEngine, partition: str) -> None:
    await execute(engine, f"ALTER TABLE cenote_chunks DETACH PARTITION {partition}")


@on_both_stores
@pytest.mark.parametrize("size", [5, LARGE])
async def test_a_detached_partition_is_not_searched(
    engine: AsyncEngine, sent: list[str], size: int
) -> None:
    """A detached table's rows are not returned; those of an attached one are."""
    store = store_on(engine, 4)
    await insert(engine, "n", size)
    exact = await ids_of(store, QUERY, "n", exact=True)
    partition = await remember(store, sent, "n")
    hint = store._partition_searches.hints.places.get("n")
    assert hint is not None
    bound = await scalar(
        engine,
        f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = '{partition}'",
    )
    await _detach(engine, partition)
    for filter in (None, {"k": 1}):
        store._partition_searches.hints.places.put("n", hint)
        del sent[:]
        assert await ids_of(store, QUERY, "n", 10, filter) == []
        assert partition_of(sent[0]) == partition  # was asked, and gave no proof
        assert partition_of(sent[1]) is None
    await execute(engine, f"ALTER TABLE cenote_chunks ATTACH PARTITION {partition} {bound}")
    store._partition_searches.hints.places.put("n", hint)
    assert await ids_of(store, QUERY, "n") == exact


@pytest.mark.parametrize("size", [5, LARGE])
async def test_another_table_has_the_partitions_name(
    engine: AsyncEngine, sent: list[str], size: int
) -> None:
    """A table that is no partition is not searched, even if it has the namespace's rows."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", size)
    exact = await ids_of(store, QUERY, "n", exact=True)
    partition = await remember(store, sent, "n")
    hint = store._partition_searches.hints.places.get("n")
    assert hint is not None
    await execute(
        engine,
        f"ALTER TABLE {partition} RENAME TO elsewhere",
        f"CREATE TABLE {partition} (LIKE elsewhere INCLUDING ALL)",
        f"INSERT INTO {partition} SELECT * FROM elsewhere",
        f"UPDATE {partition} SET id = 'stolen' || id",
    )
    for _ in range(3):
        assert await ids_of(store, QUERY, "n") == exact
        store._partition_searches.hints.places.put("n", hint)


async def test_a_pending_detachment(engine: AsyncEngine, sent: list[str]) -> None:
    """A partition whose concurrent detachment did not finish is not searched.

    The chunk table does not return its rows either.
    """
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 5)
    partition = await remember(store, sent, "n")
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as reader, autocommit.connect() as owner:
        await reader.execute(text("SELECT FROM cenote_chunks LIMIT 0"))  # is waited for
        await owner.execute(text("SET statement_timeout = 300"))
        with pytest.raises(Exception, match="statement timeout"):
            await owner.execute(
                text(f"ALTER TABLE cenote_chunks DETACH PARTITION {partition} CONCURRENTLY")
            )
        await owner.execute(text("RESET statement_timeout"))
    assert await scalar(engine, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 1
    del sent[:]
    assert await reference(store, engine, QUERY, "n") == []
    assert await ids_of(store, QUERY, "n") == []
    assert any(partition_of(sql) == partition for sql in sent)


@on_both_stores
async def test_dropped_and_recreated_tables(engine: AsyncEngine, sent: list[str]) -> None:
    """A partition and a chunk table that are dropped and created anew are searched again."""
    store = store_on(engine, 4)
    await insert(engine, "n", 5)
    partition = await remember(store, sent, "n")
    await execute(engine, f"DROP TABLE {partition}")
    for _ in range(3):
        assert await ids_of(store, QUERY, "n") == []
    number = int(partition[-2:])
    bound = f"FOR VALUES WITH (MODULUS 16, REMAINDER {number})"
    await execute(engine, f"CREATE TABLE {partition} PARTITION OF cenote_chunks {bound}")
    await insert(engine, "n", 3)
    for _ in range(3):
        assert len(await ids_of(store, QUERY, "n")) == 3
    ten_minutes_later(store)
    await remember(store, sent, "n")
    await execute(
        engine, "DROP TABLE cenote_chunks", f"DROP TABLE {version_table('cenote_chunks')}"
    )
    with pytest.raises(VectorStoreError, match="42P01"):
        await store.search(QUERY, "n")
    await store.apply_migrations()
    assert await ids_of(store, QUERY, "n") == []
    await insert(engine, "n", 4)
    for _ in range(3):
        assert len(await ids_of(store, QUERY, "n")) == 4
    ten_minutes_later(store)
    assert await remember(store, sent, "n") == partition


# -- namespaces that change


@on_both_stores
async def test_a_namespace_grows(
    engine: AsyncEngine, sent: list[str], paths: Callable[[], list[str]]
) -> None:
    """New rows are found at once, and the search after that uses the ANN index."""
    store = store_on(engine, 4)
    await insert(engine, "n", 10)
    await remember(store, sent, "n")
    assert set(paths()) == {"exact"}
    # The statement counts up to 1,001 rows, so 5,000 and 100,000 rows look the same to the store.
    await insert(engine, "n", 5000, first=10)
    await store.upsert([embedded("new", QUERY)], "n")
    paths()
    assert (await ids_of(store, QUERY, "n"))[0] == "new"
    exact = await ids_of(store, QUERY, "n", exact=True)
    paths()
    ids = await ids_of(store, QUERY, "n")
    assert len({*ids} & {*exact}) >= 9
    assert paths() == ["ann"]
    assert partition_of(sent[-1]) is not None


async def _ann_index(engine: AsyncEngine, table: str) -> tuple[str, str]:
    """Return name and definition of a table's ANN index."""
    query = text(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = :table"
        " AND indexdef LIKE '%hnsw%'"
    )
    async with engine.connect() as connection:
        name, definition = (await connection.execute(query, {"table": table})).one()
    return name, definition.replace(" ONLY ", " ")


async def test_a_namespace_grows_to_100000_rows(
    engine: AsyncEngine, sent: list[str], paths: Callable[[], list[str]]
) -> None:
    """The search after the first one uses the ANN index, at any size."""
    store = PgVectorStore(
        engine, 4, table_name="grown", partitions=2, hnsw_m=8, hnsw_ef_construction=16
    )
    await store.apply_migrations()
    await insert(engine, "n", 10, table="grown")
    for _ in range(3):
        await ids_of(store, QUERY, "n")
    index, create = await _ann_index(engine, "grown")
    # Building the index takes a third of the time of inserting into it.
    async with engine.begin() as connection:
        await connection.execute(text(f"DROP INDEX {index}"))
        await insert(connection, "n", 10**5, first=10, table="grown")
        await connection.execute(text(create))
    paths()
    exact = await ids_of(store, QUERY, "n")
    ids = await ids_of(store, QUERY, "n")
    assert paths() == ["exact", "ann"]
    assert len({*ids} & {*exact}) >= 9
    assert partition_of(sent[-1], "grown") is not None


async def test_more_results_than_the_index_can_find(
    engine: AsyncEngine, sent: list[str], paths: Callable[[], list[str]]
) -> None:
    """A search for nearly all rows compares them at once; other searches keep using the index."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", LARGE)
    await remember(store, sent, "n")
    fetch = rows_to_fetch(1000)
    assert fetch > LARGE
    paths()
    sent.clear()
    for _ in range(4):
        ids = await ids_of(store, QUERY, "n", 1000)
        assert ids == await ids_of(store, QUERY, "n", 1000, exact=True)
    # The first search names the partition in vain. Each of the others is one statement.
    assert len(sent) == 9
    assert paths() == ["exact"] * 8
    sent.clear()
    await ids_of(store, QUERY, "n", 10)
    assert paths() == ["ann"]
    assert len(sent) == 1
    assert "cenote_few" not in sent[0]


async def test_a_filtered_namespace_grows(
    engine: AsyncEngine, paths: Callable[[], list[str]]
) -> None:
    """If all searches have a filter, growth is noticed within 100 searches, and results are right.

    The statements of namespaces with 301 to 1,000 rows do not count the rows.
    """
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 500)
    await ids_of(store, QUERY, "n")
    await insert(engine, "n", 3000, first=500)
    await store.upsert([embedded("new", QUERY, metadata={"k": 3})], "n")
    paths()
    for _ in range(103):
        assert (await ids_of(store, QUERY, "n", 5, {"k": {"$lt": 5}}))[0] == "new"
    assert paths()[-1] == "ann"


async def test_a_namespace_is_emptied_and_refilled(store: PgVectorStore) -> None:
    """An empty namespace has no results, and a refilled one has its new rows."""
    for round_ in range(3):
        for size in (5, LARGE):
            await store.upsert(
                [embedded(f"{round_}-{n}", [1, n, n % 7, 1]) for n in range(size)], "n"
            )
            for _ in range(3):
                ids = await ids_of(store, QUERY, "n", 5)
                assert len(ids) == 5
                assert all(chunk_id.startswith(f"{round_}-") for chunk_id in ids)
            await store.delete_namespace("n")
            for _ in range(2):
                assert await ids_of(store, QUERY, "n", 5) == []


async def test_a_namespace_shrinks(
    engine: AsyncEngine, sent: list[str], paths: Callable[[], list[str]]
) -> None:
    """All results are found at once, and the ANN index is not asked again."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 5000)
    await remember(store, sent, "n")
    assert paths()[-1] == "ann"
    await execute(engine, "DELETE FROM cenote_chunks WHERE id >= '000020'")
    exact = await ids_of(store, QUERY, "n", 40, exact=True)
    assert len(exact) == 20
    await remember(store, sent, "n")
    paths()
    await execute(engine, "DELETE FROM cenote_chunks WHERE id >= '000019'")
    for _ in range(search_hints._MAX_USES + 2):
        assert len(await ids_of(store, QUERY, "n", 40)) == 19
    assert set(paths()) == {"exact"}
    # At last, the statement for small namespaces is used.
    assert "ef_search" not in sent[-1]


async def test_a_large_namespace_shrinks_without_another_size_hint(
    engine: AsyncEngine, sent: list[str], paths: Callable[[], list[str]]
) -> None:
    """The first search after the deletion is complete."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 5000)
    await remember(store, sent, "n")
    await execute(engine, "DELETE FROM cenote_chunks WHERE id >= '000020'")
    assert len(await ids_of(store, QUERY, "n", 40)) == 20
    for _ in range(search_hints._MAX_USES + 2):
        await ids_of(store, QUERY, "n", 40)
    assert "ef_search" not in sent[-1]


@pytest.mark.parametrize(("zeros", "others"), [(5, 0), (5, 3), (LARGE, 5), (LARGE, LARGE)])
async def test_zero_vectors(
    store: PgVectorStore, engine: AsyncEngine, zeros: int, others: int
) -> None:
    """Rows with zero vectors have no similarity and are never results; the others all are."""
    await insert(engine, "n", zeros + others)
    await execute(
        engine, f"UPDATE cenote_chunks SET embedding = '[0,0,0,0]' WHERE id < '{zeros:06}'"
    )
    for _ in range(4):
        for limit in (2, 10, 2000):
            for filter in (None, {"k": 1}):
                ids = await ids_of(store, QUERY, "n", limit, filter)
                assert len(ids) == len(
                    await ids_of(store, QUERY, "n", limit, filter, exact=True)
                ), (limit, filter)
                assert all(chunk_id >= f"{zeros:06}" for chunk_id in ids)
                if filter is None:
                    assert len(ids) == min(limit, others)


@pytest.mark.parametrize("partitions", [0, 2])
async def test_the_index_scan_ends_early(engine: AsyncEngine, partitions: int) -> None:
    """All results are found if the ANN scan gives up among other namespaces' nearer rows."""
    store = PgVectorStore(engine, 4, table_name="other", partitions=partitions)
    await store.apply_migrations()
    # "far" shares its partition with "near0" or with "near1".
    for name in ("near0", "near1", "near2", "near3"):
        near = [embedded(f"{n:05}", [1, 0.001 * n, 0, 0]) for n in range(EXACT_UP_TO)]
        await store.upsert(near, name)
    far = [embedded(f"{n:05}", [-1, 0, 0.001 * n, 0]) for n in range(LARGE)]
    await store.upsert(far, "far")
    for limit in (10, 10, 10, 10, 300, 10):
        for filter in (None, {"$not": {"x": 1}}):
            ids = await ids_of(store, [1, 0, 0, 0], "far", limit, filter)
            assert len(ids) == limit
            exact = await ids_of(store, [1, 0, 0, 0], "far", limit, filter, exact=True)
            assert ids == exact
        store._partition_searches.hints.places.put(
            "far", search_hints.Place(await partition_with(engine, "far", "other"), LARGE)
        )


# -- several stores


_WRITER = """
import asyncio, sys
from cenote import PgVectorStore, SchemaConfig
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.maintenance import repartition
from cenote.migrate.versions import version_table
from cenote.postgres.dsn import create_engine
from cenote.testing import embedded

async def main():
    engine = create_engine(sys.argv[1])
    store = PgVectorStore(engine, 4)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "fill":
            namespace, first, last = arguments[0], *map(int, arguments[1:])
            chunks = [embedded(f"{n:06}", [1, n, n % 7, 1]) for n in range(first, last)]
            await store.upsert(chunks, namespace)
        elif command == "empty":
            await store.delete_namespace(arguments[0])
        else:
            config = SchemaConfig(dimensions=4, partitions=int(arguments[0]))
            assert await repartition(engine, config)
        print("done", flush=True)
    await engine.dispose()

asyncio.run(main())
"""


async def test_another_process_writes_and_repartitions(
    dsn: str, engine: AsyncEngine, sent: list[str]
) -> None:
    """A store finds at once what another process has written, wherever the rows are."""
    store = PgVectorStore(engine, 4)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, dsn,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    async def tell(command: str) -> None:
        process.stdin.write(command.encode() + b"\n")  # type: ignore[union-attr]
        await asyncio.wait_for(process.stdout.readline(), 60)  # type: ignore[union-attr]

    size = 0
    for command in (
        "fill n 0 10", f"fill n 10 {LARGE}", "repartition 4", "repartition 8", "empty n",
        "fill n 0 7", "repartition 4", f"fill n 7 {LARGE}", "repartition 0", "repartition 2",
    ):  # fmt: skip
        searching = asyncio.create_task(tell(command))
        while not searching.done():  # meanwhile, either the old or the new rows are found
            await ids_of(store, QUERY, "n", 5)
        await searching
        match command.split():
            case ["fill", _, _, last]:
                size = int(last)
            case ["empty", _]:
                size = 0
        ten_minutes_later(store)
        for limit in (5, 50, 5):
            assert len(await ids_of(store, QUERY, "n", limit)) == min(size, limit), command
    assert any(map(partition_of, sent))
    process.stdin.close()
    assert await process.wait() == 0


@on_both_stores
async def test_two_stores_of_one_engine(engine: AsyncEngine, sent: list[str]) -> None:
    """Stores of two tables on one engine do not share hints, and see each other's writes."""
    one, two = store_on(engine, 4), PgVectorStore(engine, 4)
    other = store_on(engine, 4, table_name="other", partitions=2)
    await other.apply_migrations()
    await one.upsert([embedded("a")], "n")
    await other.upsert([embedded("x"), embedded("y")], "n")
    for _ in range(3):
        assert await ids_of(one, QUERY, "n") == await ids_of(two, QUERY, "n") == ["a"]
        assert await ids_of(other, QUERY, "n") == ["x", "y"]
    await two.delete(["a"], "n")
    assert await ids_of(one, QUERY, "n") == []
    await two.upsert([embedded("b")], "n")
    assert await ids_of(one, QUERY, "n") == ["b"]


# -- what a store remembers


async def test_hints_are_bounded(store: PgVectorStore) -> None:
    """Hints of 100,000 namespaces with filters take less than 10 MB."""
    await store.upsert([embedded("a")], "n")
    await store.search(QUERY, "n")
    hints = store._partition_searches.hints
    tracemalloc.start()
    for number in range(10**5):
        hints.places.put(f"namespace-{number}", search_hints.Place("cenote_chunks_p00", number))
        hints.filters.put((f"namespace-{number}", number * 10**12), "exact")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(hints.places) == len(hints.filters) == search_hints._MAX_HINTS
    assert size < 10e6
    # The most recent ones are kept.
    assert hints.places.get("namespace-99999") is not None
    assert hints.places.get("namespace-0") is None


async def test_filters_do_not_stay_in_memory(store: PgVectorStore, engine: AsyncEngine) -> None:
    """Searches with long filters are remembered without the filters' values."""
    await insert(engine, "n", LARGE)
    for number in range(5):
        await store.search(QUERY, "n", 10, {"k": {"$in": [*range(1000 + number)]}})
    keys = [*store._partition_searches.hints.filters._entries]
    assert len(keys) == 5
    assert all(len(repr(key)) < 100 for key in keys)


async def test_few_statements_name_partitions(
    engine: AsyncEngine, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 64 statements name a partition, and 200 are prepared on each connection.

    The others name the chunk table. After a minute without use, a statement makes room.
    """
    store = PgVectorStore(engine, 4)
    namespaces = [f"n{number}" for number in range(40)]
    for namespace in namespaces:
        await insert(engine, namespace, 310)
    searches = [
        (namespace, limit, filter)
        for namespace in namespaces
        for limit, filter in [
            (5, None),
            (5, {"k": 1}),
            (5, {"k": {"$gt": 3}}),
            (90, {"j": None}),
            (5, {"k": {"$lt": 3}}),
            (5, {"k": {"$ne": 3}}),
            (5, {"k": {"$in": [1, 2]}}),
        ]
    ]
    for _ in range(3):
        for namespace, limit, filter in searches:
            ids = await ids_of(store, QUERY, namespace, limit, filter)
            assert len(ids) == (limit if filter != {"j": None} else 0)
    named = {sql for sql in sent if partition_of(sql)}
    assert 48 < len(named) <= 64
    async with engine.connect() as connection:
        prepared = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    assert prepared <= 200
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    del sent[:]
    await ids_of(store, QUERY, "n0", 5, {"k": {"$lt": 9}})
    await ids_of(store, QUERY, "n0", 5, {"k": {"$lt": 9}})
    assert partition_of(sent[-1]) is not None
    assert len(store._partition_searches._texts) <= 64


# -- privileges and schemas


@pytest.fixture
async def app(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Engine of a role that may read the chunk table, and has no privilege on its partitions."""
    await execute(engine, APP_ROLE, "GRANT SELECT ON cenote_chunks TO cenote_app")
    app = create_async_engine(engine.url.set(username="cenote_app"))
    yield app
    assert app.pool.checkedout() == 0  # type: ignore[attr-defined]
    await app.dispose()


@pytest.mark.parametrize("size", [5, LARGE])
async def test_a_role_without_privileges_on_partitions(
    engine: AsyncEngine, app: AsyncEngine, size: int
) -> None:
    """Searches read the chunk table, also after privileges on partitions come and go."""
    sent = watch(app)
    await insert(engine, "n", size)
    partition = await partition_with(engine, "n")
    store = PgVectorStore(app, 4)
    exact = await ids_of(PgVectorStore(engine, 4), QUERY, "n", exact=True)
    for _ in range(4):
        assert await ids_of(store, QUERY, "n") == exact
        assert await ids_of(store, QUERY, "n", 10, {"k": 77}) == []
    assert not any(map(partition_of, sent))
    assert "attached" in sent[-1]
    await execute(engine, f"GRANT SELECT ON {partition} TO cenote_app")
    ten_minutes_later(store)
    for _ in range(4):
        assert await ids_of(store, QUERY, "n") == exact
    assert partition_of(sent[-1]) == partition
    await execute(engine, f"REVOKE SELECT ON {partition} FROM cenote_app")
    for _ in range(4):
        assert await ids_of(store, QUERY, "n") == exact
        assert await ids_of(store, QUERY, "n", 10, {"k": 77}) == []
    assert partition_of(sent[-1]) is None
    await execute(engine, "REVOKE SELECT ON cenote_chunks FROM cenote_app")
    with pytest.raises(VectorStoreError) as error:
        await store.search(QUERY, "n")
    assert error.value.sqlstate == "42501"


@pytest.mark.parametrize("partitions", [(4, 4), (4, 0), (0, 4), (4, 8)])
@pytest.mark.parametrize("sizes", [(5, 3), (LARGE, 3), (3, LARGE)])
async def test_a_search_path_that_differs_between_connections(
    engine: AsyncEngine, partitions: tuple[int, int], sizes: tuple[int, int]
) -> None:
    """A search finds the rows of its connection's schema only, and all of them.

    Two schemas have a table of the same name, and the pool sets the search path at each checkout.
    """
    for schema, count, size in zip("ab", partitions, sizes, strict=True):
        await execute(engine, f"CREATE SCHEMA {schema}")
        store = PgVectorStore(engine, 4, schema=schema, partitions=count)
        await store.apply_migrations()
        await insert(engine, "n", size, table=f"{schema}.cenote_chunks")
        await execute(engine, f"UPDATE {schema}.cenote_chunks SET id = '{schema}' || id")
    await execute(engine, "DROP TABLE public.cenote_chunks")
    switched = create_async_engine(engine.url, pool_size=1, max_overflow=0)
    search_path = "a"

    @event.listens_for(switched.sync_engine, "checkout")
    def _(connection: Any, record: Any, proxy: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET search_path = {search_path}, public")
        connection.commit()
        cursor.close()

    store = PgVectorStore(switched, 4)
    for round_ in range(24):
        search_path = ("a", "b", "a, b", "b, a")[round_ // 2 % 4]
        schema, size = search_path[0], sizes["ab".index(search_path[0])]
        ids = await ids_of(store, QUERY, "n", 4)
        assert len(ids) == min(4, size)
        assert {chunk_id[0] for chunk_id in ids} == {schema}
        if round_ % 8 == 7:
            ten_minutes_later(store)
    await switched.dispose()


async def test_temporary_tables_with_the_partitions_names(
    dsn: str, engine: AsyncEngine, sent: list[str]
) -> None:
    """A temporary table that hides a partition is not searched."""
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", 5)
    partition = await remember(store, sent, "n")
    await execute(
        engine,
        f"CREATE TEMPORARY TABLE {partition} (LIKE {partition})",
        f"INSERT INTO {partition} SELECT * FROM public.{partition}",
        f"UPDATE {partition} SET id = 'stolen' || id",
    )
    ids = await ids_of(store, QUERY, "n")
    assert any(partition_of(sql) == partition for sql in sent[-2:])
    assert sorted(ids) == [f"{number:06}" for number in range(5)]


# -- the caller's transaction


@pytest.mark.parametrize("size", [5, LARGE])
@on_both_stores
async def test_a_callers_transaction_uses_no_hints(
    engine: AsyncEngine, sent: list[str], size: int
) -> None:
    """In a caller's transaction, no partition is named, and the settings stay as they are."""
    store = store_on(engine, 4)
    await insert(engine, "n", size)
    await remember(store, sent, "n")
    settings = text(
        "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan'),"
        " current_setting('hnsw.max_scan_tuples')"
    )
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL hnsw.ef_search = 77"))
        await connection.execute(text("SET LOCAL hnsw.max_scan_tuples = 1234"))
        del sent[:]
        executed: list[str] = []

        @event.listens_for(connection.sync_connection, "before_cursor_execute")
        def _(connection: Any, cursor: Any, sql: str, *rest: Any) -> None:
            executed.append(sql)

        await ids_of(store, QUERY, "n", session=connection)
        await ids_of(store, QUERY, "n", 5, {"k": 1}, session=connection)
        # asyncpg's logger does not see the statements that SQLAlchemy executes.
        assert sent == ([] if engine.dialect.driver == "asyncpg" else executed)
        assert len(executed) == 2
        assert not any(map(partition_of, executed))
        assert not any("attached" in sql for sql in executed)
        assert (await connection.execute(settings)).one() == ("77", "off", "1234")


async def test_searches_leave_no_settings_on_their_connections(dsn: str, sent: list[str]) -> None:
    """A connection has the application's settings after each kind of search."""
    engine = create_async_engine(
        make_url(dsn).set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=0
    )
    store = PgVectorStore(engine, 4)
    await insert(engine, "n", LARGE)
    settings = (
        "SELECT current_setting('hnsw.ef_search') || current_setting('hnsw.iterative_scan')"
        " || current_setting('hnsw.max_scan_tuples')"
    )
    for filter in (None, {"k": 1}, {"k": {"$ne": 1}}):
        for _ in range(4):
            await ids_of(store, QUERY, "n", 10, filter)
            assert await scalar(engine, settings) == "40off20000"
    await engine.dispose()


# -- equal to the reference


class TestReference:
    """Searches with hints return what the statement without hints returns."""

    @pytest.fixture
    async def filled(self, class_engine: AsyncEngine) -> PgVectorStore:
        """Store with namespaces of many sizes, ties, and zero vectors."""
        store = PgVectorStore(class_engine, 4)
        if not await store.count("n0"):
            for number, size in enumerate((1, 4, 40, 299, 301, 999, 1000, 1001, 1200)):
                await insert(class_engine, f"n{number}", size)
            await execute(
                class_engine,
                "UPDATE cenote_chunks SET embedding = '[1,2,3,4]' WHERE position % 7 = 3",
                "UPDATE cenote_chunks SET embedding = '[0,0,0,0]' WHERE position % 11 = 3",
                "ANALYZE cenote_chunks",
            )
        return store

    async def test_random_searches(self, filled: PgVectorStore, class_engine: AsyncEngine) -> None:
        """Exact results are equal, including their order; at least 90 % of the others are."""
        filters = st.sampled_from(
            [None, {"k": 1}, {"k": {"$ne": 2}}, {"k": {"$gt": 5}}, {"k": {"$in": [1, 2]}},
             {"k": 99}, {"$or": [{"k": 1}, {"k": 2}]}, {"$not": {"k": 3}}, {"k": None}]
        )  # fmt: skip
        searches = st.tuples(
            st.integers(0, 9),
            filters,
            st.sampled_from([1, 2, 10, 60, 1000, 1500]),
            st.sampled_from([None, None, 1, 3]),
            st.sampled_from([None, None, 0.5, 1.0]),
            st.booleans(),
            st.tuples(*[st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])] * 4),
        )

        async def check(drawn: list[Any]) -> None:
            for number, filter, limit, per_document, min_score, exact, query in drawn:
                options = {
                    "per_document": per_document, "min_score": min_score, "exact": exact,
                }  # fmt: skip
                arguments = (query, f"n{number}", limit, filter)
                hinted = await ids_of(filled, *arguments, **options)
                expected = await reference(filled, class_engine, *arguments, **options)
                assert len(hinted) == len(expected), (arguments, options)
                if exact or number < 7 or set(hinted) == set(expected):
                    assert hinted == expected, (arguments, options)
                else:
                    common = len({*hinted} & {*expected})
                    assert common >= 0.9 * len(expected), (arguments, options)

        loop = asyncio.get_running_loop()

        @settings(max_examples=20, deadline=None, suppress_health_check=[*HealthCheck])
        @given(st.lists(searches, min_size=8, max_size=8))
        def run(drawn: list[Any]) -> None:
            asyncio.run_coroutine_threadsafe(check(drawn), loop).result(60)

        await asyncio.to_thread(run)


# -- plans


class TestPlans:
    """Prepared statements that name a partition stay on the ANN index of a large namespace."""

    @pytest.fixture(params=["partitioned", "plain"])
    async def wide(self, request: pytest.FixtureRequest, engine: AsyncEngine) -> PgVectorStore:
        """Store with 6,000 rows of one namespace after 3,000 namespaces of 3 rows each."""
        partitions = 2 if request.param == "partitioned" else 0
        store = PgVectorStore(engine, 384, table_name="wide", partitions=partitions)
        await store.apply_migrations()
        index, definition = await _ann_index(engine, "wide")
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP INDEX {index}"))
            await connection.execute(
                text("""
                    INSERT INTO wide (namespace, id, document_id, content, position, metadata,
                        content_hash, embedding, embedding_model)
                    SELECT CASE WHEN n < 9000 THEN 't' || n / 3 ELSE 'n' END, n, 'd', 'text', n,
                        jsonb_build_object('k', n % 10), '',
                        (SELECT array_agg(sin(n * i)) FROM generate_series(1, 384) AS i)::vector,
                        'model'
                    FROM generate_series(0, 14999) AS n
                """)
            )
            await connection.execute(text(definition))
        return store

    async def test_plans(self, wide: PgVectorStore, engine: AsyncEngine) -> None:
        """Custom and generic plans use the right index, as does the twentieth execution."""
        await self.check_ann_index(wide, engine, "ann", analyzed=False)
        await self.check_ann_index(wide, engine, "either", analyzed=False)
        await execute(engine, "ANALYZE wide")
        await self.check_ann_index(wide, engine, "ann", analyzed=True)
        await self.check_ann_index(wide, engine, "either", analyzed=True)
        await self.check_small_namespace(wide, engine)

    async def check_ann_index(
        self, wide: PgVectorStore, engine: AsyncEngine, strategy: Any, *, analyzed: bool
    ) -> None:
        partition = await partition_with(engine, "n", "wide")
        plain = partition == "wide"
        scopes: list[Any] = [(None, "plain")] if plain else [(partition, "partition")]
        if analyzed and not plain:
            scopes.append((None, "partitioned"))
        query = str([1.0, 0.5] * 192)
        async with engine.connect() as connection:
            await prepare(connection, migrations="nothing")
            for scope in scopes:
                for filter in (None, {"k": {"$lt": 8}}):
                    conditions = Conditions(as_filter(filter))
                    fetch = rows_to_fetch(10)
                    statement = wide._searches.partition_search(
                        scope[0], scope[1], strategy, conditions, fetch, per_document=None
                    )
                    parameters = {
                        "namespace": "n", "query": query, "partition": partition, "parent": "wide",
                        **wide._searches.search_parameters(10), **conditions.parameters,
                    }  # fmt: skip
                    for mode in ("force_custom_plan", "force_generic_plan", "auto"):
                        if scope[1] == "partitioned" and mode == "force_generic_plan":
                            # The namespace is compared as in the statement without hints, for
                            # pruning. Postgres chooses no generic plan for a partitioned table.
                            continue
                        plan = await explain(connection, statement, mode, parameters, after=20)
                        scans = [
                            line
                            for line in plan.splitlines()
                            if " using " in line and "embedding" in line
                        ]
                        executed = [line for line in scans if "never executed" not in line]
                        assert len(executed) == 1, f"{scope} {filter} {mode}\n{plan}"
                        # The namespace's rows are the last ones of the table.
                        reads = [line for line in plan.splitlines() if "Seq Scan on wide" in line]
                        if strategy == "either":  # also counts the matches, with any scan
                            reads = reads[1:]
                        assert all("never executed" in line for line in reads), (
                            f"{filter} {mode}\n{plan}"
                        )
                        if strategy == "either":
                            assert "(never executed)" in plan  # the exact branch

    async def check_small_namespace(self, wide: PgVectorStore, engine: AsyncEngine) -> None:
        """Check that the statement for small namespaces reads none of the other rows."""
        partition = await partition_with(engine, "t1500", "wide")
        plain = partition == "wide"
        scope: Any = (None, "plain") if plain else (partition, "partition")
        async with engine.connect() as connection:
            await prepare(connection, migrations="nothing")
            for filter in (None, {"k": {"$lt": 8}}, {"k": 1}):
                conditions = Conditions(as_filter(filter))
                statement = wide._searches.partition_search(
                    scope[0], scope[1], "small", conditions, None, per_document=None
                )
                parameters = {
                    "namespace": "t1500", "query": str([1.0, 0.5] * 192), "partition": partition,
                    "parent": "wide", **wide._searches.search_parameters(10),
                    **conditions.parameters,
                }  # fmt: skip
                for mode in ("force_custom_plan", "force_generic_plan", "auto"):
                    plan = await explain(connection, statement, mode, parameters, after=20)
                    assert "Seq Scan on wide" not in plan, f"{filter} {mode}\n{plan}"
                    assert "metadata_idx" not in plan, f"{filter} {mode}\n{plan}"


@pytest.mark.parametrize("kind", ["inherits", "other key"])
async def test_tables_that_spread_a_namespace(engine: AsyncEngine, kind: str) -> None:
    """If several tables may hold a namespace's rows, no partition is named."""
    assert await repartition(engine, SchemaConfig(dimensions=4, partitions=0))
    if kind == "inherits":
        await execute(engine, "CREATE TABLE child () INHERITS (cenote_chunks)")
        await insert(engine, "n", 3, table="child")
        await insert(engine, "m", 3, first=3)
        await insert(engine, "m", 1, table="child")
    else:
        await execute(
            engine,
            "ALTER TABLE cenote_chunks RENAME TO old",
            "CREATE TABLE cenote_chunks (LIKE old INCLUDING DEFAULTS) PARTITION BY HASH (id)",
            *(
                f"CREATE TABLE cenote_chunks_p{number:02} PARTITION OF cenote_chunks"
                f" FOR VALUES WITH (MODULUS 2, REMAINDER {number})"
                for number in (0, 1)
            ),
        )
        await insert(engine, "n", 3, first=100)
        await insert(engine, "m", 3)
    store = PgVectorStore(engine, 4)
    for _ in range(3):
        assert len(await ids_of(store, QUERY, "n")) == 3
        assert len(await ids_of(store, QUERY, "m")) == (4 if kind == "inherits" else 3)
    await insert(engine, "n", 20, first=200)
    assert len(await ids_of(store, QUERY, "n", 40)) == 23
