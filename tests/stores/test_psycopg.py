"""`PgVectorStore` on psycopg's asynchronous engine."""

from __future__ import annotations

import asyncio
import gc
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from support.cancellation import CancelledAt
from support.contract import ContractStores
from support.library import Document, Passage, passage

from cenote import (
    ConfigurationError,
    InvalidInputError,
    PgVectorStore,
    StoreTimeoutError,
    VectorStoreError,
)
from cenote.maintenance import reindex, repartition
from cenote.postgres.psycopg_engine import adapted_engine
from cenote.testing import MakeStore, VectorStoreContract, embedded

V = [1.0, 0.0, 0.0, 0.0]


def psycopg_engine(dsn: str, **options: Any) -> AsyncEngine:
    return create_async_engine(make_url(dsn).set(drivername="postgresql+psycopg"), **options)


def checked_out(engine: AsyncEngine) -> int:
    return engine.pool.checkedout()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture(scope="class")
async def class_engine(class_dsn: str) -> AsyncIterator[AsyncEngine]:
    engine = psycopg_engine(class_dsn)
    yield engine
    assert checked_out(engine) == 0
    await engine.dispose()


@pytest.fixture(scope="class")
async def stores(class_engine: AsyncEngine) -> ContractStores:
    return ContractStores(class_engine)


class TestPsycopg(VectorStoreContract):
    """A table of 32-bit vectors without partitions, with a timeout."""

    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, stores: ContractStores
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> PgVectorStore:
            options = {"partitions": 0, "operation_timeout": 60, **options}
            store = PgVectorStore(class_engine, dimensions, **options)
            await store.apply_migrations()
            return store

        async with stores.maker(create, "psycopg") as make:
            yield make


