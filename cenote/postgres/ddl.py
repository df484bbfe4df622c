"""DDL that SQLAlchemy has no construct for: functions that return statements.

Every statement is a `DDLTemplate`. When a statement is compiled, the dialect's identifier preparer
quotes its names.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Index, MetaData, String, Table
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, ExecutableDDLElement

# Unlike the default paramstyle, "named" does not double "%".
_DIALECT = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]

_INLINE_COLUMNS = (
    "namespace",
    "id",
    "document_id",
    "metadata",
    "content_hash",
    "embedding",
    "embedding_model",
)
"""Columns that `store_inline` keeps in the row: all that vary in length, except the content."""

_HASH_BOUND = "FOR VALUES WITH (MODULUS {modulus}, REMAINDER {remainder})"


class RawSQL(str):
    """SQL that a `DDLTemplate` copies as it is: a keyword, or text from the server's catalogue."""

    __slots__ = ()


class DDLTemplate(ExecutableDDLElement):
    """A statement with a ``{field}`` for each part.

    Args:
        template: SQL with fields, as for :meth:`str.format`.
        parts: Value of each field. The compiler writes a `Table` as its qualified name, a string as
            a quoted identifier, and an integer or `RawSQL` as it is.
    """

    def __init__(self, template: str, **parts: Table | RawSQL | str | int) -> None:
        self.template = template
        self.parts = parts


@compiles(DDLTemplate, "postgresql")
def _compile_template(element: DDLTemplate, compiler: Any, **kw: Any) -> str:
    preparer = compiler.preparer

    def render(part: Table | RawSQL | str | int) -> str:
        if isinstance(part, Table):
            sql: str = preparer.format_table(part)
        elif isinstance(part, str) and not isinstance(part, RawSQL):
            sql = preparer.quote(part)
        else:
            sql = str(part)
        return sql

    return element.template.format_map(
        {field: render(part) for field, part in element.parts.items()}
    )


# -- names -----------------------------------------------------------------------------------------


def table_of(name: str, schema: str | None) -> Table:
    """Return a table without columns, for statements that need only its name."""
    return Table(name, MetaData(), schema=schema)


@lru_cache(1024)  # creating a table takes longer than a short search
def qualified(name: str, schema: str | None) -> str:
    """Return a table's name, with its schema if there is one, quoted as SQL needs it."""
    text: str = _DIALECT.identifier_preparer.format_table(table_of(name, schema))
    return text


def partition_name(table_name: str, remainder: int) -> str:
    """Return the name of a hash partition."""
    return f"{table_name}_p{remainder:02d}"


# -- extension -------------------------------------------------------------------------------------


def create_extension(schema: str | None = None) -> DDLTemplate:
    """Return ``CREATE EXTENSION IF NOT EXISTS vector [SCHEMA ...]``."""
    create = "CREATE EXTENSION IF NOT EXISTS vector"
    if schema is None:
        return DDLTemplate(create)
    return DDLTemplate(create + " SCHEMA {schema}", schema=schema)


# -- tables and partitions -------------------------------------------------------------------------


def create_table_like(
    name: str, like: str, schema: str | None, *, partitioned: bool
) -> DDLTemplate:
    """Return ``CREATE TABLE ... (LIKE ... INCLUDING ALL EXCLUDING INDEXES)``.

    Args:
        name: New table.
        like: Table whose columns, defaults, checks, comments and storage are copied.
        schema: Schema of both tables.
        partitioned: True for a table that is partitioned by the hash of the namespace.
    """
    create = "CREATE TABLE {table} (LIKE {like} INCLUDING ALL EXCLUDING INDEXES)"
    if partitioned:
        create += " PARTITION BY HASH (namespace)"
    return DDLTemplate(create, table=table_of(name, schema), like=table_of(like, schema))


def create_temporary_table_like(name: str, like: str, schema: str | None) -> DDLTemplate:
    """Return ``CREATE TEMPORARY TABLE ... (LIKE ...)``: the columns alone, without rows.

    Args:
        name: New table, in the schema ``pg_temp``.
        like: Table whose columns are copied.
        schema: Schema of that table.
    """
    return DDLTemplate(
        "CREATE TEMPORARY TABLE {table} (LIKE {like})",
        table=table_of(name, "pg_temp"),
        like=table_of(like, schema),
    )


