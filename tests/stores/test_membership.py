"""Long lists in filters: the server and the in-memory store look values up in a hashed set."""

from __future__ import annotations

import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from support.database import APP_ROLE, execute, scalar
from support.drivers import ASYNCPG, another_engine, on_both_stores, store_on

from cenote import ChunkRow, InMemoryVectorStore, PgVectorStore, field, meta
from cenote.filters import Filter, predicates
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.filters.operands import json_token
from cenote.stores.memory import metadata_index
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded, stored

QUERY = [1.0, 0.5, 0.25, 0.125]
ROWS = EXACT_UP_TO + 200
WANTED = [f"d{number}" for number in range(30)]
TAGS = ["x", *range(30)]

FILTERS: dict[str, Filter] = {
    "in_": meta("doc").in_(WANTED),
    "not_in": meta("doc").not_in(WANTED),
    "path": meta("deep", "doc").in_([*WANTED, None, [1], 1.5]),
    "any_of": meta("tags").any_of(TAGS),
    "not any_of": ~meta("tags").any_of(["y", *WANTED]),
    "all_of": meta("tags").all_of(["x"] * 30),
    "not all_of": ~meta("tags").all_of(TAGS),
    "or": meta("doc").in_(WANTED) | meta("tags").any_of(TAGS) | (meta("n") > 5),
}

Method = Callable[[PgVectorStore, Filter], Awaitable[Any]]


async def _in_session(store: PgVectorStore, filter: Filter) -> None:
    async with AsyncSession(store.engine) as session:
        await store.search(QUERY, "n", 5, filter, session=session)


async def _statement(store: PgVectorStore, filter: Filter, **options: Any) -> None:
    async with AsyncSession(store.engine) as session, store.tenant(session, "n"):
        await session.execute(store.search_statement(QUERY, "n", 5, filter, **options))


def _where(filter: Filter) -> dict[str, Any]:
    return {"filter": filter, "where": ChunkRow.position >= 0}


METHODS: dict[str, Method] = {
    "count": lambda store, filter: store.count("n", filter),
    "list_chunks": lambda store, filter: store.list_chunks("n", filter, limit=3, after="00005"),
    "get_all_chunks": lambda store, filter: stored(store, "n", filter),
    "get_all_chunks where": lambda store, filter: stored(store, "n", **_where(filter)),
    "search": lambda store, filter: store.search(QUERY, "n", 5, filter),
    "search again": lambda store, filter: store.search(QUERY, "n", 5, filter),
    "search once more": lambda store, filter: store.search(QUERY, "n", 5, filter),
    "search of a small namespace": lambda store, filter: store.search(QUERY, "small", 5, filter),
    "small namespace again": lambda store, filter: store.search(QUERY, "small", 5, filter),
    "exact": lambda store, filter: store.search(QUERY, "n", 5, filter, exact=True),
    "per_document": lambda store, filter: store.search(QUERY, "n", 5, filter, per_document=1),
    "where": lambda store, filter: store.search(QUERY, "n", 5, **_where(filter)),
    "session": _in_session,
    "search_many": lambda store, filter: store.search_many([QUERY, QUERY], "n", 5, filter),
    "search_text": lambda store, filter: store.search_text("text", "n", 5, filter),
    "search_hybrid": lambda store, filter: store.search_hybrid("text", QUERY, "n", 5, filter),
    "search_statement": _statement,
    "search_statement where": lambda store, filter: _statement(store, **_where(filter)),
    "exact search_statement": lambda store, filter: _statement(store, filter, exact=True),
    "delete_matching": lambda store, filter: store.delete_matching(filter, "other"),
}


def _chunks(rows: int) -> list[Any]:
    return [
        embedded(
            f"{n:05}",
            [1, n, n % 7, 0],
            content="text",
            document_id=f"d{n}",
            position=n,
            metadata={"doc": f"d{n}", "deep": {"doc": f"d{n}"}, "tags": ["x", n], "n": n},
        )
        for n in range(rows)
    ]


@pytest.fixture(params=[False, True], ids=["plain", "row security"])
async def store(
    request: pytest.FixtureRequest, empty_engine: AsyncEngine
) -> AsyncIterator[PgVectorStore]:
    """A store with full text, with and without row security."""
    options = {"text_search": "english", "row_security": request.param}
    admin_store = PgVectorStore(empty_engine, 4, **options)
    await admin_store.apply_migrations()
    await execute(empty_engine, APP_ROLE)
    await execute(empty_engine, "GRANT ALL ON cenote_chunks TO cenote_app")
    user = "cenote_app" if request.param else empty_engine.url.username
    engine = create_async_engine(empty_engine.url.set(username=user))
    store = PgVectorStore(engine, 4, **options)
    await store.upsert(_chunks(ROWS), "n")
    await store.upsert(_chunks(50), "small")
    await execute(empty_engine, "ANALYZE cenote_chunks")
    yield store
    await engine.dispose()