@pytest.fixture
async def engine(library: Any, empty_dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine on psycopg on the database of the library."""
    engine = psycopg_engine(empty_dsn)
    yield engine
    assert checked_out(engine) == 0
    await engine.dispose()


@pytest.fixture
def store(engine: AsyncEngine) -> PgVectorStore[Passage]:
    return PgVectorStore(engine, model=Passage)


# -- cancellation


async def cancel_everywhere(engine: AsyncEngine, call: Callable[[], Any]) -> int:
    """Cancel a call at each place where it waits; return the number of places."""
    number = 0
    gc.collect()
    gc.disable()  # it would find forgotten connections
    try:
        while True:
            number += 1
            cancelled = CancelledAt(call(), number)

            async def run(cancelled: CancelledAt = cancelled) -> None:
                await cancelled

            await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
            assert checked_out(engine) == 0, f"cancelled at {number}"
            await check_pool(engine)
            if cancelled.waits < number:
                return number - 1
    finally:
        gc.enable()


async def check_pool(engine: AsyncEngine) -> None:
    """Check that the pool's connections have transactions."""
    async with AsyncExitStack() as stack:
        for _ in range(engine.pool.checkedin()):  # type: ignore[attr-defined]
            connection = await stack.enter_async_context(engine.connect())
            driver: Any = (await connection.get_raw_connection()).driver_connection
            assert not driver.autocommit


@pytest.mark.parametrize("level", [None, "REPEATABLE READ"])
async def test_cancellation_anywhere(
    engine: AsyncEngine, level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a call is cancelled, no connection stays checked out or in AUTOCOMMIT.

    This includes engines of the application that set an isolation level.
    """
    # psycopg lets other tasks run in calls without I/O, too, if it has not waited for 5 ms.
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", 0)
    leveled = engine.execution_options(isolation_level=level) if level else engine
    store = PgVectorStore(leveled, model=Passage)
    await store.upsert([passage(None, 1)], "n")

    async def use_autocommit() -> None:  # as the progress of an index build does
        async with adapted_engine(engine).connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")

    calls: list[Callable[[], Any]] = [
        lambda: store.search(V, "n"),
        lambda: store.upsert([passage(None, 1)], "n"),
        lambda: store.check_schema(),
        use_autocommit,
    ]
    assert min([await cancel_everywhere(engine, call) for call in calls]) > 2
    assert [result.chunk.id for result in await store.search(V, "n")] == ["?:1"]


async def test_sixty_cancelled_searches(engine: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """Searches that are cancelled at different times leave no connection checked out."""
    await store.upsert([passage(None, position) for position in range(5)], "n")
    gc.collect()
    gc.disable()
    try:
        for turns in range(12):
            searches = [asyncio.create_task(store.search(V, "n")) for _ in range(5)]
            time.sleep(0.006)  # noqa: ASYNC251 - psycopg then lets other tasks run
            for _ in range(turns):
                await asyncio.sleep(0)
            for search in searches:
                search.cancel()
            await asyncio.gather(*searches, return_exceptions=True)
            assert checked_out(engine) == 0
    finally:
        gc.enable()
    assert len(await store.search(V, "n")) == 5


async def test_a_timeout(engine: AsyncEngine) -> None:
    """A call that waits for a lock ends in time, and the pool gets a clean connection."""
    store = PgVectorStore(engine, model=Passage, operation_timeout=0.2)
    async with engine.connect() as connection:
        await connection.execute(text("LOCK passages IN ACCESS EXCLUSIVE MODE"))
        start = time.monotonic()
        with pytest.raises(StoreTimeoutError, match="no answer within"):
            await store.count("n")
        assert time.monotonic() - start < 5
        assert checked_out(engine) == 1
    assert await store.count("n") == 0


# -- sessions


async def test_sessions_of_every_kind(engine: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """Sessions, scoped sessions, connections and bound stores join, and nothing is committed."""
    make_session = async_sessionmaker(engine)
    scoped = async_scoped_session(make_session, asyncio.current_task)
    assert PgVectorStore(make_session, model=Passage).engine is store.engine is engine
    async with make_session() as session:
        document = Document(title="A")
        session.add(document)
        await session.flush()
        connection = await session.connection()
        await store.upsert([passage(document, 1)], "n", session=session)
        assert await session.connection() is connection
        row = await session.get_one(Passage, ("n", "A:1"))
        await store.in_session(session).upsert([passage(document, 1, language="es")], "n")
        assert row.language == "es"
        assert await store.count("n", session=connection) == 1
        assert await PgVectorStore(connection, model=Passage).count("n") == 1
        synced = await store.sync_document("A", [], "n", session=session)
        assert (synced.removed, row in session) == (1, False)
        assert await store.count("n") == 0
        await session.rollback()
    await store.upsert([passage(None, 1)], "n", session=scoped)
    await scoped.remove()
    assert await store.count("n") == 0


async def test_sessions_that_are_rejected(
    engine: AsyncEngine, store: PgVectorStore[Passage], library: AsyncEngine
) -> None:
    """Sessions in AUTOCOMMIT and on another driver are rejected."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidInputError, match="AUTOCOMMIT"):
            await store.upsert([embedded("a")], "n", session=connection)
    async with AsyncSession(library) as session:
        with pytest.raises(InvalidInputError, match=r"must use psycopg .*, not asyncpg"):
            await store.count("n", session=session)


async def test_an_old_snapshot_is_rejected(engine: AsyncEngine) -> None:
    """A transaction that began before the table was rewritten raises an error."""
    store = PgVectorStore(engine, 4, table_name="rewritten", partitions=2)
    await store.apply_migrations()
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        await connection.execute(text("SELECT 1"))
        await repartition(engine, replace(store.config, partitions=4))
        with pytest.raises(VectorStoreError, match="before the table was rewritten"):
            await store.count("n", session=connection)


async def test_schema_commands(engine: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """Commands with connections of their own work on the engine, with progress."""
    await store.bulk_load([passage(None, position) for position in range(5)], "n")
    seen: list[Any] = []
    await reindex(engine, store.config, progress=seen.append)
    assert seen
    assert checked_out(engine) == 0
    await check_pool(engine)


# -- errors


async def test_nothing_is_quoted(engine: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """Neither errors of the driver nor errors of the server quote values."""
    unknown = Document(id=uuid.uuid4(), title="SECRET")
    for chunk in (
        embedded("bad", columns={"page": "SECRET"}),
        embedded("bad", columns={"labels": ["SECRET\ud800"]}),
        passage(unknown, 1),
    ):
        with pytest.raises(VectorStoreError) as caught:
            await store.upsert([chunk], "n")
        error: BaseException | None = caught.value
        while error is not None:
            shown = repr(error) + repr(error.args) + repr(vars(error))
            shown = shown.replace("'SECRET:1'", "") + str(getattr(error, "diag", None))
            assert "SECRET" not in shown
            assert str(unknown.id) not in shown
            error = error.__cause__ or error.__context__


async def test_a_lost_connection_is_replaced(
    engine: AsyncEngine, store: PgVectorStore[Passage], library: AsyncEngine
) -> None:
    """A read on a connection that the server has ended is repeated."""
    assert await store.count("n") == 0
    async with library.connect() as other:
        await other.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert await store.count("n") == 0


async def test_stale_plans_are_prepared_again(
    engine: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """A column's type changes under statements that psycopg has prepared on several connections."""
    for _ in range(12):
        await asyncio.gather(*(store.get(["a"], "n") for _ in range(3)))
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE passages ALTER document_id TYPE varchar"))
    for _ in range(4):
        assert await store.get(["a"], "n") == []


def test_another_event_loop(dsn: str) -> None:
    """A pool with connections of another event loop raises an error that says so."""
    engine = psycopg_engine(dsn)
    store = PgVectorStore(engine, 4)
    with asyncio.Runner() as runner:
        runner.run(store.count("n"))
        with asyncio.Runner() as other:
            with pytest.raises(ConfigurationError, match="another event loop"):
                other.run(store.count("n"))
            twin = store.with_own_pool()
            assert other.run(twin.count("n")) == 0
            other.run(twin.engine.dispose())
        runner.run(engine.dispose())


async def test_other_drivers_are_rejected() -> None:
    """The error names the drivers that the store takes."""
    engine = create_async_engine("postgresql+asyncpg://")
    engine.dialect.driver = "psycopg_async"
    with pytest.raises(ConfigurationError, match=r"asyncpg .* or psycopg 3 .*, not psycopg_async"):
        PgVectorStore(engine, 4)
