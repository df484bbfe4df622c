"""Deletions during and after an interrupted bulk load, and what a downgrade leaves of it.

Bulk loads once set an empty partition aside while they wrote to it. Deletions did not reach its
rows, a crash hid them, and `downgrade base` left them behind. Now all rows are in the chunk table
at any time.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import cycle, product

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from support.attacks import Recorded
from support.commands import REPOSITORY, cenote, clean_environment, output_of
from support.database import execute, scalar, tables
from support.kills import How, run_and_kill, statements_of
from support.loading import LOADED, source

from cenote import PgVectorStore, VectorStoreError
from cenote.maintenance import reindex
from cenote.testing import embedded, found, stored

HOW: tuple[How, ...] = ("process", "backend")

EVERY_STATEMENT = int(os.environ.get("CENOTE_TORTURE", "1")) >= 20

QUERY = [1.0, 0.5, 0.25, 0.125]
OTHER = "other"


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine that keeps no connection, which would end with those of the load."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    yield engine
    await engine.dispose()


async def same_partition(engine: AsyncEngine) -> str:
    """Return another namespace in the partition of "n"."""
    holds = "satisfies_hash_partition('cenote_chunks'::regclass, 16, r, {}::text)"
    query = (
        "SELECT min(name) FROM generate_series(0, 15) r, (SELECT 't' || n AS name"
        f" FROM generate_series(1, 500) n) t WHERE {holds.format(repr('n'))}"
        f" AND {holds.format('name')}"
    )
    return str(await scalar(engine, query))


class Tenants:
    """The tenant that is loaded, one in its partition and one in another partition."""

    def __init__(self, store: PgVectorStore, neighbour: str) -> None:
        self.store = store
        self.neighbour = neighbour
        self.expected: set[str] = set()
        self._deleted: set[str] = set()

    async def delete_during_the_load(self, stored_chunks: int) -> None:
        """Write to the other tenants after the first batch, and delete after the second one."""
        if stored_chunks == 1000:
            for namespace in (self.neighbour, OTHER):
                await self.store.upsert([embedded("a"), embedded("b")], namespace)
        if stored_chunks == 2000:
            for namespace in (self.neighbour, OTHER):
                await self.store.delete_namespace(namespace)
            await self.store.delete(["000001"], "n")
            assert await self.store.delete_document("d3", "n") == 100
            self._deleted |= {"000001", *(f"{n:06}" for n in range(300, 400))}
            await self.check(2000)

    async def delete_after_the_load(self, count: int) -> None:
        assert await self.store.delete_document("d5", "n") == 100
        assert await self.store.delete_matching({"k": 4}, "n") == count // 10 - 20
        self._deleted |= {f"{n:06}" for n in range(count) if n // 100 == 5 or n % 10 == 4}
        await self.check(count)

    async def check(self, count: int) -> None:
        """Check that all reads see the loaded chunks without the deleted ones."""
        expected = {f"{n:06}" for n in range(count)} - self._deleted
        store = self.store
        assert {chunk.id for chunk in await stored(store, "n")} == expected
        assert await store.count("n") == len(expected)
        for options in ({}, {"exact": True}, {"filter": {"k": 3}}):
            ids = await found(store, QUERY, "n", 5000, **options)
            ids_expected = {id for id in expected if "filter" not in options or id[-1] == "3"}
            assert len(ids) == len(ids_expected)
            assert {*ids} == ids_expected
        for namespace in (self.neighbour, OTHER):
            assert await stored(store, namespace) == []
            assert await store.search(QUERY, namespace) == []
        assert await store.list_namespaces() == {"n": len(expected)}


@pytest.fixture
async def tenants(engine: AsyncEngine) -> Tenants:
    return Tenants(PgVectorStore(engine, 4), await same_partition(engine))


# -- interruptions


async def _cancelled(tenants: Tenants, dsn: str) -> None:
    paused = asyncio.Event()

    async def pause(stored_chunks: int) -> None:
        await tenants.delete_during_the_load(stored_chunks)
        if stored_chunks == 2000:
            paused.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(tenants.store.bulk_load(source(pause), "n"))
    await asyncio.wait_for(paused.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _failed(tenants: Tenants, dsn: str) -> None:
    async def pause(stored_chunks: int) -> None:
        await tenants.delete_during_the_load(stored_chunks)
        if stored_chunks == 2000:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await tenants.store.bulk_load(source(pause), "n")


async def _disconnected(tenants: Tenants, dsn: str) -> None:
    """Restrict connections and end all of them, so that the next batch is not written."""
    name = make_url(dsn).database
    admin = create_async_engine(tenants.store.engine.url.set(database="postgres"))

    async def allow(allowed: str) -> None:
        async with admin.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {allowed}'))

    async def pause(stored_chunks: int) -> None:
        await tenants.delete_during_the_load(stored_chunks)
        if stored_chunks == 2000:
            await allow("false")

    with pytest.raises(VectorStoreError):
        await tenants.store.bulk_load(source(pause), "n")
    await allow("true")
    await admin.dispose()


async def _killed(tenants: Tenants, dsn: str) -> None:
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "support.loading", "2000"],
        env={
            **clean_environment(),
            "CENOTE_DATABASE_URL": dsn,
            "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        },
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "paused\n"
        for count in (1000, 2000):
            await tenants.delete_during_the_load(count)
        process.kill()


INTERRUPTIONS: list[Callable[[Tenants, str], Awaitable[None]]] = [
    _cancelled,
    _failed,
    _disconnected,
    _killed,
]


REMEDIES = ["reindex", "another load"]
# Each interruption leaves the same state, so that one remedy for each is enough.
REPAIRS = list(
    product(INTERRUPTIONS, REMEDIES)
    if EVERY_STATEMENT
    else zip(INTERRUPTIONS, cycle(REMEDIES), strict=False)
)


@pytest.mark.parametrize(("interrupt", "remedy"), REPAIRS)
async def test_deletions_stay(
    tenants: Tenants,
    dsn: str,
    interrupt: Callable[[Tenants, str], Awaitable[None]],
    remedy: str,
    attacked: Recorded,
) -> None:
    """Deletions during and after the load reach all rows; the remedy brings none of them back."""
    await interrupt(tenants, dsn)
    store = tenants.store
    await tenants.check(2000)
    assert [finding.kind for finding in await store.check_schema()] == ["index_missing"]
    await tenants.delete_after_the_load(2000)
    if remedy == "reindex":
        await reindex(store.engine, store.config)
    else:
        await store.bulk_load([embedded("a")], OTHER)
        await store.delete_namespace(OTHER)
    assert await store.check_schema() == []
    await tenants.check(2000)
    await store.delete_namespace("n")
    assert await store.list_namespaces() == {}
    assert await scalar(store.engine, "SELECT count(*) FROM cenote_chunks") == 0
    name = interrupt.__name__.strip("_")
    attacked(f"bulk load {name}, then {remedy}", 1, "what was deleted stays deleted")


@pytest.mark.parametrize("interrupt", INTERRUPTIONS if EVERY_STATEMENT else [_cancelled, _killed])
async def test_a_downgrade_leaves_nothing(
    tenants: Tenants, dsn: str, interrupt: Callable[[Tenants, str], Awaitable[None]]
) -> None:
    """`downgrade base` drops all rows of an interrupted load, and `upgrade head` works again."""
    await interrupt(tenants, dsn)
    store, url = tenants.store, {"CENOTE_DATABASE_URL": dsn}
    output_of(cenote("migrate", "downgrade", "base", **url))
    assert await tables(store.engine) == ["cenote_chunks_alembic_version"]
    left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    left += " AND NOT starts_with(relname, 'cenote_chunks_alembic_version')"
    assert await scalar(store.engine, left) == 0
    output_of(cenote("migrate", "-x", "dimensions=4", "upgrade", "head", **url))
    again = PgVectorStore(store.engine, 4)
    assert await again.check_schema() == []
    assert await again.list_namespaces() == {}

    async def pause(_: int) -> None:
        pass

    assert await again.bulk_load(source(pause), "n") == LOADED
    assert await again.count("n") == LOADED


async def test_an_interrupted_load_says_what_is_missing(
    tenants: Tenants, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancelled load logs that the index may be missing, because nobody reads its exception."""
    await _cancelled(tenants, dsn)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.name.startswith("cenote.")
    assert "'cenote_chunks' may be missing" in record.getMessage()
    assert "cenote reindex" in record.getMessage()


