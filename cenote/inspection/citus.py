"""Queries and statements for Citus, the Postgres extension that spreads a table over machines.

A chunk table is distributed by namespace. The namespace is part of the key and of every statement
of a store, so each statement runs on the one node that has the namespace's shard. The functions,
views and settings are described in Citus' documentation, "Citus Utility Functions" and "Citus
Tables and Views".
"""

from __future__ import annotations

import json
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
from sqlalchemy.dialects.postgresql import ARRAY, OID, REGCLASS

from cenote.config import SchemaConfig
from cenote.postgres.ddl import qualified
from cenote.postgres.pg_catalog import pg_extension

_pg_dist_partition = table("pg_dist_partition", column("logicalrelid", OID), column("partmethod"))
_pg_dist_shard = table(
    "pg_dist_shard",
    column("logicalrelid", OID),
    column("shardid"),
    column("shardminvalue", Text),
    column("shardmaxvalue", Text),
)
_citus_shards = table(
    "citus_shards",
    column("table_name", REGCLASS),
    column("shardid", BigInteger),
    column("shard_size", BigInteger),
)

_INDEXES = (
    "SELECT pg_catalog.json_object_agg(c.relname, i.indisvalid)"
    " FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid"
    " WHERE i.indrelid = '%s'::pg_catalog.regclass"
)
"""Query that a node runs for each of its shards. Citus puts the shard's name in place of ``%s``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A part of a distributed table.

    Attributes:
        number: Identifier of the shard in the cluster.
        size: Size in bytes, including indexes.
        invalid_indexes: Names of indexes whose build did not finish; None if there are none.
        reachable: True if all nodes that have a copy of the shard answered.
        indexes: Names of the indexes as on the coordinator, without the number that Citus appends;
            empty if the node did not answer.
    """

    number: int
    size: int
    invalid_indexes: str | None
    reachable: bool = True
    indexes: frozenset[str] = frozenset()


def is_installed(connection: Connection) -> bool:
    """Return True if the database has the citus extension."""
    query = select(exists().where(pg_extension.c.extname == "citus"))
    return bool(connection.scalar(query))


CITUS_METADATA = func.to_regclass("pg_catalog.pg_dist_partition")
"""SQL for the table that lists the distributed tables; null without the extension."""


def shard_count(connection: Connection, oid: int) -> int | None:
    """Return the number of shards of a table, or None if it is not distributed by hash.

    It is the original number, also after ``isolate_tenant_to_new_shard`` has split a shard in
    three: one for the namespace's hash value, one for smaller and one for larger values. The
    database must have the extension; see `CITUS_METADATA`.
    """
    is_isolated = _pg_dist_shard.c.shardminvalue == _pg_dist_shard.c.shardmaxvalue
    query = (
        select(func.count() - 2 * func.count().filter(is_isolated))
        .select_from(_pg_dist_shard)
        .join(
            _pg_dist_partition, _pg_dist_partition.c.logicalrelid == _pg_dist_shard.c.logicalrelid
        )
        .where(_pg_dist_partition.c.logicalrelid == oid, _pg_dist_partition.c.partmethod == "h")
    )
    return connection.scalar(query) or None


def is_distributed_query(relation: ColumnElement[Any]) -> Select[Any]:
    """Return a query that selects true if Citus has distributed a table.

    It is also true of reference tables, and of local tables that Citus manages. The database must
    have the extension; see `CITUS_METADATA`.
    """
    return select(exists().where(_pg_dist_partition.c.logicalrelid == relation))


def is_distributed(connection: Connection, name: str, schema: str | None) -> bool:
    """Return True if Citus has distributed a table."""
    relation = func.to_regclass(qualified(name, schema))
    oid, has_citus = connection.execute(
        select(cast(relation, OID), CITUS_METADATA.is_not(None))
    ).one()
    return has_citus and oid is not None and shard_count(connection, oid) is not None


def allow_all_shards(connection: Connection) -> None:
    """Allow statements that read all shards, until the transaction ends.

    The setting ``citus.multi_task_query_log_level`` may log or reject them.
    """
    connection.execute(select(func.set_config("citus.multi_task_query_log_level", "off", True)))


def set_ddl_propagation(*, on: bool) -> Select[Any]:
    """Return the statement that makes the session's schema changes go to all nodes, or not."""
    value = "on" if on else "off"
    return select(func.set_config("citus.enable_ddl_propagation", value, False))


def read_shards(connection: Connection, name: str, schema: str) -> list[Shard]:
    """Return the shards of a distributed table by number. The query runs on every node."""
    relation = _regclass(name, schema)
    answers = func.run_command_on_shards(relation, literal(_INDEXES, Text)).table_valued(
        column("shardid", BigInteger), column("success", Boolean), column("result", Text)
    )
    query = (  # a shard has a row for each node that has a copy of it
        select(
            _citus_shards.c.shardid,
            func.coalesce(func.max(_citus_shards.c.shard_size), 0).label("size"),
            func.bool_and(answers.c.success).label("reachable"),
            func.array_agg(answers.c.result, type_=ARRAY(Text)).label("results"),
        )
        .join(answers, answers.c.shardid == _citus_shards.c.shardid)
        .where(_citus_shards.c.table_name == relation)
        .group_by(_citus_shards.c.shardid)
        .order_by(_citus_shards.c.shardid)
    )
    return [_shard(row) for row in connection.execute(query)]


def _shard(row: Any) -> Shard:
    validity: dict[str, bool] = {}
    if row.reachable:
        for result in filter(None, row.results):
            for name, is_valid in json.loads(result).items():
                validity[name] = validity.get(name, True) and is_valid
    invalid = ", ".join(sorted(name for name, is_valid in validity.items() if not is_valid))
    return Shard(
        number=row.shardid,
        size=row.size,
        invalid_indexes=invalid or None,
        reachable=row.reachable,
        indexes=frozenset(name.removesuffix(f"_{row.shardid}") for name in validity),
    )


def distribute_statements(config: SchemaConfig) -> Iterator[Executable]:
    """Yield the statements that distribute a plain table by namespace, with its rows."""
    # Use one connection to each node for the rest of the transaction. Otherwise Citus would reject
    # later statements of the transaction, e.g. one that adds a foreign key.
    yield select(func.set_config("citus.multi_shard_modify_mode", "sequential", True))
    colocate_with = "default" if config.colocate_with is None else config.colocate_with
    yield select(
        func.create_distributed_table(
            _regclass(config.table_name, config.schema),
            "namespace",
            literal_column("'hash'"),
            literal(colocate_with, Text),
            literal(config.shard_count, Integer),
        )
    )


def truncate_local_data_statement(config: SchemaConfig) -> Select[None]:
    """Return the statement that removes the old rows that remain on the coordinator."""
    relation = _regclass(config.table_name, config.schema)
    return select(func.truncate_local_data_after_distributing_table(relation))


def _regclass(name: str, schema: str | None) -> ColumnElement[Any]:
    return cast(literal(qualified(name, schema), Text), REGCLASS)
