"""Rewrite a chunk table into another number of hash partitions, or into a plain table.

The rewrite is one transaction that locks the table and all tables connected with it by a foreign
key. Readers and writers wait, and an interruption changes nothing. The rewrite keeps additional
columns, defaults, checks, indexes, foreign keys from and to other tables, the owner, privileges,
cenote's row-level security, and comments on the table and its columns. If the table has anything
else that would be lost, an error is raised before anything is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import BigInteger, Connection, Row, column, func, insert, inspect, select, table
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError, MigrationError
from cenote.inspection.live_table import LiveTable
from cenote.maintenance.dependent_objects import (
    check_nothing_is_lost,
    constraints_query,
    grantees_query,
    grants_query,
    incoming_keys_query,
    index_definitions_query,
    properties_query,
    referenced_tables_query,
)
from cenote.maintenance.index_build import read_chunk_table, set_build_memory
from cenote.maintenance.recall import warn_of_lost_recall
from cenote.migrate.connection import own_connection
from cenote.postgres import ddl
from cenote.postgres.ddl import partition_name, qualified
from cenote.postgres.locks import migration_lock, with_short_waits
from cenote.postgres.row_security import alter_row_security, enable_row_security_statements

_NEW = "_new"

_SET_SHORT_LOCK_TIMEOUT = select(func.set_config("lock_timeout", "500ms", True))
"""Set the `lock_timeout` of the transaction to less than the server's `deadlock_timeout` of 1 s."""

_logger = logging.getLogger(__name__)


async def repartition(
    engine: AsyncEngine, config: SchemaConfig, *, memory: str | None = None
) -> bool:
    """Rewrite the table with `config.partitions` partitions; 0 makes it a plain table.

    **The table is locked until the rewrite ends**, and so are the tables connected with it by a
    foreign key. The rewrite takes about as long as loading all rows and building all indexes, and
    needs disk space for a second copy of the table. The INTEGER `position` column of a legacy table
    becomes BIGINT. A measured ``ef_search`` (`PgVectorStore.apply_recall`) is dropped with the old
    index, and a warning is logged. If the table has the right number of partitions already, nothing
    is changed.

    Args:
        engine: Engine of the database. One connection of its pool is used.
        config: Configuration of the table, with the new number of `partitions`.
        memory: ``maintenance_work_mem`` of the transaction; see `cenote.maintenance.reindex`.

    Returns:
        True if the table was rewritten, False if it had the right number of partitions.

    Raises:
        ConfigurationError: `config.partitions` is None.
        MigrationError: The chunk table does not exist, has other dimensions, is distributed by
            Citus or has something that would be lost (the message says what), or the database
            raised an error. The table is unchanged.
    """
    if config.partitions is None:
        raise ConfigurationError(
            "the number of partitions is required: set partitions=16, or partitions=0 for a plain "
            "table",
            setting="partitions",
        )
    async with own_connection(engine, "the table was not rewritten") as connection:
        return await connection.run_sync(_repartition, config, memory)


def _repartition(connection: Connection, config: SchemaConfig, memory: str | None) -> bool:
    with migration_lock(connection, config.table_name):
        live = read_chunk_table(connection, config)
        connection.commit()
        if live.shards is not None:
            raise MigrationError(
                f"table {live.name!r} is distributed by Citus, and has shards instead of partitions"
            )
        if len(live.partitions) == config.partitions:
            return False
        with_short_waits(connection, config.table_name, lambda: rewrite(connection, config, memory))
        return True


