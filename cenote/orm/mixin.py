"""`ChunkMixin`, the columns and indexes of a chunk table, and `ChunkRow`, the default model."""

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
from cenote.errors import ConfigurationError
from cenote.filters.operands import json_number, json_string
from cenote.postgres.ddl import create_hash_partition, partition_name, store_inline
from cenote.postgres.full_text import COLUMN as TEXT_COLUMN
from cenote.postgres.full_text import generated
from cenote.postgres.row_security import enable_row_security_statements
from cenote.postgres.vector import HalfvecType, VectorType, embedding_type
from cenote.types import ColumnType, Float32Array, Metadata, Vector
from cenote.validation.vectors import check_query_vector

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
"""Naming convention of cenote's constraints and indexes.

The chunk table sets these names explicitly, because the metadata of an application may have another
convention.
"""

KEY = ("namespace", "id")
"""Columns of the primary key."""

OPERATOR_CLASS: dict[str, str] = {"vector": "vector_cosine_ops", "halfvec": "halfvec_cosine_ops"}
"""Operator class of the ANN index, by column type. Both serve ``<=>``, the cosine distance."""

PARTITIONS = "cenote_partitions"
"""Key in a chunk table's `Table.info` for the number of partitions."""

LANGUAGES = "cenote_languages"
"""Key in a chunk table's `Table.info` for the text search configurations."""

ROW_SECURITY = "cenote_row_security"
"""Key in a chunk table's `Table.info` for row-level security: True if it is enabled."""


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
"""Annotation and column factory of the attributes of every chunk model."""

_NOT_CLASS_ARGUMENTS = {
    "table_name": 'set __tablename__ = "passages" instead',
    "schema": 'set __table_args__ = {"schema": "search"} instead',
    "extension_schema": "pass it to ensure_extension() in the revision instead",
}
"""Settings of `SchemaConfig` that are not class arguments, and what to do instead."""

_DATACLASS_OPTIONS: dict[str, dict[str, Any]] = {
    "content": {"repr": False},
    "metadata_": {"repr": False},
    "embedding": {"repr": False, "compare": False},
    "created_at": {"init": False, "compare": False},
}


