"""Loading an empty partition apart from its table, so that its part of the ANN index comes last.

A part of a partitioned index cannot be dropped alone. So the partition itself is taken out, and an
empty one stands in for it; the rows go into the one that is out, its part of the index is built,
and one short transaction puts it back. If others wrote into the stand-in meanwhile, that stays, and
the rows are added to it instead.

Every step can be repeated, by whoever comes next: a load that ended midway leaves both, and the
next one into that partition goes on, or `cenote.indexes.reindex` puts the partition back. Several
loads may fill one at the same time; the first that ends puts it back under the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    Connection,
    Executable,
    Index,
    Text,
    cast,
    column,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import OID, array, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateIndex, DropIndex, DropTable

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
from cenote.catalog import LiveTable, is_owner, read_table
from cenote.config import SchemaConfig
from cenote.connections import describe, driver_error
from cenote.ddl import (
    AttachPartition,
    CreateHashPartition,
    DetachPartition,
    LockTable,
    RenameIndex,
    VacuumAnalyze,
    partition_name,
    qualified,
    stand_in_name,
    table_of,
)
from cenote.drift import part_name
from cenote.errors import MigrationError
from cenote.locks import NOT_NOW, InUseError, PooledError
from cenote.orm import KEY, ann_index_name
from cenote.policies import AlterRowSecurity
from cenote.progress import Report
from cenote.schema import own_connection

_NOT_SET_ASIDE = "the partition was not set aside"
_NOT_PUT_BACK = "the partition was not put back"

_constraint = table("pg_constraint", column("conrelid"), column("confrelid"), column("contype"))
_trigger = table("pg_trigger", column("tgrelid"), column("tgisinternal"))
_class = table("pg_class", column("oid"), column("relrowsecurity"))
_attribute = table(
    "pg_attribute",
    column("attrelid"),
    column("attidentity"),
    column("attgenerated"),
    column("attname"),
)
_publication = table("pg_publication_rel", column("prrelid"))

_logger = logging.getLogger(__name__)


async def set_aside(
    engine: AsyncEngine,
    config: SchemaConfig,
    namespace: str,
    *,
    memory: str | None = None,
    workers: int | None = None,
) -> str | None:
    """Take a namespace's partition out of the table, if it is empty and nobody can miss it.

    Args:
        engine: the database; one connection of its pool is used.
        config: of the table.
        namespace: whose partition.
        memory, workers: of the build that is to follow, for the server to refuse before anything
            is done.

    Returns:
        The name of the partition, which takes rows by itself now; it may have been out before.
        None where the rows belong into the table: it is plain, the partition or its stand-in has
        rows, others hold the table, or it is not the role's or has something that does not go well
        with it (foreign keys, triggers, row-level security, identity columns, publications).

    Raises:
        MigrationError: there is no such chunk table, or the database refused.
    """
    async with own_connection(engine, _NOT_SET_ASIDE) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        remainder = await connection.run_sync(_remainder_of, live, namespace)
        if remainder is None or not await connection.run_sync(_suits, live, remainder):
            return None
        written = remainder in stood_in_for(live) and not await connection.run_sync(
            is_empty, stand_in_name(live.name, remainder), live.schema
        )
    if written:  # since a load ended midway: what is loaded now is newer, and replaces it
        await put_back(engine, config, memory=memory, workers=workers)
        return None
    try:
        async with build_session(engine, config, _NOT_SET_ASIDE, 0) as connection:
            await connection.run_sync(set_for_build, memory, workers)
            return await connection.run_sync(_take_out, config, remainder)
    except (InUseError, PooledError) as error:
        _logger.info("the rows go into the live index: %s", error)
        return None


async def put_back(
    engine: AsyncEngine,
    config: SchemaConfig,
    *,
    memory: str | None = None,
    workers: int | None = None,
    progress: Report | None = None,
) -> None:
    """Build the index of every partition that is set aside, and put it back; there may be none.

    Args:
        engine, config, memory, workers, progress: as for `cenote.indexes.reindex`.

    Raises:
        MigrationError: the database refused; the partition is still set aside.
    """
    async with build_session(engine, config, _NOT_PUT_BACK) as connection:
        live = await connection.run_sync(read_chunk_table, config)
        for remainder in stood_in_for(live):
            await _put_back(engine, connection, config, remainder, memory, workers, progress)


def stood_in_for(live: LiveTable) -> list[int]:
    """The remainders of the partitions for which another one stands in."""
    return [
        remainder
        for name, (_, remainder) in live.bounds.items()
        if name == stand_in_name(live.name, remainder)
    ]


# -- out -------------------------------------------------------------------------------------------


def _remainder_of(connection: Connection, live: LiveTable, namespace: str) -> int | None:
    """Which of the partitions takes a namespace; None for a plain table."""
    if not live.bounds:
        return None
    bounds = [*live.bounds.values()]
    values = (cast(live.oid, OID), cast(literal(namespace), Text))
    takes = [
        func.satisfies_hash_partition(values[0], modulus, remainder, values[1])
        for modulus, remainder in bounds
    ]
    position = connection.scalar(select(func.array_position(array(takes), True)))
    return None if position is None else bounds[position - 1][1]


def _suits(connection: Connection, live: LiveTable, remainder: int) -> bool:
    """Whether a partition is out, or may be taken out."""
    name = partition_name(live.name, remainder)
    if remainder in stood_in_for(live):  # unless its rows are in the stand-in already
        return read_table(connection, name, live.schema) is not None
    index = live.index(ann_index_name(live.name))
    return (
        name in live.bounds
        and index is not None
        and index.valid
        and bool(connection.scalar(is_owner(live.oid)))
        and is_empty(connection, name, live.schema)
        and not connection.scalar(_ties(live, name))
    )


def _ties(live: LiveTable, partition: str) -> Executable:
    """Whether there is anything that taking a partition out and putting it back would touch."""
    oids = [live.oid, func.to_regclass(qualified(partition, live.schema))]
    foreign = or_(_constraint.c.conrelid.in_(oids), _constraint.c.confrelid.in_(oids))
    return select(
        or_(
            exists().where(foreign, _constraint.c.contype == "f"),
            exists().where(_trigger.c.tgrelid.in_(oids), not_(_trigger.c.tgisinternal)),
            exists().where(_class.c.oid.in_(oids), _class.c.relrowsecurity),
            exists().where(_attribute.c.attrelid.in_(oids), _attribute.c.attidentity != ""),
            exists().where(_publication.c.prrelid.in_(oids)),
        )
    )


def _take_out(connection: Connection, config: SchemaConfig, remainder: int) -> str | None:
    name = partition_name(config.table_name, remainder)
    out = False

    def take_out() -> None:
        nonlocal out
        connection.execute(LockTable(config.table_name, config.schema))
        live = read_chunk_table(connection, config)
        out = _suits(connection, live, remainder)
        if not out or remainder in stood_in_for(live):
            return
        modulus, _ = live.bounds[name]
        connection.execute(DetachPartition(live.name, name, live.schema))
        stand_in = stand_in_name(live.name, remainder)
        connection.execute(
            CreateHashPartition(live.name, live.schema, modulus, remainder, name=stand_in)
        )
        _drop_graph(connection, live, name)

    transact(connection, config, take_out, PATIENCE_SECONDS)
    return name if out else None


def _drop_graph(connection: Connection, live: LiveTable, partition: str) -> None:
    """Drop the ANN index of a partition that is out."""
    apart = read_table(connection, partition, live.schema)
    for name in _graphs(apart) if apart is not None else ():
        target = table_of(partition, live.schema)
        connection.execute(DropIndex(Index(name, _table=target)))


def _graphs(apart: LiveTable) -> list[str]:
    return [index.name for index in apart.indexes if index.method == "hnsw"]


# -- and back --------------------------------------------------------------------------------------


async def _put_back(
    engine: AsyncEngine,
    connection: AsyncConnection,
    config: SchemaConfig,
    remainder: int,
    memory: str | None,
    workers: int | None,
    progress: Report | None,
) -> None:
    name = partition_name(config.table_name, remainder)
    apart = await connection.run_sync(read_table, name, config.schema)
    if apart is not None and not _graphs(apart):
        await connection.run_sync(set_build_memory, apart, config, memory, workers)
        await connection.execute(VacuumAnalyze(name, config.schema))
        index = ann_index(part_name(name), apart, name, config, concurrently=False)
        async with reporting(engine, connection, progress, str(index.name), 1, 1):
            await connection.execute(CreateIndex(index))
    await connection.run_sync(_swap, config, remainder)


def _swap(connection: Connection, config: SchemaConfig, remainder: int) -> None:
    """Put the partition back in place of its stand-in, or its rows into that."""
    name = partition_name(config.table_name, remainder)
    stand_in = stand_in_name(config.table_name, remainder)
    done = False

    def swap() -> None:
        nonlocal done
        connection.execute(LockTable(config.table_name, config.schema))
        live = read_chunk_table(connection, config)
        done = remainder not in stood_in_for(live)
        if done or not is_empty(connection, stand_in, live.schema):
            return
        try:
            with connection.begin_nested():
                _replace(connection, live, remainder)
            done = True
        except DBAPIError as error:
            cause = driver_error(error)
            if getattr(cause, "sqlstate", None) in NOT_NOW:
                raise
            _logger.info("partition %s does not fit any more: %s", name, describe(cause))

    def pour() -> None:
        apart = read_table(connection, name, config.schema)
        if apart is not None:
            connection.execute(LockTable(name, config.schema))
            with _policies_lifted(connection, [config.table_name, name], config.schema):
                _pour(connection, apart, config)
                connection.execute(DropTable(table_of(name, config.schema)))

    def rename() -> None:
        live = read_chunk_table(connection, config)
        ops = Operations(MigrationContext.configure(connection))
        ops.rename_table(stand_in, name, schema=live.schema)
        for index in live.indexes:
            if index.table == stand_in and index.name.startswith(stand_in):
                new = name + index.name.removeprefix(stand_in)
                connection.execute(RenameIndex(index.name, new, live.schema))

    transact(connection, config, swap)
    if not done:
        transact(connection, config, pour)
        transact(connection, config, rename)


@contextmanager
def _policies_lifted(
    connection: Connection, tables: Sequence[str], schema: str | None
) -> Iterator[None]:
    """Have the owner see all rows of tables, which are locked: what is hidden would be lost.

    Raises:
        MigrationError: the role does not see them even so.
    """
    forced = [name for name in tables if connection.scalar(_is_hidden(name, schema))]
    for name in forced:
        connection.execute(AlterRowSecurity(name, schema, enabled=True, forced=False))
    for name in forced:
        if connection.scalar(_is_hidden(name, schema)):
            raise MigrationError(
                f"row-level security hides rows of table {name!r} from this role; put them back as "
                "the owner, or as a role with BYPASSRLS"
            )
    yield
    for name in forced:
        if connection.scalar(select(func.to_regclass(qualified(name, schema)))) is not None:
            connection.execute(AlterRowSecurity(name, schema, enabled=True, forced=True))


def _is_hidden(name: str, schema: str | None) -> Executable:
    relation = cast(func.to_regclass(qualified(name, schema)), OID)
    return select(func.row_security_active(relation))


def _replace(connection: Connection, live: LiveTable, remainder: int) -> None:
    """Attach the partition in place of its stand-in."""
    name = partition_name(live.name, remainder)
    stand_in = stand_in_name(live.name, remainder)
    modulus, _ = live.bounds[stand_in]
    if live.index(ann_index_name(live.name)) is None:  # others are loading, and will build it
        _drop_graph(connection, live, name)
    connection.execute(DropTable(table_of(stand_in, live.schema)))
    connection.execute(AttachPartition(live.name, live.schema, modulus, remainder))


def _pour(connection: Connection, apart: LiveTable, config: SchemaConfig) -> None:
    """Add the rows to the table; what others wrote there meanwhile is newer, and stays."""
    computed = select(_attribute.c.attname).where(
        _attribute.c.attrelid == apart.oid, _attribute.c.attgenerated != ""
    )
    generated = set(connection.scalars(computed))
    columns = [name for name in apart.columns if name not in generated]
    source = table(apart.name, *(column(name) for name in columns), schema=apart.schema)
    target = table_of(config.table_name, config.schema)
    for name in columns:
        target.append_column(Column(name))
    statement = insert(target).from_select(columns, select(source))
    connection.execute(statement.on_conflict_do_nothing(index_elements=KEY))
