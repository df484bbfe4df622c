"""Chunk models on a host's own base."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from library import Base as LibraryBase
from library import Document, Passage, passage
from sqlalchemy import (
    JSON,
    ForeignKey,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    create_mock_engine,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    aliased,
    mapped_column,
    relationship,
)

from cenote import (
    ChunkMixin,
    ChunkRow,
    ConfigurationError,
    DimensionMismatchError,
    MigrationError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
)
from cenote.mapping import chunk_model, chunk_table
from cenote.testing import embedded, found


def ddl(base: type[DeclarativeBase]) -> str:
    """What create_all would run."""
    statements: list[str] = []

    def note(element: Any, *_: Any, **__: Any) -> None:
        statements.append(str(element.compile(dialect=PGDialect())))  # type: ignore[no-untyped-call]

    engine = create_mock_engine("postgresql+asyncpg://", note)
    base.metadata.create_all(engine, checkfirst=False)
    return re.sub(r"\s+", " ", "; ".join(statements))


def test_settings_are_given_in_one_place() -> None:
    """As arguments of the class, for column, index and partitions."""

    class Base(DeclarativeBase):
        metadata = MetaData(schema="search", naming_convention={"pk": "%(table_name)s_key"})

    class Note(
        ChunkMixin,
        Base,
        dimensions=3000,
        column_type="halfvec",
        hnsw_m=24,
        hnsw_ef_construction=100,
        partitions=2,
    ):
        __tablename__ = "notes"

    sql = ddl(Base)
    assert "CREATE TABLE search.notes ( namespace TEXT" in sql
    assert "embedding HALFVEC(3000) NOT NULL" in sql
    assert "CONSTRAINT pk_notes PRIMARY KEY (namespace, id)" in sql
    assert "PARTITION BY HASH (namespace)" in sql
    assert sql.count("PARTITION OF search.notes") == 2
    assert (
        "ix_notes_embedding ON search.notes USING hnsw (embedding halfvec_cosine_ops)"
        " WITH (m = 24, ef_construction = 100)" in sql
    )
    assert PgVectorStore(_engine(), model=Note).config == SchemaConfig(
        dimensions=3000,
        column_type="halfvec",
        table_name="notes",
        schema="search",
        hnsw_m=24,
        hnsw_ef_construction=100,
        partitions=2,
    )


def test_a_plain_table_and_arguments_of_the_hosts() -> None:
    """partitions=0; __table_args__ stay the host's."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=3, partitions=0):
        __tablename__ = "notes"
        __table_args__ = (UniqueConstraint("namespace", "number"), {"comment": "ours"})
        number: Mapped[int]

    sql = ddl(Base)
    assert "PARTITION" not in sql
    assert "UNIQUE (namespace, number)" in sql
    assert "COMMENT ON TABLE notes IS" in sql
    assert list(Note.__table__.columns.keys())[-2:] == ["created_at", "number"]


def test_the_default_instance_and_a_model_of_settings() -> None:
    """ChunkRow, and what chunk_model makes, are the table that the revisions make."""

    class Base(DeclarativeBase):
        pass

    config = SchemaConfig(dimensions=4, partitions=16)
    made: Any = chunk_model(Base, "Row", config)
    default: Any = ChunkRow
    assert made.__name__ == "Row"
    for table in (default.__table__, chunk_table(config)):
        assert table.columns.keys() == made.__table__.columns.keys()
        assert {index.name for index in table.indexes} == {
            index.name for index in made.__table__.indexes
        }
    assert PgVectorStore(_engine(), 4).model is ChunkRow
    assert PgVectorStore(_engine(), 4, table_name="x").model.__tablename__ == "x"


def test_abstract_classes_pass_their_settings_on() -> None:
    """And columns of theirs."""

    class Base(DeclarativeBase):
        pass

    class Ours(ChunkMixin, Base, dimensions=8, partitions=2):
        __abstract__ = True
        source: Mapped[str]

    class One(Ours):
        __tablename__ = "one"

    class Two(Ours, dimensions=16):
        __tablename__ = "two"

    sql = ddl(Base)
    assert "VECTOR(8)" in sql
    assert "VECTOR(16)" in sql
    assert sql.count("source VARCHAR NOT NULL") == 2
    assert sql.count("PARTITION OF one") == sql.count("PARTITION OF two") == 2
    assert issubclass(One, Ours)
    assert issubclass(Two, Ours)


