"""Giving a table full text, changing its languages, or taking it away, whenever that is wanted.

Revision cenote_0002 does the first for a table that is made with `SchemaConfig.text_search`; the
catalogue is the record of what was done since.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import ddl
from cenote.builds import read_chunk_table, set_build_memory
from cenote.catalog import LiveTable
from cenote.config import SchemaConfig
from cenote.dependents import column_privileges
from cenote.drift import subject_of, text_search_finding
from cenote.errors import MigrationError
from cenote.locks import migration_lock, with_short_waits
from cenote.orm import text_index_name
from cenote.schema import own_connection
from cenote.text_search import COLUMN, generated

_logger = logging.getLogger(__name__)


async def set_text_search(
    engine: AsyncEngine,
    config: SchemaConfig,
    text_search: str | None,
    *,
    memory: str | None = None,
) -> bool:
    """Make the table's full text that of some text search configurations, or none.

    **The table is locked until it ends**: but for None, Postgres writes all rows anew and builds
    all indexes again. It needs disk space for a second copy. An interruption at any moment leaves
    all as it was. Where the table has that full text already, nothing is done.

    Args:
        engine: the database; one connection is taken from its pool.
        config: which table it is.
        text_search: as of `SchemaConfig`; None for no full text.
        memory: ``maintenance_work_mem`` of the transaction; see `cenote.indexes.reindex`.

    Returns:
        Whether the table was changed.

    Raises:
        ConfigurationError: this names no text search configurations.
        MigrationError: there is no such chunk table, no such text search configuration, the column
            is not cenote's or has indexes or privileges of your own, or the database refused; the
            table is as it was.
    """
    config = replace(config, text_search=text_search)
    async with own_connection(engine, "the full text was not changed") as connection:
        return await connection.run_sync(_set, config, memory)


def _set(connection: Connection, config: SchemaConfig, memory: str | None) -> bool:
    with migration_lock(connection, config.table_name):
        live = read_chunk_table(connection, config)
        connection.commit()
        if _is_so(live, config):
            return False
        with_short_waits(connection, config.table_name, lambda: _change(connection, config, memory))
        return True


def _is_so(live: LiveTable, config: SchemaConfig) -> bool:
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
        _refuse_what_would_be_lost(connection, live)
        ops.drop_column(live.name, COLUMN, schema=live.schema)
    if not config.languages:
        return
    _logger.info("table %s: writing all rows with their words", live.name)
    set_build_memory(connection, live, config, memory, None, local=True)
    words = Column(COLUMN, TSVECTOR, generated(config.languages), nullable=False)
    ops.add_column(live.name, words, schema=live.schema)
    ops.create_index(
        text_index_name(live.name),
        live.name,
        [COLUMN],
        schema=live.schema,
        postgresql_using="gin",
    )
    ops.execute(ddl.analyze(live.name, live.schema))


def _refuse_what_would_be_lost(connection: Connection, live: LiveTable) -> None:
    """Refuse to drop a column that cenote did not make, or that others have built on.

    Raises:
        MigrationError: there is such a thing.
    """
    if live.text_search is None:
        raise MigrationError(
            f"table {live.name!r} has a column {COLUMN} that cenote did not make; rename it"
        )
    own = {text_index_name(live.name)}
    lost = [
        f"index {index.name}"
        for index in live.indexes
        if index.table == live.name and COLUMN in index.columns and index.name not in own
    ]
    if connection.scalar(column_privileges(live.oid, COLUMN)):
        lost.append("column privileges")
    if lost:
        raise MigrationError(
            f"the column {COLUMN} of table {live.name!r} has {', '.join(lost)}, which would be "
            "lost; drop and make them again by hand around it"
        )
