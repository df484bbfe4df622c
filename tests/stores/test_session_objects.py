"""Objects in the caller's session, after calls of the store in its transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import selectinload, undefer
from support.database import execute, scalar
from support.drivers import on_every_driver, store_on
from support.library import Bookmark, Document, Passage, passage

from cenote import PgVectorStore, VectorStoreError
from cenote.testing import embedded, stored

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
    store: PgVectorStore[Passage] = store_on(sessions, model=Passage)
    return store


@on_every_driver
async def test_an_upsert_refreshes_loaded_objects(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Loaded objects get the stored values, including vectors, without further loading."""
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


async def test_objects_in_a_session_of_sqlmodel(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """Refreshes and deletions raise no warning, although SQLModel deprecates `execute`."""
    sqlmodel = pytest.importorskip("sqlmodel.ext.asyncio.session")
    async with sqlmodel.AsyncSession(library) as session:
        await store.upsert([embedded("a"), embedded("b")], "t", session=session)
        row = await session.get_one(Passage, ("t", "a"))
        await store.upsert([embedded("a", content="new")], "t", session=session)
        assert row.content == "new"
        await store.delete(["a"], "t", session=session)
        assert inspect(row).deleted
        assert await store.count("t", session=session) == 1


@on_every_driver
async def test_loaded_relationships_stay_loaded(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """An upsert expires a relationship only if it changed the foreign key."""
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


async def test_an_expired_object_is_deleted_in_the_session(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Deleting the chunk of an expired object removes the object from the session."""
    await store.upsert([passage(None, 0)], "t", session=session)
    row = await session.get_one(Passage, ("t", "?:0"))
    session.expire(row)
    await store.delete(["?:0"], "t", session=session)
    assert row not in session


async def test_an_upsert_overwrites_pending_changes(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Pending changes are flushed before an upsert, which then overwrites its own columns."""
    await store.upsert([passage(None, 0)], "t", session=session)
    row = await session.get_one(Passage, ("t", "?:0"))
    row.content, row.page = "mine", 3
    await store.upsert([passage(None, 0)], "t", session=session)
    assert (row.content, row.page) == ("some text", 3)


@on_every_driver
async def test_deleted_chunks_leave_the_session(
    session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Deleted objects leave the session, and return if the savepoint is rolled back."""
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


@on_every_driver
async def test_number_of_statements_with_and_without_loaded_objects(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """A call executes one statement, and one more if the session contains loaded objects."""
    statements: list[str] = []

    @event.listens_for(library.sync_engine, "before_cursor_execute")
    def record(connection: object, cursor: object, statement: str, *_: object) -> None:
        statements.append(statement.split(maxsplit=1)[0])

    async def statements_of(call: object) -> list[str]:
        statements.clear()
        await call  # type: ignore[misc]
        return list(statements)

    await store.search(V, "t", session=session)  # prepares the connection
    assert await statements_of(store.upsert([passage(None, 0)], "t", session=session)) == ["INSERT"]
    assert await statements_of(store.search(V, "t", session=session)) == ["WITH"]
    row = await session.get(Passage, ("t", "?:0"))
    assert row is not None
    with_reload = ["INSERT", "SELECT"]
    assert (
        await statements_of(store.upsert([passage(None, 0)], "t", session=session)) == with_reload
    )
    assert await statements_of(store.delete(["?:0"], "t", session=session)) == ["WITH", "DELETE"]


# -- relationships


async def test_cascading_deletions(
    library: AsyncEngine, session: AsyncSession, store: PgVectorStore[Passage]
) -> None:
    """Deleting a document deletes its chunks, and deleting a chunk deletes its bookmarks."""
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


@on_every_driver
async def test_a_foreign_key_without_cascade_prevents_a_deletion(
    library: AsyncEngine, store: PgVectorStore[Passage]
) -> None:
    """The error says to first delete the rows that refer to the chunks."""
    await execute(
        library,
        "CREATE TABLE pins (n text, p text,"
        " FOREIGN KEY (n, p) REFERENCES passages (namespace, id))",
    )
    await store.upsert([passage(None, 0)], "t")
    await execute(library, "INSERT INTO pins SELECT namespace, id FROM passages")
    with pytest.raises(VectorStoreError, match="first delete the rows that refer") as error:
        await store.delete_namespace("t")
    assert error.value.sqlstate == "23503"
