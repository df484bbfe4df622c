"""Reading, deleting and synchronising documents in the caller's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from support.library import Document, Passage, passage

from cenote import EmbeddedChunk, InvalidInputError, PgVectorStore, field
from cenote.models import SyncResult
from cenote.testing import stored


@pytest.fixture
def store(library: AsyncEngine) -> PgVectorStore[Passage]:
    """A store for the user model."""
    return PgVectorStore(library, model=Passage)


@pytest.fixture
async def session(library: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session of the application."""
    async with async_sessionmaker(library, expire_on_commit=False)() as session:
        yield session


@pytest.fixture
async def document(session: AsyncSession, store: PgVectorStore[Passage]) -> Document:
    """A committed document with three passages."""
    document = Document(title="d")
    session.add(document)
    await session.flush()
    await store.upsert([passage(document, n) for n in range(3)], "t", session=session)
    await session.commit()
    return document


async def test_methods_join_the_callers_transaction(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """Reads see the uncommitted changes of the session, and a rollback undoes the changes."""
    before = await stored(store, "t")
    ids = [chunk.id for chunk in before]
    document_id = before[0].document_id
    changes = {ids[0]: {"seen": True}}
    assert await store.update_metadata(changes, "t", session=session) == 1
    assert await store.count("t", {"seen": True}, session=session) == 1
    assert await store.count("t", {"seen": True}) == 0
    assert await store.delete_matching(field("id") == ids[1], "t", session=session) == 1
    remaining = await store.get(ids, "t", session=session)
    assert [chunk.id for chunk in remaining] == [ids[0], ids[2]]
    assert len(await store.get(ids, "t")) == 3
    assert len(await store.get_embeddings(ids, "t", session=session)) == 2
    assert len(await store.list_chunks("t", session=session)) == 2
    assert len(await store.neighbours(ids[0], "t", session=session)) == 2
    kept = [chunk for chunk in before if chunk.id == ids[2]]
    assert await store.missing(kept, "t", session=session) == []
    result = await store.sync_document(document_id, kept, "t", session=session)
    assert result == SyncResult(written=0, removed=1, unchanged=1)
    assert await store.list_namespaces(session=session) == {"t": 1}
    assert await store.delete_document(document_id, "t", session=session) == 1
    assert len((await store.search_many([[1, 0, 0, 0]], "t", session=session))[0]) == 0
    assert session.in_transaction()
    await session.rollback()
    assert await stored(store, "t") == before


async def test_objects_in_the_session_are_updated(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """Loaded objects get new metadata, and deleted objects leave the session."""
    rows = (await session.scalars(select(Passage).order_by(Passage.id))).all()
    first, second, third = rows
    await store.update_metadata({first.id: {"seen": True}}, "t", session=session)
    assert first.metadata_ == {"seen": True}
    assert await store.delete_matching({"seen": True}, "t", session=session) == 1
    assert first not in session
    chunks = await store.get([third.id], "t", session=session)
    await store.sync_document(third.document_id, chunks, "t", session=session)
    assert second not in session
    assert third in session
    await session.commit()
    assert [chunk.id for chunk in await stored(store, "t")] == [third.id]


async def test_a_rejected_document_leaves_the_transaction_usable(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """Earlier changes of the transaction can still be committed."""
    session.add(Document(title="other"))
    (chunk, *_) = await stored(store, "t")
    await store.delete([chunk.id], "t", session=session)
    with pytest.raises(InvalidInputError):
        await store.sync_document(chunk.document_id, [chunk], "t", session=session)
    assert await store.count("t", session=session) == 2
    await session.commit()
    assert await store.count("t") == 2


async def test_a_rejected_document_leaves_objects_in_the_session(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """The session still writes changes of its objects."""
    rows = (await session.scalars(select(Passage).order_by(Passage.id))).all()
    chunks = await store.get([rows[0].id], "t")
    changed = replace(chunks[0], content="other", content_hash="other")
    with pytest.raises(InvalidInputError):
        await store.sync_document(changed.document_id, [changed], "t", session=session)
    rows[1].content = "changed"
    await session.commit()
    assert (await store.get([rows[1].id], "t"))[0].content == "changed"


async def test_repeatable_read_is_rejected(
    library: AsyncEngine, store: PgVectorStore[Passage], document: Document
) -> None:
    """`sync_document` could miss chunks that other transactions have committed."""
    (chunk, *_) = await stored(store, "t")
    async with library.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(InvalidInputError, match="READ COMMITTED"):
            await store.sync_document(chunk.document_id, [chunk], "t", session=connection)


async def test_content_that_changes_concurrently(
    library: AsyncEngine, store: PgVectorStore[Passage], document: Document
) -> None:
    """`sync_document` keeps no stored embedding if another transaction changes the content."""
    (chunk, *other_chunks) = await stored(store, "t")
    newer = replace(chunk, content="newer", content_hash="newer")
    async with library.connect() as connection:
        await store.upsert(
            [
                EmbeddedChunk(
                    chunk=newer,
                    embedding=[0, 1, 0, 0],
                    embedding_model="model",
                    columns={"doc_id": document.id},
                )
            ],
            "t",
            session=connection,
        )
        waiting = asyncio.create_task(
            store.sync_document(chunk.document_id, [chunk, *other_chunks], "t")
        )
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await connection.commit()
        with pytest.raises(InvalidInputError, match="not stored with this content"):
            await waiting
    assert (await store.get([chunk.id], "t"))[0].content == "newer"


async def test_number_of_statements(
    library: AsyncEngine, store: PgVectorStore[Passage], document: Document
) -> None:
    """Each of these calls executes one statement, for any number of vectors or ids."""
    statements: list[str] = []
    ids = [chunk.id for chunk in await stored(store, "t")]
    event.listen(
        library.sync_engine,
        "before_cursor_execute",
        lambda *arguments: statements.append(arguments[2]),
    )
    for call in (
        store.get(ids, "t"),
        store.get_embeddings(ids, "t"),
        store.count("t", {"a": 1}),
        store.list_namespaces(),
        store.list_chunks("t"),
        store.neighbours(ids[0], "t"),
        store.update_metadata({id: {"a": 1} for id in ids}, "t"),
        store.search_many([[1, 0, 0, 0]] * 50, "t"),
        store.delete_matching({"a": 2}, "t"),
        store.delete_document("nothing", "t"),
    ):
        statements.clear()
        await call
        assert len(statements) == 1