def test_a_subclass_by_single_table_inheritance() -> None:
    """Shares the table, and its indexes are not made again."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=3):
        __tablename__ = "notes"
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "note"}  # noqa: RUF012

    class Memo(Note):
        __mapper_args__ = {"polymorphic_identity": "memo"}  # noqa: RUF012
        urgent: Mapped[bool | None]

    with pytest.raises(ConfigurationError, match="the class that has the table, Note, not Memo"):
        PgVectorStore(_engine(), model=Memo)
    assert Memo.__table__ is Note.__table__
    table: Any = Note.__table__
    assert len(table.indexes) == 3


def test_columns_of_the_chunks_may_be_defined_anew_with_their_type() -> None:
    """So that document_id can have a foreign key; another type is refused by name."""

    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "documents"
        id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)

    class Dated:
        created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())

    class Note(ChunkMixin, Base, dimensions=3):
        __tablename__ = "notes"
        document_id: Mapped[str] = mapped_column(
            Text(collation="C"), ForeignKey("documents.id", ondelete="CASCADE")
        )
        document: Mapped[Document] = relationship()

    assert "FOREIGN KEY(document_id) REFERENCES documents (id) ON DELETE CASCADE" in ddl(Base)

    with pytest.raises(ConfigurationError, match=r'document_id .* must be TEXT COLLATE "C" NOT'):

        class Wrong(ChunkMixin, Base, dimensions=3):
            __tablename__ = "wrong"
            document_id: Mapped[int] = mapped_column(Integer)  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match="must be TIMESTAMP WITH TIME ZONE"):

        class AlsoWrong(Dated, ChunkMixin, Base, dimensions=3):
            __tablename__ = "also_wrong"

    with pytest.raises(ConfigurationError, match=r"primary key .* must be \(namespace, id\)"):

        class Wider(ChunkMixin, Base, dimensions=3):
            __tablename__ = "wider"
            number: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 3, "hnsw_m": 1}, "hnsw_m"),
        ({"dimensions": 3, "column_type": "bit"}, "column_type"),
        ({"dimensions": 3, "partitions": 1}, "partitions"),
        ({"dimensions": 3, "table_name": "x"}, "table_name"),
        ({"dimensions": 3, "schema": "x"}, "schema"),
        ({"dimension": 3}, "dimension"),
    ],
)
def test_settings_that_cannot_work(arguments: Any, setting: str) -> None:
    """Are refused when the class is made, by name."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError) as error:
        type("Note", (ChunkMixin, Base), {"__tablename__": "notes"}, **arguments)
    assert error.value.setting == setting


def test_a_table_without_dimensions_cannot_be_created() -> None:
    """Since its index could not; the message says where to give them."""

    class Base(DeclarativeBase):
        pass

    type("Note", (ChunkMixin, Base), {"__tablename__": "notes"})
    with pytest.raises(ConfigurationError, match="table 'notes': how many dimensions"):
        ddl(Base)


def test_a_table_name_that_is_too_long() -> None:
    """Its indexes' names would be."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match="at most 38 fit"):
        type("Note", (ChunkMixin, Base), {"__tablename__": "n" * 39}, dimensions=3)


# -- dataclasses


class DataBase(MappedAsDataclass, DeclarativeBase):
    pass


class Author(DataBase):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    name: Mapped[str]
    quotes: Mapped[list[Quote]] = relationship(back_populates="author", default_factory=list)


class Quote(ChunkMixin, DataBase, dimensions=4, partitions=2):
    __tablename__ = "quotes"
    author_id: Mapped[int | None] = mapped_column(
        ForeignKey("authors.id", ondelete="CASCADE"), index=True, default=None
    )
    author: Mapped[Author | None] = relationship(back_populates="quotes", default=None)
    lang: Mapped[str] = mapped_column(default="en")


async def test_a_dataclass_base(empty_engine: AsyncEngine) -> None:
    """MappedAsDataclass: rows made by hand, upserted and searched."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(DataBase.metadata.create_all)
    store = PgVectorStore(empty_engine, model=Quote)
    async with AsyncSession(empty_engine) as session:
        author = Author("Ada")
        columns: dict[str, Any] = {
            "namespace": "t",
            "id": "by hand",
            "document_id": "d",
            "content": "secret",
            "position": 0,
            "metadata_": {},
            "content_hash": "",
            "embedding": [1, 0, 0, 0],
            "embedding_model": "m",
        }
        quote = Quote(author=author, **columns)
        assert "secret" not in repr(quote)
        session.add(quote)
        await session.flush()
        chunk = embedded("a", columns={"author_id": author.id})
        await store.upsert([chunk], "t", session=session)
        query = (
            store.search_statement([1, 0, 0, 0], "t").join(Quote.author).add_columns(Author.name)
        )
        rows = (await session.execute(query)).all()
        assert [(row.Quote.id, row.score, row.name) for row in rows] == [
            ("a", 1.0, "Ada"),
            ("by hand", 1.0, "Ada"),
        ]
        assert rows[0].Quote.lang == "en"
        assert rows[0].Quote.created_at is not None
        await session.commit()


