"""Reading, removing and synchronising beside the host's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from library import Document, Passage, passage
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from cenote import EmbeddedChunk, InvalidInputError, PgVectorStore, field
from cenote.models import SyncResult
from cenote.testing import stored


@pytest.fixture
def store(library: AsyncEngine) -> PgVectorStore[Passage]:
    """A store for the host's model."""
    return PgVectorStore(library, model=Passage)


@pytest.fixture
async def session(library: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """A session of the host's, with a document of three passages."""
    async with async_sessionmaker(library, expire_on_commit=False)() as session:
        yield session


@pytest.fixture
async def document(session: AsyncSession, store: PgVectorStore[Passage]) -> Document:
    """A document of three passages, committed."""
    document = Document(title="d")
    session.add(document)
    await session.flush()
    await store.upsert([passage(document, n) for n in range(3)], "t", session=session)
    await session.commit()
    return document


async def test_all_of_it_joins_the_callers_transaction(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """And is gone with it; the reads see what is not committed yet."""
    before = await stored(store, "t")
    ids = [chunk.id for chunk in before]
    document_id = before[0].document_id
    changes = {ids[0]: {"seen": True}}
    assert await store.update_metadata(changes, "t", session=session) == 1
    assert await store.count("t", {"seen": True}, session=session) == 1
    assert await store.count("t", {"seen": True}) == 0
    assert await store.delete_matching(field("id") == ids[1], "t", session=session) == 1
    assert [one.id for one in await store.get(ids, "t", session=session)] == [ids[0], ids[2]]
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


async def test_objects_of_the_session_are_kept_in_step(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """Changed metadata are seen; what was removed is gone."""
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
    assert [one.id for one in await stored(store, "t")] == [third.id]


async def test_a_refused_document_leaves_the_transaction_alive(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """What the caller did before is still there."""
    session.add(Document(title="other"))
    (chunk, *_) = await stored(store, "t")
    await store.delete([chunk.id], "t", session=session)
    with pytest.raises(InvalidInputError):
        await store.sync_document(chunk.document_id, [chunk], "t", session=session)
    assert await store.count("t", session=session) == 2
    await session.commit()
    assert await store.count("t") == 2


async def test_a_refused_document_leaves_the_objects_alone(
    session: AsyncSession, store: PgVectorStore[Passage], document: Document
) -> None:
    """None of them is taken for deleted."""
    rows = (await session.scalars(select(Passage).order_by(Passage.id))).all()
    chunks = await store.get([rows[0].id], "t")
    bad = replace(chunks[0], content="other", content_hash="other")
    with pytest.raises(InvalidInputError):
        await store.sync_document(bad.document_id, [bad], "t", session=session)
    rows[1].content = "changed"
    await session.commit()
    assert (await store.get([rows[1].id], "t"))[0].content == "changed"


async def test_a_stale_snapshot_is_refused(
    library: AsyncEngine, store: PgVectorStore[Passage], document: Document
) -> None:
    """It would leave what another synchronisation has committed."""
    (chunk, *_) = await stored(store, "t")
    async with library.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        with pytest.raises(InvalidInputError, match="READ COMMITTED"):
            await store.sync_document(chunk.document_id, [chunk], "t", session=connection)


async def test_a_content_that_changes_meanwhile(
    library: AsyncEngine, store: PgVectorStore[Passage], document: Document
) -> None:
    """Its embedding is not kept for another content."""
    (chunk, *others) = await stored(store, "t")
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
        waiting = asyncio.create_task(store.sync_document(chunk.document_id, [chunk, *others], "t"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await connection.commit()
        with pytest.raises(InvalidInputError, match="another content"):
            await waiting
    assert (await store.get([chunk.id], "t"))[0].content == "newer"


async def test_round_trips(
    library: AsyncEngine, store: PgVectorStore[Passage], document: Document
) -> None:
    """One statement for each call that is one, however many vectors or ids."""
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
        store.update_metadata({one: {"a": 1} for one in ids}, "t"),
        store.search_many([[1, 0, 0, 0]] * 50, "t"),
        store.delete_matching({"a": 2}, "t"),
        store.delete_document("nothing", "t"),
    ):
        statements.clear()
        await call
        assert len(statements) == 1
