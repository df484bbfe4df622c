"""The chunk table as a mapped class: `ChunkMixin`, its default instance `ChunkRow`, its indexes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Index,
    MetaData,
    Table,
    Text,
    event,
    func,
    literal,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    MappedColumn,
    Mapper,
    mapped_column,
)
from sqlalchemy.sql.elements import Grouping

from cenote import config as defaults
from cenote.config import SchemaConfig, check_text_search, languages
from cenote.ddl import create_hash_partition, partition_name, store_inline
from cenote.errors import ConfigurationError
from cenote.policies import enable_row_security_statements
from cenote.predicates import json_number, json_string
from cenote.sqltypes import HalfvecType, VectorType, embedding_type
from cenote.text_search import COLUMN as TEXT_COLUMN
from cenote.text_search import generated
from cenote.types import ColumnType, Float32Array, Metadata, Vector
from cenote.validation import check_query_vector

__all__ = [
    "NAMING_CONVENTION",
    "ChunkMixin",
    "ChunkRow",
    "HalfvecType",
    "VectorType",
    "metadata_index",
]

NAMING_CONVENTION = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
"""How cenote names constraints and indexes. The chunk table's own are spelled out by these
patterns, since a host's metadata may follow another convention."""

KEY = ("namespace", "id")
"""The primary key's columns."""

OPERATOR_CLASS: dict[str, str] = {"vector": "vector_cosine_ops", "halfvec": "halfvec_cosine_ops"}
"""The operator class of the ANN index, by column type. Both serve ``<=>``, cosine distance."""


PARTITIONS = "cenote_partitions"
"""The key in a chunk table's `Table.info` where the number of its partitions stands."""

LANGUAGES = "cenote_languages"
"""The key there for its text search configurations."""

ROW_SECURITY = "cenote_row_security"
"""The key there that says that it has row-level security."""


# -- models ----------------------------------------------------------------------------------------

_COLUMNS: dict[str, tuple[Any, Callable[..., MappedColumn[Any]]]] = {
    "namespace": (Mapped[str], partial(mapped_column, Text(collation="C"), primary_key=True)),
    "id": (Mapped[str], partial(mapped_column, Text(collation="C"), primary_key=True)),
    "document_id": (Mapped[str], partial(mapped_column, Text(collation="C"))),
    "content": (Mapped[str], partial(mapped_column, Text)),
    "position": (Mapped[int], partial(mapped_column, BigInteger)),
    "metadata_": (Mapped[Metadata], partial(mapped_column, "metadata", JSONB)),
    "content_hash": (Mapped[str], partial(mapped_column, Text)),
    "embedding": (Mapped[Float32Array], partial(mapped_column, deferred=True)),
    "embedding_model": (Mapped[str], partial(mapped_column, Text)),
    "created_at": (
        Mapped[datetime],
        partial(mapped_column, DateTime(timezone=True), server_default=func.now()),
    ),
}
"""The attributes of every chunk model: annotation, and what makes the column."""

_SAID_OTHERWISE = {
    "table_name": '__tablename__ = "passages"',
    "schema": '__table_args__ = {"schema": "search"}',
    "extension_schema": "it in the revision: ensure_extension()",
}
"""Settings that are no class arguments, and what a class says instead."""

_DATACLASS_OPTIONS: dict[str, dict[str, Any]] = {
    "content": {"repr": False},
    "metadata_": {"repr": False},
    "embedding": {"repr": False, "compare": False},
    "created_at": {"init": False, "compare": False},
}