# -- building blocks


async def test_a_query_by_hand_is_a_line(library: AsyncEngine) -> None:
    """distance_to to order by, similarity_to to select; of a model and of an alias of it."""
    store = PgVectorStore(library, model=Passage)
    await store.upsert([passage(None, n) for n in range(5)], "t")
    near = [1, 0, 0, 0]
    async with AsyncSession(library) as session:
        for model in (Passage, aliased(Passage)):
            query = (
                select(model.id, model.similarity_to(near).label("score"))
                .where(model.namespace == "t", model.similarity_to(near) > 0.9)
                .order_by(model.distance_to(near))
                .limit(3)
            )
            rows = (await session.execute(query)).all()
            assert [row.id for row in rows] == ["?:0", "?:1", "?:2"]
            expected = [result.score for result in await store.search(near, "t", 3)]
            assert [row.score for row in rows] == pytest.approx(expected, abs=1e-6)
    for wrong in ([1, 0, 0], [1, 0, 0, float("nan")]):
        with pytest.raises(VectorStoreError):
            Passage.distance_to(wrong)
    with pytest.raises(DimensionMismatchError):
        Passage.similarity_to([1])
    ChunkRow.distance_to([1, 2, 3])  # whose dimensions only the database knows


# -- a store for a model


async def test_a_store_takes_everything_from_the_model(empty_engine: AsyncEngine) -> None:
    """And refuses settings that contradict it."""
    store = PgVectorStore(empty_engine, model=Passage)
    assert store.model is Passage
    assert (store.config.dimensions, store.config.table_name) == (4, "passages")
    assert repr(store) == "PgVectorStore(table='passages', dimensions=4)"
    settings: dict[str, Any]
    for settings in ({"dimensions": 5}, {"table_name": "x"}, {"hnsw_m": 24}, {"partitions": 8}):
        with pytest.raises(ConfigurationError, match="is that of Passage: leave it out") as error:
            PgVectorStore(empty_engine, model=Passage, **settings)
        assert error.value.setting == next(iter(settings))
    PgVectorStore(empty_engine, 4, model=Passage, hnsw_m=8)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="how many dimensions has ChunkRow"):
        PgVectorStore(empty_engine, model=ChunkRow)
    wrong: Any
    for wrong in (Document, int, "Passage", ChunkMixin):
        with pytest.raises(ConfigurationError, match="made with ChunkMixin, not") as error:
            PgVectorStore(empty_engine, model=wrong)
        assert error.value.setting == "model"


async def test_metadata_of_a_type_of_the_hosts(empty_engine: AsyncEngine) -> None:
    """Whatever it makes of JSON, a store reads the text."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=4, partitions=0):
        __tablename__ = "notes"
        metadata_: Mapped[Any] = mapped_column(
            "metadata", JSON().with_variant(JSONB(), "postgresql"), nullable=False
        )

    store = PgVectorStore(empty_engine, model=Note)
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    await store.upsert([embedded("a", metadata={"k": [1]})], "n")
    (result,) = await store.search([1, 0, 0, 0], "n")
    assert result.chunk.metadata == {"k": [1]}
    assert [chunk.metadata async for chunk in store.get_all_chunks("n")] == [{"k": [1]}]


async def test_the_tables_migrations_are_the_hosts(empty_engine: AsyncEngine) -> None:
    """The store refuses them, and names the host's commands wherever the table is wrong."""
    store = PgVectorStore(empty_engine, model=Passage)
    with pytest.raises(MigrationError, match="alembic revision --autogenerate"):
        await store.apply_migrations()
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
    with pytest.raises(VectorStoreError, match="alembic upgrade head"):
        await found(store, [1, 0, 0, 0], "t")
    (missing,) = await store.check_schema()
    assert (missing.kind, "alembic upgrade head" in missing.cure) == ("table_missing", True)
    async with empty_engine.begin() as connection:
        await connection.run_sync(LibraryBase.metadata.create_all)
    assert await store.check_schema() == []
    async with empty_engine.begin() as connection:
        await connection.execute(text("ALTER TABLE passages DROP COLUMN page"))
    with pytest.raises(VectorStoreError, match="alembic upgrade head"):
        await store.upsert([passage(None, 0, page=1)], "t")


def test_the_mapping_is_ordinary() -> None:
    """The embedding is deferred; the host's own come after the chunk's."""
    mapper = inspect(Passage)
    assert mapper.attrs.embedding.deferred
    names = list(Passage.__table__.columns.keys())
    assert names[:3] == ["namespace", "id", "document_id"]
    assert names[9:12] == ["created_at", "doc_id", "language"]


def _engine() -> AsyncEngine:
    return create_async_engine("postgresql+asyncpg://nowhere")
