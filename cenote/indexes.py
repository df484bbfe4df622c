"""Rebuilding the ANN index with other parameters while the table is read and written.

A plain table's index is built beside the old one and takes its name. A partitioned table's cannot
be built, dropped or altered concurrently as a whole: each partition's part is built concurrently,
and one short transaction makes the new parent on ``ONLY`` the parent table, attaches the parts and
drops the old one. Both exist meanwhile, and each write goes to both.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Connection, Index, Row, column, func, literal, select, table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex, DropIndex, ExecutableDDLElement

from cenote.catalog import LiveTable, is_owner, read_table
from cenote.config import SchemaConfig
from cenote.connections import DRIVER_ERRORS, describe, driver_error
from cenote.ddl import (
    AttachIndex,
    CreateIndexOnOnly,
    LockTable,
    RenameIndex,
    VacuumAnalyze,
    table_of,
)
from cenote.drift import (
    NEW,
    OLD,
    embedding_finding,
    left_over_names,
    part_name,
    partitions_finding,
    subject_of,
)
from cenote.errors import MigrationError
from cenote.locks import InUseError, migration_lock, with_short_waits
from cenote.orm import OPERATOR_CLASS, ann_index_name
from cenote.progress import IndexProgress, Report, tell
from cenote.schema import own_connection
from cenote.sqltypes import embedding_type

_ACTION = "the index was not rebuilt"
_NOT_DROPPED = "the index was not dropped"

_PROGRESS_SECONDS = 0.5

_PATIENCE_SECONDS = 1.0
"""How long a bulk load tries to have an empty table for itself."""

_AFTER_BUILDING = ("before validation", "index validation", "old snapshots")

_logger = logging.getLogger(__name__)

_TIMEOUTS = ("statement_timeout", "lock_timeout", "transaction_timeout")
"""What a role or a database may set that would end a build; not every server has each."""

_settings = table("pg_settings", column("name"), column("setting"))
_progress = table(
    "pg_stat_progress_create_index",
    column("pid"),
    column("phase"),
    column("blocks_total"),
    column("blocks_done"),
    column("current_locker_pid"),
)


@dataclass(slots=True)
class Plan:
    """The statements of a rebuild.

    Attributes:
        clear: leftovers of an interrupted run, each dropped outside a transaction.
        build: the parts by name, each built outside a transaction.
        swap: one transaction.
        finish: what is dropped afterwards, outside a transaction.
    """

    clear: list[ExecutableDDLElement] = field(default_factory=list)
    build: dict[str, ExecutableDDLElement] = field(default_factory=dict)
    swap: list[ExecutableDDLElement] = field(default_factory=list)
    finish: list[ExecutableDDLElement] = field(default_factory=list)

    def statements(self) -> Iterator[ExecutableDDLElement]:
        """All of them, in order."""
        yield from (*self.clear, *self.build.values(), *self.swap, *self.finish)


async def reindex(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
    progress: Report | None = None,
) -> None:
    """Build the ANN index anew with the configuration's parameters, while the table is in use.

    It waits for transactions that are open when a part is built and hold a snapshot or have written
    to the table, as Postgres does, and takes the table for itself for a moment at the end. What an
    interrupted run left behind is cleared first. A missing or invalid index is built, too.

    Args:
        engine: the database; one connection of its pool builds, another asks for the progress.
        config: whose `hnsw_m` and `hnsw_ef_construction` the index gets.
        memory: ``maintenance_work_mem`` of this session, such as ``"2GB"``. By default what the
            graph of the largest part is estimated to need, up to 1 GB, and at least the server's.
        workers: ``max_parallel_maintenance_workers`` of this session; the server's by default. A
            parallel build takes its memory from shared memory, which containers often limit.
        progress: takes an `IndexProgress` about twice a second; what it raises is logged.

    Raises:
        MigrationError: there is no such chunk table, it has other dimensions, or the database
            refused; the old index is still there.
    """
    async with _session(engine, config, _ACTION) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        await connection.run_sync(set_build_memory, live, config, memory, workers)
        await _build(engine, connection, live, config, progress)


async def _build(
    engine: AsyncEngine,
    connection: AsyncConnection,
    live: LiveTable,
    config: SchemaConfig,
    progress: Report | None,
) -> None:
    plan = make_plan(live, config)
    for statement in plan.clear:
        await connection.execute(statement)
    for number, (name, statement) in enumerate(plan.build.items(), 1):
        _logger.info("building index %s (%d of %d)", name, number, len(plan.build))
        async with _reporting(engine, connection, progress, name, number, len(plan.build)):
            await connection.execute(statement)
    await connection.run_sync(_swap, plan, config)
    for statement in plan.finish:
        await connection.execute(statement)


async def build_after_load(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
    progress: Report | None = None,
) -> None:
    """Build a missing ANN index for rows that were loaded in bulk; a valid one stays as it is.

    The table is vacuumed and analysed before: the one makes counting a namespace an affair of its
    index alone, the other lets the planner see how large it is. It waits, however long, for others
    that build: their index is likely to be this one.

    Args:
        engine, config, memory, workers, progress: as for `reindex`.

    Raises:
        MigrationError: as `reindex`.
    """
    async with _session(engine, config, "the index was not built", math.inf) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        index = live.index(ann_index_name(live.name))
        if index is None or not index.valid:
            await connection.run_sync(set_build_memory, live, config, memory, workers)
            await connection.execute(VacuumAnalyze(live.name, live.schema))
            await _build(engine, connection, live, config, progress)


async def drop_ann_index(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
) -> None:
    """Drop the ANN index, until `reindex` builds it: before rows are loaded in bulk.

    Searches stay complete, and compare with every matching chunk.

    Args:
        engine: the database; one connection of its pool is used.
        config: of the table.
        memory, workers: of the build that is to follow, for the server to refuse before anything
            is dropped.

    Raises:
        MigrationError: there is no such chunk table, or the database refused.
    """
    async with _session(engine, config, _NOT_DROPPED) as connection:
        await connection.run_sync(_set_for_build, memory, workers)
        await connection.run_sync(_drop, config, if_empty=False)


async def drop_ann_index_of_empty_table(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
) -> bool:
    """Drop the ANN index where nobody can miss it: no row is there, and the table is the role's.

    It stays where others are at work on the schema or hold the table, rather than to wait for them.

    Args:
        engine, config, memory, workers: as for `drop_ann_index`.

    Returns:
        Whether there is no ANN index now, and the role may build it.

    Raises:
        MigrationError: as `drop_ann_index`.
    """
    async with own_connection(engine, _NOT_DROPPED) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        if not await connection.scalar(is_owner(live.oid)):
            return False
        if live.index(ann_index_name(live.name)) is None:
            return True
        if not await connection.run_sync(_is_empty, live):
            return False
    try:
        async with _session(engine, config, _NOT_DROPPED, 0) as connection:
            await connection.run_sync(_set_for_build, memory, workers)
            return await connection.run_sync(_drop, config, if_empty=True)
    except InUseError as error:
        _logger.info("the rows go into the live index: %s", error)
        return False


def _drop(connection: Connection, config: SchemaConfig, *, if_empty: bool) -> bool:
    """Whether there is no ANN index now."""
    live = read_chunk_table(connection, config)
    name = ann_index_name(live.name)
    dropped = True

    def drop() -> None:
        nonlocal dropped
        connection.execute(LockTable(live.name, live.schema))
        dropped = not if_empty or _is_empty(connection, live)
        if dropped:
            connection.execute(_drop_statement(name, live, concurrently=False))

    if live.index(name) is not None:
        _transact(connection, config, drop, _PATIENCE_SECONDS if if_empty else None)
    return dropped


def _is_empty(connection: Connection, live: LiveTable) -> bool:
    rows = select(literal(1)).select_from(table_of(live.name, live.schema)).limit(1)
    return connection.scalar(rows) is None


async def reindex_plan(engine: AsyncEngine, config: SchemaConfig) -> list[ExecutableDDLElement]:
    """The statements that `reindex` would execute.

    Raises:
        MigrationError: as `reindex`.
    """
    async with own_connection(engine, _ACTION) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        return [*make_plan(live, config).statements()]


def make_plan(live: LiveTable, config: SchemaConfig) -> Plan:
    """The statements that rebuild the ANN index of a live table."""
    name = ann_index_name(live.name)
    there = live.index(name) is not None
    plan = Plan(clear=[*_leftovers(live)])
    if not live.partitions:
        plan.build[name + NEW] = CreateIndex(_index(name + NEW, live, live.name, config))
        if there:
            plan.swap.append(RenameIndex(name, name + OLD, live.schema))
            plan.finish.append(_drop_statement(name + OLD, live))
        plan.swap.append(RenameIndex(name + NEW, name, live.schema))
        return plan
    _refuse_taken_names(live, config)
    parts = {partition: part_name(partition) + NEW for partition in live.partitions}
    for partition, part in parts.items():
        plan.build[part] = CreateIndex(_index(part, live, partition, config))
    parent = _index(name + NEW, live, live.name, config, concurrently=False)
    plan.swap += [LockTable(live.name, live.schema), CreateIndexOnOnly(parent)]
    plan.swap += [AttachIndex(name + NEW, part, live.schema) for part in parts.values()]
    if there:
        plan.swap.append(_drop_statement(name, live, concurrently=False))
    plan.swap.append(RenameIndex(name + NEW, name, live.schema))
    plan.swap += [RenameIndex(part, part.removesuffix(NEW), live.schema) for part in parts.values()]
    return plan


def _refuse_taken_names(live: LiveTable, config: SchemaConfig) -> None:
    """Refuse another index by the name that a part of ours will have, before hours of building.

    The parts of the old index go with it, whatever that is.
    """
    ours: set[tuple[str, tuple[str, ...], tuple[str, ...]]]
    ours = {("hnsw", ("embedding",), (OPERATOR_CLASS[config.column_type],))}
    old = live.index(ann_index_name(live.name))
    if old is not None:
        ours.add((old.method, old.columns, old.operator_classes))
    for index in live.indexes:
        shape = (index.method, index.columns, index.operator_classes)
        if index.name == part_name(index.table) and shape not in ours:
            raise MigrationError(
                f"index {index.name!r} has the name of a part of the ANN index; rename it first"
            )


def _leftovers(live: LiveTable) -> Iterator[DropIndex]:
    names = left_over_names(live)
    for index in live.indexes:
        if index.name in names:
            yield _drop_statement(index.name, live)


def _index(
    name: str, live: LiveTable, on: str, config: SchemaConfig, *, concurrently: bool = True
) -> Index:
    target = table_of(on, live.schema)
    target.append_column(Column("embedding", embedding_type(config.column_type)))
    return Index(
        name,
        target.c.embedding,
        postgresql_using="hnsw",
        postgresql_ops={"embedding": OPERATOR_CLASS[config.column_type]},
        postgresql_with={"m": config.hnsw_m, "ef_construction": config.hnsw_ef_construction},
        postgresql_concurrently=concurrently,
    )


def _drop_statement(name: str, live: LiveTable, *, concurrently: bool = True) -> DropIndex:
    target = table_of(live.name, live.schema)
    return DropIndex(Index(name, _table=target, postgresql_concurrently=concurrently))


# -- running it ------------------------------------------------------------------------------------


@asynccontextmanager
async def _session(
    engine: AsyncEngine, config: SchemaConfig, action: str, seconds: float | None = None
) -> AsyncIterator[AsyncConnection]:
    """A connection of its own that holds the migration lock, and that no timeout ends.

    Lock and settings end with it. It waits so many seconds for the lock.
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


