"""Drop, build and rebuild the ANN index.

A rebuild runs while the table is read and written. On a plain table, the new index is built beside
the old one and then takes its name. On a distributed table, Citus builds the new index on all
nodes, and one short transaction drops the old one and renames the new one. The index of a
partitioned table cannot be built, dropped or altered concurrently as a whole. So the index of each
partition is built concurrently, and one short transaction creates the new parent index with
``ON ONLY``, attaches the indexes of the partitions and drops the old parent. Until then both
indexes exist, and each write goes to both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Column, Connection, Index
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex, DropIndex, ExecutableDDLElement

from cenote.config import SchemaConfig
from cenote.errors import MigrationError
from cenote.inspection.checks.indexes import NEW, OLD, left_over_names, part_name
from cenote.inspection.citus import read_shards, set_ddl_propagation
from cenote.inspection.live_table import LiveIndex, LiveTable, is_owner_query
from cenote.maintenance.index_build import (
    PATIENCE_SECONDS,
    ann_index,
    build_session,
    is_empty,
    read_chunk_table,
    reporting,
    set_build_memory,
    set_for_build,
    transact,
    with_kind,
)
from cenote.maintenance.recall import warn_of_lost_recall
from cenote.migrate.connection import own_connection
from cenote.orm.mixin import ann_index_name
from cenote.postgres.ann_index import marked_comment
from cenote.postgres.ddl import (
    attach_index,
    comment_on_table,
    create_index_on_only,
    lock_table,
    rename_index,
    table_of,
    vacuum_analyze,
)
from cenote.postgres.locks import InUseError, TransactionPoolingError
from cenote.progress import Report

_NOT_REBUILT = "the index was not rebuilt"
_NOT_BUILT = "the index was not built"
_NOT_DROPPED = "the index was not dropped"

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Plan:
    """The statements of a rebuild.

    Attributes:
        clear: Drop what an interrupted run left behind; each statement runs outside a transaction.
        build: Build the index of each partition, by its name; each statement runs outside a
            transaction.
        swap: Replace the old index by the new one, in one transaction.
        finish: Drop the old index of a plain table, outside a transaction.
    """

    clear: list[ExecutableDDLElement] = field(default_factory=list)
    build: dict[str, ExecutableDDLElement] = field(default_factory=dict)
    swap: list[ExecutableDDLElement] = field(default_factory=list)
    finish: list[ExecutableDDLElement] = field(default_factory=list)

    def statements(self) -> Iterator[ExecutableDDLElement]:
        """Iterate over all statements in their order."""
        yield from (*self.clear, *self.build.values(), *self.swap, *self.finish)


async def reindex(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
    progress: Report | None = None,
) -> None:
    """Rebuild the ANN index with the configuration's parameters, while the table is in use.

    ``SchemaConfig.index`` is the kind of the new index; None keeps the kind. ``"none"`` drops the
    index, and records in the table's comment that it is meant to be missing.

    A missing or invalid index is built. Indexes that an interrupted run left behind are dropped
    first. Like every concurrent build in Postgres, the build waits for transactions that are open
    when it starts and hold a snapshot or have written to the table. At the end it locks the table
    for a moment. A measured ``ef_search`` (`PgVectorStore.apply_recall`) is dropped with the old
    index, and a warning is logged.

    Args:
        engine: Engine of the database. One connection of its pool builds, another one queries the
            progress.
        config: Configuration of the table, with the `hnsw_m` and `hnsw_ef_construction` of the new
            index.
        memory: ``maintenance_work_mem`` of the build, e.g. ``"2GB"``. By default the estimated size
            of the largest partition's graph, up to 1 GB, but at least the server's value.
        workers: ``max_parallel_maintenance_workers`` of the build; the server's value by default. A
            parallel build takes its memory from shared memory, which containers often limit.
        progress: Callback that takes an `IndexProgress` about twice a second. Its exceptions are
            logged.

    Raises:
        MigrationError: The chunk table does not exist or has other dimensions, or the database
            raised an error. The old index still exists.
    """
    async with build_session(engine, config, _NOT_REBUILT) as connection:
        live = await connection.run_sync(_read_for_build, config)
        config = with_kind(config, live)
        await connection.run_sync(set_build_memory, live, config, memory, workers)
        await _build(engine, connection, live, config, progress)


def _read_for_build(connection: Connection, config: SchemaConfig) -> LiveTable:
    """Read the live table before a build, and drop indexes of shards that hinder the build.

    An interrupted DROP INDEX on a distributed table may leave indexes of shards behind that the
    coordinator does not know. A statement on the coordinator drops only what the coordinator knows.
    So create an index of the same name on the coordinator alone, whose table has no rows, and drop
    it on all nodes.
    """
    live = read_chunk_table(connection, config)
    if live.shards is None:
        return live
    shards = read_shards(connection, live.name, live.schema)
    on_shards = {name for shard in shards for name in shard.indexes}
    hindering = on_shards & {ann_index_name(live.name), *left_over_names(live)}
    for name in sorted(hindering - {index.name for index in live.indexes}):
        target = table_of(live.name, live.schema)
        target.append_column(Column("namespace"))
        index = Index(name, target.c.namespace, postgresql_concurrently=True)
        connection.execute(set_ddl_propagation(on=False))
        connection.execute(CreateIndex(index))
        connection.execute(set_ddl_propagation(on=True))
        connection.execute(_drop_statement(name, live))
    return live


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
    warn_of_lost_recall(live, ann_index_name(live.name))


async def build_after_load(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
    progress: Report | None = None,
) -> None:
    """Build the ANN index after a bulk load if it is missing or invalid.

    ``VACUUM`` runs before the build, because it lets Postgres count a namespace from the index
    alone, and ``ANALYZE``, because it tells the planner how large the table is. If another session
    is building, this function waits for it without limit, because that session probably builds the
    same index.

    Args:
        engine, config, memory, workers, progress: As for `reindex`.

    Raises:
        MigrationError: As for `reindex`.
    """
    async with build_session(engine, config, _NOT_BUILT, math.inf) as connection:
        live = await connection.run_sync(_read_for_build, config)
        config = with_kind(config, live)
        index = live.index(ann_index_name(live.name))
        if config.index != "none" and (index is None or not index.valid):
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
    """Drop the ANN index before a bulk load; `build_after_load` or `reindex` builds it again.

    Searches stay complete, but compare the query with every matching chunk.

    Args:
        engine: Engine of the database. One connection of its pool is used.
        config: Configuration of the table.
        memory, workers: Settings of the later build. They are checked before the index is dropped.

    Raises:
        MigrationError: The chunk table does not exist, the server rejects a setting, or the
            database raised an error.
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
    """Drop the ANN index if the table is empty and owned by the current role.

    The index stays if others hold the table or the migration lock for longer than a moment.

    Args:
        engine, config, memory, workers: As for `drop_ann_index`.

    Returns:
        Whether the index is missing now and the role may build it.

    Raises:
        MigrationError: As for `drop_ann_index`.
    """
    async with own_connection(engine, _NOT_DROPPED) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        if not await connection.scalar(is_owner_query(live.oid)):
            return False
        if live.index(ann_index_name(live.name)) is None:
            return True
        if not await connection.run_sync(is_empty, live):
            return False
    try:
        async with build_session(engine, config, _NOT_DROPPED, 0) as connection:
            await connection.run_sync(set_for_build, memory, workers)
            return await connection.run_sync(_drop, config, if_empty=True)
    except (InUseError, TransactionPoolingError) as error:
        _logger.info("the bulk load inserts into the live index: %s", error)
        return False


