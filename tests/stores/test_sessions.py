"""A store in the caller's transaction, and the objects in the caller's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from sqlalchemy import create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, selectinload, undefer
from support.database import execute, scalar
from support.library import Bookmark, Document, Passage, passage

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
    """Count the documents and passages that others see."""
    query = "SELECT count(*) FROM "
    return await scalar(engine, query + "documents"), await scalar(engine, query + "passages")


# -- the transaction is the caller's


async def test_documents_and_chunks_commit_together(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Pending objects are flushed first. Nobody else sees either of them before the commit."""
    document = Document(title="d")
    session.add(document)
    await session.flush()
    second = Document(title="e")
    session.add(second)  # pending
    await store.upsert([passage(document, n) for n in range(3)], "t", session=session)
    assert second not in session.new
    assert await counts(library) == (0, 0)
    assert len(await found(store, V, "t", session=session)) == 3
    assert await found(store, V, "t") == []
    assert session.in_transaction()
    await session.commit()
    assert await counts(library) == (2, 3)


@pytest.mark.parametrize("step", ["upsert", "delete", "delete_namespace"])
async def test_a_rollback_takes_all_back(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage], step: str
) -> None:
    """A rollback undoes the chunks and the caller's own rows."""
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


async def test_inside_savepoints(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """A failed call requires a rollback of its savepoint only."""
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


async def test_after_a_failure_the_message_says_roll_back(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """The server accepts nothing but a rollback, and the store leaves that to the caller."""
    with pytest.raises(VectorStoreError):
        await store.upsert([passage(Document(title="x", id=UUID(int=1)), 0)], "t", session=session)
    with pytest.raises(VectorStoreError, match="roll back the transaction"):
        await store.search(V, "t", session=session)
    await session.rollback()
    assert await found(store, V, "t", session=session) == []


async def test_a_connection(library: AsyncEngine, store: PgVectorStore[Passage]) -> None:
    """A connection of the caller is not committed, rolled back or closed."""
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


async def test_a_scoped_session(
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
    await execute(library, f"INSERT INTO documents VALUES ('{UUID(int=1)}', 'there already')")
    session.add(Document(id=UUID(int=1), title="again"))
    with pytest.raises(IntegrityError):
        await store.upsert([passage(None, 0)], "t", session=session)


@pytest.mark.parametrize("wrong", ["session", "maker", "sync"])
async def test_other_types_of_session(
    library: AsyncEngine, store: PgVectorStore[Passage], wrong: str
) -> None:
    """Every method rejects a session of another type, and names the argument."""
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


async def test_autocommit_has_no_transaction(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """Writes reject AUTOCOMMIT, where a batch would not be atomic. Reads accept it."""
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


async def test_settings_do_not_leak(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """A search and a composed search leave the settings unchanged, even if few rows are read."""
    await store.upsert([passage(None, n) for n in range(1200)], "t")
    settings = text(
        "SELECT current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan')"
    )
    await session.execute(text("SET LOCAL hnsw.ef_search = 77"))
    await store.search(V, "t", session=session)
    assert (await session.execute(settings)).one() == ("77", "off")
    statement = store.search_statement(V, "t", 20)
    for search in (statement, statement.limit(1), statement.where(Passage.position < 0)):
        await session.execute(search)
        assert (await session.execute(settings)).one() == ("77", "off")


# -- the objects of the session


async def test_an_upsert_does_not_leave_objects_stale(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Objects hold the stored values at once, without further loading, including vectors."""
    await store.upsert([passage(None, n) for n in range(3)], "t", session=session)
    await store.upsert([passage(None, 0)], "other", session=session)
    query = select(Passage).options(undefer(Passage.embedding)).order_by(Passage.id)
    rows = (await session.scalars(query.where(Passage.namespace == "t"))).all()
    stranger = await session.get_one(Passage, ("other", "?:0"))
    new = embedded("?:1", [0, 1, 0, 0], content="new", columns={"page": 7})
    await store.upsert([new], "t", session=session)
    assert [row.content for row in rows] == ["some text", "new", "some text"]
    assert rows[1].page == 7
    assert rows[1].embedding.tolist() == [0, 1, 0, 0]
    assert stranger.content == "some text"
    await session.rollback()


async def test_loaded_relationships_stay_loaded(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Relationships stay loaded unless the upsert changed their foreign keys."""
    documents = [Document(title=title) for title in "ab"]
    session.add_all(documents)
    await session.flush()
    await store.upsert([passage(documents[0], 0)], "t", session=session)
    row = await session.get_one(Passage, ("t", "a:0"), options=[selectinload(Passage.document)])
    changed = [passage(documents[0], 0, page=3)]
    await store.upsert(changed, "t", session=session)
    assert (row.page, row.document) == (3, documents[0])
    moved = embedded("a:0", columns={"doc_id": documents[1].id})
    await store.upsert([moved], "t", session=session)
    assert row.doc_id == documents[1].id
    assert "document" not in row.__dict__
    await session.refresh(row, ["document"])
    assert row.document is documents[1]
    session.expire(row)
    await store.upsert(changed, "t", session=session)
    assert (await session.get_one(Passage, ("t", "a:0"))).page == 3


async def test_an_expired_object_that_is_deleted(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """An expired object is deleted in the session like any other."""
    await store.upsert([passage(None, 0)], "t", session=session)
    row = await session.get_one(Passage, ("t", "?:0"))
    session.expire(row)
    await store.delete(["?:0"], "t", session=session)
    assert row not in session


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
async def test_a_batch_is_whole_in_the_callers_transaction(
    library: AsyncEngine,
    session: AsyncSession,
    store: PgVectorStore[Passage],
    column: str,
    good: object,
    bad: object,
) -> None:
    """An error in a late part of a batch undoes the batch, and leaves the transaction usable."""
    batch = [embedded(f"{n:04}", columns={column: bad if n == 1400 else good}) for n in range(1500)]
    session.add(Document(title="d"))
    with pytest.raises(VectorStoreError) as error:
        await store.upsert(batch, "t", session=session)
    assert "secret" not in str(error.value)
    await session.commit()
    assert await counts(library) == (1, 0)


async def test_pending_changes_of_an_object_are_flushed_and_then_overwritten(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """The upsert overwrites pending changes, except in columns that it does not write."""
    await store.upsert([passage(None, 0)], "t", session=session)
    row = await session.get_one(Passage, ("t", "?:0"))
    row.content, row.page = "mine", 3
    await store.upsert([passage(None, 0)], "t", session=session)
    assert (row.content, row.page) == ("some text", 3)


async def test_deleted_rows_are_deleted_in_the_session(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Objects are deleted in the session, and a rollback to the savepoint restores them."""
    await store.upsert([passage(None, n) for n in range(3)], "t", session=session)
    rows = (await session.scalars(select(Passage).order_by(Passage.id))).all()
    async with session.begin_nested() as savepoint:
        await store.delete(["?:0", "none"], "t", session=session)
        assert [row in session for row in rows] == [False, True, True]
        await store.delete_namespace("t", session=session)
        assert [row in session for row in rows] == [False, False, False]
        assert await session.get(Passage, ("t", "?:1")) is None
        await savepoint.rollback()
    assert [row in session for row in rows] == [True, True, True]
    assert await session.scalar(select(func.count()).select_from(Passage)) == 3


async def test_one_statement_more_only_for_objects_in_the_session(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Objects in the session cost one more statement; without them, joining costs none."""
    statements: list[str] = []

    @event.listens_for(library.sync_engine, "before_cursor_execute")
    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement.split(maxsplit=1)[0])

    async def cost(call: object) -> list[str]:
        statements.clear()
        await call  # type: ignore[misc]
        return list(statements)

    await store.search(V, "t", session=session)  # prepares the connection
    assert await cost(store.upsert([passage(None, 0)], "t", session=session)) == ["INSERT"]
    assert await cost(store.search(V, "t", session=session)) == ["WITH"]
    row = await session.get(Passage, ("t", "?:0"))
    assert row is not None
    with_reload = ["INSERT", "SELECT"]
    assert await cost(store.upsert([passage(None, 0)], "t", session=session)) == with_reload
    assert await cost(store.delete(["?:0"], "t", session=session)) == ["DELETE", "WITH"]


# -- with relationships


async def test_deletions_cascade_both_ways(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Deleting a document deletes its chunks, and deleting a chunk the rows that point to it."""
    documents = [Document(title=title) for title in "ab"]
    session.add_all(documents)
    await session.flush()
    for document in documents:
        await store.upsert([passage(document, n) for n in range(2)], "t", session=session)
    session.add_all(Bookmark(namespace="t", passage_id=id) for id in ("a:0", "b:0", "b:1"))
    await session.commit()
    await session.delete(documents[0])
    await session.commit()
    assert [chunk.id for chunk in await stored(store, "t")] == ["b:0", "b:1"]
    await store.delete(["b:0"], "t")
    assert await scalar(library, "SELECT string_agg(passage_id, ',') FROM bookmarks") == "b:1"
    query = select(Document).options(
        selectinload(Document.passages).selectinload(Passage.bookmarks)
    )
    (document,) = await session.scalars(query.execution_options(populate_existing=True))
    assert [row.id for row in document.passages] == ["b:1"]
    assert document.passages[0].bookmarks[0].passage is document.passages[0]


async def test_a_chunk_that_is_pointed_at_without_cascade(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """A chunk to which a row points cannot be deleted, and the message says why."""
    await execute(
        library,
        "CREATE TABLE pins (n text, p text,"
        " FOREIGN KEY (n, p) REFERENCES passages (namespace, id))",
    )
    await store.upsert([passage(None, 0)], "t")
    await execute(library, "INSERT INTO pins SELECT namespace, id FROM passages")
    with pytest.raises(VectorStoreError, match="first delete the rows that point") as error:
        await store.delete_namespace("t")
    assert error.value.sqlstate == "23503"


# -- in the middle of it


async def test_a_lost_connection_leaves_neither(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """If the server ends the connection before the commit, neither row is stored."""
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


async def test_readers_never_see_one_without_the_other(
    library: AsyncEngine, sessions: async_sessionmaker[AsyncSession], store: PgVectorStore[Passage]
) -> None:
    """Readers see documents and chunks together while both are written and deleted."""
    ended = asyncio.Event()
    seen: set[int] = set()
    query = text(
        "SELECT d.id, count(p.id) FROM documents d FULL JOIN passages p ON p.doc_id = d.id"
        " GROUP BY d.id"
    )

    async def read() -> None:
        while not ended.is_set():
            async with sessions() as session:
                for id, chunks in await session.execute(query):
                    assert id is not None
                    assert chunks == 3
                    seen.add(id)

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
    ended.set()
    await reader
    assert len(seen) > 5
    assert await counts(library) == (40, 120)
