"""Concurrent writers of the same chunks lock rows in ascending order of id, and cannot deadlock.

Each test keeps a transaction open, which first makes a call of the store wait and then wants rows
that the call must not hold yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from cenote import ChunkRow, EmbeddedChunk, InvalidInputError, PgVectorStore
from cenote.models import SyncResult
from cenote.testing import embedded, stored
from cenote.validation.batches import Batch, ascending_steps, check_batch

_WAITING_FOR_ME = text(
    "SELECT count(*) FROM pg_locks"
    " WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
)


async def until_waiting(connection: AsyncConnection, call: asyncio.Task[object]) -> None:
    """Wait until a call of the store waits for a lock of `connection`'s transaction."""
    async with asyncio.timeout(10):
        while not await connection.scalar(_WAITING_FOR_ME):
            assert not call.done(), call.result()
            await asyncio.sleep(0.01)


async def lock(connection: AsyncConnection, *ids: str) -> None:
    """Lock chunks in the connection's transaction, without changing them."""
    statement = select(ChunkRow.id).where(ChunkRow.id.in_(ids)).with_for_update()
    assert len((await connection.execute(statement)).all()) == len(ids)


@pytest.mark.parametrize("in_session", [False, True])
async def test_synchronisation_holds_no_row_while_it_waits_for_an_insert(
    store: PgVectorStore, engine: AsyncEngine, in_session: bool
) -> None:
    """A writer that inserted a chunk of the document can go on to a chunk to be deleted."""
    await store.upsert([embedded("b"), embedded("c")], "n")
    async with engine.connect() as other, AsyncSession(engine) as session:
        await store.upsert([embedded("a", content="other")], "n", session=other)
        options = {"session": session} if in_session else {}
        call = asyncio.create_task(
            store.sync_document("doc", [embedded("a"), embedded("c")], "n", **options)
        )
        await until_waiting(other, call)
        # In a caller's transaction, nothing is repeated: a deadlock would raise an error here.
        await store.upsert([embedded("b", content="other"), embedded("c")], "n", session=other)
        await other.commit()
        assert await asyncio.wait_for(call, 10) == SyncResult(written=1, removed=1, unchanged=1)
        await session.commit()
    assert [chunk.id for chunk in await stored(store, "n")] == ["a", "c"]


