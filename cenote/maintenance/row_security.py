"""Turn the row-level security of an existing table on or off.

Revision cenote_0003 turns it on for a table that is created with `SchemaConfig.row_security`. Later
changes are recorded only in the live table itself. The statements are in
`cenote.postgres.row_security`.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.inspection.checks.table import check_can_secure
from cenote.maintenance.index_build import read_chunk_table
from cenote.migrate.connection import own_connection
from cenote.postgres.ddl import lock_table
from cenote.postgres.locks import migration_lock, with_short_waits
from cenote.postgres.row_security import (
    disable_row_security_statements,
    enable_row_security_statements,
)


async def set_row_security(engine: AsyncEngine, config: SchemaConfig, *, on: bool) -> bool:
    """Turn a table's row-level security on or off. The table is locked for a moment.

    Args:
        engine: Engine of the database. One connection of its pool is used.
        config: Configuration of the table.
        on: Whether to turn it on or off.

    Returns:
        Whether anything was changed.

    Raises:
        MigrationError: The chunk table does not exist, is distributed by Citus or has policies of
            your own, or the database raised an error.
    """
    async with own_connection(engine, "row-level security was not changed") as connection:
        return await connection.run_sync(_set, config, on)


def _set(connection: Connection, config: SchemaConfig, on: bool) -> bool:
    with migration_lock(connection, config.table_name):
        live = read_chunk_table(connection, config)
        connection.commit()
        if live.row_security is on and not live.unsecured:
            return False

        def change() -> None:
            connection.execute(lock_table(config.table_name, config.schema))
            live = read_chunk_table(connection, config)  # it cannot change any more
            check_can_secure(live)
            statements = enable_row_security_statements if on else disable_row_security_statements
            for statement in statements([live.name, *live.partitions], live.schema):
                connection.execute(statement)

        with_short_waits(connection, config.table_name, change)
        return True
