"""Add full text to an existing table, change its languages, or remove it.

Revision cenote_0002 adds full text to a table that is created with `SchemaConfig.text_search`.
Later changes are recorded only in the live table itself.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import MigrationError
from cenote.inspection.checks.findings import subject_of
from cenote.inspection.checks.table import text_search_finding
from cenote.inspection.live_table import LiveTable
from cenote.maintenance.dependent_objects import column_privileges_query
from cenote.maintenance.index_build import read_chunk_table, set_build_memory
from cenote.migrate.connection import own_connection
from cenote.orm.mixin import text_index_name
from cenote.postgres import ddl
from cenote.postgres.full_text import COLUMN, generated
from cenote.postgres.locks import migration_lock, with_short_waits

_logger = logging.getLogger(__name__)


async def set_text_search(
    engine: AsyncEngine,
    config: SchemaConfig,
    text_search: str | None,
    *,
    memory: str | None = None,
) -> bool:
    """Set the text search configurations of a table's full text, or remove the full text.

    **The table is locked until this ends**: unless the full text is removed, Postgres rewrites all
    rows and rebuilds all indexes. It needs disk space for a second copy. An interruption changes
    nothing. If the table has that full text already, nothing is changed.

    Args:
        engine: Engine of the database. One connection of its pool is used.
        config: Configuration of the table.
        text_search: Text search configurations, as in `SchemaConfig`; None to remove the full text.
        memory: ``maintenance_work_mem`` of the transaction; see `cenote.maintenance.reindex`.

    Returns:
        Whether the table was changed.

    Raises:
        ConfigurationError: `text_search` is not a list of names.
        MigrationError: The chunk table or a text search configuration does not exist; the column
            was not created by cenote, or has indexes or privileges of your own; or the database
            raised an error. The table is unchanged.
    """
    config = replace(config, text_search=text_search)
    async with own_connection(engine, "the full text was not changed") as connection:
        return await connection.run_sync(_set, config, memory)


def _set(connection: Connection, config: SchemaConfig, memory: str | None) -> bool:
    with migration_lock(connection, config.table_name):
        live = read_chunk_table(connection, config)
        connection.commit()
        if _has_full_text(live, config):
            return False
        with_short_waits(connection, config.table_name, lambda: _change(connection, config, memory))
        return True


def _has_full_text(live: LiveTable, config: SchemaConfig) -> bool:
    """Return whether the table has exactly the full text of the configuration."""
    if not config.languages:
        return COLUMN not in live.columns
    subject = subject_of(live.name, live.schema)
    has_index = live.index(text_index_name(live.name)) is not None
    finding = text_search_finding(subject, live.text_search, config, live.configurations)
    return has_index and finding is None


def _change(connection: Connection, config: SchemaConfig, memory: str | None) -> None:
    ops = Operations(MigrationContext.configure(connection))
    live = read_chunk_table(connection, config)
    ops.execute(ddl.lock_table(live.name, live.schema))
    if COLUMN in live.columns:
        _check_nothing_is_lost(connection, live)
        ops.drop_column(live.name, COLUMN, schema=live.schema)
    if not config.languages:
        return
    _logger.info("table %s: adding the full text to all rows", live.name)
    set_build_memory(connection, live, config, memory, None, local=True)
    text_column = Column(COLUMN, TSVECTOR, generated(config.languages), nullable=False)
    ops.add_column(live.name, text_column, schema=live.schema)
    ops.create_index(
        text_index_name(live.name),
        live.name,
        [COLUMN],
        schema=live.schema,
        postgresql_using="gin",
    )
    ops.execute(ddl.analyze(live.name, live.schema))


def _check_nothing_is_lost(connection: Connection, live: LiveTable) -> None:
    """Check that dropping the column loses nothing that cenote did not create.

    Raises:
        MigrationError: The column was not created by cenote, or has indexes or privileges of the
            user.
    """
    if live.text_search is None:
        raise MigrationError(
            f"table {live.name!r} has a column {COLUMN} that cenote did not create; rename it"
        )
    lost = [
        f"index {index.name}"
        for index in live.indexes
        if index.table == live.name
        and COLUMN in index.columns
        and index.name != text_index_name(live.name)
    ]
    if connection.scalar(column_privileges_query(live.oid, COLUMN)):
        lost.append("column privileges")
    if lost:
        raise MigrationError(
            f"the column {COLUMN} of table {live.name!r} has {', '.join(lost)}, which would be "
            "lost; drop them first and create them again afterwards"
        )
