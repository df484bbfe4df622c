"""Record a measured ``ef_search`` or `rerank` in a comment on the ANN index."""

from __future__ import annotations

import logging

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import MigrationError
from cenote.inspection.live_table import LiveTable, is_owner_query
from cenote.inspection.recall_comment import MeasuredRecall, parse_comment
from cenote.maintenance.index_build import read_chunk_table
from cenote.migrate.connection import own_connection
from cenote.postgres.ddl import comment_on_index
from cenote.postgres.locks import migration_lock, with_short_waits
from cenote.types import IndexKind

_logger = logging.getLogger(__name__)


async def record_recall(
    engine: AsyncEngine, config: SchemaConfig, measured: MeasuredRecall, kind: IndexKind
) -> None:
    """Record a measured ``ef_search`` or `rerank` in a comment on the ANN index.

    Args:
        engine: Engine of the database.
        config: Configuration of the chunk table.
        measured: What was measured.
        kind: Kind of the measured index.

    Raises:
        MigrationError: The chunk table does not exist or has other dimensions, there is no valid
            ANN index, it is of another kind, the role does not own it, it has a comment of the
            user, or the database raised an error.
    """
    failure = f"the measured {measured.setting} was not stored"
    async with own_connection(engine, failure) as connection:
        await connection.run_sync(_record, config, measured, kind)


def _record(
    connection: Connection, config: SchemaConfig, measured: MeasuredRecall, kind: IndexKind
) -> None:
    def comment() -> None:
        live = read_chunk_table(connection, config)
        index = live.search_index
        if index is None:
            raise MigrationError(f"table {live.name!r} has no valid ANN index; run cenote reindex")
        if index.kind != kind:
            raise MigrationError(
                f"an index of kind {kind!r} was measured, and index {index.name!r} is of kind "
                f"{index.kind!r}; measure again"
            )
        if not connection.scalar(is_owner_query(live.oid)):
            raise MigrationError(
                f"only the owner of table {live.name!r} may comment on its index {index.name!r}; "
                "connect as the owner"
            )
        if index.comment is not None and parse_comment(index.comment) is None:
            raise MigrationError(
                f"index {index.name!r} has a comment of your own, which would be overwritten; "
                "remove it first (COMMENT ON INDEX ... IS NULL)"
            )
        connection.execute(comment_on_index(index.name, live.schema, measured.comment()))

    # The lock keeps a rebuild from replacing the index meanwhile.
    with migration_lock(connection, config.table_name):
        with_short_waits(connection, config.table_name, comment)


def warn_of_lost_recall(live: LiveTable, index_name: str | None = None) -> None:
    """Log a warning if an index that was dropped or replaced had a measured setting.

    Args:
        live: The table before the change.
        index_name: Name of the dropped index; None if all indexes were replaced.
    """
    index = live.search_index
    measured = live.measured_recall
    if index is None or measured is None or index_name not in (None, index.name):
        return
    _logger.warning(
        "the measured %s %d of index %s was dropped with the index: run cenote recall --apply "
        "again",
        measured.setting,
        measured.ef_search if measured.rerank is None else measured.rerank,
        index.name,
    )
