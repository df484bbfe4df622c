"""DDL for which SQLAlchemy has no construct, compiled with the dialect's identifier preparer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import MetaData, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement


class CreateExtension(ExecutableDDLElement):
    """``CREATE EXTENSION IF NOT EXISTS vector [SCHEMA ...]``."""

    def __init__(self, schema: str | None = None) -> None:
        self.schema = schema


class CreateHashPartition(ExecutableDDLElement):
    """``CREATE TABLE ... PARTITION OF ...``: one of the hash partitions of a table.

    Args:
        table_name: the partitioned table.
        schema: its schema.
        modulus: how many partitions there are.
        remainder: which one this is, from 0.
    """

    def __init__(self, table_name: str, schema: str | None, modulus: int, remainder: int) -> None:
        self.parent = Table(table_name, MetaData(), schema=schema)
        name = partition_name(table_name, remainder)
        self.partition = Table(name, MetaData(), schema=schema)
        self.modulus = modulus
        self.remainder = remainder


def partition_name(table_name: str, remainder: int) -> str:
    """The name of a hash partition."""
    return f"{table_name}_p{remainder:02d}"


@compiles(CreateExtension, "postgresql")
def _create_extension(element: CreateExtension, compiler: Any, **kw: Any) -> str:
    sql = "CREATE EXTENSION IF NOT EXISTS vector"
    if element.schema is not None:
        sql += " SCHEMA " + compiler.preparer.quote_schema(element.schema)
    return sql


@compiles(CreateHashPartition, "postgresql")
def _create_hash_partition(element: CreateHashPartition, compiler: Any, **kw: Any) -> str:
    format_table = compiler.preparer.format_table
    return " ".join(
        [
            "CREATE TABLE",
            format_table(element.partition),
            "PARTITION OF",
            format_table(element.parent),
            "FOR VALUES WITH (MODULUS",
            str(int(element.modulus)) + ", REMAINDER",
            str(int(element.remainder)) + ")",
        ]
    )
