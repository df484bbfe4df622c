"""User models: chunk models on an application's declarative base."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import (
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
from support.library import Document, Passage, passage

from cenote import (
    ChunkMixin,
    ChunkRow,
    ConfigurationError,
    DimensionMismatchError,
    PgVectorStore,
    SchemaConfig,
    VectorStoreError,
)
from cenote.orm.factory import chunk_model, chunk_table
from cenote.testing import embedded


def ddl(base: type[DeclarativeBase]) -> str:
    """Return the statements that create_all would execute."""
    statements: list[str] = []

    def record(element: Any, *_: Any, **__: Any) -> None:
        statements.append(str(element.compile(dialect=PGDialect())))  # type: ignore[no-untyped-call]

    engine = create_mock_engine("postgresql+asyncpg://", record)
    base.metadata.create_all(engine, checkfirst=False)
    return re.sub(r"\s+", " ", "; ".join(statements))


def test_class_arguments_configure_the_table() -> None:
    """Class arguments set column, index and partitions, and a store reads them from the model."""

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


def test_a_plain_table_with_table_args_of_the_application() -> None:
    """partitions=0 creates no partitions, and the application's __table_args__ apply."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=3, partitions=0):
        __tablename__ = "notes"
        __table_args__ = (UniqueConstraint("namespace", "number"), {"comment": "notes of users"})
        number: Mapped[int]

    sql = ddl(Base)
    assert "PARTITION" not in sql
    assert "UNIQUE (namespace, number)" in sql
    assert "COMMENT ON TABLE notes IS" in sql
    assert list(Note.__table__.columns.keys())[-2:] == ["created_at", "number"]


def test_chunk_row_and_chunk_model() -> None:
    """ChunkRow and the results of chunk_model map the table that the revisions create."""

    class Base(DeclarativeBase):
        pass

    config = SchemaConfig(dimensions=4, partitions=16)
    model: Any = chunk_model(Base, "Row", config)
    default_model: Any = ChunkRow
    assert model.__name__ == "Row"
    for table in (default_model.__table__, chunk_table(config)):
        assert table.columns.keys() == model.__table__.columns.keys()
        assert {index.name for index in table.indexes} == {
            index.name for index in model.__table__.indexes
        }
    assert PgVectorStore(_engine(), 4).model is ChunkRow
    assert PgVectorStore(_engine(), 4, table_name="x").model.__tablename__ == "x"


def test_subclasses_inherit_from_abstract_classes() -> None:
    """Subclasses of an abstract class inherit settings and columns, and can override settings."""

    class Base(DeclarativeBase):
        pass

    class Sourced(ChunkMixin, Base, dimensions=8, partitions=2):
        __abstract__ = True
        source: Mapped[str]

    class Short(Sourced):
        __tablename__ = "short"

    class Long(Sourced, dimensions=16):
        __tablename__ = "long"

    sql = ddl(Base)
    assert "VECTOR(8)" in sql
    assert "VECTOR(16)" in sql
    assert sql.count("source VARCHAR NOT NULL") == 2
    assert sql.count("PARTITION OF short") == sql.count("PARTITION OF long") == 2
    assert issubclass(Short, Sourced)
    assert issubclass(Long, Sourced)


def test_single_table_inheritance() -> None:
    """A subclass shares its parent's table and adds no indexes; a store requires the parent."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=3):
        __tablename__ = "notes"
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "note"}  # noqa: RUF012

    class Memo(Note):
        __mapper_args__ = {"polymorphic_identity": "memo"}  # noqa: RUF012
        urgent: Mapped[bool | None]

    with pytest.raises(ConfigurationError, match="not its subclass Memo"):
        PgVectorStore(_engine(), model=Memo)
    assert Memo.__table__ is Note.__table__
    table: Any = Note.__table__
    assert len(table.indexes) == 3


def test_redefined_columns() -> None:
    """document_id can get a foreign key; another type raises an error that names the column."""

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
def test_invalid_settings_are_rejected(arguments: Any, setting: str) -> None:
    """The definition of the class raises an error that names the setting."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError) as error:
        type("Note", (ChunkMixin, Base), {"__tablename__": "notes"}, **arguments)
    assert error.value.setting == setting


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("table_name", 'set __tablename__ = "passages"'),
        ("schema", "set __table_args__ ="),
        ("extension_schema", r"pass it to ensure_extension\(\)"),
        ("dimension", "did you mean dimensions"),
    ],
)
def test_unknown_class_arguments_are_rejected(argument: str, hint: str) -> None:
    """The error says where the setting belongs, or suggests the correct name."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match=hint):
        type("Note", (ChunkMixin, Base), {"__tablename__": "notes"}, **{argument: "x"})


def test_a_table_without_dimensions_cannot_be_created() -> None:
    """create_all raises an error, because the index requires the dimensions."""

    class Base(DeclarativeBase):
        pass

    type("Note", (ChunkMixin, Base), {"__tablename__": "notes"})
    with pytest.raises(ConfigurationError, match="table 'notes': `dimensions` is required"):
        ddl(Base)


def test_long_table_names_are_rejected() -> None:
    """A name of more than 38 bytes is rejected, because the names of its indexes would not fit."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ConfigurationError, match="table_name must have at most 38 bytes"):
        type("Note", (ChunkMixin, Base), {"__tablename__": "n" * 39}, dimensions=3)


def test_deferred_embedding_and_order_of_columns() -> None:
    """The embedding is deferred, and user columns come after those of the chunk."""
    mapper = inspect(Passage)
    assert mapper.attrs.embedding.deferred
    names = list(Passage.__table__.columns.keys())
    assert names[:3] == ["namespace", "id", "document_id"]
    assert names[9:12] == ["created_at", "doc_id", "language"]


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
    """Rows of a MappedAsDataclass base can be constructed, upserted and searched."""
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(DataBase.metadata.create_all)
    store = PgVectorStore(empty_engine, model=Quote)
    async with AsyncSession(empty_engine) as session:
        author = Author("Ada")
        columns: dict[str, Any] = {
            "namespace": "t",
            "id": "constructed",
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
            ("constructed", 1.0, "Ada"),
        ]
        assert rows[0].Quote.lang == "en"
        assert rows[0].Quote.created_at is not None
        await session.commit()


# -- query expressions


async def test_queries_with_distance_to_and_similarity_to(library: AsyncEngine) -> None:
    """A select of a model or its alias can order by distance and filter by similarity."""
    store = PgVectorStore(library, model=Passage)
    await store.upsert([passage(None, n) for n in range(5)], "t")
    query_vector = [1, 0, 0, 0]
    async with AsyncSession(library) as session:
        for model in (Passage, aliased(Passage)):
            query = (
                select(model.id, model.similarity_to(query_vector).label("score"))
                .where(model.namespace == "t", model.similarity_to(query_vector) > 0.9)
                .order_by(model.distance_to(query_vector))
                .limit(3)
            )
            rows = (await session.execute(query)).all()
            assert [row.id for row in rows] == ["?:0", "?:1", "?:2"]
            expected = [result.score for result in await store.search(query_vector, "t", 3)]
            assert [row.score for row in rows] == pytest.approx(expected, abs=1e-6)
    for invalid_vector in ([1, 0, 0], [1, 0, 0, float("nan")]):
        with pytest.raises(VectorStoreError):
            Passage.distance_to(invalid_vector)
    with pytest.raises(DimensionMismatchError):
        Passage.similarity_to([1])
    ChunkRow.distance_to([1, 2, 3])  # only the database knows its dimensions


def _engine() -> AsyncEngine:
    return create_async_engine("postgresql+asyncpg://nowhere")