def create_hash_partition(
    table_name: str, schema: str | None, modulus: int, remainder: int
) -> DDLTemplate:
    """Return ``CREATE TABLE ... PARTITION OF ...``.

    Args:
        table_name: Partitioned table.
        schema: Schema of the table and its partition.
        modulus: Number of partitions.
        remainder: Number of this partition, from 0.
    """
    return DDLTemplate(
        "CREATE TABLE {partition} PARTITION OF {table} " + _HASH_BOUND,
        partition=table_of(partition_name(table_name, remainder), schema),
        table=table_of(table_name, schema),
        modulus=modulus,
        remainder=remainder,
    )


def attach_partition(
    table_name: str, schema: str | None, modulus: int, remainder: int
) -> DDLTemplate:
    """Return ``ALTER TABLE ... ATTACH PARTITION ...`` for the partition of the default name."""
    return DDLTemplate(
        "ALTER TABLE {table} ATTACH PARTITION {partition} " + _HASH_BOUND,
        table=table_of(table_name, schema),
        partition=table_of(partition_name(table_name, remainder), schema),
        modulus=modulus,
        remainder=remainder,
    )


def store_inline(table_name: str, schema: str | None) -> DDLTemplate:
    """Return ``ALTER TABLE ... SET STORAGE MAIN`` for all columns of varying length but `content`.

    pgvector's types have the storage EXTERNAL. If a row has more than 2 kB, for example with 384
    dimensions and a page of text, Postgres moves its embedding to the TOAST table, and an exact
    comparison fetches several pieces of each embedding. Measured over 3,000 rows with UUIDs, some
    metadata and 1.4 kB of text on PostgreSQL 18: with EXTERNAL, an exact search took 3.2 times as
    long at 384 dimensions and 2.2 times as long at 768 and 1,536, and the table was up to 1.4 times
    as large. An ANN search took as long with EXTERNAL as with MAIN.

    With MAIN for the embedding alone, Postgres moves ids and metadata to the TOAST table instead. A
    filter then has to fetch them, and took up to 4 times as long. The storage is MAIN and not
    PLAIN, because with PLAIN, Postgres rejects a row that does not fit into a page.

    Args:
        table_name: Chunk table. Its partitions change too; later partitions inherit the storage.
        schema: Schema of the table.
    """
    columns = ", ".join(f"ALTER COLUMN {column} SET STORAGE MAIN" for column in _INLINE_COLUMNS)
    return DDLTemplate("ALTER TABLE {table} " + columns, table=table_of(table_name, schema))


def add_constraint(table_name: str, schema: str | None, name: str, definition: str) -> DDLTemplate:
    """Return ``ALTER TABLE ... ADD CONSTRAINT ...``.

    Args:
        table_name: Table that gets the constraint.
        schema: Schema of the table.
        name: Name of the constraint.
        definition: SQL of the constraint, as ``pg_get_constraintdef`` returns it.
    """
    return DDLTemplate(
        "ALTER TABLE {table} ADD CONSTRAINT {name} {definition}",
        table=table_of(table_name, schema),
        name=name,
        definition=RawSQL(definition),
    )


def replace_primary_key(
    table_name: str, schema: str | None, old: str | None, new: str, columns: str
) -> DDLTemplate:
    """Return ``ALTER TABLE ... DROP CONSTRAINT ..., ADD CONSTRAINT ... PRIMARY KEY (...)``.

    Args:
        table_name: Table that gets the key.
        schema: Schema of the table.
        old: Name of the present key, None if there is no key.
        new: Name of the new key.
        columns: Columns of the new key, as SQL.
    """
    drop = "" if old is None else "DROP CONSTRAINT {old}, "
    return DDLTemplate(
        "ALTER TABLE {table} " + drop + "ADD CONSTRAINT {new} PRIMARY KEY ({columns})",
        table=table_of(table_name, schema),
        old=old or "",
        new=new,
        columns=RawSQL(columns),
    )


def lock_table(table_name: str, schema: str | None) -> DDLTemplate:
    """Return ``LOCK TABLE ... IN ACCESS EXCLUSIVE MODE``, which also locks the partitions."""
    return DDLTemplate(
        "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE", table=table_of(table_name, schema)
    )