class ChunkMixin:
    """Makes a mapped class a chunk model: on your own base, beside columns of your own.

    ::

        class Passage(ChunkMixin, Base, dimensions=384):
            __tablename__ = "passages"

            doc_id: Mapped[UUID] = mapped_column(
                ForeignKey("documents.id", ondelete="CASCADE"), index=True
            )
            document: Mapped[Document] = relationship(back_populates="passages")

    The class gets the columns below, the primary key (namespace, id), the indexes that cenote
    relies on, and, when its metadata creates the table, the partitions. A column that the class
    defines itself, say to give ``document_id`` a foreign key, must keep its type. Bases made of
    `MappedAsDataclass` will do; the chunk's columns are keyword-only in their ``__init__``.

    Give the mixin first among the bases. The class takes these arguments beside those of its base:

    Args:
        dimensions: the length of every vector. Without it the model serves for queries, and its
            table can only be created by cenote's revisions, which know it.
        column_type, hnsw_m, hnsw_ef_construction, partitions, text_search, row_security: see
            `SchemaConfig`.

    Raises:
        ConfigurationError: a setting cannot work, the name of the table is no identifier of at
            most 38 bytes, or a column of the chunk's has another type.

    Attributes:
        namespace: the tenant; with `id` the primary key. The key columns and `document_id` use the
            "C" collation, so that Postgres orders them by code point as Python does. Comparing them
            with a column of another collation cannot use an index: give that column the "C"
            collation too, or compare with ``.collate("C")``.
        id, document_id, content, position, content_hash: those of `Chunk`.
        metadata_: the column ``metadata``, whose plain name is SQLAlchemy's.
        embedding: deferred: loaded when it is asked for (``undefer(Passage.embedding)``).
        embedding_model: the name of the model that made the embedding.
        created_at: when the row was inserted.
        content_tsv: with `text_search` only: the words of the content, which Postgres generates;
            deferred.
    """

    if TYPE_CHECKING:
        namespace: Mapped[str]
        id: Mapped[str]
        document_id: Mapped[str]
        content: Mapped[str]
        position: Mapped[int]
        metadata_: Mapped[Metadata]
        content_hash: Mapped[str]
        embedding: Mapped[Float32Array]
        embedding_model: Mapped[str]
        created_at: Mapped[datetime]
        content_tsv: Mapped[str]

    _cenote_settings: Any = MappingProxyType({})

    def __init_subclass__(
        cls,
        *,
        dimensions: int | None = None,
        column_type: ColumnType | None = None,
        hnsw_m: int | None = None,
        hnsw_ef_construction: int | None = None,
        partitions: int | None = None,
        text_search: str | None = None,
        row_security: bool | None = None,
        **base_arguments: Any,
    ) -> None:
        given = {
            "dimensions": dimensions,
            "column_type": column_type,
            "hnsw_m": hnsw_m,
            "hnsw_ef_construction": hnsw_ef_construction,
            "partitions": partitions,
            "text_search": text_search,
            "row_security": row_security,
        }
        for name in base_arguments.keys() & _SAID_OTHERWISE.keys():
            raise ConfigurationError(
                f"class {cls.__name__}: say {_SAID_OTHERWISE[name]}, not {name}=", setting=name
            )
        for name in base_arguments:
            for meant in get_close_matches(name, given, n=1, cutoff=0.8):
                raise ConfigurationError(
                    f"class {cls.__name__}: there is no {name}=; is {meant}= meant?", setting=name
                )
        # An abstract class passes its settings on.
        cls._cenote_settings = cls._cenote_settings | {
            name: value for name, value in given.items() if value is not None
        }
        if not cls.__dict__.get("__abstract__", False) and not hasattr(cls, "__mapper__"):
            _add_columns(cls)
        super().__init_subclass__(**base_arguments)

    @classmethod
    def distance_to(cls, vector: Vector) -> ColumnElement[float]:
        """The cosine distance to a vector, 0 to 2: to order by, which is what the ANN index serves.

        A query of your own with ``order_by(Passage.distance_to(v)).limit(n)`` may come back with
        fewer rows than there are; `PgVectorStore.search_statement` does not.

        Raises:
            DimensionMismatchError: the vector has another number of dimensions than the model.
            InvalidInputError: it holds what is no finite number.
        """
        type_: Any = cls.embedding.type
        column_type: ColumnType = "halfvec" if isinstance(type_, HalfvecType) else "vector"
        dimensions = np.size(vector) if type_.dim is None else type_.dim
        query = check_query_vector(vector, dimensions, column_type)
        distance: ColumnElement[float] = cls.embedding.cosine_distance(query)
        return distance

    @classmethod
    def similarity_to(cls, vector: Vector) -> ColumnElement[float]:
        """The cosine similarity to a vector, -1 to 1: to select, and to compare with a threshold.

        Ordering by it uses no index: order by :meth:`distance_to`. NaN for zero vectors.

        Raises:
            DimensionMismatchError, InvalidInputError: as `distance_to`.
        """
        return 1 - cls.distance_to(vector)


