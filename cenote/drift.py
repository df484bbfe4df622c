"""The live chunk table compared with the configuration."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Executable, Row, column, func, select, table
from sqlalchemy.dialects.postgresql.base import PGDialect

from cenote.config import SchemaConfig
from cenote.orm import chunk_table

_attribute = table(
    "pg_attribute",
    column("attrelid"),
    column("attname"),
    column("atttypid"),
    column("atttypmod"),
    column("attisdropped"),
)
_inherits = table("pg_inherits", column("inhparent"))


def live_shape(config: SchemaConfig) -> Executable:
    """A query for the type of the live embedding column and the number of partitions.

    No row where there is no such table or column.
    """
    preparer = PGDialect().identifier_preparer  # type: ignore[no-untyped-call]
    name = preparer.format_table(chunk_table(config))
    return select(
        func.format_type(_attribute.c.atttypid, _attribute.c.atttypmod).label("embedding"),
        select(func.count())
        .where(_inherits.c.inhparent == _attribute.c.attrelid)
        .scalar_subquery()
        .label("partitions"),
    ).where(
        _attribute.c.attrelid == func.to_regclass(name),
        _attribute.c.attname == "embedding",
        _attribute.c.attisdropped.is_(False),
    )


def embedding_difference(live: Row[Any], config: SchemaConfig) -> str | None:
    """What to say if the live embedding column is not what the configuration says."""
    expected = f"{config.column_type}({config.dimensions})"
    actual = live.embedding.rpartition(".")[2]  # with its schema, where that is out of sight
    if actual == expected:
        return None
    return (
        f"the embedding column of table {chunk_table(config).fullname!r} is {actual}, and the "
        f"configuration says {expected}; use the table's own, or another table_name"
    )


def partition_difference(live: Row[Any], config: SchemaConfig) -> str | None:
    """What to say if the live table is partitioned in another way."""
    if live.partitions == config.partitions:
        return None
    return (
        f"table {chunk_table(config).fullname!r} has {live.partitions} partitions, and the "
        f"configuration says {config.partitions}; use the table's own, or another table_name"
    )


def upgrade_command(config: SchemaConfig) -> str:
    """The command that makes the table of a configuration."""
    settings = [
        field.name for field in fields(config) if getattr(config, field.name) != field.default
    ]
    return " ".join(
        ["alembic", *(f"-x {name}={getattr(config, name)}" for name in settings), "upgrade head"]
    )
