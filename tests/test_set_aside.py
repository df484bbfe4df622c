"""Bulk loads into an empty partition beside full ones."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from test_bulk_load import PARTS, QUERY, ann_indexes, many

from cenote import DimensionMismatchError, EmbeddedChunk, PgVectorStore
from cenote.indexes import reindex
from cenote.progress import IndexProgress
from cenote.repartition import repartition
from cenote.testing import embedded, stored

NEIGHBOUR = "m"
"""A namespace of another partition than that of "n"."""


@pytest.fixture
async def beside(store: PgVectorStore) -> PgVectorStore:
    """A store whose table has rows, but none in the partition of "n"."""
    await store.upsert([embedded(f"{number}") for number in range(30)], NEIGHBOUR)
    return store


async def partitions(engine: AsyncEngine) -> set[str]:
    """The names of the attached ones."""
    query = text(
        "SELECT inhrelid::regclass::text FROM pg_inherits "
        "WHERE inhparent = 'cenote_chunks'::regclass"
    )
    async with engine.connect() as connection:
        return set(await connection.scalars(query))


async def tables(engine: AsyncEngine) -> set[str]:
    """The chunk table, its partitions, and what is set aside."""
    query = text("SELECT tablename FROM pg_tables WHERE tablename ~ '^cenote_chunks(_[ps]..)?$'")
    async with engine.connect() as connection:
        return set(await connection.scalars(query))


async def as_it_was(store: PgVectorStore, engine: AsyncEngine) -> None:
    """All partitions are there by their names, with their parts of the index."""
    names = {f"cenote_chunks_p{number:02}" for number in range(16)}
    assert await partitions(engine) == names
    assert await tables(engine) == {*names, "cenote_chunks"}
    assert await ann_indexes(engine) == PARTS
    assert await store.check_schema() == []


async def test_the_index_of_an_empty_partition_comes_last(
    beside: PgVectorStore, engine: AsyncEngine
) -> None:
    """Others are as complete and as indexed as before; the new rows are seen all at once."""
    during: list[Any] = []
    seen: list[Any] = []

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for number, item in enumerate(many(2500)):
            if number == 2000:  # one batch is written
                results = await beside.search(QUERY, NEIGHBOUR, 100)
                own = await beside.search(QUERY, "n", 100)
                kinds = [finding.kind for finding in await beside.check_schema()]
                parts = await ann_indexes(engine)
                during.append((len(results), len(own), kinds, parts, await tables(engine)))
            yield item

    assert await beside.bulk_load(source(), "n", progress=seen.append) == 2500
    (results, own, kinds, parts, there), *_ = during
    assert (results, own, kinds, parts) == (30, 0, ["partition_set_aside"], PARTS)
    (aside,) = there - await partitions(engine) - {"cenote_chunks"}
    assert aside.startswith("cenote_chunks_s")
    assert len(await stored(beside, "n")) == 2500
    assert len(await beside.search(QUERY, "n", 3000)) == 2500
    await as_it_was(beside, engine)
    part = aside.replace("_s", "_p") + "_embedding_idx"
    assert {one.index for one in seen if isinstance(one, IndexProgress)} == {part}


async def test_what_others_write_meanwhile_stays(
    beside: PgVectorStore, engine: AsyncEngine
) -> None:
    """The rows are added to theirs, which are newer."""

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for number, item in enumerate(many(1500)):
            if number == 1200:
                await beside.upsert([embedded("000003", content="newer"), embedded("own")], "n")
            yield item

    await beside.bulk_load(source(), "n")
    chunks = {chunk.id: chunk for chunk in await stored(beside, "n")}
    assert len(chunks) == 1501
    assert chunks["000003"].content == "newer"
    await as_it_was(beside, engine)


async def test_batches_before_an_error_are_seen(beside: PgVectorStore, engine: AsyncEngine) -> None:
    """As without any of this."""

    def source() -> Iterator[EmbeddedChunk]:
        yield from many(1500)
        yield embedded("bad", [1.0])

    with pytest.raises(DimensionMismatchError):
        await beside.bulk_load(source(), "n")
    assert len(await stored(beside, "n")) == 1000
    await as_it_was(beside, engine)


_LOADING = """
import asyncio, sys
from cenote import PgVectorStore
from cenote.testing import embedded

def source():
    for number in range(200_000):
        if number == 3000:
            print("loading", flush=True)
        yield embedded(f"{number:06}", [1.0, number % 7, number % 11, 0.5])