async def test_a_load_killed_at_each_statement(
    engine: AsyncEngine, tenants: Tenants, dsn: str, attacked: Recorded
) -> None:
    """Whole batches are stored, deletions reach them, and the hint of `cenote check` repairs all.

    The load and its server process are killed in turn: by ``make torture`` at each statement,
    otherwise at ten.
    """
    store = tenants.store
    statements = statements_of([], dsn, module="support.loading")
    assert await store.count("n") == LOADED
    step = 1 if EVERY_STATEMENT else len(statements) // 10
    outcomes = []
    for at, how in zip(range(0, len(statements), step), cycle(HOW), strict=False):
        await execute(engine, "TRUNCATE cenote_chunks")
        run_and_kill([], dsn, at, how, module="support.loading")
        count = await store.count("n")
        assert count in (0, 1000, 2000, 3000, LOADED)
        assert len(await store.search(QUERY, "n", 5000)) == count
        assert await store.delete_document("d1", "n") == (100 if count else 0)
        findings = await store.check_schema()
        outcomes.append((count, len(findings)))
        for finding in findings:
            assert finding.kind in ("index_missing", "index_left_over"), finding
        if findings:
            command = shlex.split(findings[0].hint.removeprefix("run "))
            output_of(cenote(*command[1:], CENOTE_DATABASE_URL=dsn))
        assert await store.check_schema() == []
        assert await store.count("n") == len(await stored(store, "n")) == max(count - 100, 0)
    counts = {count for count, _ in outcomes}
    assert 0 in counts
    assert counts != {0}
    assert {bool(findings) for _, findings in outcomes} == {False, True}
    attacked("bulk load killed", len(outcomes), "whole batches; what was deleted stays deleted")