def analyze(table_name: str, schema: str | None) -> DDLTemplate:
    """Return ``ANALYZE ...``."""
    return DDLTemplate("ANALYZE {table}", table=table_of(table_name, schema))


def vacuum_analyze(table_name: str, schema: str | None) -> DDLTemplate:
    """Return ``VACUUM (ANALYZE) ...``, which has to run outside a transaction."""
    return DDLTemplate("VACUUM (ANALYZE) {table}", table=table_of(table_name, schema))


# -- indexes ---------------------------------------------------------------------------------------


def create_index_on_only(index: Index) -> DDLTemplate:
    """Return ``CREATE INDEX ... ON ONLY ...``: an index on a partitioned table alone."""
    create = str(CreateIndex(index).compile(dialect=_DIALECT))
    return DDLTemplate("{create}", create=RawSQL(create.replace(" ON ", " ON ONLY ", 1)))


def attach_index(index: str, partition_index: str, schema: str | None) -> DDLTemplate:
    """Return ``ALTER INDEX ... ATTACH PARTITION ...``."""
    return DDLTemplate(
        "ALTER INDEX {index} ATTACH PARTITION {partition_index}",
        index=table_of(index, schema),
        partition_index=table_of(partition_index, schema),
    )


def rename_index(old: str, new: str, schema: str | None, *, if_exists: bool = False) -> DDLTemplate:
    """Return ``ALTER INDEX ... RENAME TO ...``, which also renames a constraint of the index."""
    alter = "ALTER INDEX IF EXISTS" if if_exists else "ALTER INDEX"
    return DDLTemplate(alter + " {old} RENAME TO {new}", old=table_of(old, schema), new=new)


def comment_on_index(index: str, schema: str | None, comment: str | None) -> DDLTemplate:
    """Return ``COMMENT ON INDEX ... IS ...``; None removes the comment."""
    return _comment_on("COMMENT ON INDEX {name} IS {comment}", index, schema, comment)


def comment_on_table(table_name: str, schema: str | None, comment: str | None) -> DDLTemplate:
    """Return ``COMMENT ON TABLE ... IS ...``; None removes the comment."""
    return _comment_on("COMMENT ON TABLE {name} IS {comment}", table_name, schema, comment)


def _comment_on(template: str, name: str, schema: str | None, comment: str | None) -> DDLTemplate:
    quote = String().literal_processor(_DIALECT)  # type: ignore[no-untyped-call]
    assert quote is not None
    return DDLTemplate(
        template,
        name=table_of(name, schema),
        comment=RawSQL("NULL" if comment is None else quote(comment)),
    )


def server_definition(definition: str) -> DDLTemplate:
    """Return a statement from the server's catalogue, for example from ``pg_get_indexdef``."""
    return DDLTemplate("{definition}", definition=RawSQL(definition))


# -- owner and privileges --------------------------------------------------------------------------


def set_owner(table_name: str, schema: str | None, role: str) -> DDLTemplate:
    """Return ``ALTER TABLE ... OWNER TO ...``."""
    return DDLTemplate(
        "ALTER TABLE {table} OWNER TO {role}", table=table_of(table_name, schema), role=role
    )


def grant(
    privilege: str, table_name: str, schema: str | None, role: str | None, *, grantable: bool
) -> DDLTemplate:
    """Return ``GRANT ... ON ... TO ...``.

    Args:
        privilege: Name of the privilege, as the server's catalogue writes it.
        table_name: Table that the privilege is for.
        schema: Schema of the table.
        role: Role that gets the privilege; everybody if None.
        grantable: True if the role may grant the privilege to others.
    """
    return DDLTemplate(
        "GRANT {privilege} ON {table} TO {role}" + (" WITH GRANT OPTION" if grantable else ""),
        privilege=RawSQL(privilege),
        table=table_of(table_name, schema),
        role=_role(role),
    )


def revoke_all(table_name: str, schema: str | None, role: str | None) -> DDLTemplate:
    """Return ``REVOKE ALL ON ... FROM ...``; from everybody if the role is None."""
    return DDLTemplate(
        "REVOKE ALL ON {table} FROM {role}", table=table_of(table_name, schema), role=_role(role)
    )


def _role(role: str | None) -> str:
    return RawSQL("PUBLIC") if role is None else role
