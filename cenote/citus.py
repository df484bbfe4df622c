"""What is asked of Citus, the extension of Postgres that spreads a table over machines.

A chunk table is distributed by namespace, which is part of its key and of every statement of a
store: each of them is the business of the one node that has the namespace's shard. Source of the
functions, views and settings: Citus' documentation, "Citus Utility Functions" and "Citus Tables and
Views".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Executable,
    Integer,
    Select,
    Text,
    cast,
    column,
    exists,
    func,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import OID, REGCLASS

from cenote.config import SchemaConfig
from cenote.ddl import qualified
from cenote.pg_catalog import pg_extension

_partition = table("pg_dist_partition", column("logicalrelid", OID), column("partmethod"))
_shard = table("pg_dist_shard", column("logicalrelid", OID), column("shardid"))
_shards = table(
    "citus_shards",
    column("table_name", REGCLASS),
    column("shardid", BigInteger),
    column("shard_size", BigInteger),
)

_INVALID_INDEXES = (
    "SELECT pg_catalog.string_agg(indexrelid::pg_catalog.regclass::text, ', ')"
    " FROM pg_catalog.pg_index"
    " WHERE indrelid = '%s'::pg_catalog.regclass AND NOT indisvalid"
)
"""What a node is asked about a shard, whose name Citus puts in the place of ``%s``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of a distributed table.

    Attributes:
        number: its identifier in the cluster.
        size: its bytes, indexes included.
        invalid_indexes: the names of its indexes that a build left unfinished, or None.
        answered: whether all nodes that have it could be asked.
    """

    number: int
    size: int
    invalid_indexes: str | None
    answered: bool = True


def is_installed(connection: Connection) -> bool:
    """Whether the database has the extension."""
    there = exists().where(pg_extension.c.extname == "citus")
    return bool(connection.scalar(select(there)))


METADATA = func.to_regclass("pg_catalog.pg_dist_partition")
"""The table that says which tables are distributed; null without the extension."""


def shard_count(connection: Connection, oid: int) -> int | None:
    """In how many shards a table is distributed by hash, where `METADATA` is there."""
    query = (
        select(func.count())
        .select_from(_shard)
        .join(_partition, _partition.c.logicalrelid == _shard.c.logicalrelid)
        .where(_partition.c.logicalrelid == oid, _partition.c.partmethod == "h")
    )
    return connection.scalar(query) or None


def read_shards(connection: Connection, name: str, schema: str) -> list[Shard]:
    """The shards of a distributed table, which takes a question to every node."""
    which = _regclass(name, schema)
    asked = func.run_command_on_shards(which, literal(_INVALID_INDEXES, Text)).table_valued(
        column("shardid", BigInteger), column("success", Boolean), column("result", Text)
    )
    query = (  # a shard has a row for each node that has a copy of it
        select(
            _shards.c.shardid,
            func.coalesce(func.max(_shards.c.shard_size), 0).label("size"),
            func.bool_and(asked.c.success).label("answered"),
            func.max(func.nullif(asked.c.result, literal_column("''"))).label("result"),
        )
        .join(asked, asked.c.shardid == _shards.c.shardid)
        .where(_shards.c.table_name == which)
        .group_by(_shards.c.shardid)
        .order_by(_shards.c.shardid)
    )
    return [
        Shard(
            number=row.shardid,
            size=row.size,
            invalid_indexes=row.result if row.answered else None,
            answered=row.answered,
        )
        for row in connection.execute(query)
    ]


def distribute_statements(config: SchemaConfig) -> Iterator[Executable]:
    """The statements that distribute a plain table by namespace, with its rows."""
    # One connection to each node for the rest of the transaction: what follows in it, such as a
    # foreign key, is refused after statements that ran on several.
    yield select(func.set_config("citus.multi_shard_modify_mode", "sequential", True))
    beside = "default" if config.colocate_with is None else config.colocate_with
    yield select(
        func.create_distributed_table(
            _regclass(config.table_name, config.schema),
            "namespace",
            literal_column("'hash'"),
            literal(beside, Text),
            literal(config.shard_count, Integer),
        )
    )


def truncate_local_data_statement(config: SchemaConfig) -> Select[None]:
    """The statement that removes what distributing leaves of the rows on the coordinator."""
    which = _regclass(config.table_name, config.schema)
    return select(func.truncate_local_data_after_distributing_table(which))


def undistribute_statement(config: SchemaConfig) -> Select[None]:
    """The statement that brings all rows back to the coordinator."""
    return select(func.undistribute_table(_regclass(config.table_name, config.schema)))


def _regclass(name: str, schema: str | None) -> ColumnElement[Any]:
    return cast(literal(qualified(name, schema), Text), REGCLASS)