class ChunkMixin:
    """Mixin that turns a mapped class into a chunk model, on your base and with your columns.

    ::

        class Passage(ChunkMixin, Base, dimensions=384):
            __tablename__ = "passages"

            doc_id: Mapped[UUID] = mapped_column(
                ForeignKey("documents.id", ondelete="CASCADE"), index=True
            )
            document: Mapped[Document] = relationship(back_populates="passages")

    The class gets the columns below, the primary key (namespace, id) and the indexes that cenote
    relies on. If its metadata creates the table, it also creates the partitions. A class may
    define one of these columns itself, for example to add a foreign key to ``document_id``; the
    type must stay the same. Bases with `MappedAsDataclass` are supported: the chunk's columns are
    keyword-only in their ``__init__``.

    The mixin must be the first base. The class takes the following arguments in addition to those
    of its base.

    Args:
        dimensions: Number of dimensions of every vector. A model without it can be queried, but
            only cenote's revisions, which know the number, can create its table.
        column_type, hnsw_m, hnsw_ef_construction, partitions, text_search, row_security: see
            `SchemaConfig`.

    Raises:
        ConfigurationError: A setting is invalid, the name of the table is not an identifier of at
            most 38 bytes, or a column of the chunk has another type.

    Attributes:
        namespace: Tenant; together with `id` the primary key. The key columns and `document_id`
            use the "C" collation, so that Postgres orders them by code point as Python does.
            Comparisons with a column of another collation cannot use an index: give that column
            the "C" collation too, or compare with ``.collate("C")``.
        id, document_id, content, position, content_hash: The attributes of `Chunk`.
        metadata_: The column ``metadata``. SQLAlchemy reserves the attribute ``metadata``.
        embedding: Deferred: loaded on access, or with ``undefer(Passage.embedding)``.
        embedding_model: Name of the model that computed the embedding.
        created_at: Time when the row was inserted.
        content_tsv: Words of the content, generated by Postgres; deferred. Only with `text_search`.
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
        arguments = {
            "dimensions": dimensions,
            "column_type": column_type,
            "hnsw_m": hnsw_m,
            "hnsw_ef_construction": hnsw_ef_construction,
            "partitions": partitions,
            "text_search": text_search,
            "row_security": row_security,
        }
        for name in base_arguments.keys() & _NOT_CLASS_ARGUMENTS.keys():
            raise ConfigurationError(
                f"class {cls.__name__}: {name} is not a class argument; "
                f"{_NOT_CLASS_ARGUMENTS[name]}",
                setting=name,
            )
        for name in base_arguments:
            for similar in get_close_matches(name, arguments, n=1, cutoff=0.8):
                raise ConfigurationError(
                    f"class {cls.__name__}: unknown class argument {name}; did you mean {similar}?",
                    setting=name,
                )
        # Subclasses inherit the settings of an abstract class.
        cls._cenote_settings = cls._cenote_settings | {
            name: value for name, value in arguments.items() if value is not None
        }
        if not cls.__dict__.get("__abstract__", False) and not hasattr(cls, "__mapper__"):
            _add_columns(cls)
        super().__init_subclass__(**base_arguments)

    @classmethod
    def distance_to(cls, vector: Vector) -> ColumnElement[float]:
        """Return the cosine distance to a vector, 0 to 2, as an expression to order by.

        The ANN index serves this order. A query with ``order_by(Passage.distance_to(v)).limit(n)``
        may return fewer than n rows although more match; `PgVectorStore.search_statement` returns
        all of them.

        Raises:
            DimensionMismatchError: The vector has another number of dimensions than the model.
            InvalidInputError: The vector contains values that are not finite numbers.
        """
        type_: Any = cls.embedding.type
        column_type: ColumnType = "halfvec" if isinstance(type_, HalfvecType) else "vector"
        dimensions = np.size(vector) if type_.dim is None else type_.dim
        query = check_query_vector(vector, dimensions, column_type)
        distance: ColumnElement[float] = cls.embedding.cosine_distance(query)
        return distance

    @classmethod
    def similarity_to(cls, vector: Vector) -> ColumnElement[float]:
        """Return the cosine similarity to a vector, -1 to 1, as an expression to select or compare.

        It is NaN for zero vectors. No index serves an order by it: order by :meth:`distance_to`.

        Raises:
            DimensionMismatchError: The vector has another number of dimensions than the model.
            InvalidInputError: The vector contains values that are not finite numbers.
        """
        return 1 - cls.distance_to(vector)


def _add_columns(cls: type[ChunkMixin]) -> None:
    """Set the chunk's columns on the class itself: dataclasses ignore those of a plain mixin."""
    classes = cls.__mro__[: cls.__mro__.index(ChunkMixin)]
    defined = {
        name for base in classes for name in (*vars(base), *vars(base).get("__annotations__", {}))
    }
    missing = [name for name in _COLUMNS if name not in defined]
    cls.__annotations__ = {name: _COLUMNS[name][0] for name in missing} | vars(cls).get(
        "__annotations__", {}
    )
    is_dataclass = issubclass(cls, MappedAsDataclass)
    settings = cls._cenote_settings
    for name in missing:
        options: dict[str, Any] = {"sort_order": list(_COLUMNS).index(name) - len(_COLUMNS)}
        if is_dataclass:
            options |= {"kw_only": True, **_DATACLASS_OPTIONS.get(name, {})}
        arguments = (
            [embedding_type(settings.get("column_type", "vector"), settings.get("dimensions"))]
            if name == "embedding"
            else []
        )
        setattr(cls, name, _COLUMNS[name][1](*arguments, **options))
    text_search = settings.get("text_search")
    check_text_search(text_search)
    configurations = languages(text_search)
    if configurations and TEXT_COLUMN not in defined:
        options = {"init": False, "repr": False, "compare": False} if is_dataclass else {}
        column = mapped_column(
            TSVECTOR, generated(configurations), nullable=False, deferred=True, **options
        )
        cls.__annotations__[TEXT_COLUMN] = Mapped[str]
        setattr(cls, TEXT_COLUMN, column)


