"""`ChunkMixin`, the columns and indexes of a chunk table, and `ChunkRow`, the default model."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
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
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    MappedColumn,
    Mapper,
    declared_attr,
    deferred,
    mapped_column,
    registry,
)
from sqlalchemy.sql.elements import Grouping

from cenote import config as defaults
from cenote.config import SchemaConfig, check_text_search
from cenote.errors import ConfigurationError
from cenote.filters.operands import json_number, json_string
from cenote.postgres.ann_index import (
    distance,
    index_expression,
    marked_comment,
    operator_class,
    score,
)
from cenote.postgres.ddl import create_hash_partition, partition_name, store_inline
from cenote.postgres.full_text import COLUMN as TEXT_COLUMN
from cenote.postgres.full_text import generated
from cenote.postgres.row_security import enable_row_security_statements
from cenote.postgres.vector import HalfvecType, VectorType, embedding_type
from cenote.types import ColumnType, Float32Array, IndexKind, Metadata, Metric, Vector
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

INDEX_KIND = "cenote_index"
"""Key in a chunk table's `Table.info` for the kind of its ANN index; None if the model does not set
it."""

PARTITIONS = "cenote_partitions"
"""Key in a chunk table's `Table.info` for the number of partitions."""

LANGUAGES = "cenote_languages"
"""Key in a chunk table's `Table.info` for the text search configurations."""

