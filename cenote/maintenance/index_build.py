"""Sessions, memory and progress reports for builds of an ANN index."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import Column, Connection, Index, QueuePool, Row, cast, func, literal, select
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cenote.config import SchemaConfig
from cenote.errors import MigrationError
from cenote.inspection.checks.findings import subject_of
from cenote.inspection.checks.table import embedding_finding, metric_finding, partitions_finding
from cenote.inspection.citus import allow_all_shards
from cenote.inspection.live_table import LiveTable, read_table
from cenote.migrate.connection import own_connection
from cenote.orm import mixin
from cenote.postgres.ddl import qualified, table_of
from cenote.postgres.driver_errors import database_errors, describe, driver_error
from cenote.postgres.locks import migration_lock, with_short_waits
from cenote.postgres.pg_catalog import pg_settings, pg_stat_progress_create_index
from cenote.postgres.psycopg_engine import adapted_engine
from cenote.postgres.vector import embedding_type, inline_bytes
from cenote.progress import IndexProgress, Report, send_report
from cenote.responsive import drive, is_driving
from cenote.types import IndexKind

_BITS: dict[IndexKind, int] = {"vector": 32, "halfvec": 16, "bit": 1, "none": 0}
"""Bits per dimension that an ANN index stores."""

_SHORT_ROW_BYTES = 150
"""Approximate size of a row with a short content, without its vector."""

PATIENCE_SECONDS = 1.0
"""How long a bulk load tries to lock an empty table."""

_PROGRESS_SECONDS = 0.5

_AFTER_BUILDING = ("before validation", "index validation", "old snapshots")

_TIMEOUTS = ("statement_timeout", "lock_timeout", "transaction_timeout")
"""Timeouts that a role or a database may set, and that would end a build.