@event.listens_for(ChunkMixin, "after_mapper_constructed", propagate=True)
def _complete_table(mapper: Mapper[Any], cls: type[ChunkMixin]) -> None:
    """Check the columns of a new model's table, name its key, and add indexes and partitions."""
    table = mapper.local_table
    if mapper.inherits is not None or not isinstance(table, Table):
        return
    config = SchemaConfig(
        **{"dimensions": 1, **cls._cenote_settings}, table_name=table.name, schema=table.schema
    )
    _check_columns(table, config)
    table.primary_key.name = "pk_" + table.name
    table.info[LANGUAGES] = config.languages
    _add_indexes(table, config)
    if "dimensions" not in cls._cenote_settings:
        event.listen(table, "before_create", _reject_missing_dimensions)
    event.listen(table, "after_create", _set_storage)
    if config.new_partitions:
        table.info[PARTITIONS] = config.new_partitions
        table.dialect_kwargs["postgresql_partition_by"] = "HASH (namespace)"
        event.listen(table, "after_create", _create_partitions)
    if config.row_security:
        table.info[ROW_SECURITY] = True
        event.listen(table, "after_create", _enable_row_security)


def _check_columns(table: Table, config: SchemaConfig) -> None:
    """Check that the chunk's columns and the primary key have the expected types and columns."""
    for name, (_, make_column) in _COLUMNS.items():
        expected = make_column().column
        if name == "embedding":
            expected.type = embedding_type(config.column_type)
        actual = table.columns.get(expected.name or name)
        if actual is None or (_sql_type(actual), actual.nullable) != (_sql_type(expected), False):
            raise ConfigurationError(
                f"table {table.name!r}: the column {expected.name or name} of a chunk model must "
                f"be {_sql_type(expected)} NOT NULL",
                setting=name,
            )
    key = tuple(column.name for column in table.primary_key)
    if key != KEY:
        raise ConfigurationError(
            f"table {table.name!r}: the primary key of a chunk model must be ({', '.join(KEY)}), "
            f"not ({', '.join(key)})",
            setting="primary_key",
        )


def _sql_type(column: Column[Any]) -> str:
    """Return the type of a column as SQL; for an embedding without the number of dimensions."""
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
    """Return the name of a chunk table's HNSW index."""
    return "ix_" + table_name + "_embedding"


def text_index_name(table_name: str) -> str:
    """Return the name of a chunk table's full text index."""
    return "_".join(("ix", table_name, TEXT_COLUMN))


def metadata_index(
    table: Table | str, *path: str, kind: Literal["number", "text"], schema: str | None = None
) -> Index:
    """Create an index for a metadata key that filters often compare.

    It serves ``<``, ``<=``, ``>``, ``>=`` and ``between``. Equality does not need it: the index of
    the whole metadata serves equality.

    Args:
        table: Table of a user model, to which the index is added so that autogenerate finds it; or
            the name of a table, for a revision: ``op.execute(CreateIndex(metadata_index(...)))``.
        *path: The key, or the keys that lead to a nested value.
        kind: Type of the values.
        schema: Schema of the table, if `table` is a name.
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


def _reject_missing_dimensions(table: Table, connection: Connection, **_: Any) -> None:
    raise ConfigurationError(missing_dimensions_message(table.name), setting="dimensions")


def missing_dimensions_message(table_name: str) -> str:
    """Return the error message for creating the table of a model without dimensions."""
    return (
        f"table {table_name!r}: `dimensions` is required to create the table; pass it as a class "
        "argument of the model, e.g. class Passage(ChunkMixin, Base, dimensions=384)"
    )


def _set_storage(table: Table, connection: Connection, **_: Any) -> None:
    connection.execute(store_inline(table.name, table.schema))


def _create_partitions(table: Table, connection: Connection, **_: Any) -> None:
    partitions = table.info[PARTITIONS]
    for remainder in range(partitions):
        connection.execute(create_hash_partition(table.name, table.schema, partitions, remainder))


def _enable_row_security(table: Table, connection: Connection, **_: Any) -> None:
    names = [partition_name(table.name, n) for n in range(table.info.get(PARTITIONS, 0))]
    for statement in enable_row_security_statements([table.name, *names], table.schema):
        connection.execute(statement)


# -- default model ---------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """Declarative base of `ChunkRow`."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class ChunkRow(ChunkMixin, Base):
    """Stored chunk in the table with the default name, for ORM queries; see `ChunkMixin`."""

    __tablename__ = defaults.DEFAULT_TABLE_NAME


CHUNK_COLUMNS = frozenset(ChunkRow.__table__.columns.keys())
"""Names of the columns that every chunk table has."""
