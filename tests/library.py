"""The models of a host that has documents of its own: a library."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, ForeignKeyConstraint, Index, Text, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cenote import ChunkMixin, EmbeddedChunk
from cenote.sqltypes import Vector
from cenote.testing import embedded


class Base(DeclarativeBase):
    pass


class Document(Base):
    """A document: a UUID key, and no namespace."""

    __tablename__ = "documents"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str]
    passages: Mapped[list[Passage]] = relationship(
        back_populates="document", passive_deletes=True, order_by="Passage.position"
    )


class Passage(ChunkMixin, Base, dimensions=4, partitions=4, hnsw_m=8, hnsw_ef_construction=32):
    """A chunk with columns of the host's, of all kinds."""

    __tablename__ = "passages"

    doc_id: Mapped[uuid.UUID | None] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), index=True
    )
    document: Mapped[Document | None] = relationship(back_populates="passages")
    language: Mapped[str] = mapped_column(server_default="en")
    page: Mapped[int | None]
    readers: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    extra: Mapped[dict[str, Any] | None] = mapped_column("extra_json", JSON(none_as_null=True))
    summary: Mapped[Any] = mapped_column(Vector(2), nullable=True)
    token: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    revised: Mapped[int] = mapped_column(default=0, onupdate=1)
    changed_at: Mapped[datetime | None] = mapped_column(onupdate=func.now())
    bookmarks: Mapped[list[Bookmark]] = relationship(back_populates="passage", passive_deletes=True)


class Bookmark(Base):
    """A row that points at a chunk."""

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
    """A chunk of a document."""
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