Not every server has all of them.
"""

_INVALID_VALUE = "22023"
"""SQLSTATE of a setting that the server rejects."""


_logger = logging.getLogger(__name__)


def read_chunk_table(connection: Connection, config: SchemaConfig) -> LiveTable:
    """Read the live chunk table of a configuration.

    Raises:
        MigrationError: The table does not exist, has other dimensions or another metric, or lacks a
            partition.
    """
    live = read_table(connection, config.table_name, config.schema)
    if live is None or live.column_type is None:
        raise MigrationError(f"there is no chunk table {config.table_name!r}")
    subject = subject_of(config.table_name, config.schema)
    finding = embedding_finding(subject, live.column_type, live.dimensions, config)
    finding = finding or metric_finding(subject, live.comment, config)
    if not live.complete:
        finding = finding or partitions_finding(subject, live, config)
    if finding is not None:
        raise MigrationError(str(finding))
    return live


def is_empty(connection: Connection, live: LiveTable) -> bool:
    """Return whether a table has no rows.

    If row-level security hides rows from the current role, return whether it has no pages. The
    connection must be in a transaction.
    """
    if live.shards is not None:
        allow_all_shards(connection)
    relation = func.to_regclass(qualified(live.name, live.schema))
    if _hides_rows(connection, live):
        tree = func.pg_partition_tree(relation).table_valued("relid")
        pages = func.coalesce(func.sum(func.pg_relation_size(tree.c.relid)), 0)
        return not connection.scalar(select(pages).select_from(tree))
    rows = select(literal(1)).select_from(table_of(live.name, live.schema)).limit(1)
    return connection.scalar(rows) is None


def _hides_rows(connection: Connection, live: LiveTable) -> bool:
    """Return whether row-level security hides rows from the current role."""
    relation = func.to_regclass(qualified(live.name, live.schema))
    return bool(connection.scalar(select(func.row_security_active(cast(relation, OID)))))


def ann_index(
    name: str, live: LiveTable, on: str, config: SchemaConfig, *, concurrently: bool = True
) -> Index:
    """Return an ANN index with the parameters of a configuration.

    Args:
        name: Name of the index.
        live: The live table.
        on: Name of the table or partition that gets the index.
        config: Configuration with the kind and the HNSW parameters of the index.
        concurrently: Whether the index is built concurrently.
    """
    target = table_of(on, live.schema)
    target.append_column(Column("embedding", embedding_type(config.column_type)))
    return mixin.ann_index(name, target, config, postgresql_concurrently=concurrently)


def with_kind(config: SchemaConfig, live: LiveTable) -> SchemaConfig:
    """Return a configuration with the kind of the ANN index to build.

    It is the configured kind, or else the live table's, or else that of a new table.
    """
    return replace(config, index=config.index or live.index_kind or config.index_kind)


# -- the session -----------------------------------------------------------------------------------


@asynccontextmanager
async def build_session(
    engine: AsyncEngine, config: SchemaConfig, action: str, seconds: float | None = None
) -> AsyncIterator[AsyncConnection]:
    """Open a connection in AUTOCOMMIT mode that holds the migration lock and has no timeouts.

    The lock and the settings end with the connection, which does not return to the pool.

    Args:
        engine: Engine of the database.
        config: Configuration of the table.
        action: What did not happen if an error occurs, for the error message.
        seconds: How long to wait for the lock; None for the default.
    """
    async with own_connection(engine, action) as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        assert connection.sync_connection is not None
        lock = migration_lock(connection.sync_connection, config.table_name, seconds=seconds)
        try:
            await connection.run_sync(lambda _: lock.__enter__())
            await connection.run_sync(_lift_timeouts)
            yield connection
        finally:
            await connection.invalidate()


def transact(
    connection: Connection,
    config: SchemaConfig,
    work: Callable[[], None],
    seconds: float | None = None,
) -> None:
    """Run `work` in one short transaction of a session that is in AUTOCOMMIT mode.

    It is repeated for up to `seconds` while others hold the table; see `with_short_waits`.
    """
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")
    with_short_waits(connection, config.table_name, work, seconds=seconds)
    connection.execution_options(isolation_level="AUTOCOMMIT")


# -- memory ----------------------------------------------------------------------------------------


def set_build_memory(
    connection: Connection,
    live: LiveTable,
    config: SchemaConfig,
    memory: str | None,
    workers: int | None,
    *,
    local: bool = False,
) -> None:
    """Lift the timeouts and set the memory for a build, by default what the graph needs.

    The memory of a distributed table's build is not estimated. The nodes build its index, with
    their own settings.

    Args:
        connection: The connection that builds.
        live: The live table.
        config: Configuration with the HNSW parameters.
        memory, workers: As for `cenote.maintenance.reindex`.
        local: Whether the settings end with the transaction instead of the session.
    """
    _lift_timeouts(connection, local=local)
    if memory is None and live.shards is None:
        needed = estimate_graph_kilobytes(connection, live, config)
        if needed > _kilobytes_set(connection):
            memory = f"{needed}kB"
    set_for_build(connection, memory, workers, local=local)


def set_for_build(
    connection: Connection, memory: str | None, workers: int | None, *, local: bool = False
) -> None:
    """Set memory and parallel workers for a build; None keeps the server's value.

    Raises:
        MigrationError: The server rejects a value.
    """
    values = {"maintenance_work_mem": memory, "max_parallel_maintenance_workers": workers}
    for name, value in values.items():
        if value is None:
            continue
        try:
            connection.execute(select(func.set_config(name, str(value), local)))
        except DBAPIError as error:
            if getattr(driver_error(error), "sqlstate", None) != _INVALID_VALUE:
                raise
            raise MigrationError(f"{name} cannot be {value!r} on this server") from error


def _lift_timeouts(connection: Connection, *, local: bool = False) -> None:
    no_timeout = select(func.set_config(pg_settings.c.name, "0", local))
    connection.execute(no_timeout.where(pg_settings.c.name.in_(_TIMEOUTS)))


def estimate_graph_kilobytes(connection: Connection, live: LiveTable, config: SchemaConfig) -> int:
    """Estimate the memory in kB that the largest graph needs during its build, up to 1 GB.

    Each element consists of its vector, up to 2 m neighbours of 16 bytes on the lowest level and a
    few above it, and about 150 further bytes (pgvector 0.8, src/hnsw.h).
    """
    hidden = _hides_rows(connection, live)
    rows = max(
        _max_rows(connection, live, part, config) if hidden else _count_rows(connection, live, part)
        for part in live.partitions or (live.name,)
    )
    kind = with_kind(config, live).index_kind
    vector = config.dimensions * _BITS[kind] // 8
    return min(rows * (vector + 2 * config.hnsw_m * 18 + 150) // 1024 + 1024, 2**20)


def _count_rows(connection: Connection, live: LiveTable, name: str) -> int:
    rows = select(func.count()).select_from(table_of(name, live.schema))
    return int(connection.scalar(rows) or 0)


def _max_rows(connection: Connection, live: LiveTable, name: str, config: SchemaConfig) -> int:
    """Return the number of rows that a table of this size would have if its contents were short."""
    size = func.pg_relation_size(func.to_regclass(qualified(name, live.schema)))
    row_bytes = _SHORT_ROW_BYTES + inline_bytes(config.dimensions, live.column_type)
    return int(connection.scalar(select(size)) or 0) // row_bytes


def _kilobytes_set(connection: Connection) -> int:
    """Return the `maintenance_work_mem` of the session in kB."""
    where = pg_settings.c.name == "maintenance_work_mem"
    return int(connection.scalar(select(pg_settings.c.setting).where(where)) or 0)


# -- progress --------------------------------------------------------------------------------------


@asynccontextmanager
async def reporting(
    engine: AsyncEngine,
    connection: AsyncConnection,
    report: Report | None,
    index: str,
    number: int,
    of: int,
) -> AsyncIterator[None]:
    """Report the progress of the build that runs in the block, through another connection.

    Args:
        engine: Engine for the other connection.
        connection: The connection that builds.
        report: Callback that takes an `IndexProgress`; None reports nothing.
        index: Name of the index that is built.
        number: Number of this build, from 1.
        of: Number of all builds.
    """
    if report is None or (is_driving() and not _has_spare_connection(engine)):
        yield
        return
    pid = (await connection.execute(select(func.pg_backend_pid()))).scalar_one()

    def state(phase: str, fraction: float) -> None:
        send_report(
            report, IndexProgress(index=index, number=number, of=of, phase=phase, fraction=fraction)
        )

    stop = threading.Event()
    watch = _watch(engine, pid, index, state, stop)
    if is_driving():
        thread = threading.Thread(target=drive, args=(watch,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(1.0)  # another thread may have taken the pool's last connection
    else:
        task = asyncio.create_task(watch)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
    state("built", 1.0)


def _has_spare_connection(engine: AsyncEngine) -> bool:
    """Return whether a thread can borrow a connection from the pool now."""
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        return True
    most = pool.size() + pool._max_overflow
    return pool._max_overflow < 0 or pool.checkedout() < most


async def _watch(
    engine: AsyncEngine,
    pid: int,
    index: str,
    state: Callable[[str, float], None],
    stop: threading.Event,
) -> None:
    """Query the progress of a server process until cancelled, or until the event is set.

    An error does not end the build.
    """
    query = select(pg_stat_progress_create_index).where(pg_stat_progress_create_index.c.pid == pid)
    blocker = None
    try:
        async with adapted_engine(engine).connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            while not stop.is_set():
                row = (await connection.execute(query)).one_or_none()
                if row is not None:
                    state(row.phase, _fraction(row))
                    if row.current_locker_pid and row.current_locker_pid != blocker:
                        blocker = row.current_locker_pid
                        _logger.info(
                            "index %s: the build waits for server process %s", index, blocker
                        )
                if is_driving():
                    stop.wait(_PROGRESS_SECONDS)
                else:
                    await asyncio.sleep(_PROGRESS_SECONDS)
    except database_errors() as error:
        _logger.info(
            "the progress of the build is not available: %s", describe(driver_error(error))
        )


def _fraction(row: Row[Any]) -> float:
    if any(words in row.phase for words in _AFTER_BUILDING):
        return 1.0
    return min(row.blocks_done / row.blocks_total, 1.0) if row.blocks_total else 0.0