_MAX_NAME_BYTES = 63
"""Maximum number of bytes of a name in Postgres."""

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

    The mixin comes before the declarative base; after it, the mixin works too, except in a
    dataclass. A class of `SQLModel` cannot be a chunk model: define the model on a base with
    ``metadata = SQLModel.metadata``.

    The class takes the following arguments in addition to those of its base. A mixin or an abstract
    class can take some of them for all models that are based on it; the nearest class in the order
    of inheritance wins.

    Args:
        dimensions: Number of dimensions of every vector. A model without it can be queried, but
            only cenote's revisions, which know the number, can create its table.
        column_type, metric, index, hnsw_m, hnsw_ef_construction, partitions: See `SchemaConfig`.
        text_search, row_security: See `SchemaConfig`.

    Raises:
        ConfigurationError: A setting is invalid, the name of the table is not an identifier of at
            most 38 bytes, a column of the chunk has another type, or the class is a `SQLModel`.

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
    _cenote_arguments: Any = MappingProxyType({})
    _cenote_columns: Any = frozenset()

    def __init_subclass__(
        cls,
        *,
        dimensions: int | None = None,
        column_type: ColumnType | None = None,
        metric: Metric | None = None,
        index: IndexKind | None = None,
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
            "metric": metric,
            "index": index,
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
        _reject_pydantic(cls)
        check_text_search(text_search)
        cls._cenote_arguments = {
            name: value for name, value in arguments.items() if value is not None
        }
        cls._cenote_settings = _merge_arguments(cls)
        if "__mapper__" in vars(cls):
            # The declarative base comes before ChunkMixin among the bases, and has mapped the class
            # before the arguments were known.
            _complete_mapped_class(cls)
        elif _will_be_mapped(cls):
            _add_columns(cls)
        super().__init_subclass__(**base_arguments)

    @classmethod
    def distance_to(cls, vector: Vector) -> ColumnElement[float]:
        """Return the distance to a vector, as an expression to order by: nearest first.

        It is pgvector's operator for the metric: the cosine distance, 0 to 2; the negative inner
        product; or the Euclidean distance. An ANN index on the column itself serves this order. A
        query with ``order_by(Passage.distance_to(v)).limit(n)`` may return fewer than n rows
        although more match; `PgVectorStore.search_statement` returns all of them.

        Raises:
            DimensionMismatchError: The vector has another number of dimensions than the model.
            InvalidInputError: The vector contains values that are not finite numbers.
        """
        type_: Any = cls.embedding.type
        column_type: ColumnType = "halfvec" if isinstance(type_, HalfvecType) else "vector"
        dimensions = np.size(vector) if type_.dim is None else type_.dim
        query = check_query_vector(vector, dimensions, column_type, _metric(cls))
        return distance(_metric(cls), cls.embedding, query)  # type: ignore[arg-type]

    @classmethod
    def similarity_to(cls, vector: Vector) -> ColumnElement[float]:
        """Return the score of a vector, as an expression to select or compare; see `VectorStore`.

        The cosine similarity is NaN for zero vectors. No index serves an order by the score: order
        by :meth:`distance_to`.

        Raises:
            DimensionMismatchError: The vector has another number of dimensions than the model.
            InvalidInputError: The vector contains values that are not finite numbers.
        """
        return score(_metric(cls), cls.distance_to(vector))


def _metric(cls: type[ChunkMixin]) -> Metric:
    metric: Metric = cls._cenote_settings.get("metric", "cosine")
    return metric


def _merge_arguments(cls: type[ChunkMixin]) -> dict[str, Any]:
    """Return the arguments of a class and of its bases: the nearest class in the MRO wins."""
    settings: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        settings |= vars(base).get("_cenote_arguments", {})
    return settings


def _will_be_mapped(cls: type[ChunkMixin]) -> bool:
    """Return whether SQLAlchemy is about to map a class to a table of its own.

    An abstract class and a mixin are not mapped, and a subclass of a mapped class shares its table.
    A class without a declarative base is mapped by a decorator if it names a table.
    """
    names = vars(cls)
    if names.get("__abstract__", False) or hasattr(cls, "__mapper__"):
        return False
    has_base = isinstance(getattr(cls, "registry", None), registry)
    return has_base or isinstance(names.get("__tablename__"), str)


def _add_columns(cls: type[ChunkMixin]) -> None:
    """Set the chunk's columns on the class itself: dataclasses ignore those of a plain mixin.

    Columns that the class or a mixin defines stay. Columns that this function has set on a base
    are replaced, because that base may have other arguments.
    """
    classes = cls.__mro__[: cls.__mro__.index(ChunkMixin)]
    defined = {
        name
        for base in classes
        for name in (*vars(base), *vars(base).get("__annotations__", {}))
        if name not in vars(base).get("_cenote_columns", ())
    }
    missing = [name for name in _COLUMNS if name not in defined]
    cls._cenote_columns = frozenset(missing)
    cls.__annotations__ = {name: _COLUMNS[name][0] for name in missing} | vars(cls).get(
        "__annotations__", {}
    )
    for name in missing:
        setattr(cls, name, _mapped_column(name, cls))


def _mapped_column(name: str, cls: type[ChunkMixin]) -> MappedColumn[Any]:
    """Return a column of the chunk for a class that is about to be mapped."""
    options: dict[str, Any] = {
        "sort_order": list(_COLUMNS).index(name) - len(_COLUMNS),
        "nullable": False,
    }
    if issubclass(cls, MappedAsDataclass):
        options |= {"kw_only": True, **_DATACLASS_OPTIONS.get(name, {})}
    types = [_embedding_type(cls._cenote_settings)] if name == "embedding" else []
    return _COLUMNS[name][1](*types, **options)


def _embedding_type(settings: Mapping[str, Any]) -> Any:
    return embedding_type(settings.get("column_type", "vector"), settings.get("dimensions"))


def _declare_columns() -> None:
    """Give `ChunkMixin` its columns, for classes on which `_add_columns` cannot set them.

    SQLAlchemy evaluates these attributes while it maps a class. That is the only moment for a class
    whose declarative base comes before the mixin, and for one that a decorator maps and a mixin
    names.
    """
    for name in _COLUMNS:

        def declare(cls: type[ChunkMixin], name: str = name) -> MappedColumn[Any]:
            if issubclass(cls, MappedAsDataclass):
                raise ConfigurationError(
                    f"class {cls.__name__}: in a dataclass, ChunkMixin must come before the "
                    f"declarative base: class {cls.__name__}(ChunkMixin, Base, dimensions=384)",
                    setting="model",
                )
            return _mapped_column(name, cls)

        declare.__name__ = name
        declare.__doc__ = None
        setattr(ChunkMixin, name, declared_attr(declare))


_declare_columns()


def _complete_mapped_class(cls: type[ChunkMixin]) -> None:
    """Apply the arguments of a class to the table that SQLAlchemy has mapped already."""
    mapper = cls.__mapper__  # type: ignore[attr-defined]
    if mapper.inherits is None and isinstance(mapper.local_table, Table):
        column = mapper.local_table.columns.get("embedding")
        if column is not None and isinstance(column.type, VectorType | HalfvecType):
            column.type = _embedding_type(cls._cenote_settings)
    _complete_table(mapper, cls)


@event.listens_for(ChunkMixin, "after_mapper_constructed", propagate=True)
def _complete_new_table(mapper: Mapper[Any], cls: type[ChunkMixin]) -> None:
    _reject_pydantic(cls)
    # Without arguments of its own, the class is still being created: see __init_subclass__.
    if "_cenote_arguments" in vars(cls):
        _complete_table(mapper, cls)


def _complete_table(mapper: Mapper[Any], cls: type[ChunkMixin]) -> None:
    """Check the columns of a new model's table, name its key, and add indexes and partitions."""
    table = mapper.local_table
    if mapper.inherits is not None or not isinstance(table, Table):
        return
    config = SchemaConfig(
        **{"dimensions": 1, **cls._cenote_settings}, table_name=table.name, schema=table.schema
    )
    _check_columns(table, config)
    table.comment = marked_comment(table.comment, config.metric, config.index_kind)
    table.info[INDEX_KIND] = config.index
    if config.languages and TEXT_COLUMN not in table.columns:
        text_column = Column(TEXT_COLUMN, TSVECTOR, generated(config.languages), nullable=False)
        table.append_column(text_column)
        mapper.add_property(TEXT_COLUMN, deferred(text_column))
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


def _reject_pydantic(cls: type[Any]) -> None:
    """Raise an error for SQLModel's classes: pydantic cannot validate the types of the columns."""
    metaclasses = inspect.getmro(type(cls))
    if any(base.__module__.partition(".")[0] == "pydantic" for base in metaclasses):
        raise ConfigurationError(
            f"class {cls.__name__}: a chunk model cannot be a SQLModel class. Define it on a "
            "SQLAlchemy base that shares SQLModel's tables: class Base(DeclarativeBase): "
            f"metadata = SQLModel.metadata; registry = SQLModel._sa_registry, then class "
            f"{cls.__name__}(ChunkMixin, Base, dimensions=384), as in docs/frameworks/sqlmodel.md",
            setting="model",
        )


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
    if config.index_kind != "none":
        ann_index(ann_index_name(table.name), table, config)


def ann_index(name: str, table: Table, config: SchemaConfig, **options: Any) -> Index:
    """Add an ANN index to a table with the column ``embedding``.

    Args:
        name: Name of the index.
        table: The table.
        config: Settings of the index, whose kind is not ``"none"``.
        **options: Options of `Index`.
    """
    kind = config.index_kind
    operators = operator_class(config.metric, kind)
    expression = index_expression(kind, config.column_type, config.dimensions)
    indexed: ColumnElement[Any] = table.c.embedding
    if expression is not None:
        # The label is the key of `postgresql_ops`.
        indexed = literal_column(expression).label("embedding")
    return Index(
        name,
        indexed,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": operators},
        postgresql_with={"m": config.hnsw_m, "ef_construction": config.hnsw_ef_construction},
        _table=table,
        **options,
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
    the whole metadata serves equality. The name of the index has a digest of table, keys and kind.

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
    return Index(
        _metadata_index_name(table.name, path, kind), table.c.namespace, Grouping(compared)
    )


def _metadata_index_name(table_name: str, path: tuple[str, ...], kind: str) -> str:
    """Return a name that no index of another table, key or kind has.

    The digest distinguishes what the words before it do not: ``("author", "name")`` from
    ``("author_name",)``, and long keys from each other. Postgres cuts a name after 63 bytes.
    """
    identity = json.dumps([table_name, *path, kind])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
    words = re.sub(r"\W", "_", "_".join(("ix", table_name, *path, kind))).encode()
    return words[: _MAX_NAME_BYTES - 11].decode(errors="ignore") + "_" + digest


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