@pytest.mark.parametrize("name", FILTERS)
async def test_every_statement_hashes_the_list(store: PgVectorStore, name: str) -> None:
    """Custom and generic plans of every statement hash the list; none joins it."""
    sent: list[tuple[str, Any]] = []
    engine = store.engine.sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def _(connection: Any, cursor: Any, sql: str, parameters: Any, *rest: Any) -> None:
        if "jsonb_array_elements" in sql:
            sent.append((sql, parameters))

    for method, call in METHODS.items():
        before = len(sent)
        await call(store, FILTERS[name])
        assert len(sent) > before, method
    async with store.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        for sql, parameters in dict(sent).items():
            custom = await driver.fetch("EXPLAIN " + sql, *parameters)
            _check_plan("\n".join(row[0] for row in custom))
            _check_plan(await _generic_plan(driver, sql, parameters))


async def _generic_plan(driver: Any, sql: str, parameters: Any) -> str:
    """Return the generic plan, which does not depend on the values.

    Only the namespaces have values, because the server leaves out the partitions of others.
    """
    known = {"n": "'n'", "small": "'small'", "other": "'other'"}
    values = [known.get(value) if isinstance(value, str) else None for value in parameters]
    literals = ", ".join(value or "NULL" for value in values)
    await driver.execute("SET plan_cache_mode = force_generic_plan")
    await driver.execute("PREPARE generic AS " + sql)
    rows = await driver.fetch(f"EXPLAIN EXECUTE generic({literals})")
    await driver.execute("DEALLOCATE generic")
    await driver.execute("RESET plan_cache_mode")
    return "\n".join(row[0] for row in rows)


def _check_plan(plan: str) -> None:
    """Check that a plan reads each list as a hashed subplan, and not in a join or row by row."""
    hashed = set(re.findall(r"hashed SubPlan (\d+)", plan))
    lists = re.findall(r"SubPlan (\d+)\n *->  ProjectSet", plan)
    assert lists, plan
    assert hashed.issuperset(lists), plan
    assert plan.count("ProjectSet") == len(lists), plan


async def test_plan_of_many_values(store: PgVectorStore) -> None:
    """Postgres hashes 40,000 values, too: it does not estimate their number."""
    conditions = Conditions(as_filter(meta("doc").in_(f"{n:064}" for n in range(40_000))))
    statement = store._reads.count(conditions)
    async with store.engine.connect() as connection:
        compiled: Any = statement.compile(dialect=connection.dialect)
        values = compiled.construct_params({"namespace": "n", **conditions.parameters})
        driver: Any = (await connection.get_raw_connection()).driver_connection
        arguments = [values[key] for key in compiled.positiontup]
        rows = await driver.fetch("EXPLAIN (COSTS off) " + str(compiled), *arguments)
        _check_plan("\n".join(row[0] for row in rows))


@on_both_stores
async def test_long_filters_are_kept_nowhere(engine: AsyncEngine, driver: str) -> None:
    """Neither the store nor a connection keeps the statement of a filter with long values."""
    # By default, psycopg prepares a statement when it is executed for the sixth time. A ROLLBACK
    # would make it forget all.
    options = {} if driver == ASYNCPG else {"connect_args": {"prepare_threshold": 0}}
    pooled = another_engine(engine, pool_size=1, max_overflow=0, **options)
    autocommit = pooled.execution_options(isolation_level="AUTOCOMMIT")
    store = store_on(pooled, 4)
    await store.upsert(_chunks(50), "n")
    prepared = "SELECT string_agg(statement, ';') FROM pg_prepared_statements"
    filters = [
        meta("doc").in_(f"{n:064}" for n in range(40_000)),
        field("content").in_(f"{n}" for n in range(200)),
    ]
    for number, filter in enumerate(filters):
        assert not Conditions(as_filter(filter)).is_kept
        await store.count("n", filter)
        await store.search(QUERY, "n", 5, filter)
        await store.search(QUERY, "n", 5, filter)
        await stored(store, "n", filter)
        await store.delete_matching(filter, "n")
        assert len(store._reads._cache._filtered) == 0
        await store.count("n")
        gc.collect()  # asyncpg closes collected statements when it prepares another one
        await scalar(autocommit, f"SELECT {number}")
        kept = await scalar(autocommit, prepared)
        assert "count" in kept
        assert "jsonb_array_elements" not in kept
        assert "content = ANY" not in kept
    await pooled.dispose()


LONG = 40_000

