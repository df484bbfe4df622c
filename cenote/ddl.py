"""DDL for which SQLAlchemy has no construct, compiled with the dialect's identifier preparer."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, MetaData, Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, ExecutableDDLElement


def table_of(name: str, schema: str | None) -> Table:
    """A table of which only the name is known."""
    return Table(name, MetaData(), schema=schema)


def qualified(name: str, schema: str | None) -> str:
    """A table's name as SQL writes it."""
    preparer = PGDialect().identifier_preparer  # type: ignore[no-untyped-call]
    text: str = preparer.format_table(table_of(name, schema))
    return text


def partition_name(table_name: str, remainder: int) -> str:
    """The name of a hash partition."""
    return f"{table_name}_p{remainder:02d}"


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
        self.parent = table_of(table_name, schema)
        self.partition = table_of(partition_name(table_name, remainder), schema)
        self.modulus = modulus
        self.remainder = remainder


class StoreInline(ExecutableDDLElement):
    """``ALTER TABLE ... SET STORAGE MAIN``: of a chunk, only the content may leave its row.

    pgvector's types are EXTERNAL, so that a row of more than 2 kB, as one with 384 dimensions and a
    page of text is, has its embedding in the TOAST table, and an exact comparison looks up several
    pieces of each. Measured over 3,000 rows with UUIDs, some metadata and 1.4 kB of text on
    PostgreSQL 18: with EXTERNAL an exact search took 3.2 times as long at 384 dimensions, 2.2 times
    at 768 and 1,536, and the table was up to 1.4 times as large; the ANN search took as long. With
    MAIN for the embedding alone, ids and metadata leave in its place, and a filter, which then
    looks those up, took up to 4 times as long. MAIN and not PLAIN: a row that does not fit into a
    page must go somewhere.

    Args:
        table: the chunk table; partitions that exist follow, later ones inherit it.
        schema: its schema.
    """

    def __init__(self, table: str, schema: str | None) -> None:
        self.table = table_of(table, schema)


class AttachPartition(ExecutableDDLElement):
    """``ALTER TABLE ... ATTACH PARTITION ...``, by the name that `CreateHashPartition` gave it."""

    def __init__(self, table_name: str, schema: str | None, modulus: int, remainder: int) -> None:
        self.parent = table_of(table_name, schema)
        self.partition = table_of(partition_name(table_name, remainder), schema)
        self.modulus = modulus
        self.remainder = remainder


class RenameIndex(ExecutableDDLElement):
    """``ALTER INDEX ... RENAME TO ...``; the constraint of the index is renamed with it."""

    def __init__(self, old: str, new: str, schema: str | None, *, if_exists: bool = False) -> None:
        self.old = table_of(old, schema)
        self.new = new
        self.if_exists = if_exists


class CreateIndexOnOnly(ExecutableDDLElement):
    """``CREATE INDEX ... ON ONLY ...``: the index of a partitioned table without its parts."""

    def __init__(self, index: Index) -> None:
        self.index = index


class AttachIndex(ExecutableDDLElement):
    """``ALTER INDEX ... ATTACH PARTITION ...``."""

    def __init__(self, parent: str, part: str, schema: str | None) -> None:
        self.parent = table_of(parent, schema)
        self.part = table_of(part, schema)


class LockTable(ExecutableDDLElement):
    """``LOCK TABLE ... IN ACCESS EXCLUSIVE MODE``, its partitions included."""

    def __init__(self, name: str, schema: str | None) -> None:
        self.table = table_of(name, schema)


class CreateTableLike(ExecutableDDLElement):
    """``CREATE TABLE ... (LIKE ... INCLUDING ALL EXCLUDING INDEXES)``, for hash partitions or not.

    Args:
        name: the new table.
        like: the one it takes columns, defaults, checks, comments and storage from.
        schema: the schema of both.
        partitioned: whether it is to have hash partitions by namespace.
    """

    def __init__(self, name: str, like: str, schema: str | None, *, partitioned: bool) -> None:
        self.table = table_of(name, schema)
        self.like = table_of(like, schema)
        self.partitioned = partitioned


class AddConstraintAs(ExecutableDDLElement):
    """``ALTER TABLE ... ADD CONSTRAINT ...`` with a definition as the catalogue writes it."""

    def __init__(self, table: str, schema: str | None, name: str, definition: str) -> None:
        self.table = table_of(table, schema)
        self.name = name
        self.definition = definition


class AsTheServerSaid(ExecutableDDLElement):
    """A statement that the server's own catalogue gave, such as ``pg_get_indexdef`` does."""

    def __init__(self, statement: str) -> None:
        self.statement = statement


class Grant(ExecutableDDLElement):
    """``GRANT ... ON ... TO ...``; to everybody where the role is None."""

    def __init__(
        self, privilege: str, table: str, schema: str | None, role: str | None, *, grantable: bool
    ) -> None:
        self.privilege = privilege
        self.table = table_of(table, schema)
        self.role = role
        self.grantable = grantable


class Revoke(ExecutableDDLElement):
    """``REVOKE ALL ON ... FROM ...``; from everybody where the role is None."""

    def __init__(self, table: str, schema: str | None, role: str | None) -> None:
        self.table = table_of(table, schema)
        self.role = role


class ChangeOwner(ExecutableDDLElement):
    """``ALTER TABLE ... OWNER TO ...``."""

    def __init__(self, table: str, schema: str | None, role: str) -> None:
        self.table = table_of(table, schema)
        self.role = role


