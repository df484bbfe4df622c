"""Rewriting a chunk table into hash partitions, into another number of them, or back into one.

One transaction under an exclusive lock, also of the tables that a foreign key connects with it:
readers and writers wait, and an interruption at any moment leaves all as it was. Extra columns,
defaults, checks, comments on table and columns, indexes, foreign keys from and to other tables,
owner, privileges and cenote's row-level security are kept; what else could be lost is refused
before anything is done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    column,
    func,
    insert,
    inspect,
    select,
    table,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import ddl
from cenote.builds import read_chunk_table, set_build_memory
from cenote.catalog import LiveTable
from cenote.config import SchemaConfig
from cenote.ddl import partition_name, qualified
from cenote.dependents import (
    facts_query,
    grantees,
    grants_query,
    incoming_keys,
    index_definitions,
    own_constraints,
    referenced_tables,
    refuse_what_would_be_lost,
)
from cenote.errors import ConfigurationError, MigrationError
from cenote.locks import migration_lock, with_short_waits
from cenote.policies import alter_row_security, enable_row_security_statements
from cenote.schema import own_connection

_NEW = "_new"

_SHORT_WAITS = select(func.set_config("lock_timeout", "500ms", True))

_logger = logging.getLogger(__name__)


async def repartition(
    engine: AsyncEngine, config: SchemaConfig, *, memory: str | None = None
) -> bool:
    """Rewrite the table into the configuration's number of partitions; 0 makes it plain.

    **The table is locked until it ends**, and so are tables with a foreign key to it or from it:
    about the time of loading all rows and building all indexes. It needs disk space for a second
    copy. An adopted table's positions become 64-bit. Where the table has that many partitions
    already, nothing is done.

    Args:
        engine: the database; one connection is taken from its pool.
        config: whose `partitions` the table gets.
        memory: ``maintenance_work_mem`` of the transaction; see `cenote.indexes.reindex`.

    Returns:
        Whether the table was rewritten.

    Raises:
        ConfigurationError: the configuration says no number of partitions.
        MigrationError: there is no such chunk table, it has other dimensions or something that
            could not be kept (the message lists it), or the database refused; the table is as it
            was.
    """
    if config.partitions is None:
        raise ConfigurationError(
            "how many partitions? Say partitions=16, or 0 for a plain table", setting="partitions"
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
    """Rewrite the table into the configuration's number of partitions, in the open transaction."""
    ops = Operations(MigrationContext.configure(connection))
    live = read_chunk_table(connection, config)
    # In the order in which applications write: documents, chunks, what points at chunks. Once one
    # is held, its holder may wait for ours: give way before the server's deadlock_timeout of 1 s
    # looks for a victim.
    for referenced in connection.execute(referenced_tables(live.oid)).all():
        ops.execute(ddl.lock_table(referenced.relname, referenced.nspname))
        connection.execute(_SHORT_WAITS)
    ops.execute(ddl.lock_table(live.name, live.schema))
    connection.execute(_SHORT_WAITS)
    live = read_chunk_table(connection, config)  # again, for nobody can change it any more
    refuse_what_would_be_lost(connection, live, live.name + _NEW)
    facts = connection.execute(facts_query(live.oid)).one()
    constraints = connection.execute(own_constraints(live.oid)).all()
    incoming = connection.execute(incoming_keys(live.oid)).all()
    indexes = connection.scalars(index_definitions(live)).all()
    grants = connection.execute(grants_query(live.name, live.schema)).all()
    for key in (*incoming, *(row for row in constraints if row.is_foreign_key)):
        ops.drop_constraint(key.conname, key.relname, schema=key.nspname, type_="foreignkey")
    set_build_memory(connection, live, config, memory, None, local=True)
    if live.row_security:  # which would hide the rows from the owner, too
        for name in (live.name, *live.partitions):
            ops.execute(alter_row_security(name, live.schema, enabled=True, forced=False))
    _copy(connection, ops, live, config.new_partitions)
    _logger.info("table %s: building keys and indexes", live.name)
    for constraint in constraints:
        ops.execute(_add_constraint(constraint))
    for definition in indexes:
        ops.execute(ddl.server_definition(_for_all_parts(definition, live)))
    for key in incoming:
        ops.execute(_add_constraint(key))
    _give_back(connection, ops, live, config.new_partitions, facts, grants)
    ops.execute(ddl.analyze(live.name, live.schema))
    if live.row_security:
        parts = (partition_name(live.name, number) for number in range(config.new_partitions))
        for statement in enable_row_security_statements([live.name, *parts], live.schema):
            ops.execute(statement)


def _for_all_parts(definition: str, live: LiveTable) -> str:
    """An index definition of a partitioned table's, as it was made: not for the parent alone."""
    table = qualified(live.name, live.schema)
    head, only, tail = definition.partition(f" ON ONLY {table} ")
    return f"{head} ON {table} {tail}" if only else definition


def _copy(connection: Connection, ops: Operations, live: LiveTable, partitions: int) -> None:
    """Put a copy of the rows in another shape in the table's place, without indexes."""
    new, schema = live.name + _NEW, live.schema
    _logger.info("table %s: copying all rows", live.name)
    columns = inspect(connection).get_columns(live.name, schema=schema)
    ops.execute(ddl.create_table_like(new, live.name, schema, partitioned=bool(partitions)))
    types = {found["name"]: found["type"] for found in columns}
    if not isinstance(types["position"], BigInteger):  # an adopted table's
        ops.alter_column(new, "position", type_=BigInteger(), schema=schema)
    for remainder in range(partitions):
        ops.execute(ddl.create_hash_partition(new, schema, partitions, remainder))
    names = [found["name"] for found in columns if "computed" not in found]
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


def _give_back(
    connection: Connection,
    ops: Operations,
    live: LiveTable,
    partitions: int,
    facts: Row[Any],
    grants: Sequence[Row[Any]],
) -> None:
    """Comment, owner and exactly the privileges there were: none that the role's defaults add."""
    names = [live.name, *(partition_name(live.name, number) for number in range(partitions))]
    for name in names:
        if facts.owner != facts.me:
            ops.execute(ddl.set_owner(name, live.schema, facts.owner))
        for role in connection.scalars(grantees(name, live.schema)).all():
            if role != facts.owner:
                ops.execute(ddl.revoke_all(name, live.schema, role))
    if grants:
        ops.execute(ddl.revoke_all(live.name, live.schema, facts.owner))
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
    if facts.comment is not None:
        ops.create_table_comment(live.name, facts.comment, schema=live.schema)


def _add_constraint(row: Row[Any]) -> ddl.DDLTemplate:
    return ddl.add_constraint(row.relname, row.nspname, row.conname, row.definition)
