"""Comparison of indexes by what the server makes of them.

The server stores an expression parsed, and prints it in its own words: ``metadata -> 'year'``
becomes ``(metadata -> 'year'::text)``. The text of a model's index therefore says nothing about
equality. Here the server also creates the model's index, on an empty temporary table, and prints
both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    MetaData,
    Text,
    cast,
    func,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, DropTable

from cenote.inspection.live_table import LiveTable
from cenote.postgres.ddl import create_temporary_table_like, qualified, table_of
from cenote.postgres.pg_catalog import pg_am, pg_class, pg_index

_TABLE, _SCHEMA = "cenote_index_definitions", "pg_temp"
"""Name and schema of the temporary table. With the schema, no ``schema_translate_map`` applies."""


def needs_the_server(index: Index) -> bool:
    """Return whether an index has an expression or a condition, which only the server can print."""
    where = index.dialect_options["postgresql"].get("where")
    return where is not None or not all(isinstance(part, Column) for part in index.expressions)


def equal_indexes(
    connection: Connection, live: LiveTable, indexes: Iterable[Index]
) -> dict[str, bool]:
    """Return whether live indexes are equal to the indexes of a model, by name.

    Args:
        connection: Connection, in a transaction or in AUTOCOMMIT mode. Nothing remains in the
            database.
        live: Live table.
        indexes: Indexes of the model. Names that the live table does not have are left out.

    Returns:
        An empty dict if the role or the transaction may not create temporary tables.
    """
    pairs = [
        (actual, index) for index in indexes if (actual := live.index(str(index.name))) is not None
    ]
    if not pairs:
        return {}
    with _savepoint(connection):
        try:
            connection.execute(create_temporary_table_like(_TABLE, live.name, live.schema))
        except DBAPIError:
            return {}
        try:
            return {
                actual.name: _definition(connection, pg_index.c.indexrelid == actual.oid)
                == _expected_definition(connection, index)
                for actual, index in pairs
            }
        finally:
            if _autocommits(connection):
                connection.execute(DropTable(table_of(_TABLE, _SCHEMA)))


def _autocommits(connection: Connection) -> bool:
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


@contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """Roll back to a savepoint after the block. In AUTOCOMMIT mode there are no savepoints."""
    if _autocommits(connection):
        yield
        return
    savepoint = connection.begin_nested()
    try:
        yield
    finally:
        savepoint.rollback()


def _expected_definition(connection: Connection, index: Index) -> tuple[Any, ...] | None:
    """Return the definition of a model's index; None if the live table lacks one of its columns."""
    assert index.table is not None
    copy = index.table.to_metadata(MetaData(), schema=_SCHEMA, name=_TABLE)
    (expected,) = [item for item in copy.indexes if item.name == index.name]
    expected.dialect_options["postgresql"]["concurrently"] = False
    with _savepoint(connection):
        try:
            connection.execute(CreateIndex(expected))
        except DBAPIError:
            return None
        return _definition(
            connection,
            pg_index.c.indrelid == func.to_regclass(qualified(_TABLE, _SCHEMA)),
        )


def _definition(connection: Connection, condition: ColumnElement[bool]) -> tuple[Any, ...]:
    """Return all that defines an index, but its name and its table.

    If the condition holds for several indexes, the newest one is returned.
    """
    position = func.generate_series(1, pg_index.c.indnatts).table_valued("n").render_derived()
    columns = (
        select(func.pg_get_indexdef(pg_index.c.indexrelid, position.c.n, False))
        .select_from(position)
        .order_by(position.c.n)
        .correlate(pg_index)
        .scalar_subquery()
    )
    query = (
        select(
            pg_am.c.amname,
            func.array(columns),
            pg_index.c.indnkeyatts,
            *(cast(pg_index.c[name], Text) for name in ("indclass", "indcollation", "indoption")),
            pg_index.c.indisunique,
            pg_index.c.indnullsnotdistinct,
            func.pg_get_expr(pg_index.c.indpred, pg_index.c.indrelid),
            pg_class.c.reloptions,
        )
        .select_from(pg_index)
        .join(pg_class, pg_class.c.oid == pg_index.c.indexrelid)
        .join(pg_am, pg_am.c.oid == pg_class.c.relam)
        .where(condition)
        .order_by(pg_index.c.indexrelid.desc())
        .limit(1)
    )
    return tuple(connection.execute(query).one())