LONG_FILTERS: dict[str, tuple[Filter | dict[str, Any], Callable[[int], bool]]] = {
    "in_": (meta("doc").in_([f"d{n}" for n in range(0, 2 * LONG, 2)]), lambda n: n % 2 == 0),
    "not_in": (meta("n").not_in([*range(7, LONG)]), lambda n: n < 7),
    "$in": ({"deep.doc": 1, "n": {"$in": [*range(LONG)]}}, lambda n: False),
    "$nin": ({"n": {"$nin": [float(n) for n in range(3, LONG)]}}, lambda n: n < 3),
    "path": (meta("deep", "doc").in_([f"d{n}" for n in range(5, LONG)]), lambda n: n >= 5),
    "$any": ({"tags": {"$any": [*range(100, LONG)]}}, lambda n: n >= 100),
    "any_of": (~meta("tags").any_of([*range(100, LONG)]), lambda n: n < 100),
    "all_of": (meta("tags").all_of(["x", *[9, 9.0] * (LONG // 2)]), lambda n: n == 9),
    "$all": ({"tags": {"$all": [*range(LONG)]}}, lambda n: False),
    "column": (field("content").in_([f"c{n}" for n in range(20, LONG)]), lambda n: n >= 20),
    "not column": (field("position").not_in([*range(20, LONG)]), lambda n: n < 20),
}


async def test_forty_thousand_values(engine: AsyncEngine) -> None:
    """Both stores find the rows of every kind of list with 40,000 values."""
    rows = 300
    chunks = [
        embedded(f"{n:05}", content=f"c{n}", position=n, metadata=chunk.chunk.metadata)
        for n, chunk in enumerate(_chunks(rows))
    ]
    for store in (InMemoryVectorStore(4), PgVectorStore(engine, 4)):
        await store.upsert(chunks, "n")
        for name, (filter, matches) in LONG_FILTERS.items():
            expected = [f"{n:05}" for n in range(rows) if matches(n)]
            assert await store.count("n", filter) == len(expected), name
            assert [chunk.id for chunk in await stored(store, "n", filter)] == expected, name
            found = await store.search(QUERY, "n", rows, filter)
            assert sorted(result.chunk.id for result in found) == expected, name


async def test_a_row_with_many_elements(engine: AsyncEngine) -> None:
    """A list of 5,000 elements contains all of 5,000 values, in both stores."""
    names = [f"t{n}" for n in range(5000)]
    chunks = [
        embedded("a", metadata={"tags": names}),
        embedded("b", metadata={"tags": names[1:]}),
        embedded("c", metadata={"tags": [*names[1:], "t1"]}),
        embedded("d", metadata={"tags": [names]}),
    ]
    for store in (InMemoryVectorStore(4), PgVectorStore(engine, 4)):
        await store.upsert(chunks, "n")
        for filter, expected in (
            (meta("tags").all_of(names), ["a"]),
            (meta("tags").all_of(reversed(names[1:])), ["a", "b", "c"]),
            (meta("tags").any_of(names), ["a", "b", "c"]),
            (meta("tags").in_([names, *names]), ["a"]),
        ):
            assert [chunk.id for chunk in await stored(store, "n", filter)] == expected


async def test_comparisons_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The in-memory store reads each value of a list, and each element of a row, once."""
    store = InMemoryVectorStore(4)
    await store.upsert(_chunks(500), "n")
    calls = 0

    def counted(value: Any) -> Any:
        nonlocal calls
        calls += 1
        return json_token(value)

    monkeypatch.setattr(predicates, "json_token", counted)
    monkeypatch.setattr(metadata_index, "json_token", counted)
    for values in (20, 2000):
        names = [f"d{n}" for n in range(values)]
        for filter in (
            meta("doc").in_(names),
            meta("deep", "doc").not_in(names),
            meta("tags").any_of(names),
            meta("tags").all_of(["x", *names[1:]]),
        ):
            for read in (store.count("n", filter), stored(store, "n", filter)):
                calls = 0
                await read
                assert calls <= values + 2 * 500 + 10


async def test_search_statement_with_many_values(engine: AsyncEngine) -> None:
    """A list is one parameter of a search statement, however long it is."""
    store = PgVectorStore(engine, 4)
    await store.upsert(_chunks(50), "n")
    for filter in (
        meta("doc").in_(f"d{n}" for n in range(0, 4000, 2)),
        meta("tags").any_of(range(0, 4000, 2)),
        {"n": {"$in": [*range(0, 80_000, 2)]}},
    ):
        async with AsyncSession(engine) as session:
            found = (await session.execute(store.search_statement(QUERY, "n", 99, filter))).all()
        assert {row[0].position % 2 for row in found} == {0}
        assert len(found) == 25