def rewrite(connection: Connection, config: SchemaConfig, memory: str | None) -> None:
    """Rewrite the table with `config.partitions` partitions, in the open transaction.

    Raises:
        MigrationError: The table has something that would be lost.
    """
    ops = Operations(MigrationContext.configure(connection))
    live = read_chunk_table(connection, config)
    # Lock in the order in which applications write: first the tables that chunks refer to, then the
    # chunks, then tables that refer to chunks. While we hold a lock, an application may wait for
    # us: after 500 ms, `with_short_waits` rolls back and tries again, before the server's deadlock
    # check (1 s) could end the application's transaction.
    for referenced in connection.execute(referenced_tables_query(live.oid)).all():
        ops.execute(ddl.lock_table(referenced.relname, referenced.nspname))
        connection.execute(_SET_SHORT_LOCK_TIMEOUT)
    ops.execute(ddl.lock_table(live.name, live.schema))
    connection.execute(_SET_SHORT_LOCK_TIMEOUT)
    live = read_chunk_table(connection, config)  # again: the locked table cannot change any more
    check_nothing_is_lost(connection, live, live.name + _NEW)
    properties = connection.execute(properties_query(live.oid)).one()
    constraints = connection.execute(constraints_query(live.oid)).all()
    incoming = connection.execute(incoming_keys_query(live.oid)).all()
    indexes = connection.scalars(index_definitions_query(live)).all()
    grants = connection.execute(grants_query(live.name, live.schema)).all()
    for key in (*incoming, *(row for row in constraints if row.is_foreign_key)):
        ops.drop_constraint(key.conname, key.relname, schema=key.nspname, type_="foreignkey")
    set_build_memory(connection, live, config, memory, None, local=True)
    if live.row_security:
        # FORCE ROW LEVEL SECURITY would hide the rows from the owner, who copies them.
        for name in (live.name, *live.partitions):
            ops.execute(alter_row_security(name, live.schema, enabled=True, forced=False))
    _copy(connection, ops, live, config.new_partitions)
    _logger.info("table %s: building keys and indexes", live.name)
    for constraint in constraints:
        ops.execute(_add_constraint(constraint))
    for definition in indexes:
        ops.execute(ddl.server_definition(_for_all_partitions(definition, live)))
    for key in incoming:
        ops.execute(_add_constraint(key))
    _restore_properties(connection, ops, live, config.new_partitions, properties, grants)
    ops.execute(ddl.analyze(live.name, live.schema))
    warn_of_lost_recall(live)
    if live.row_security:
        partitions = (partition_name(live.name, number) for number in range(config.new_partitions))
        for statement in enable_row_security_statements([live.name, *partitions], live.schema):
            ops.execute(statement)


def _for_all_partitions(definition: str, live: LiveTable) -> str:
    """Remove ``ONLY`` from the server's definition of an index on a partitioned table."""
    table = qualified(live.name, live.schema)
    head, only, tail = definition.partition(f" ON ONLY {table} ")
    return f"{head} ON {table} {tail}" if only else definition


def _copy(connection: Connection, ops: Operations, live: LiveTable, partitions: int) -> None:
    """Replace the table by a copy with other partitions, which has no indexes yet."""
    new, schema = live.name + _NEW, live.schema
    _logger.info("table %s: copying all rows", live.name)
    columns = inspect(connection).get_columns(live.name, schema=schema)
    ops.execute(ddl.create_table_like(new, live.name, schema, partitioned=bool(partitions)))
    types = {info["name"]: info["type"] for info in columns}
    if not isinstance(types["position"], BigInteger):  # a legacy table
        ops.alter_column(new, "position", type_=BigInteger(), schema=schema)
    for remainder in range(partitions):
        ops.execute(ddl.create_hash_partition(new, schema, partitions, remainder))
    names = [info["name"] for info in columns if "computed" not in info]
    old_rows, new_rows = (
        table(name, *(column(name) for name in names), schema=schema) for name in (live.name, new)
    )
    connection.execute(insert(new_rows).from_select(names, select(*old_rows.c)))
    ops.drop_table(live.name, schema=schema)
    ops.rename_table(new, live.name, schema=schema)
    for remainder in range(partitions):
        ops.rename_table(
            partition_name(new, remainder), partition_name(live.name, remainder), schema=schema
        )


def _restore_properties(
    connection: Connection,
    ops: Operations,
    live: LiveTable,
    partitions: int,
    properties: Row[Any],
    grants: Sequence[Row[Any]],
) -> None:
    """Restore the comment, the owner and the privileges of the old table.

    Privileges that the new table has by the current role's default privileges are revoked.
    """
    names = [live.name, *(partition_name(live.name, number) for number in range(partitions))]
    for name in names:
        if properties.owner != properties.current_user:
            ops.execute(ddl.set_owner(name, live.schema, properties.owner))
        for role in connection.scalars(grantees_query(name, live.schema)).all():
            if role != properties.owner:
                ops.execute(ddl.revoke_all(name, live.schema, role))
    if grants:
        # The owner of a new table has all privileges. The old table's owner may have lost some;
        # `grants` contains the others.
        ops.execute(ddl.revoke_all(live.name, live.schema, properties.owner))
    for grant in grants:
        ops.execute(
            ddl.grant(
                grant.privilege_type,
                live.name,
                live.schema,
                grant.role,
                grantable=grant.is_grantable,
            )
        )
    if properties.comment is not None:
        ops.create_table_comment(live.name, properties.comment, schema=live.schema)


def _add_constraint(row: Row[Any]) -> ddl.DDLTemplate:
    return ddl.add_constraint(row.relname, row.nspname, row.conname, row.definition)
