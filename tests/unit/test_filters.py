"""Filters in Postgres: plans, user columns and long filters."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.schema import CreateIndex
from support.library import Document, Passage, passage
from support.plans import explain

from cenote import InMemoryVectorStore, InvalidInputError, PgVectorStore, field, meta
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.orm import metadata_index
from cenote.postgres.ddl import vacuum_analyze
from cenote.testing import embedded, stored


async def explain_count(store: PgVectorStore, filter: Any) -> str:
    """Return the plan of a count with this filter, after several executions."""
    conditions = Conditions(as_filter(filter))
    statement = store._reads.count(conditions)
    parameters = {"namespace": "n", **conditions.parameters}
    async with store.engine.connect() as connection:
        return await explain(connection, statement, "force_custom_plan", parameters, after=12)


@pytest.fixture
async def indexed(store: PgVectorStore, engine: AsyncEngine) -> PgVectorStore:
    """A store with indexes on some keys of the metadata."""
    chunks = [
        embedded(
            f"{n:05}",
            [1, n, 0, 0],
            document_id=f"d{n // 10}",
            metadata={"n": n, "name": f"name {n:05}", "tags": [n % 500, "x"], "deep": {"n": n}},
        )
        for n in range(6000)
    ]
    await store.bulk_load(chunks, "n")
    async with engine.begin() as connection:
        for path, kind in ((("n",), "number"), (("name",), "text"), (("deep", "n"), "number")):
            index: Any = metadata_index("cenote_chunks", *path, kind=kind)  # type: ignore[arg-type]
            await connection.execute(CreateIndex(index))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        # VACUUM also merges GIN's pending list.
        await connection.execute(vacuum_analyze("cenote_chunks", None))
    return store


@pytest.mark.parametrize(
    ("filter", "index"),
    [
        ({"n": 7}, "metadata_idx"),
        (meta("deep", "n") == 7, "metadata_idx"),
        (meta("tags").contains(7), "metadata_idx"),
        (meta("tags").any_of([7, 8]), "metadata_idx"),
        (meta("n").in_([7, 8, 9]), "metadata_idx"),
        (field("document_id") == "d7", "document_id_idx"),
        (field("id").between("00010", "00019"), "pkey"),
        (meta("n") > 5990, r"Index Cond: .*CASE WHEN"),
        (meta("n").between(10, 19), r"Index Cond: .*CASE WHEN"),
        ({"deep.n": 1, "n": {"$gte": 5990}}, "metadata_idx"),
        (meta("name") >= "name 05990", r"Index Cond: .*CASE WHEN"),
        (meta("deep", "n") < 9, r"Index Cond: .*CASE WHEN"),
    ],
    ids=str,
)
async def test_filters_use_an_index(indexed: PgVectorStore, filter: Any, index: str) -> None:
    """The plan uses an index, and reads only the namespace's partition."""
    plan = await explain_count(indexed, filter)
    assert re.search(index, plan)
    assert plan.count("_p0") + plan.count("_p1") >= 1
    assert len({word for word in plan.split() if word.startswith("cenote_chunks_p")}) <= 3


async def test_results_with_indexes(indexed: PgVectorStore) -> None:
    """Postgres with indexes on metadata returns the same chunks as the in-memory store."""
    memory = InMemoryVectorStore(4)
    copies = [
        embedded(chunk.id, document_id=chunk.document_id, metadata=chunk.metadata)
        for chunk in await stored(indexed, "n")
    ]
    await memory.upsert(copies, "n")
    for filter in (meta("n") > 5990, meta("name").between("name 00010", "name 00019")):
        in_postgres, in_memory = [
            [chunk.id for chunk in await stored(store, "n", filter)] for store in (indexed, memory)
        ]
        assert in_postgres == in_memory
        assert len(in_memory) in (9, 10)


async def test_user_columns(library: AsyncEngine) -> None:
    """Filters find user columns by name; the error for an unknown column lists the names."""
    sessions = async_sessionmaker(library)
    store = PgVectorStore(sessions, model=Passage)
    async with sessions.begin() as session:
        document = Document(title="d")
        session.add(document)
        await session.flush()
        await store.upsert([passage(document, n) for n in range(3)], "t", session=session)
        doc_id = document.id
    assert len(await stored(store, "t", field("doc_id") == doc_id)) == 3
    assert len(await stored(store, "t", field("doc_id").in_([doc_id]))) == 3
    assert await stored(store, "t", field("doc_id").is_null()) == []
    assert await store.count("t", field("doc_id") != doc_id) == 0
    for invalid in (field("nothing") == 1, field("namespace") == "t", field("metadata").is_null()):
        with pytest.raises(InvalidInputError, match="no such column; filters can use id, "):
            await store.search([1, 0, 0, 0], "t", filter=invalid)
        with pytest.raises(InvalidInputError):
            store.get_all_chunks("t", invalid)


def test_filters_have_no_truth_value() -> None:
    """bool() raises TypeError, because `a and b` would silently mean `b`."""
    with pytest.raises(TypeError, match=r"&, \| and ~"):
        bool(meta("a") == 1)
    assert repr(meta("a", "b")) == "meta('a', 'b')"


def test_long_filters() -> None:
    """Filters have at most 100 predicates, counting the keys of paths, and 4 MiB of values."""
    chain = meta("a") == 0
    for number in range(1, 100):
        chain |= meta("a") == number
    assert as_filter(chain) is chain
    with pytest.raises(InvalidInputError, match="more than 100 predicates; each key"):
        as_filter(chain | (meta("a") == 100))
    paths = [meta("a", "b").exists() for _ in range(50)]
    assert as_filter({"$or": paths}) is not None
    with pytest.raises(InvalidInputError, match="more than 100 predicates"):
        as_filter({"$or": [*paths, meta("a") == 1]})
    for accepted in (
        meta("a").in_(range(100_000)),
        meta("a").not_in(f"{number:064}" for number in range(40_000)),
        {"a": {"$any": [f"{number:064}" for number in range(40_000)]}},
        {"a": {"$all": [f"{number:064}" for number in range(40_000)]}},
        {"a": "x" * (2**22 - 33)},
        field("id").in_(["é"] * 9),
    ):
        assert as_filter(accepted) is not None
    too_long: tuple[Any, ...] = (
        meta("a").in_(["x" * 10] * 100_000),
        meta("a").all_of(["x" * 10] * 100_000),
        field("id").in_(["x" * 10] * 100_000),
        meta("a") == ["é" * 100] * 20_000,
        meta("a").like("x" * 2**22 + "%%"),
        meta("a") > "x" * (2**22 + 1),
        {"a": "x" * (2**22 + 1)},
        {"x" * (2**22 + 1): {"$exists": True}},
    )
    for filter in too_long:
        with pytest.raises(InvalidInputError, match="more than 4,194,304 bytes"):
            as_filter(filter)
