"""The application's models. One of them, `Passage`, is a chunk model."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, MetaData, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from cenote import ChunkMixin
from cenote.orm import NAMING_CONVENTION

from .embedding import DIMENSIONS


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class User(Base):
    """A member of a team. Each team is a tenant: its members find only its own documents."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(primary_key=True)
    team: Mapped[str]


class Document(Base):
    __tablename__ = "documents"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    team: Mapped[str] = mapped_column(index=True)
    title: Mapped[str]
    text: Mapped[str]
    owner_name: Mapped[str] = mapped_column(ForeignKey("users.name"), index=True)
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())

    owner: Mapped[User] = relationship()
    # The foreign key's ON DELETE CASCADE deletes the passages; SQLAlchemy need not load them.
    passages: Mapped[list[Passage]] = relationship(back_populates="document", passive_deletes="all")


class Passage(ChunkMixin, Base, dimensions=DIMENSIONS, partitions=4):
    """A part of a document, with its embedding. Its namespace is the team's name."""

    __tablename__ = "passages"

    document_key: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE"), index=True
    )
    document: Mapped[Document] = relationship(back_populates="passages")