class Analyze(ExecutableDDLElement):
    """``ANALYZE ...``."""

    def __init__(self, table: str, schema: str | None) -> None:
        self.table = table_of(table, schema)


class VacuumAnalyze(ExecutableDDLElement):
    """``VACUUM (ANALYZE) ...``, which runs outside a transaction."""

    def __init__(self, table: str, schema: str | None) -> None:
        self.table = table_of(table, schema)


@compiles(VacuumAnalyze, "postgresql")
def _vacuum_analyze(element: VacuumAnalyze, compiler: Any, **kw: Any) -> str:
    return " ".join(["VACUUM (ANALYZE)", compiler.preparer.format_table(element.table)])


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
            _for_values(element),
        ]
    )


_INLINE = (
    "namespace",
    "id",
    "document_id",
    "metadata",
    "content_hash",
    "embedding",
    "embedding_model",
)


@compiles(StoreInline, "postgresql")
def _store_inline(element: StoreInline, compiler: Any, **kw: Any) -> str:
    table = compiler.preparer.format_table(element.table)
    columns = ["ALTER COLUMN " + name + " SET STORAGE MAIN" for name in _INLINE]
    return " ".join(["ALTER TABLE", table, ", ".join(columns)])


@compiles(AttachPartition, "postgresql")
def _attach_partition(element: AttachPartition, compiler: Any, **kw: Any) -> str:
    format_table = compiler.preparer.format_table
    return " ".join(
        [
            "ALTER TABLE",
            format_table(element.parent),
            "ATTACH PARTITION",
            format_table(element.partition),
            _for_values(element),
        ]
    )


def _for_values(element: CreateHashPartition | AttachPartition) -> str:
    numbers = {"MODULUS": element.modulus, "REMAINDER": element.remainder}
    parts = [" ".join([word, str(int(number))]) for word, number in numbers.items()]
    return "FOR VALUES WITH (" + ", ".join(parts) + ")"


@compiles(RenameIndex, "postgresql")
def _rename_index(element: RenameIndex, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer
    words = ["ALTER INDEX", "IF EXISTS"] if element.if_exists else ["ALTER INDEX"]
    return " ".join(
        [*words, preparer.format_table(element.old), "RENAME TO", preparer.quote(element.new)]
    )


@compiles(CreateIndexOnOnly, "postgresql")
def _create_index_on_only(element: CreateIndexOnOnly, compiler: Any, **kw: Any) -> str:
    sql: str = compiler.process(CreateIndex(element.index), **kw)
    return sql.replace(" ON ", " ON ONLY ", 1)


@compiles(AttachIndex, "postgresql")
def _attach_index(element: AttachIndex, compiler: Any, **kw: Any) -> str:
    format_table = compiler.preparer.format_table
    return " ".join(
        [
            "ALTER INDEX",
            format_table(element.parent),
            "ATTACH PARTITION",
            format_table(element.part),
        ]
    )


@compiles(LockTable, "postgresql")
def _lock_table(element: LockTable, compiler: Any, **kw: Any) -> str:
    return " ".join(
        ["LOCK TABLE", compiler.preparer.format_table(element.table), "IN ACCESS EXCLUSIVE MODE"]
    )


@compiles(CreateTableLike, "postgresql")
def _create_table_like(element: CreateTableLike, compiler: Any, **kw: Any) -> str:
    format_table = compiler.preparer.format_table
    words = [
        "CREATE TABLE",
        format_table(element.table),
        "(LIKE",
        format_table(element.like),
        "INCLUDING ALL EXCLUDING INDEXES)",
    ]
    if element.partitioned:
        words.append("PARTITION BY HASH (namespace)")
    return " ".join(words)


@compiles(AddConstraintAs, "postgresql")
def _add_constraint_as(element: AddConstraintAs, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer
    return " ".join(
        [
            "ALTER TABLE",
            preparer.format_table(element.table),
            "ADD CONSTRAINT",
            preparer.quote(element.name),
            element.definition,
        ]
    )


@compiles(AsTheServerSaid, "postgresql")
def _as_the_server_said(element: AsTheServerSaid, compiler: Any, **kw: Any) -> str:
    statement: str = element.statement
    return statement


@compiles(Grant, "postgresql")
def _grant(element: Grant, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer
    words = [
        "GRANT",
        element.privilege,
        "ON",
        preparer.format_table(element.table),
        "TO",
        "PUBLIC" if element.role is None else preparer.quote(element.role),
    ]
    return " ".join([*words, "WITH GRANT OPTION"] if element.grantable else words)


@compiles(Revoke, "postgresql")
def _revoke(element: Revoke, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer
    return " ".join(
        [
            "REVOKE ALL ON",
            preparer.format_table(element.table),
            "FROM",
            "PUBLIC" if element.role is None else preparer.quote(element.role),
        ]
    )


@compiles(ChangeOwner, "postgresql")
def _change_owner(element: ChangeOwner, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer
    return " ".join(
        [
            "ALTER TABLE",
            preparer.format_table(element.table),
            "OWNER TO",
            preparer.quote(element.role),
        ]
    )


@compiles(Analyze, "postgresql")
def _analyze(element: Analyze, compiler: Any, **kw: Any) -> str:
    return " ".join(["ANALYZE", compiler.preparer.format_table(element.table)])