def _drop(connection: Connection, config: SchemaConfig, *, if_empty: bool) -> bool:
    """Drop the index in a short transaction, and return whether it is missing now."""
    live = read_chunk_table(connection, config)
    name = ann_index_name(live.name)
    dropped = True

    def drop() -> None:
        nonlocal dropped
        connection.execute(lock_table(live.name, live.schema))
        dropped = not if_empty or is_empty(connection, live)
        if dropped:
            connection.execute(_drop_statement(name, live, concurrently=False))

    if live.index(name) is not None:
        transact(connection, config, drop, PATIENCE_SECONDS if if_empty else None)
        if dropped:
            warn_of_lost_recall(live, name)
    return dropped


async def reindex_plan(engine: AsyncEngine, config: SchemaConfig) -> list[ExecutableDDLElement]:
    """Return the statements that `reindex` would execute.

    Raises:
        MigrationError: As for `reindex`.
    """
    async with own_connection(engine, _NOT_REBUILT) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        return [*make_plan(live, with_kind(config, live)).statements()]


def make_plan(live: LiveTable, config: SchemaConfig) -> Plan:
    """Return the statements that rebuild the ANN index of a live table.

    Args:
        live: The live table.
        config: Configuration with the kind of the index; see `with_kind`.

    Raises:
        MigrationError: Another index has a name that the index of a partition needs.
    """
    name = ann_index_name(live.name)
    exists = live.index(name) is not None
    plan = Plan(clear=[*_drop_leftovers(live)])
    comment = marked_comment(live.comment, config.metric, config.index_kind)
    if comment != live.comment:
        plan.swap.append(comment_on_table(live.name, live.schema, comment))
    if config.index == "none":
        if exists:
            plan.swap.append(lock_table(live.name, live.schema))
            plan.swap.append(_drop_statement(name, live, concurrently=False))
        return plan
    if live.shards is not None:
        # No concurrent DROP at the end: if it is interrupted, Citus has dropped the coordinator's
        # index, but not the indexes of the shards.
        plan.build[name + NEW] = CreateIndex(ann_index(name + NEW, live, live.name, config))
        plan.swap.append(lock_table(live.name, live.schema))
        if exists:
            plan.swap.append(_drop_statement(name, live, concurrently=False))
        plan.swap.append(rename_index(name + NEW, name, live.schema))
        return plan
    if not live.partitions:
        plan.build[name + NEW] = CreateIndex(ann_index(name + NEW, live, live.name, config))
        if exists:
            plan.swap.append(rename_index(name, name + OLD, live.schema))
            plan.finish.append(_drop_statement(name + OLD, live))
        plan.swap.append(rename_index(name + NEW, name, live.schema))
        return plan
    _check_names(live)
    parts = {partition: part_name(partition) + NEW for partition in live.partitions}
    for partition, part in parts.items():
        plan.build[part] = CreateIndex(ann_index(part, live, partition, config))
    parent = ann_index(name + NEW, live, live.name, config, concurrently=False)
    plan.swap += [lock_table(live.name, live.schema), create_index_on_only(parent)]
    plan.swap += [attach_index(name + NEW, part, live.schema) for part in parts.values()]
    if exists:
        plan.swap.append(_drop_statement(name, live, concurrently=False))
    plan.swap.append(rename_index(name + NEW, name, live.schema))
    plan.swap += [
        rename_index(part, part.removesuffix(NEW), live.schema) for part in parts.values()
    ]
    return plan


