"""User models: chunk models on an application's declarative base."""

from __future__ import annotations

import re
from datetime import datetime
from inspect import signature
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
    declarative_base,
    declared_attr,
    mapped_column,
    registry,
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
from cenote.postgres.vector import embedding_type
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


def test_mixins_between_the_mixin_and_the_model() -> None:
    """Class arguments may be given at any level; models of one mixin do not share them."""

    class Base(DeclarativeBase):
        pass

    class Common(ChunkMixin, partitions=2):
        language: Mapped[str]

    class Half(ChunkMixin, column_type="halfvec", hnsw_m=8):
        pass

    class Abstract(Common, Base, dimensions=5):
        __abstract__ = True
        page: Mapped[int]

    class First(Common, Base, dimensions=3):
        __tablename__ = "first"

    class Second(
        Common,
        Base,
        dimensions=4,
        column_type="halfvec",
        partitions=0,
        text_search="spanish",
        row_security=True,
    ):
        __tablename__ = "second"

    class Third(Half, Common, Base, dimensions=6):
        __tablename__ = "third"

    class Fourth(Abstract):
        __tablename__ = "fourth"

    class Fifth(Abstract, dimensions=7, hnsw_ef_construction=100):
        __tablename__ = "fifth"

    expected: list[tuple[Any, dict[str, Any]]] = [
        (First, {"dimensions": 3, "partitions": 2}),
        (
            Second,
            {
                "dimensions": 4,
                "column_type": "halfvec",
                "partitions": 0,
                "text_search": "spanish",
                "row_security": True,
            },
        ),
        (Third, {"dimensions": 6, "column_type": "halfvec", "partitions": 2, "hnsw_m": 8}),
        (Fourth, {"dimensions": 5, "partitions": 2}),
        (Fifth, {"dimensions": 7, "partitions": 2, "hnsw_ef_construction": 100}),
    ]
    for model, settings in expected:
        assert_settings(model, **settings)
        assert "language" in model.__table__.columns
    sql = ddl(Base)
    assert sql.count("PARTITION OF") == 8
    assert "content_tsv" in Second.__table__.columns
    assert "content_tsv" not in First.__table__.columns
    assert "ENABLE ROW LEVEL SECURITY" in sql


def assert_settings(model: Any, **settings: Any) -> None:
    """Check the settings of a model, and that its table has them."""
    config = SchemaConfig(table_name=model.__table__.name, **settings)
    assert PgVectorStore(_engine(), model=model).config == config
    expected = embedding_type(config.column_type, config.dimensions)
    assert repr(model.__table__.columns.embedding.type) == repr(expected)
    assert repr(model.embedding.type) == repr(expected)
    indexes = {index.name: index for index in model.__table__.indexes}
    ann = indexes[f"ix_{config.table_name}_embedding"].dialect_kwargs
    assert ann["postgresql_ops"] == {"embedding": f"{config.column_type}_cosine_ops"}
    assert ann["postgresql_with"]["m"] == config.hnsw_m
    assert len(indexes) == (4 if config.text_search else 3)


def test_the_declarative_base_may_come_first() -> None:
    """SQLAlchemy then maps the class before the mixin knows its arguments."""

    class Base(DeclarativeBase):
        pass

    class Common(ChunkMixin, dimensions=8):
        language: Mapped[str]

    class First(Base, ChunkMixin, dimensions=3, column_type="halfvec", text_search="english"):
        __tablename__ = "first"
        page: Mapped[int]

    class Second(Base, Common, partitions=0):
        __tablename__ = "second"

    class Abstract(Base, Common, dimensions=4):
        __abstract__ = True

    class Third(Abstract):
        __tablename__ = "third"

    class Fourth(Abstract, hnsw_m=5):
        __tablename__ = "fourth"

    assert_settings(First, dimensions=3, column_type="halfvec", text_search="english")
    assert_settings(Second, dimensions=8, partitions=0)
    assert_settings(Third, dimensions=4)
    assert_settings(Fourth, dimensions=4, hnsw_m=5)
    assert First.__table__.columns.keys()[:3] == ["namespace", "id", "document_id"]
    sql = ddl(Base)
    assert sql.count("PARTITION OF") == 3 * 16
    assert "VECTOR(8)" in sql
    assert "HALFVEC(3)" in sql


