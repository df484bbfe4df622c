"""Distribute an existing chunk table over a Citus cluster.

Revision cenote_0004 distributes a new table if `SchemaConfig.distribution` is set. This module
distributes a table later. `cenote.inspection.citus` has the statements.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError, MigrationError
from cenote.inspection.citus import distribute_statements, truncate_local_data_statement
from cenote.maintenance.index_build import read_chunk_table
from cenote.maintenance.repartitioning import rewrite
from cenote.migrate.connection import own_connection
from cenote.migrate.operations import check_citus
from cenote.postgres.locks import migration_lock, with_short_waits


async def distribute(
    engine: AsyncEngine, config: SchemaConfig, *, memory: str | None = None
) -> bool:
    """Distribute a table by namespace over the nodes of a cluster, with all its rows.

    The change is one transaction, and **the table is locked until the transaction ends**. A
    partitioned table is first rewritten into a plain table, which takes as long as
    `cenote.maintenance.repartition`. Then all rows are inserted into the shards, which have their
    indexes already.

    Args:
        engine: Engine of the coordinator's database. One connection of its pool is used.
        config: Names of the table, and settings of the distribution, with
            ``distribution="citus"``.
        memory: ``maintenance_work_mem`` of the rewrite of a partitioned table; see
            `cenote.maintenance.reindex`.

    Returns:
        True if the table was distributed, False if it was distributed already.

    Raises:
        ConfigurationError: `config.distribution` is None.
        MigrationError: The citus extension or the chunk table is missing, the table has row-level
            security, or the database raised an error. Citus raises an error, for example, if a
            foreign key connects the table with one that is neither co-located with it nor a
            reference table. The table is unchanged.
    """
    if config.distribution is None:
        raise ConfigurationError(
            "distribution is required: set distribution='citus'", setting="distribution"
        )
    async with own_connection(engine, "the table was not distributed") as connection:
        return await connection.run_sync(_distribute, config, memory)


def _distribute(connection: Connection, config: SchemaConfig, memory: str | None) -> bool:
    with migration_lock(connection, config.table_name):
        check_citus(connection, config)
        live = read_chunk_table(connection, config)
        connection.commit()
        if live.shards is not None:
            return False
        if live.row_security:
            raise MigrationError(
                f"table {live.name!r} has row-level security, which does not work on a cluster; "
                "run cenote row-security off first"
            )

        def change() -> None:
            if live.partitioned:
                rewrite(connection, config, memory)
            for statement in (
                *distribute_statements(config),
                truncate_local_data_statement(config),
            ):
                connection.execute(statement)

        with_short_waits(connection, config.table_name, change)
        return True