def read_chunk_table(connection: Connection, config: SchemaConfig) -> LiveTable:
    """The live table of a configuration.

    Raises:
        MigrationError: there is none, it has other dimensions, or a partition is missing.
    """
    live = read_table(connection, config.table_name, config.schema)
    if live is None or live.column_type is None:
        raise MigrationError(f"there is no chunk table {config.table_name!r}")
    subject = subject_of(config.table_name, config.schema)
    finding = embedding_finding(subject, live.column_type, live.dimensions, config)
    if not live.complete:
        finding = finding or partitions_finding(subject, live, config)
    if finding is not None:
        raise MigrationError(str(finding))
    return live


def set_build_memory(
    connection: Connection,
    live: LiveTable,
    config: SchemaConfig,
    memory: str | None,
    workers: int | None,
    *,
    local: bool = False,
) -> None:
    """Give the session, or the transaction, what a build needs; see `reindex`."""
    _lift_timeouts(connection, local=local)
    needed = _graph_kilobytes(connection, live, config) if memory is None else 0
    if needed > _kilobytes_set(connection):
        memory = f"{needed}kB"
    _set_for_build(connection, memory, workers, local=local)


def _set_for_build(
    connection: Connection, memory: str | None, workers: int | None, *, local: bool = False
) -> None:
    values = {"maintenance_work_mem": memory, "max_parallel_maintenance_workers": workers}
    for name, value in values.items():
        if value is not None:
            connection.execute(select(func.set_config(name, str(value), local)))


