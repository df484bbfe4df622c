"""Models of an application that has its own documents: a library."""

from __future__ import annotations

import enum
import uuid
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    JSON,
    Date,
    Enum,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Numeric,
    String,
    Text,
    TypeDecorator,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, BIT, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cenote import ChunkMixin, EmbeddedChunk
from cenote.orm import VectorType
from cenote.testing import embedded


class Base(DeclarativeBase):
    pass


class Mood(enum.Enum):
    good = "g"
    bad = "b"


class CommaSeparated(TypeDecorator[list[str]]):
    """A list of strings in a text column."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: list[str] | None, dialect: Any) -> str | None:
        return None if value is None else ",".join(value)

    def process_result_value(self, value: str | None, dialect: Any) -> list[str] | None:
        return None if value is None else value.split(",")


class Document(Base):
    """A document with a UUID key and without a namespace."""

    __tablename__ = "documents"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str]
    passages: Mapped[list[Passage]] = relationship(
        back_populates="document", passive_deletes=True, order_by="Passage.position"
    )


class Passage(ChunkMixin, Base, dimensions=4, partitions=4, hnsw_m=8, hnsw_ef_construction=32):
    """A chunk model with user columns of many types."""

    __tablename__ = "passages"

    doc_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), index=True
    )
    document: Mapped[Document | None] = relationship(back_populates="passages")
    language: Mapped[str] = mapped_column(server_default="en")
    page: Mapped[int | None]
    readers: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    extra: Mapped[dict[str, Any] | None] = mapped_column("extra_json", JSON(none_as_null=True))
    summary: Mapped[Any] = mapped_column(VectorType(2), nullable=True)
    token: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    revised: Mapped[int] = mapped_column(default=0, onupdate=1)
    changed_at: Mapped[datetime | None] = mapped_column(onupdate=func.now())
    labels: Mapped[list[str] | None] = mapped_column(CommaSeparated)
    facts: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    mood: Mapped[Mood | None]
    moods: Mapped[list[Mood] | None] = mapped_column(ARRAY(Enum(Mood)))
    short: Mapped[str | None] = mapped_column(String(5))
    price: Mapped[Decimal | None] = mapped_column(Numeric(8, 2))
    took: Mapped[timedelta | None]
    raw: Mapped[bytes | None]
    days: Mapped[list[date] | None] = mapped_column(ARRAY(Date))
    grid: Mapped[list[list[int]] | None] = mapped_column(ARRAY(Integer, dimensions=2))
    stock: Mapped[Any] = mapped_column(VECTOR(2), nullable=True)
    flags: Mapped[Any] = mapped_column(BIT(3), nullable=True)
    renamed: Mapped[str | None] = mapped_column("db_name", key="other_key")
    bookmarks: Mapped[list[Bookmark]] = relationship(back_populates="passage", passive_deletes=True)


class Bookmark(Base):
    """A row with a foreign key to a chunk."""

    __tablename__ = "bookmarks"
    __table_args__ = (
        ForeignKeyConstraint(
            ["namespace", "passage_id"],
            ["passages.namespace", "passages.id"],
            ondelete="CASCADE",
        ),
        Index("ix_bookmarks_passage", "namespace", "passage_id"),
    )

    key: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(Text(collation="C"))
    passage_id: Mapped[str] = mapped_column(Text(collation="C"))
    passage: Mapped[Passage] = relationship(back_populates="bookmarks")


def passage(
    document: Document | None, position: int, vector: Any = None, **columns: Any
) -> EmbeddedChunk:
    """Return an embedded chunk of a document."""
    id = f"{document.title if document else '?'}:{position}"
    if document is not None:
        columns = {"doc_id": document.id, **columns}
    return embedded(
        id,
        [1.0, position / 8, 0.0, 0.0] if vector is None else vector,
        document_id=document.title if document else "?",
        position=position,
        columns=columns,
    )
