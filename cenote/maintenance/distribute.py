"""Distributing a table that is there over a Citus cluster, whenever it outgrows its machine.

Revision cenote_0004 distributes a table that is made with `SchemaConfig.distribution`; Citus' own
catalogue is the record of what was done since. What is asked of it is in `cenote.inspection.citus`.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import ConfigurationError, MigrationError
from cenote.inspection.citus import distribute_statements, truncate_local_data_statement
from cenote.maintenance.index_build import read_chunk_table
from cenote.maintenance.repartition import rewrite
from cenote.migrate.connection import own_connection
from cenote.migrate.operations import refuse_without_citus
from cenote.postgres.locks import migration_lock, with_short_waits


async def distribute(
    engine: AsyncEngine, config: SchemaConfig, *, memory: str | None = None
) -> bool:
    """Distribute a table by namespace over the nodes of a cluster, with all its rows.

    A partitioned table is made a plain one first. All in one transaction, in which **the table is
    locked**: the time of inserting all rows into shards that have their indexes, and before it, of
    a partitioned one, that of `cenote.maintenance.repartition`.

    Args:
        engine: the coordinator's database; one connection is taken from its pool.
        config: which table it is, with ``distribution="citus"``, and how it is to be distributed.
        memory: ``maintenance_work_mem`` of making it plain; see `cenote.maintenance.reindex`.

    Returns:
        Whether the table was distributed; one that is already is left as it is.

    Raises:
        ConfigurationError: the configuration is that of one machine.
        MigrationError: there is no citus extension, no such chunk table, it has row-level security,
            or the database refused, as it does for a foreign key with a table that is neither
            distributed beside it nor on all nodes; the table is as it was.
    """
    if config.distribution is None:
        raise ConfigurationError("say distribution='citus'", setting="distribution")
    async with own_connection(engine, "the table was not distributed") as connection:
        return await connection.run_sync(_distribute, config, memory)


def _distribute(connection: Connection, config: SchemaConfig, memory: str | None) -> bool:
    with migration_lock(connection, config.table_name):
        refuse_without_citus(connection, config)
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
