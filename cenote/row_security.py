"""Turning a table's row-level security on and off, whenever that is wanted.

Revision cenote_0003 turns it on for a table that is made with `SchemaConfig.row_security`; the
catalogue is the record of what was done since. What it consists of is in `cenote.policies`.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.builds import read_chunk_table
from cenote.config import SchemaConfig
from cenote.ddl import lock_table
from cenote.drift import refuse_to_secure
from cenote.locks import migration_lock, with_short_waits
from cenote.policies import disable_row_security_statements, enable_row_security_statements
from cenote.schema import own_connection


async def set_row_security(engine: AsyncEngine, config: SchemaConfig, *, on: bool) -> bool:
    """Turn a table's row-level security on or off. The table is locked for a moment.

    Args:
        engine: the database; one connection is taken from its pool.
        config: which table it is.
        on: what it shall be.

    Returns:
        Whether anything was changed.

    Raises:
        MigrationError: there is no such chunk table, it has policies of your own, or the database
            refused.
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
            live = read_chunk_table(connection, config)  # as it is now, and stays
            refuse_to_secure(live)
            statements = enable_row_security_statements if on else disable_row_security_statements
            for statement in statements([live.name, *live.partitions], live.schema):
                connection.execute(statement)

        with_short_waits(connection, config.table_name, change)
        return True
