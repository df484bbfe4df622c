"""Rebuilding the ANN index with other parameters while the table is read and written.

A plain table's index is built beside the old one and takes its name. A partitioned table's cannot
be built, dropped or altered concurrently as a whole: each partition's part is built concurrently,
and one short transaction makes the new parent on ``ONLY`` the parent table, attaches the parts and
drops the old one. Both exist meanwhile, and each write goes to both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection, Index
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex, DropIndex, ExecutableDDLElement

from cenote.builds import (
    PATIENCE_SECONDS,
    ann_index,
    build_session,
    is_empty,
    read_chunk_table,
    reporting,
    set_build_memory,
    set_for_build,
    transact,
)
from cenote.catalog import LiveTable, is_owner_query
from cenote.config import SchemaConfig
from cenote.ddl import (
    attach_index,
    create_index_on_only,
    lock_table,
    rename_index,
    table_of,
    vacuum_analyze,
)
from cenote.drift import (
    NEW,
    OLD,
    left_over_names,
    part_name,
)
from cenote.errors import MigrationError
from cenote.locks import InUseError, TransactionPoolingError
from cenote.orm import OPERATOR_CLASS, ann_index_name
from cenote.progress import Report
from cenote.schema import own_connection

_ACTION = "the index was not rebuilt"
_NOT_DROPPED = "the index was not dropped"

_logger = logging.getLogger(__name__)


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
    async with build_session(engine, config, _ACTION) as connection:
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
        async with reporting(engine, connection, progress, name, number, len(plan.build)):
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
    async with build_session(engine, config, "the index was not built", math.inf) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        index = live.index(ann_index_name(live.name))
        if index is None or not index.valid:
            await connection.run_sync(set_build_memory, live, config, memory, workers)
            await connection.execute(vacuum_analyze(live.name, live.schema))
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
    async with build_session(engine, config, _NOT_DROPPED) as connection:
        await connection.run_sync(set_for_build, memory, workers)
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
        if not await connection.scalar(is_owner_query(live.oid)):
            return False
        if live.index(ann_index_name(live.name)) is None:
            return True
        if not await connection.run_sync(is_empty, live.name, live.schema):
            return False
    try:
        async with build_session(engine, config, _NOT_DROPPED, 0) as connection:
            await connection.run_sync(set_for_build, memory, workers)
            return await connection.run_sync(_drop, config, if_empty=True)
    except (InUseError, TransactionPoolingError) as error:
        _logger.info("the rows go into the live index: %s", error)
        return False


def _drop(connection: Connection, config: SchemaConfig, *, if_empty: bool) -> bool:
    """Whether there is no ANN index now."""
    live = read_chunk_table(connection, config)
    name = ann_index_name(live.name)
    dropped = True

    def drop() -> None:
        nonlocal dropped
        connection.execute(lock_table(live.name, live.schema))
        dropped = not if_empty or is_empty(connection, live.name, live.schema)
        if dropped:
            connection.execute(_drop_statement(name, live, concurrently=False))

    if live.index(name) is not None:
        transact(connection, config, drop, PATIENCE_SECONDS if if_empty else None)
    return dropped


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
        plan.build[name + NEW] = CreateIndex(ann_index(name + NEW, live, live.name, config))
        if there:
            plan.swap.append(rename_index(name, name + OLD, live.schema))
            plan.finish.append(_drop_statement(name + OLD, live))
        plan.swap.append(rename_index(name + NEW, name, live.schema))
        return plan
    _refuse_taken_names(live, config)
    parts = {partition: part_name(partition) + NEW for partition in live.partitions}
    for partition, part in parts.items():
        plan.build[part] = CreateIndex(ann_index(part, live, partition, config))
    parent = ann_index(name + NEW, live, live.name, config, concurrently=False)
    plan.swap += [lock_table(live.name, live.schema), create_index_on_only(parent)]
    plan.swap += [attach_index(name + NEW, part, live.schema) for part in parts.values()]
    if there:
        plan.swap.append(_drop_statement(name, live, concurrently=False))
    plan.swap.append(rename_index(name + NEW, name, live.schema))
    plan.swap += [
        rename_index(part, part.removesuffix(NEW), live.schema) for part in parts.values()
    ]
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


def _drop_statement(name: str, live: LiveTable, *, concurrently: bool = True) -> DropIndex:
    target = table_of(live.name, live.schema)
    return DropIndex(Index(name, _table=target, postgresql_concurrently=concurrently))


def _swap(connection: Connection, plan: Plan, config: SchemaConfig) -> None:
    """Put the new index in the old one's place in one short transaction, however often it takes."""

    def swap() -> None:
        for statement in plan.swap:
            connection.execute(statement)

    transact(connection, config, swap)
