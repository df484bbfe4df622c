"""The chunk table as a mapped class: `ChunkRow`, the factory behind it, its names and indexes."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    DateTime,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    event,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cenote import config as defaults
from cenote.config import SchemaConfig
from cenote.ddl import CreateHashPartition
from cenote.sqltypes import Vector, embedding_type
from cenote.types import ColumnType, Float32Array, Metadata

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


class Base(DeclarativeBase):
    """The base of `ChunkRow`."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class ChunkColumns:
    """The columns every chunk model has. A mixin; :func:`chunk_model` makes models of it.

    The key columns use the "C" collation, so that Postgres orders them by code point as Python
    does. Comparing them with a column of another collation cannot use the index; give that column
    the "C" collation too, or compare with ``.collate("C")``.
    """

    namespace: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    id: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    document_id: Mapped[str] = mapped_column(Text(collation="C"), nullable=False)
    content: Mapped[str] = mapped_column(Text, nullable=False)
    position: Mapped[int] = mapped_column(BigInteger, nullable=False)
    metadata_: Mapped[Metadata] = mapped_column("metadata", JSONB, nullable=False)
    content_hash: Mapped[str] = mapped_column(Text, nullable=False)
    embedding: Mapped[Float32Array] = mapped_column(Vector(), nullable=False, deferred=True)
    embedding_model: Mapped[str] = mapped_column(Text, nullable=False, sort_order=2)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), nullable=False, server_default=func.now(), sort_order=2
    )


def chunk_model(
    base: type[DeclarativeBase],
    class_name: str,
    *,
    table_name: str = defaults.DEFAULT_TABLE_NAME,
    schema: str | None = None,
    dimensions: int | None = None,
    column_type: ColumnType = "vector",
    hnsw_m: int = defaults.DEFAULT_HNSW_M,
    hnsw_ef_construction: int = defaults.DEFAULT_HNSW_EF_CONSTRUCTION,
    partitions: int = defaults.DEFAULT_PARTITIONS,
) -> Any:
    """Make a chunk model on a declarative base; its settings are those of `SchemaConfig`.

    Without dimensions the model serves for queries, and its table can only be created by the
    revisions, which know them.
    """
    table_options: dict[str, Any] = {"schema": schema}
    if partitions:
        table_options["postgresql_partition_by"] = "HASH (namespace)"
    attributes = {
        "__module__": base.__module__,
        "__tablename__": table_name,
        "__table_args__": (
            PrimaryKeyConstraint(*KEY, name="pk_" + table_name),
            *_indexes(table_name, column_type, hnsw_m, hnsw_ef_construction),
            table_options,
        ),
        "__annotations__": {"embedding": Mapped[Float32Array]},
        "embedding": mapped_column(
            embedding_type(column_type, dimensions), nullable=False, deferred=True, sort_order=1
        ),
    }
    model: Any = type(class_name, (ChunkColumns, base), attributes)
    for remainder in range(partitions):
        event.listen(
            model.__table__,
            "after_create",
            CreateHashPartition(table_name, schema, partitions, remainder),
        )
    return model


def _indexes(
    table_name: str, column_type: ColumnType, hnsw_m: int, hnsw_ef_construction: int
) -> list[Index]:
    prefix = "ix_" + table_name
    return [
        Index(prefix + "_namespace_document_id", "namespace", "document_id"),
        Index(
            prefix + "_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
        Index(
            ann_index_name(table_name),
            "embedding",
            postgresql_using="hnsw",
            postgresql_ops={"embedding": OPERATOR_CLASS[column_type]},
            postgresql_with={"m": hnsw_m, "ef_construction": hnsw_ef_construction},
        ),
    ]


def ann_index_name(table_name: str) -> str:
    """The name of the HNSW index of a chunk table."""
    return "ix_" + table_name + "_embedding"


@lru_cache(maxsize=64)
def chunk_table(config: SchemaConfig) -> Table:
    """The chunk table that a configuration describes, for Core statements."""

    class _Base(DeclarativeBase):
        pass

    model = chunk_model(
        _Base,
        "ChunkRow",
        table_name=config.table_name,
        schema=config.schema,
        dimensions=config.dimensions,
        column_type=config.column_type,
        hnsw_m=config.hnsw_m,
        hnsw_ef_construction=config.hnsw_ef_construction,
        partitions=config.new_partitions,
    )
    table: Table = model.__table__
    return table


if TYPE_CHECKING:

    class ChunkRow(ChunkColumns, Base):
        """A stored chunk."""

else:
    ChunkRow = chunk_model(Base, "ChunkRow")
    ChunkRow.__doc__ = """A stored chunk, for ORM queries on the table of the default name.

    The embedding is deferred: it is loaded when it is asked for (``undefer(ChunkRow.embedding)``).
    The attribute of the column ``metadata`` is ``metadata_``.
    """
