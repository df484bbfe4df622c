"""A store in the caller's transaction, and the objects in the caller's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session
from support.database import execute, scalar
from support.drivers import on_both_stores, store_on
from support.library import Document, Passage, passage

from cenote import InvalidInputError, PgVectorStore, VectorStoreError
from cenote.testing import embedded, found, stored

V = [1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def sessions(library: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions of the application."""
    return async_sessionmaker(library, expire_on_commit=False)


@pytest.fixture
async def session(sessions: async_sessionmaker[AsyncSession]) -> AsyncIterator[AsyncSession]:
    """A session of the application."""
    async with sessions() as session:
        yield session


@pytest.fixture
def store(sessions: async_sessionmaker[AsyncSession]) -> PgVectorStore[Passage]:
    """A store for the user model."""
    return PgVectorStore(sessions, model=Passage)


async def counts(engine: AsyncEngine) -> tuple[int, int]:
    """Return the numbers of documents and passages that other transactions see."""
    query = "SELECT count(*) FROM "
    return await scalar(engine, query + "documents"), await scalar(engine, query + "passages")


# -- the caller's transaction


async def test_documents_and_chunks_commit_together(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Other transactions see the rows of session and store only after the commit."""
    document = Document(title="d")
    session.add(document)
    await session.flush()
    pending = Document(title="e")
    session.add(pending)
    await store.upsert([passage(document, n) for n in range(3)], "t", session=session)
    assert pending not in session.new
    assert await counts(library) == (0, 0)
    assert len(await found(store, V, "t", session=session)) == 3
    assert await found(store, V, "t") == []
    assert session.in_transaction()
    await session.commit()
    assert await counts(library) == (2, 3)


@pytest.mark.parametrize("step", ["upsert", "delete", "delete_namespace"])
async def test_a_rollback_undoes_every_change(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage], step: str
) -> None:
    """A rollback undoes the store's changes and the caller's own rows."""
    await store.upsert([passage(None, n) for n in range(2)], "t")
    session.add(Document(title="d"))
    match step:
        case "upsert":
            await store.upsert([passage(None, n) for n in range(5)], "t", session=session)
        case "delete":
            await store.delete(["?:0"], "t", session=session)
        case "delete_namespace":
            await store.delete_namespace("t", session=session)
    rows = {"upsert": 5, "delete": 1, "delete_namespace": 0}[step]
    assert len(await stored(store, "t", session=session)) == rows
    assert len(await stored(store, "t")) == 2
    await session.rollback()
    assert await counts(library) == (0, 2)


async def test_savepoints(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """After a failed call in a savepoint, rolling back the savepoint is enough."""
    document = Document(title="d")
    session.add(document)
    await session.flush()
    async with session.begin_nested():
        await store.upsert([passage(document, 0)], "t", session=session)
    stranger = Document(title="never added", id=UUID(int=7))
    with pytest.raises(VectorStoreError, match="add and flush the row") as error:  # noqa: PT012
        async with session.begin_nested():
            await store.upsert([passage(document, 1)], "t", session=session)
            await store.upsert([passage(stranger, 2)], "t", session=session)
    assert error.value.sqlstate == "23503"
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with session.begin_nested():
            await store.upsert([passage(document, 3)], "t", session=session)
            raise RuntimeError
    assert await found(store, V, "t", session=session) == ["d:0"]
    await session.commit()
    assert await counts(library) == (1, 1)


async def test_calls_in_a_failed_transaction(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """After an error, further calls raise an error until the caller rolls the transaction back."""
    with pytest.raises(VectorStoreError):
        await store.upsert([passage(Document(title="x", id=UUID(int=1)), 0)], "t", session=session)
    with pytest.raises(VectorStoreError, match="roll back the transaction"):
        await store.search(V, "t", session=session)
    await session.rollback()
    assert await found(store, V, "t", session=session) == []


async def test_the_callers_connection(library: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """The store does not commit, roll back or close a connection of the caller."""
    async with library.connect() as connection:
        await store.upsert([passage(None, 0)], "t", session=connection)
        assert connection.in_transaction()
        assert await found(store, V, "t", session=connection) == ["?:0"]
        assert await found(store, V, "t") == []
        await connection.rollback()
        assert await found(store, V, "t", session=connection) == []
        await store.upsert([passage(None, 1)], "t", session=connection)
        await connection.commit()
    assert await found(store, V, "t") == ["?:1"]


async def test_scoped_sessions(
    sessions: async_sessionmaker[AsyncSession], store: PgVectorStore[Passage]
) -> None:
    """The store joins the session of the current scope."""
    scoped = async_scoped_session(sessions, scopefunc=asyncio.current_task)
    await store.upsert([passage(None, 0)], "t", session=scoped)
    assert await found(store, V, "t", session=scoped) == ["?:0"]
    await scoped.remove()
    assert await found(store, V, "t") == []


async def test_errors_of_the_flush_are_raised_unchanged(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """An IntegrityError about the application's own row is raised unchanged."""
    await execute(library, f"INSERT INTO documents VALUES ('{UUID(int=1)}', 'first')")
    session.add(Document(id=UUID(int=1), title="second"))
    with pytest.raises(IntegrityError):
        await store.upsert([passage(None, 0)], "t", session=session)


@pytest.mark.parametrize("wrong", ["session", "maker", "sync"])
async def test_invalid_sessions(
    library: AsyncEngine, store: PgVectorStore[Passage], wrong: str
) -> None:
    """Every method rejects an object of another type, and names the argument."""
    session: object = {
        "session": "postgresql://",
        "maker": async_sessionmaker(library),
        "sync": Session(create_engine("postgresql+asyncpg://")),
    }[wrong]
    for call in (
        lambda: store.upsert([], "t", session=session),  # type: ignore[arg-type]
        lambda: store.delete([], "t", session=session),  # type: ignore[arg-type]
        lambda: store.delete_namespace("t", session=session),  # type: ignore[arg-type]
        lambda: store.search(V, "t", session=session),  # type: ignore[arg-type]
        lambda: stored(store, "t", session=session),
    ):
        with pytest.raises(InvalidInputError, match="must be an AsyncSession or an Async") as error:
            await call()
        assert error.value.field == "session"


async def test_autocommit_is_rejected_for_writes(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """Writes reject an AUTOCOMMIT session, where a batch would not be atomic; reads accept it."""
    url = library.url.render_as_string(hide_password=False)
    engines = [
        library.execution_options(isolation_level="AUTOCOMMIT"),
        create_async_engine(url, isolation_level="AUTOCOMMIT"),
    ]
    for engine in engines:
        async with AsyncSession(engine) as session:
            with pytest.raises(InvalidInputError, match="AUTOCOMMIT"):
                await store.upsert([passage(None, 0)], "t", session=session)
            assert await found(store, V, "t", session=session) == []
    await engines[1].dispose()


@on_both_stores
async def test_searches_restore_the_settings(
    sessions: async_sessionmaker[AsyncSession], session: AsyncSession
) -> None:
    """After a search, the settings are unchanged, even if only some of its rows are read."""
    store = store_on(sessions, model=Passage)
    await store.upsert([passage(None, n) for n in range(1200)], "t")
    settings = text(
        "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
    )
    # `AsyncSession.execute` needs an asynchronous driver.
    execute: Any = partial(session.run_sync, cast("Any", Session.execute))
    await execute(text("SET LOCAL hnsw.ef_search = 77"))
    await store.search(V, "t", session=session)
    assert (await execute(settings)).one() == ("77", "off")
    statement = store.search_statement(V, "t", 20)
    for search in (statement, statement.limit(1), statement.where(Passage.position < 0)):
        await execute(search)
        assert (await execute(settings)).one() == ("77", "off")


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [
        ("page", 1, "no number"),
        ("summary", [1, 2], "secret text"),
        ("summary", [1, 2], [1, 2, 3]),
        ("readers", ["x"], 5),
        ("token", UUID(int=1), "secret"),
    ],
)
async def test_a_failed_batch_is_undone_in_the_callers_transaction(
    library: AsyncEngine,
    session: AsyncSession,
    store: PgVectorStore[Passage],
    column: str,
    good: object,
    bad: object,
) -> None:
    """An error late in a batch undoes the whole batch, and leaves the transaction usable."""
    batch = [embedded(f"{n:04}", columns={column: bad if n == 1400 else good}) for n in range(1500)]
    session.add(Document(title="d"))
    with pytest.raises(VectorStoreError) as error:
        await store.upsert(batch, "t", session=session)
    assert "secret" not in str(error.value)
    await session.commit()
    assert await counts(library) == (1, 0)


# -- lost connections and concurrent readers


async def test_a_lost_connection_leaves_no_rows(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """If the server ends the connection before the commit, nothing is stored."""
    document = Document(title="d")
    session.add(document)
    await session.flush()
    await store.upsert([passage(document, 0)], "t", session=session)
    pid = await session.scalar(text("SELECT pg_backend_pid()"))
    await execute(library, f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(DBAPIError):
        await session.commit()
    await session.rollback()
    assert await counts(library) == (0, 0)


async def test_readers_see_documents_with_all_their_chunks(
    library: AsyncEngine, sessions: async_sessionmaker[AsyncSession], store: PgVectorStore[Passage]
) -> None:
    """Readers see each document with all of its chunks, while documents are written."""
    finished = asyncio.Event()
    complete_documents: set[int] = set()
    query = text(
        "SELECT d.id, count(p.id) FROM documents d FULL JOIN passages p ON p.doc_id = d.id"
        " GROUP BY d.id"
    )

    async def read() -> None:
        while not finished.is_set():
            async with sessions() as session:
                for id, chunks in await session.execute(query):
                    assert id is not None
                    assert chunks == 3
                    complete_documents.add(id)

    async def write(number: int) -> None:
        async with sessions.begin() as session:
            document = Document(title=str(number))
            session.add(document)
            await session.flush()
            await store.upsert([passage(document, n) for n in range(3)], "t", session=session)
            if number % 3 == 0:
                await session.rollback()

    reader = asyncio.create_task(read())
    for start in range(0, 60, 4):
        await asyncio.gather(*(write(start + n) for n in range(4)))
    finished.set()
    await reader
    assert len(complete_documents) > 5
    assert await counts(library) == (40, 120)