def _lift_timeouts(connection: Connection, *, local: bool = False) -> None:
    no_timeout = select(func.set_config(_settings.c.name, "0", local))
    connection.execute(no_timeout.where(_settings.c.name.in_(_TIMEOUTS)))


def _graph_kilobytes(connection: Connection, live: LiveTable, config: SchemaConfig) -> int:
    """About what the graph of the largest part needs in memory while it is built, up to 1 GB.

    Each element has its vector, up to 2 m neighbours of 16 bytes on the lowest level and few above,
    and about 150 bytes besides (pgvector 0.8, src/hnsw.h).
    """
    rows = max(
        connection.scalar(select(func.count()).select_from(table_of(part, live.schema))) or 0
        for part in live.partitions or (live.name,)
    )
    vector = config.dimensions * (2 if config.column_type == "halfvec" else 4)
    return min(rows * (vector + 2 * config.hnsw_m * 18 + 150) // 1024 + 1024, 2**20)


def _kilobytes_set(connection: Connection) -> int:
    where = _settings.c.name == "maintenance_work_mem"
    return int(connection.scalar(select(_settings.c.setting).where(where)) or 0)


def _swap(connection: Connection, plan: Plan, config: SchemaConfig) -> None:
    """Put the new index in the old one's place in one short transaction, however often it takes."""

    def swap() -> None:
        for statement in plan.swap:
            connection.execute(statement)

    _transact(connection, config, swap)


def _transact(
    connection: Connection,
    config: SchemaConfig,
    work: Callable[[], None],
    seconds: float | None = None,
) -> None:
    """Do work in one short transaction of a session that is in AUTOCOMMIT."""
    connection.commit()
    connection.execution_options(isolation_level="READ COMMITTED")
    with_short_waits(connection, config.table_name, work, seconds=seconds)
    connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def _reporting(
    engine: AsyncEngine,
    connection: AsyncConnection,
    report: Report | None,
    index: str,
    number: int,
    of: int,
) -> AsyncIterator[None]:
    """Report what Postgres says of the build meanwhile, by another connection."""
    if report is None:
        yield
        return
    pid = (await connection.execute(select(func.pg_backend_pid()))).scalar_one()

    def state(phase: str, fraction: float) -> None:
        tell(
            report, IndexProgress(index=index, number=number, of=of, phase=phase, fraction=fraction)
        )

    task = asyncio.create_task(_watch(engine, pid, index, state))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
    state("built", 1.0)


async def _watch(
    engine: AsyncEngine, pid: int, index: str, state: Callable[[str, float], None]
) -> None:
    """Ask for a session's progress until cancelled; a build goes on where that cannot be told."""
    query = select(_progress).where(_progress.c.pid == pid)
    waits_for = None
    try:
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            while True:
                row = (await connection.execute(query)).one_or_none()
                if row is not None:
                    state(row.phase, _fraction(row))
                    if row.current_locker_pid and row.current_locker_pid != waits_for:
                        waits_for = row.current_locker_pid
                        _logger.info("%s: the build waits for server process %s", index, waits_for)
                await asyncio.sleep(_PROGRESS_SECONDS)
    except (SQLAlchemyError, OSError, *DRIVER_ERRORS) as error:
        _logger.info("the progress cannot be told: %s", describe(driver_error(error)))


def _fraction(row: Row[Any]) -> float:
    if any(words in row.phase for words in _AFTER_BUILDING):
        return 1.0
    return min(row.blocks_done / row.blocks_total, 1.0) if row.blocks_total else 0.0