def _add_columns(cls: type[ChunkMixin]) -> None:
    """Give a class the chunk's columns as its own: a plain mixin's are not for dataclasses."""
    before = [vars(base) for base in cls.__mro__[: cls.__mro__.index(ChunkMixin)]]
    taken = {name for own in before for name in (*own, *own.get("__annotations__", {}))}
    added = [name for name in _COLUMNS if name not in taken]
    cls.__annotations__ = {name: _COLUMNS[name][0] for name in added} | vars(cls).get(
        "__annotations__", {}
    )
    dataclass = issubclass(cls, MappedAsDataclass)
    settings = cls._cenote_settings
    for name in added:
        options: dict[str, Any] = {"sort_order": list(_COLUMNS).index(name) - len(_COLUMNS)}
        if dataclass:
            options |= {"kw_only": True, **_DATACLASS_OPTIONS.get(name, {})}
        arguments = (
            [embedding_type(settings.get("column_type", "vector"), settings.get("dimensions"))]
            if name == "embedding"
            else []
        )
        setattr(cls, name, _COLUMNS[name][1](*arguments, **options))
    check_text_search(settings.get("text_search"))
    if (given := languages(settings.get("text_search"))) and TEXT_COLUMN not in taken:
        options = {"init": False, "repr": False, "compare": False} if dataclass else {}
        column = mapped_column(TSVECTOR, generated(given), nullable=False, deferred=True, **options)
        cls.__annotations__[TEXT_COLUMN] = Mapped[str]
        setattr(cls, TEXT_COLUMN, column)


@event.listens_for(ChunkMixin, "after_mapper_constructed", propagate=True)
def _complete_table(mapper: Mapper[Any], cls: type[ChunkMixin]) -> None:
    """Name the key of a new model's table, and give it its indexes, storage and partitions."""
    table = mapper.local_table
    if mapper.inherits is not None or not isinstance(table, Table):
        return
    config = SchemaConfig(
        **{"dimensions": 1, **cls._cenote_settings}, table_name=table.name, schema=table.schema
    )
    _refuse_other_columns(table, config)
    table.primary_key.name = "pk_" + table.name
    table.info[LANGUAGES] = config.languages
    _add_indexes(table, config)
    if "dimensions" not in cls._cenote_settings:
        event.listen(table, "before_create", _refuse_to_create)
    event.listen(table, "after_create", _store_inline)
    if config.new_partitions:
        table.info[PARTITIONS] = config.new_partitions
        table.dialect_kwargs["postgresql_partition_by"] = "HASH (namespace)"
        event.listen(table, "after_create", _create_partitions)
    if config.row_security:
        table.info[ROW_SECURITY] = True
        event.listen(table, "after_create", _secure)


def _refuse_other_columns(table: Table, config: SchemaConfig) -> None:
    """Refuse a class that defines a column of the chunk's with another type of its own."""
    for name, (_, make) in _COLUMNS.items():
        expected = make().column
        if name == "embedding":
            expected.type = embedding_type(config.column_type)
        actual = table.columns.get(expected.name or name)
        if actual is None or (sql_type(actual), actual.nullable) != (sql_type(expected), False):
            raise ConfigurationError(
                f"table {table.name!r}: the column {expected.name or name} of a chunk model must "
                f"be {sql_type(expected)} NOT NULL",
                setting=name,
            )
    key = tuple(column.name for column in table.primary_key)
    if key != KEY:
        raise ConfigurationError(
            f"table {table.name!r}: the primary key of a chunk model must be ({', '.join(KEY)}), "
            f"not ({', '.join(key)})",
            setting="primary_key",
        )