def _check_names(live: LiveTable) -> None:
    """Check before hours of building that the names of the partitions' indexes are free.

    A partition's index of the old ANN index may have such a name, whatever its definition is,
    because it is dropped together with its parent.

    Raises:
        MigrationError: Another index has such a name.
    """
    old = live.index(ann_index_name(live.name))
    for index in live.indexes:
        is_part = old is not None and _shape(index) == _shape(old)
        if index.name == part_name(index.table) and not is_part and live.ann_index(index) is None:
            raise MigrationError(
                f"index {index.name!r} has a name that the ANN index of partition {index.table!r} "
                "needs; rename it first"
            )


def _shape(index: LiveIndex) -> tuple[object, ...]:
    return index.method, index.columns, index.operator_classes


def _drop_leftovers(live: LiveTable) -> Iterator[DropIndex]:
    names = left_over_names(live)
    for index in live.indexes:
        if index.name in names:
            yield _drop_statement(index.name, live)


def _drop_statement(name: str, live: LiveTable, *, concurrently: bool = True) -> DropIndex:
    """Return a statement that drops an index.

    On a distributed table, the nodes execute the statement, too. After an interrupted rebuild, some
    of them may not have the index.
    """
    target = table_of(live.name, live.schema)
    index = Index(name, _table=target, postgresql_concurrently=concurrently)
    return DropIndex(index, if_exists=live.shards is not None)


def _swap(connection: Connection, plan: Plan, config: SchemaConfig) -> None:
    """Replace the old index by the new one in one short transaction.

    It is retried while others hold the table.
    """

    def swap() -> None:
        for statement in plan.swap:
            connection.execute(statement)

    transact(connection, config, swap)