@pytest.mark.parametrize("in_session", [False, True])
async def test_synchronisation_releases_rows_before_it_waits_for_an_obsolete_chunk(
    store: PgVectorStore,
    engine: AsyncEngine,
    in_session: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is repeated in ascending order of id, if another transaction holds a row to be deleted."""
    caplog.set_level(logging.INFO, "cenote")
    ids = [f"{number:03}" for number in range(60)]
    await store.upsert([embedded(id) for id in ids], "n")
    new = [embedded(id, content="new") for id in (*ids[10::2], "zzz")]
    async with engine.connect() as other, AsyncSession(engine) as session:
        await lock(other, ids[1], ids[31])
        options = {"session": session} if in_session else {}
        call = asyncio.create_task(store.sync_document("doc", new, "n", **options))
        await until_waiting(other, call)
        await store.upsert(new[3:], "n", session=other)
        await other.commit()
        assert await asyncio.wait_for(call, 10) == SyncResult(written=3, removed=35, unchanged=23)
        await session.commit()
    assert sum("repeating sync_document" in message for message in caplog.messages) == 1
    assert {chunk.id: chunk.content for chunk in await stored(store, "n")} == {
        item.chunk.id: "new" for item in new
    }


async def test_synchronisation_waits_for_chunks_that_keep_their_embeddings(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """It sees what another transaction has committed, and holds no greater id meanwhile."""
    await store.upsert([embedded("a"), embedded("b")], "n")
    (kept, _) = await stored(store, "n")
    for content in ("some text", "other"):
        async with engine.connect() as other:
            await store.upsert([embedded("a", content=content)], "n", session=other)
            await lock(other, "a")
            call = asyncio.create_task(
                store.sync_document("doc", [kept, embedded("b", content=content + "!")], "n")
            )
            await until_waiting(other, call)
            await store.upsert([embedded("b", content=content)], "n", session=other)
            await other.commit()
            if content == "other":
                with pytest.raises(InvalidInputError, match="not stored with this content"):
                    await asyncio.wait_for(call, 10)
            else:
                expected = SyncResult(written=1, removed=0, unchanged=1)
                assert await asyncio.wait_for(call, 10) == expected
    assert [chunk.content for chunk in await stored(store, "n")] == ["other", "other"]


async def test_synchronisation_deletes_chunks_that_were_added_while_it_waited(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """What another transaction adds to the document before it is synchronised, is deleted."""
    async with engine.connect() as other:
        added = [embedded(id, content="other") for id in "abc"]
        await store.upsert(added, "n", session=other)
        call = asyncio.create_task(store.sync_document("doc", [embedded("b")], "n"))
        await until_waiting(other, call)
        await other.commit()
    assert await asyncio.wait_for(call, 10) == SyncResult(written=1, removed=2, unchanged=0)
    (chunk,) = await stored(store, "n")
    assert (chunk.id, chunk.content) == ("b", "some text")


async def test_synchronisation_waits_for_a_chunk_of_another_document(
    store: PgVectorStore, engine: AsyncEngine
) -> None:
    """A chunk that moves to the document keeps its embedding, and is locked in order."""
    await store.upsert([embedded("a", document_id="other"), embedded("b")], "n")
    moved = replace((await store.get(["a"], "n"))[0], document_id="doc")
    missing = replace(moved, id="none")
    async with engine.connect() as other:
        await lock(other, "a")
        call = asyncio.create_task(
            store.sync_document("doc", [moved, embedded("b", content="new")], "n")
        )
        await until_waiting(other, call)
        await store.upsert([embedded("b", content="other")], "n", session=other)
        await other.commit()
    assert await asyncio.wait_for(call, 10) == SyncResult(written=2, removed=0, unchanged=0)
    assert [chunk.document_id for chunk in await stored(store, "n")] == ["doc", "doc"]
    with pytest.raises(InvalidInputError, match="not stored with this content"):
        await store.sync_document("doc", [missing], "n")
    assert await store.count("n") == 2


Deletion = Callable[[PgVectorStore, AsyncSession], Awaitable[object]]


@pytest.mark.parametrize(
    "delete",
    [
        lambda store, session: store.delete(["a", "b"], "n", session=session),
        lambda store, session: store.delete_namespace("n", session=session),
        lambda store, session: store.delete_document("doc", "n", session=session),
    ],
    ids=["delete", "delete_namespace", "delete_document"],
)
async def test_deletion_of_objects_in_a_session(
    store: PgVectorStore, engine: AsyncEngine, delete: Deletion
) -> None:
    """Rows for which the session holds objects are locked in order, together with all others."""
    await store.upsert([embedded("b")], "n")
    await store.upsert([embedded("a")], "n")
    async with engine.connect() as other, AsyncSession(engine) as session:
        # A sequential scan finds the rows in the order of their insertion.
        for setting in ("enable_indexscan", "enable_bitmapscan", "enable_indexonlyscan"):
            await session.execute(text(f"SET LOCAL {setting} = off"))
        held = (await session.scalars(select(ChunkRow))).all()
        await lock(other, "a")

        async def delete_in_session() -> None:
            await delete(store, session)

        call = asyncio.create_task(delete_in_session())
        await until_waiting(other, call)
        await store.upsert([embedded("b", content="other")], "n", session=other)
        await other.commit()
        await asyncio.wait_for(call, 10)
        assert not any(row in session for row in held)
        await session.commit()
    assert await stored(store, "n") == []


async def test_statements_of_a_synchronisation(store: PgVectorStore, engine: AsyncEngine) -> None:
    """It takes four statements, and a fifth if chunks are deleted."""
    await store.upsert([embedded("a"), embedded("b")], "n")
    statements: list[str] = []
    event.listen(
        engine.sync_engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    await store.sync_document("doc", [embedded("a"), embedded("b", content="new")], "n")
    assert len(statements) == 4
    statements.clear()
    await store.sync_document("doc", [embedded("a")], "n")
    assert len(statements) == 5


def test_ascending_steps() -> None:
    """A batch is split at other ids, and into statements of limited size."""

    def steps(ids: list[str], other_ids: list[str]) -> list[list[str]]:
        chunks: list[EmbeddedChunk] = [embedded(id) for id in ids]
        return [
            [chunk.id for chunk in step.chunks] if isinstance(step, Batch) else ["lock", *step]
            for step in ascending_steps(check_batch(chunks, 4, "vector", None), other_ids)
        ]

    assert steps([], []) == []
    assert steps([], ["b", "a"]) == [["lock", "a", "b"]]
    assert steps(["b", "a"], []) == [["a", "b"]]
    assert steps(["b", "d", "e"], ["f", "c", "a", "aa"]) == [
        ["lock", "a", "aa"],
        ["b"],
        ["lock", "c"],
        ["d", "e"],
        ["lock", "f"],
    ]
    # The "C" collation compares code points.
    assert steps(["Z", "ä", "\U0001f600"], ["a", "\uffff"]) == [
        ["Z"],
        ["lock", "a"],
        ["ä"],
        ["lock", "\uffff"],
        ["\U0001f600"],
    ]
    many = [f"{number:04}" for number in range(2500)]
    assert [len(step) for step in steps(many, ["1200x"])] == [1000, 201, 2, 1000, 299]