def sql_type(column: Column[Any]) -> str:
    """A column's type as SQL has it; that of an embedding without its dimensions."""
    sql = str(column.type.compile(dialect=PGDialect()))  # type: ignore[no-untyped-call]
    return sql.partition("(")[0] if sql.startswith(("VECTOR", "HALFVEC")) else sql


def _add_indexes(table: Table, config: SchemaConfig) -> None:
    prefix = "ix_" + table.name
    columns = table.c
    Index(prefix + "_namespace_document_id", columns.namespace, columns.document_id)
    Index(
        prefix + "_metadata",
        columns.metadata,
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    if config.languages:
        Index(text_index_name(table.name), columns[TEXT_COLUMN], postgresql_using="gin")
    Index(
        ann_index_name(table.name),
        columns.embedding,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": OPERATOR_CLASS[config.column_type]},
        postgresql_with={"m": config.hnsw_m, "ef_construction": config.hnsw_ef_construction},
    )


def ann_index_name(table_name: str) -> str:
    """The name of the HNSW index of a chunk table."""
    return "ix_" + table_name + "_embedding"


def text_index_name(table_name: str) -> str:
    """The name of the full text index of a chunk table."""
    return "_".join(("ix", table_name, TEXT_COLUMN))


def metadata_index(
    table: Table | str, *path: str, kind: Literal["number", "text"], schema: str | None = None
) -> Index:
    """An index for comparing one value of the metadata: for a key that filters often.

    It serves ``<``, ``<=``, ``>``, ``>=`` and ``between``. Equality needs none: the index of all
    metadata serves it.

    Args:
        table: the table of a model of yours, whose index it becomes, for autogenerate to find; or
            the name of a table, for a revision: ``op.execute(CreateIndex(metadata_index(...)))``.
        *path: the key, or the keys that lead to the value.
        kind: what the values are.
        schema: of the table, if that is a name.
    """
    if isinstance(table, str):
        columns = (Column("namespace", Text), Column("metadata", JSONB))
        table = Table(table, MetaData(), *columns, schema=schema)
    value: ColumnElement[Any] = table.c.metadata
    for key in path:
        value = value.op("->", return_type=JSONB())(literal(key, Text))
    compared = json_number(value) if kind == "number" else json_string(value)
    name = "_".join(("ix", table.name, *path))[:63]
    return Index(name, table.c.namespace, Grouping(compared))


def _refuse_to_create(table: Table, connection: Connection, **_: Any) -> None:
    raise ConfigurationError(unknown_dimensions(table.name), setting="dimensions")


def unknown_dimensions(table_name: str) -> str:
    """What to say of a table that is to be created without knowing the dimensions."""
    return (
        f"table {table_name!r}: how many dimensions have the vectors? Say so where the model is "
        "made: class ...(ChunkMixin, ..., dimensions=384)"
    )


def _store_inline(table: Table, connection: Connection, **_: Any) -> None:
    connection.execute(store_inline(table.name, table.schema))


def _create_partitions(table: Table, connection: Connection, **_: Any) -> None:
    partitions = table.info[PARTITIONS]
    for remainder in range(partitions):
        connection.execute(create_hash_partition(table.name, table.schema, partitions, remainder))


def _secure(table: Table, connection: Connection, **_: Any) -> None:
    names = [partition_name(table.name, n) for n in range(table.info.get(PARTITIONS, 0))]
    for statement in enable_row_security_statements([table.name, *names], table.schema):
        connection.execute(statement)


# -- cenote's own ----------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """The base of `ChunkRow`."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class ChunkRow(ChunkMixin, Base):
    """A stored chunk, for ORM queries on the table of the default name; see `ChunkMixin`."""

    __tablename__ = defaults.DEFAULT_TABLE_NAME


CHUNK_COLUMNS = frozenset(ChunkRow.__table__.columns.keys())
"""The names of the columns that every chunk table has."""
