"""Bulk loads: the ANN index, concurrent searches, and interrupted loads."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import (
    DimensionMismatchError,
    EmbeddedChunk,
    InMemoryVectorStore,
    InvalidInputError,
    MigrationError,
    PgVectorStore,
    VectorStoreError,
)
from cenote.progress import IndexProgress, LoadProgress, progress_bar
from cenote.testing import embedded, stored

QUERY = [1.0, 0.5, 0.25, 0.125]


def random_chunks(count: int, seed: int = 0) -> Iterator[EmbeddedChunk]:
    """Generate chunks with random vectors."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        yield embedded(f"{number:06}", generator.standard_normal(4))


async def ann_indexes(engine: AsyncEngine) -> int:
    """Return the number of valid ANN indexes of the table and its partitions."""
    query = text(
        "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE c.relname LIKE '%embedding%' AND i.indisvalid"
    )
    async with engine.connect() as connection:
        return int((await connection.execute(query)).scalar_one())


ALL_INDEXES = 17
"""Number of ANN indexes of the table: one for each of 16 partitions, and their parent."""

OTHER_PARTITION = "m"
"""Namespace in another partition than "n"."""


async def test_an_empty_table_is_indexed_after_the_load(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """The indexes are dropped during the load, then built and analyzed; searches are complete."""
    progress: list[Any] = []
    indexes_and_results: list[tuple[int, int]] = []

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for number, item in enumerate(random_chunks(3500)):
            if number % 1000 == 0:
                results = await store.search(QUERY, "n", 5000)
                indexes_and_results.append((await ann_indexes(engine), len(results)))
            yield item

    assert await store.bulk_load(source(), "n", progress=progress.append) == 3500
    # The load holds at most one batch of chunks.
    assert indexes_and_results == [(ALL_INDEXES, 0), (0, 1000), (0, 2000), (0, 3000)]
    assert await ann_indexes(engine) == ALL_INDEXES
    assert [state.chunks for state in progress if isinstance(state, LoadProgress)] == [
        *(1000, 2000, 3000, 3500, 3500)
    ]
    assert progress[-1].done
    async with engine.connect() as connection:
        query = text("SELECT max(reltuples) FROM pg_class WHERE relname LIKE 'cenote_chunks_p__'")
        assert (await connection.execute(query)).scalar_one() == 3500
    assert await store.check_schema() == []
    assert len(await store.search(QUERY, "n", 4000)) == 3500


@pytest.mark.parametrize("existing", ["n", OTHER_PARTITION])
async def test_a_table_with_rows_keeps_its_index(
    store: PgVectorStore, engine: AsyncEngine, existing: str
) -> None:
    """The load inserts into the live index, even if the namespace's partition is empty."""
    await store.upsert([embedded("a")], existing)
    counts: list[int] = []

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for item in random_chunks(1200):
            yield item
        counts.append(await ann_indexes(engine))

    assert await store.bulk_load(source(), "n") == 1200
    assert counts == [ALL_INDEXES]
    assert await ann_indexes(engine) == ALL_INDEXES
    assert await store.check_schema() == []
    assert len(await store.search(QUERY, "n", 2000)) == await store.count("n")
    assert len(await store.search(QUERY, existing)) > 0


@pytest.mark.parametrize(("ann_index", "indexes"), [("rebuild", 0), ("keep", ALL_INDEXES)])
async def test_ann_index_argument(
    store: PgVectorStore, engine: AsyncEngine, ann_index: Any, indexes: int
) -> None:
    """`ann_index` drops the index of a table with rows, or keeps the index of an empty table."""
    if ann_index == "rebuild":
        await store.upsert([embedded("a")], "other")
    counts: list[int] = []

    async def source() -> AsyncIterator[EmbeddedChunk]:
        for item in random_chunks(1010):
            yield item
        counts.append(await ann_indexes(engine))  # after the first batch has been written

    await store.bulk_load(source(), "n", ann_index=ann_index)
    assert counts == [indexes]
    assert await ann_indexes(engine) == ALL_INDEXES


async def test_deferred_ann_index(store: PgVectorStore, engine: AsyncEngine) -> None:
    """Within the block, loads of several namespaces do not build the index; its end builds it."""
    async with store.deferred_ann_index():
        for namespace in ("a", "b", "c"):
            assert await store.bulk_load(random_chunks(20), namespace) == 20
            assert await ann_indexes(engine) == 0
    assert await ann_indexes(engine) == ALL_INDEXES
    assert await store.bulk_load(random_chunks(20), "d") == 20
    for namespace in ("a", "b", "c", "d"):
        assert len(await stored(store, namespace)) == 20


async def test_an_invalid_chunk_ends_the_load(store: PgVectorStore, engine: AsyncEngine) -> None:
    """Earlier batches stay stored. A second load writes the rest and builds the index."""

    def source(dimensions: int) -> Iterator[EmbeddedChunk]:
        yield from random_chunks(1500)
        yield embedded("bad", [1.0] * dimensions)

    with pytest.raises(DimensionMismatchError) as error:
        await store.bulk_load(source(3), "n")
    assert error.value.chunk_id == "bad"
    assert len(await stored(store, "n")) == 1000
    assert await ann_indexes(engine) == 0
    assert {finding.kind for finding in await store.check_schema()} == {"index_missing"}
    assert len(await store.search(QUERY, "n", 2000)) == 1000
    assert await store.bulk_load(source(4), "n") == 1501
    assert len(await stored(store, "n")) == 1501
    assert await ann_indexes(engine) == ALL_INDEXES


_LOADING = """
import asyncio, sys
import numpy as np
from cenote import PgVectorStore
from cenote.testing import embedded

def source():
    for number in range(200_000):
        if number == 5000:
            print("loading", flush=True)
        yield embedded(f"{number:06}", [1.0, number % 7, number % 11, 0.5])

async def main():
    async with await PgVectorStore.connect(sys.argv[1], 4) as store:
        await store.bulk_load(source(), "n")

asyncio.run(main())
"""


async def test_a_killed_load_can_be_repeated(
    store: PgVectorStore, engine: AsyncEngine, dsn: str
) -> None:
    """After SIGKILL, whole batches remain; a second load stores each chunk once."""
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", _LOADING, dsn], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGKILL)
    remaining = len(await stored(store, "n"))
    assert remaining % 1000 == 0
    assert 4000 <= remaining < 200_000
    chunks = (embedded(f"{n:06}", [1.0, n % 7, n % 11, 0.5]) for n in range(remaining + 500))
    assert await store.bulk_load(chunks, "n") == remaining + 500
    assert len(await stored(store, "n")) == remaining + 500
    assert await ann_indexes(engine) == ALL_INDEXES
    async with engine.connect() as connection:
        # The second load did not rewrite the four complete batches.
        query = text("SELECT count(DISTINCT created_at) FROM cenote_chunks WHERE id < '004000'")
        assert (await connection.execute(query)).scalar_one() == 4


async def test_a_role_that_does_not_own_the_table(
    store: PgVectorStore, engine: AsyncEngine, dsn: str
) -> None:
    """The role loads into the live index, because it cannot drop the index."""
    async with engine.begin() as connection:
        for statement in (
            "CREATE ROLE loader LOGIN",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON cenote_chunks TO loader",
        ):
            await connection.execute(text(statement))
    try:
        url = engine.url.set(username="loader", password=None)
        async with await PgVectorStore.connect(
            url.set(drivername="postgresql").render_as_string(hide_password=False), 4
        ) as loader:
            assert await loader.bulk_load(random_chunks(20), "n") == 20
            assert await ann_indexes(engine) == ALL_INDEXES
            async with store.deferred_ann_index():  # only the owner can drop the index
                assert await loader.bulk_load(random_chunks(30), "n") == 30
                assert await ann_indexes(engine) == 0
        assert await ann_indexes(engine) == ALL_INDEXES
    finally:
        async with engine.begin() as connection:
            await connection.execute(text("DROP OWNED BY loader"))
            await connection.execute(text("DROP ROLE loader"))


@pytest.mark.parametrize("build_settings", [{"memory": "lots"}, {"workers": -1}, {}])
async def test_arguments_are_checked_before_the_index_is_dropped(
    store: PgVectorStore, engine: AsyncEngine, build_settings: Any
) -> None:
    """An invalid first batch or invalid build settings leave the index in place."""
    await store.upsert([embedded("a")], "other")
    dimensions = 4 if build_settings else 3
    for load in (
        store.bulk_load(
            [embedded("b", [1.0] * dimensions)], "n", ann_index="rebuild", **build_settings
        ),
        _load_without_index(store, build_settings),
    ):
        with pytest.raises(MigrationError if build_settings else DimensionMismatchError):
            await load
    assert await ann_indexes(engine) == (ALL_INDEXES if build_settings else 0)
    assert await stored(store, "n") == []


async def _load_without_index(store: PgVectorStore, build_settings: Any) -> None:
    async with store.deferred_ann_index(**build_settings):
        await store.bulk_load([embedded("b", [1.0, 2.0, 3.0])], "n")


async def test_a_note_about_the_missing_index(store: PgVectorStore) -> None:
    """If a load fails without index, the error has a note with the command that builds it."""
    with pytest.raises(DimensionMismatchError) as error:
        await _load_without_index(store, {})
    assert "cenote reindex" in error.value.__notes__[0]


async def test_a_closed_store_does_not_drop_the_index(dsn: str, engine: AsyncEngine) -> None:
    """`bulk_load` and `deferred_ann_index` of a closed store raise an error at once."""
    store = await PgVectorStore.connect(dsn, 4)
    await store.apply_migrations()
    await store.close()
    for load in (store.bulk_load(random_chunks(1), "n"), _load_without_index(store, {})):
        with pytest.raises(VectorStoreError, match="closed"):
            await load
    assert await ann_indexes(engine) == ALL_INDEXES


async def test_a_locked_empty_table(store: PgVectorStore, engine: AsyncEngine) -> None:
    """The load does not wait for the lock, but inserts into the live index."""
    async with engine.connect() as reader:
        # The transaction stays open.
        await reader.execute(text("SELECT count(*) FROM cenote_chunks"))
        assert await store.bulk_load(random_chunks(20), "n") == 20
        assert len(await stored(store, "n")) == 20
    assert await ann_indexes(engine) == ALL_INDEXES


async def test_the_callers_generator_is_closed(store: PgVectorStore) -> None:
    """A load closes the caller's generator before it raises an error."""
    closed = []

    async def source() -> AsyncIterator[EmbeddedChunk]:
        try:
            for item in random_chunks(2000):
                yield item
            yield embedded("bad", [1.0])
            yield embedded("never")
        finally:
            await store.search(QUERY, "n")
            closed.append(True)

    with pytest.raises(DimensionMismatchError):
        await store.bulk_load(source(), "n")
    assert closed == [True]


async def test_bulk_loads_in_memory() -> None:
    """`InMemoryVectorStore` has `bulk_load` and `deferred_ann_index`, too."""
    memory = InMemoryVectorStore(4)
    progress: list[LoadProgress] = []
    async with memory.deferred_ann_index():
        assert await memory.bulk_load(random_chunks(1500), "n", progress=progress.append) == 1500
    assert [(state.chunks, state.done) for state in progress] == [
        (1000, False),
        (1500, False),
        (1500, True),
    ]
    assert len(await memory.search(QUERY, "n", 2000)) == 1500


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"embedded_chunks": 5}, "embedded_chunks"),
        ({"embedded_chunks": embedded("a")}, "embedded_chunks"),
        ({"embedded_chunks": [5]}, "embedded_chunks"),
        ({"ann_index": "never"}, "ann_index"),
        ({"namespace": ""}, "namespace"),
    ],
)
async def test_invalid_arguments(store: PgVectorStore, arguments: Any, field: str) -> None:
    """Both stores raise an error that names the argument."""
    for any_store in (store, InMemoryVectorStore(4)):
        with pytest.raises(InvalidInputError) as error:
            await any_store.bulk_load(**{"embedded_chunks": [], "namespace": "n", **arguments})
        assert error.value.field == field


def test_progress_bar() -> None:
    """The bar is drawn on a terminal, and nowhere else."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    draw = progress_bar(2000, stream=out)
    draw(LoadProgress(chunks=2000, done=True))
    draw(IndexProgress(index="i", number=2, of=2, phase="built", fraction=1.0))
    lines = out.getvalue().split("\n")
    assert lines[0].startswith("\r\x1b[K2,000 chunks of 2,000 [" + "#" * 30 + "] ")
    assert lines[1] == "\r\x1b[Kindex 2/2 [" + "#" * 30 + "] built"
    file = io.StringIO()
    progress_bar(stream=file)(LoadProgress(chunks=1))
    assert file.getvalue() == ""