def test_models_without_a_base_class() -> None:
    """Decorators map classes with the mixin, also if a mixin names the table."""
    mapper_registry = registry()

    class Named(ChunkMixin):
        @declared_attr.directive
        def __tablename__(cls) -> str:  # noqa: N805
            name: str = cls.__name__.lower()  # type: ignore[attr-defined]
            return name

    @mapper_registry.mapped
    class First(ChunkMixin, dimensions=3, text_search="english"):
        __tablename__ = "first"

    @mapper_registry.mapped
    class Second(Named, dimensions=4, column_type="halfvec", text_search="english"):
        pass

    @mapper_registry.mapped_as_dataclass
    class Third(ChunkMixin, dimensions=5):
        __tablename__ = "third"
        page: Mapped[int]

    class Fourth(Named, declarative_base(), dimensions=6):  # type: ignore[misc]
        pass

    assert_settings(First, dimensions=3, text_search="english")
    assert_settings(Second, dimensions=4, column_type="halfvec", text_search="english")
    assert_settings(Third, dimensions=5)
    assert_settings(Fourth, dimensions=6)
    assert {"namespace", "embedding", "page"} <= signature(Third).parameters.keys()


def test_mixins_may_redefine_columns() -> None:
    """A column of any mixin replaces the chunk's, wherever the class arguments are."""

    class Base(DeclarativeBase):
        pass

    class Indexed(ChunkMixin):
        document_id: Mapped[str] = mapped_column(Text(collation="C"), index=True)

    class Commented(ChunkMixin, dimensions=3):
        content: Mapped[str] = mapped_column(Text, comment="a piece of a document")

    class Note(Indexed, Commented, Base):
        __tablename__ = "notes"

    class Memo(Base, Commented, Indexed):
        __tablename__ = "memos"

    for model in (Note, Memo):
        columns: Any = model.__table__.columns
        assert columns.document_id.index
        assert columns.content.comment == "a piece of a document"
        assert columns.embedding.type.dim == 3


def test_sqlmodel_classes_are_rejected() -> None:
    """The error names the recipe: a base that shares SQLModel's metadata."""
    sqlmodel = pytest.importorskip("sqlmodel")
    common: Any = type("Common", (ChunkMixin,), {}, dimensions=3)
    base: Any = type("PassageBase", (sqlmodel.SQLModel,), {})
    for bases in (
        (ChunkMixin, sqlmodel.SQLModel),
        (sqlmodel.SQLModel, ChunkMixin),
        (common, sqlmodel.SQLModel),
        (base, common),
    ):
        for arguments in ({}, {"dimensions": 3}, {"table": True}, {"table": True, "dimensions": 3}):
            with pytest.raises(ConfigurationError, match=r"metadata = SQLModel\.metadata"):
                type(sqlmodel.SQLModel)("Passage", bases, {"__module__": __name__}, **arguments)


def test_a_base_that_shares_sqlmodels_metadata() -> None:
    """Foreign keys and relationships work between a chunk model and a SQLModel class."""
    sqlmodel = pytest.importorskip("sqlmodel")

    class Document(sqlmodel.SQLModel, table=True):  # type: ignore[misc,call-arg,name-defined]
        __tablename__ = "sqlmodel_documents"
        id: int = sqlmodel.Field(primary_key=True)

    class Base(DeclarativeBase):
        metadata = sqlmodel.SQLModel.metadata
        registry = sqlmodel.SQLModel._sa_registry

    class Excerpt(ChunkMixin, Base, dimensions=3):
        __tablename__ = "sqlmodel_excerpts"
        doc_id: Mapped[int] = mapped_column(ForeignKey("sqlmodel_documents.id"))
        document: Mapped["Document"] = relationship()  # noqa: UP037

    table: Any = Excerpt.__table__
    (foreign_key,) = table.foreign_keys
    assert foreign_key.column.table.name == "sqlmodel_documents"
    assert inspect(Excerpt).relationships.document.mapper.class_ is Document
    for name in ("sqlmodel_excerpts", "sqlmodel_documents"):
        sqlmodel.SQLModel.metadata.remove(sqlmodel.SQLModel.metadata.tables[name])


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


def test_dataclass_mixins() -> None:
    """Arguments of mixins apply to dataclasses, too; the base cannot come first there."""

    class Mixin(ChunkMixin, MappedAsDataclass, column_type="halfvec"):
        language: Mapped[str] = mapped_column(default="en")

    class Short(Mixin, DataBase, dimensions=3):
        __tablename__ = "short_quotes"
        page: Mapped[int] = mapped_column(default=1)

    class Long(Mixin, DataBase, dimensions=4):
        __tablename__ = "long_quotes"

    assert_settings(Short, dimensions=3, column_type="halfvec")
    assert_settings(Long, dimensions=4, column_type="halfvec")
    for model in (Short, Long):
        assert {"namespace", "embedding", "language"} <= signature(model).parameters.keys()
    with pytest.raises(ConfigurationError, match="ChunkMixin must come before the declarative"):

        class Late(DataBase, ChunkMixin, dimensions=3):
            __tablename__ = "late_quotes"


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
