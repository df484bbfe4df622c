"""Checks of the public API's static types. `make check` runs mypy and basedpyright on this file.

The code is never executed. Select has the type parameters of SQLAlchemy 2.1.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, assert_type

from sqlalchemy import ColumnElement, ForeignKey, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    relationship,
)

from cenote import (
    Chunk,
    ChunkMixin,
    ChunkRow,
    EmbeddedChunk,
    InMemoryVectorStore,
    PgVectorStore,
    RetrievalResult,
    VectorStore,
)
from cenote.types import Float32Array


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    passages: Mapped[list[Passage]] = relationship(back_populates="document")


class Passage(ChunkMixin, Base, dimensions=384, column_type="halfvec", hnsw_m=24, partitions=0):
    __tablename__ = "passages"
    doc_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("documents.id"))
    document: Mapped[Document] = relationship(back_populates="passages")
    page: Mapped[int | None]


class DataBase(MappedAsDataclass, DeclarativeBase):
    pass


class Note(ChunkMixin, DataBase, dimensions=3, kw_only=True):
    __tablename__ = "notes"
    page: Mapped[int]


def columns(passage: Passage, note: Note, row: ChunkRow) -> None:
    """A user model has types for its own columns and for the chunk's columns."""
    assert_type(passage.doc_id, uuid.UUID)
    assert_type(passage.document, Document)
    assert_type(passage.page, int | None)
    assert_type(passage.id, str)
    assert_type(passage.position, int)
    assert_type(passage.metadata_, dict[str, Any])
    assert_type(passage.created_at, datetime)
    assert_type(passage.embedding, Float32Array)
    assert_type(note.page, int)
    assert_type(note.content, str)
    assert_type(row.namespace, str)
    assert_type(Passage.similarity_to([1.0]), ColumnElement[float])
    assert_type(select(Passage.id, Passage.page), Select[str, int | None])


async def stores(engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
    """A store's type contains the class of its rows."""
    assert_type(PgVectorStore(engine, 384), PgVectorStore[ChunkRow])
    assert_type(PgVectorStore(sessions, 384, table_name="x", hnsw_m=24), PgVectorStore[ChunkRow])
    assert_type(PgVectorStore(engine, model=Passage), PgVectorStore[Passage])
    assert_type(PgVectorStore(engine, model=Passage).model, type[Passage])
    assert_type(await PgVectorStore.connect("dsn", 384), PgVectorStore[ChunkRow])
    connected = await PgVectorStore[Passage].connect("dsn", model=Passage)
    assert_type(connected, PgVectorStore[Passage])
    takes_any_store(PgVectorStore(engine, model=Note))
    takes_any_store(InMemoryVectorStore(384))
    takes_any_store(InMemoryVectorStore(model=Passage))
    InMemoryVectorStore(model=Document)  # type: ignore[arg-type] # pyright: ignore
    PgVectorStore(engine)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    PgVectorStore(engine, model=Document)  # type: ignore[type-var] # pyright: ignore


def takes_any_store(store: VectorStore) -> AsyncIterator[Chunk]:
    """An application may use the protocol as the type of its store."""
    return store.get_all_chunks("t")


async def calls(
    store: PgVectorStore[Passage],
    plain: PgVectorStore,
    session: AsyncSession,
    connection: AsyncConnection,
    chunks: list[EmbeddedChunk],
) -> None:
    """Operations accept sessions, connections and conditions, and return precise types."""
    await store.upsert(chunks, "t", session=session)
    await store.delete(["a"], "t", session=connection)
    where = Passage.document.has(Document.id == uuid.uuid4()) & (Passage.page > 3)
    assert_type(await store.search([1.0], "t", where=where, session=session), list[RetrievalResult])
    statement = store.search_statement([1.0], "t", 5, {"lang": "en"}, where=where)
    assert_type(statement, Select[Passage, float])
    assert_type(plain.search_statement([1.0], "t"), Select[ChunkRow, float])
    for passage, score in await session.execute(statement.join(Passage.document)):
        assert_type(passage, Passage)
        assert_type(score, float)
    async for chunk in store.get_all_chunks("t", session=session):
        assert_type(chunk, Chunk)