async def main():
    async with await PgVectorStore.connect(sys.argv[1], 4) as store:
        await store.bulk_load(source(), "n")

asyncio.run(main())
"""


async def _killed(dsn: str) -> None:
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", _LOADING, dsn], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("mended_by", ["load", "reindex", "repartition"])
async def test_a_killed_load(
    beside: PgVectorStore, engine: AsyncEngine, dsn: str, mended_by: str
) -> None:
    """Is told by a check, and mended by the next load, and by commands."""
    await _killed(dsn)
    (finding,) = await beside.check_schema()
    assert finding.kind == "partition_set_aside"
    assert "cenote reindex" in finding.cure
    if mended_by == "load":
        await beside.bulk_load(many(100), "n")
    elif mended_by == "reindex":
        await reindex(engine, beside.config)
    else:
        await repartition(engine, replace(beside.config, partitions=16))
    found = len(await stored(beside, "n"))
    assert found % 1000 == 0
    assert found >= 2000
    await as_it_was(beside, engine)


async def test_a_row_that_was_written_after_the_kill(
    beside: PgVectorStore, engine: AsyncEngine, dsn: str
) -> None:
    """Is older than the load that comes then, and replaced by it."""
    await _killed(dsn)
    await beside.upsert([embedded("000005", content="between")], "n")
    await beside.bulk_load((embedded(f"{n:06}", content="newest") for n in range(4000)), "n")
    chunks = await stored(beside, "n")
    assert {chunk.content for chunk in chunks if chunk.id < "004000"} == {"newest"}
    await as_it_was(beside, engine)


async def test_a_load_of_nothing(beside: PgVectorStore, engine: AsyncEngine, dsn: str) -> None:
    """Puts the partition back."""
    await _killed(dsn)
    assert await beside.bulk_load([], "n") == 0
    assert len(await stored(beside, "n")) >= 2000
    await as_it_was(beside, engine)


async def test_two_loads_at_once(beside: PgVectorStore, engine: AsyncEngine) -> None:
    """Of one partition: all rows of both."""

    async def slowly(start: int) -> AsyncIterator[EmbeddedChunk]:
        for number, item in enumerate(many(2400)):
            if start <= number:
                await asyncio.sleep(0)
                yield item

    counts = await asyncio.gather(
        beside.bulk_load(slowly(0), "n"), beside.bulk_load(slowly(1200), "n")
    )
    assert [*counts] == [2400, 1200]
    assert len(await stored(beside, "n")) == 2400
    await as_it_was(beside, engine)


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE cenote_chunks ADD CONSTRAINT short CHECK (length(content) < 9000)",
        "ALTER TABLE cenote_chunks ADD COLUMN tag text NOT NULL DEFAULT 'none'",
        "DROP INDEX ix_cenote_chunks_embedding",
    ],
)
async def test_a_table_that_changes_meanwhile(
    beside: PgVectorStore, engine: AsyncEngine, statement: str
) -> None:
    """Gets the rows all the same."""

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for number, item in enumerate(many(1200)):
            if number == 1100:
                async with engine.begin() as connection:
                    await connection.execute(text(statement))
            yield item

    await beside.bulk_load(source(), "n")
    assert len(await stored(beside, "n")) == 1200
    await reindex(engine, beside.config)
    await as_it_was(beside, engine)


@pytest.mark.parametrize(
    "statements",
    [
        [
            'CREATE TABLE notes (ns text COLLATE "C", id text COLLATE "C", '
            "FOREIGN KEY (ns, id) REFERENCES cenote_chunks (namespace, id))"
        ],
        [
            "CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "CREATE TRIGGER t BEFORE INSERT ON cenote_chunks FOR EACH ROW EXECUTE FUNCTION same()",
        ],
        ["ALTER TABLE cenote_chunks ENABLE ROW LEVEL SECURITY"],
    ],
)
async def test_what_hangs_on_the_table(
    beside: PgVectorStore, engine: AsyncEngine, statements: list[str]
) -> None:
    """Keeps it together: the rows go into the live index."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    there: list[set[str]] = []

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for item in many(1010):
            yield item
        there.append(await tables(engine))

    await beside.bulk_load(source(), "n")
    assert not any(name.startswith("cenote_chunks_s") for name in there[0])
    assert len(await stored(beside, "n")) == 1010
    await as_it_was(beside, engine)
