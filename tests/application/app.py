"""Models of a sample application: its own base and tables, one with a foreign key to chunks."""

from __future__ import annotations

from sqlalchemy import ForeignKeyConstraint, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cenote import ChunkMixin
from cenote.orm import NAMING_CONVENTION


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Document(Base):
    __tablename__ = "documents"

    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    title: Mapped[str]


class Passage(ChunkMixin, Base, dimensions=4):
    __tablename__ = "cenote_chunks"


class Note(Base):
    __tablename__ = "notes"
    __table_args__ = (
        ForeignKeyConstraint(
            ["namespace", "chunk_id"],
            ["cenote_chunks.namespace", "cenote_chunks.id"],
            ondelete="CASCADE",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    namespace: Mapped[str] = mapped_column(Text(collation="C"))
    chunk_id: Mapped[str] = mapped_column(Text(collation="C"))
    text: Mapped[str]
