"""Filters in Postgres: which indexes serve them, a host's columns, and what is kept of them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from library import Document, Passage, passage
from plans import explain
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.schema import CreateIndex

from cenote import InMemoryVectorStore, InvalidInputError, PgVectorStore, field, meta
from cenote.ddl import VacuumAnalyze
from cenote.filters import Conditions, as_filter
from cenote.orm import metadata_index
from cenote.testing import embedded, stored


async def plan(store: PgVectorStore, filter: Any) -> str:
    """Of counting what matches, after some executions."""
    conditions = Conditions(as_filter(filter))
    statement = store._reads.count(conditions)
    parameters = {"namespace": "n", **conditions.parameters}
    async with store.engine.connect() as connection:
        return await explain(connection, statement, "force_custom_plan", parameters, after=12)


@pytest.fixture
async def indexed(store: PgVectorStore, engine: AsyncEngine) -> PgVectorStore:
    """A store with a hot key."""
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
        await connection.execute(VacuumAnalyze("cenote_chunks", None))  # GIN's pending list, too
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
async def test_an_index_serves(indexed: PgVectorStore, filter: Any, index: str) -> None:
    """Whatever can be served, in the one partition of the namespace."""
    executed = await plan(indexed, filter)
    assert re.search(index, executed)
    assert executed.count("_p0") + executed.count("_p1") >= 1
    assert len({word for word in executed.split() if word.startswith("cenote_chunks_p")}) <= 3


async def test_hot_keys_mean_the_same(indexed: PgVectorStore) -> None:
    """With the index as without it."""
    memory = InMemoryVectorStore(4)
    everything = [
        embedded(one.id, document_id=one.document_id, metadata=one.metadata)
        for one in await stored(indexed, "n")
    ]
    await memory.upsert(everything, "n")
    for filter in (meta("n") > 5990, meta("name").between("name 00010", "name 00019")):
        theirs, ours = [
            [one.id for one in await stored(store, "n", filter)] for store in (indexed, memory)
        ]
        assert theirs == ours
        assert len(ours) in (9, 10)


async def test_columns_of_the_hosts(library: AsyncEngine) -> None:
    """By their names, NULL where there is no value; others are named in the error."""
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
    for bad in (field("nothing") == 1, field("namespace") == "t", field("metadata").is_null()):
        with pytest.raises(InvalidInputError, match="there is no such column; id, "):
            await store.search([1, 0, 0, 0], "t", filter=bad)
        with pytest.raises(InvalidInputError):
            store.get_all_chunks("t", bad)


def test_filters_are_no_truth_values() -> None:
    """Or `and` would silently take the last one."""
    with pytest.raises(TypeError, match=r"&, \| and ~"):
        bool(meta("a") == 1)
    assert repr(meta("a", "b")) == "meta('a', 'b')"


def test_long_chains_are_not_nested() -> None:
    """A thousand tests in a row."""
    chain = meta("a") == 0
    for number in range(1, 1000):
        chain |= meta("a") == number
    assert as_filter(chain) is chain
    with pytest.raises(InvalidInputError, match="1,000 tests"):
        as_filter(chain | (meta("a") == 1000))
