"""Rewriting a chunk table into hash partitions, into another number of them, or back into one.

One transaction under an exclusive lock: readers and writers wait, and an interruption at any moment
leaves the table as it was. Extra columns, defaults, checks, comments, indexes, foreign keys from
and to other tables, owner and privileges are kept; what could not be is refused before anything is
done.
"""

from __future__ import annotations

from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Row,
    and_,
    column,
    exists,
    func,
    insert,
    inspect,
    not_,
    or_,
    select,
    table,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from cenote import ddl
from cenote.catalog import LiveTable
from cenote.config import SchemaConfig
from cenote.ddl import partition_name
from cenote.errors import ConfigurationError, MigrationError
from cenote.indexes import read_chunk_table, set_build_memory
from cenote.locks import migration_lock, with_short_waits
from cenote.schema import own_connection

_NEW = "_new"

_class = table(
    "pg_class",
    column("oid"),
    column("relname"),
    column("relnamespace"),
    column("relowner"),
    column("relacl"),
    column("relrowsecurity"),
    column("relreplident"),
    column("relpersistence"),
    column("reltablespace"),
    column("reloptions"),
)
_namespace = table("pg_namespace", column("oid"), column("nspname"))
_constraint = table(
    "pg_constraint",
    column("oid"),
    column("conname"),
    column("contype"),
    column("conrelid"),
    column("confrelid"),
    column("conparentid"),
    column("conindid"),
)
_index = table("pg_index", column("indexrelid"), column("indrelid"), column("indisvalid"))
_inherits = table("pg_inherits", column("inhrelid"), column("inhparent"))
_trigger = table("pg_trigger", column("tgrelid"), column("tgisinternal"))
_policy = table("pg_policy", column("polrelid"))
_rule = table("pg_rewrite", column("oid"), column("ev_class"))
_publication = table("pg_publication_rel", column("prrelid"))
_attribute = table(
    "pg_attribute",
    column("attrelid"),
    column("attacl"),
    column("attidentity"),
    column("attstattarget"),
    column("attoptions"),
)
_depend = table("pg_depend", column("objid"), column("refobjid"), column("deptype"))


async def repartition(
    engine: AsyncEngine, config: SchemaConfig, *, memory: str | None = None
) -> None:
    """Rewrite the table into the configuration's number of partitions; 0 makes it plain.

    **The table is locked until it ends**: about the time of loading all rows and building all
    indexes. It needs disk space for a second copy. An adopted table's positions become 64-bit.
    Where the table has that many partitions already, nothing is done.

    Args:
        engine: the database; one connection is taken from its pool.
        config: whose `partitions` the table gets.
        memory: ``maintenance_work_mem`` of the transaction; see `cenote.indexes.reindex`.

    Raises:
        ConfigurationError: the configuration says no number of partitions.
        MigrationError: there is no such chunk table, it has other dimensions or something that
            could not be kept (the message lists it), or the database refused; the table is as it
            was.
    """
    if config.partitions is None:
        raise ConfigurationError(
            "how many partitions? Say partitions=16, or 0 for a plain table", setting="partitions"
        )
    async with own_connection(engine) as connection:
        await connection.run_sync(_repartition, config, memory)


def _repartition(connection: Connection, config: SchemaConfig, memory: str | None) -> None:
    with migration_lock(connection, config.table_name):
        live = read_chunk_table(connection, config)
        connection.commit()
        if live.complete and len(live.partitions) == config.partitions:
            return
        with_short_waits(
            connection, config.table_name, lambda: _rewrite(connection, live, config, memory)
        )


def _rewrite(
    connection: Connection, live: LiveTable, config: SchemaConfig, memory: str | None
) -> None:
    ops = Operations(MigrationContext.configure(connection))
    ops.execute(ddl.LockTable(live.name, live.schema))
    _refuse_what_would_be_lost(connection, live)
    facts = connection.execute(_facts(live.oid)).one()
    constraints = connection.execute(_own_constraints(live.oid)).all()
    incoming = connection.execute(_incoming_keys(live.oid)).all()
    indexes = connection.scalars(_index_definitions(live)).all()
    grants = connection.execute(_grants(live.oid)).all()
    for key in incoming:  # locks the tables they are on, while waits are still short
        ops.drop_constraint(key.conname, key.relname, schema=key.nspname, type_="foreignkey")
    connection.execute(select(func.set_config("lock_timeout", "0", True)))
    set_build_memory(connection, live, config, memory, None, local=True)
    _copy(connection, ops, live, config.new_partitions)
    for constraint in constraints:
        ops.execute(_constraint_again(live.name, live.schema, constraint))
    for definition in indexes:
        ops.execute(ddl.AsTheServerSaid(definition.replace(" ON ONLY ", " ON ", 1)))
    for key in incoming:
        ops.execute(_constraint_again(key.relname, key.nspname, key))
    _give_back(ops, live, config.new_partitions, facts, grants)
    ops.execute(ddl.Analyze(live.name, live.schema))


def _copy(connection: Connection, ops: Operations, live: LiveTable, partitions: int) -> None:
    """Put a copy of the rows in another shape in the table's place, without indexes."""
    new, schema = live.name + _NEW, live.schema
    columns = inspect(connection).get_columns(live.name, schema=schema)
    ops.execute(ddl.CreateTableLike(new, live.name, schema, partitioned=bool(partitions)))
    types = {found["name"]: found["type"] for found in columns}
    if not isinstance(types["position"], BigInteger):  # an adopted table's
        ops.alter_column(new, "position", type_=BigInteger(), schema=schema)
    for remainder in range(partitions):
        ops.execute(ddl.CreateHashPartition(new, schema, partitions, remainder))
    names = [found["name"] for found in columns if "computed" not in found]
    old_rows, new_rows = (
        table(name, *(column(name) for name in names), schema=schema) for name in (live.name, new)
    )
    connection.execute(insert(new_rows).from_select(names, select(*old_rows.c)))
    ops.drop_table(live.name, schema=schema)
    ops.rename_table(new, live.name, schema=schema)
    for remainder in range(partitions):
        ops.rename_table(
            partition_name(new, remainder), partition_name(live.name, remainder), schema=schema
        )


def _give_back(
    ops: Operations, live: LiveTable, partitions: int, facts: Row[Any], grants: Any
) -> None:
    """Owner, privileges and comment."""
    for grant in grants:
        ops.execute(
            ddl.Grant(
                grant.privilege_type,
                live.name,
                live.schema,
                grant.role,
                grantable=grant.is_grantable,
            )
        )
    if facts.comment is not None:
        ops.create_table_comment(live.name, facts.comment, schema=live.schema)
    if facts.owner != facts.me:
        for name in (live.name, *(partition_name(live.name, n) for n in range(partitions))):
            ops.execute(ddl.ChangeOwner(name, live.schema, facts.owner))


def _constraint_again(name: str, schema: str, row: Row[Any]) -> ddl.AddConstraintAs:
    return ddl.AddConstraintAs(name, schema, row.conname, row.definition)


# -- what is kept ----------------------------------------------------------------------------------


def _facts(oid: int) -> Executable:
    return select(
        func.pg_get_userbyid(_class.c.relowner).label("owner"),
        func.current_user().label("me"),
        func.obj_description(_class.c.oid, "pg_class").label("comment"),
    ).where(_class.c.oid == oid)


def _own_constraints(oid: int) -> Executable:
    """Those that LIKE leaves out: keys, unique and exclusion constraints, foreign keys."""
    return (
        select(_constraint.c.conname, _definition())
        .where(
            _constraint.c.conrelid == oid,
            _constraint.c.conparentid == 0,
            _constraint.c.contype.in_(["p", "u", "x", "f"]),
        )
        .order_by(_constraint.c.contype == "f", _constraint.c.conname)
    )


def _incoming_keys(oid: int) -> Executable:
    """Foreign keys of other tables."""
    return (
        select(_constraint.c.conname, _class.c.relname, _namespace.c.nspname, _definition())
        .join(_class, _class.c.oid == _constraint.c.conrelid)
        .join(_namespace, _namespace.c.oid == _class.c.relnamespace)
        .where(
            _constraint.c.confrelid == oid,
            _constraint.c.conrelid != oid,
            _constraint.c.conparentid == 0,
            _constraint.c.contype == "f",
        )
        .order_by(_constraint.c.conname)
    )


def _definition() -> Any:
    return func.pg_get_constraintdef(_constraint.c.oid).label("definition")


def _index_definitions(live: LiveTable) -> Executable:
    """Indexes that no constraint brings along, but for what an interrupted build left."""
    of_constraint = exists().where(_constraint.c.conindid == _index.c.indexrelid)
    return (
        select(func.pg_get_indexdef(_index.c.indexrelid))
        .join(_class, _class.c.oid == _index.c.indexrelid)
        .where(
            _index.c.indrelid == live.oid,
            not_(of_constraint),
            or_(_index.c.indisvalid, not_(_class.c.relname.like("%\\_new"))),
        )
        .order_by(_class.c.relname)
    )


def _grants(oid: int) -> Executable:
    """Privileges of others than the owner; no role means everybody."""
    acl = (
        func.aclexplode(_class.c.relacl)
        .table_valued("grantor", "grantee", "privilege_type", "is_grantable")
        .render_derived()
    )
    return (
        select(
            acl.c.privilege_type,
            acl.c.is_grantable,
            func.nullif(acl.c.grantee, 0).label("grantee"),
            func.pg_get_userbyid(func.nullif(acl.c.grantee, 0)).label("role"),
        )
        .select_from(_class)
        .join(acl, acl.c.grantee != _class.c.relowner)
        .where(_class.c.oid == oid)
    )


# -- what is refused -------------------------------------------------------------------------------


def _refuse_what_would_be_lost(connection: Connection, live: LiveTable) -> None:
    row = connection.execute(_losses(live.oid)).one()
    lost = [name.replace("_", " ") for name, there in row._mapping.items() if there]
    if lost:
        raise MigrationError(
            f"table {live.name!r} has {', '.join(lost)}, which rewriting it would lose; drop and "
            "make them again by hand around it"
        )


def _losses(oid: int) -> Executable:
    """One column for each kind of thing that LIKE and this module do not carry over."""
    parts = select(_inherits.c.inhrelid).where(_inherits.c.inhparent == oid)
    partition = _class.alias("partition")

    def ours(owner: Any) -> Any:
        return or_(owner == oid, owner.in_(parts))

    own_rules = select(_rule.c.oid).where(_rule.c.ev_class == oid)
    return select(
        exists().where(ours(_trigger.c.tgrelid), not_(_trigger.c.tgisinternal)).label("triggers"),
        exists().where(ours(_policy.c.polrelid)).label("row_security_policies"),
        exists().where(ours(_class.c.oid), _class.c.relrowsecurity).label("row_level_security"),
        exists().where(ours(_rule.c.ev_class)).label("rules"),
        exists()
        .where(
            _depend.c.refobjid == oid,
            _depend.c.deptype == "n",
            _depend.c.objid.in_(select(_rule.c.oid)),
            _depend.c.objid.not_in(own_rules),
        )
        .label("views"),
        exists().where(ours(_publication.c.prrelid)).label("publications"),
        exists()
        .where(ours(_attribute.c.attrelid), _attribute.c.attacl.is_not(None))
        .label("column_privileges"),
        exists()
        .where(_attribute.c.attrelid == oid, _attribute.c.attidentity != "")
        .label("identity_columns"),
        exists()
        .where(_depend.c.refobjid == oid, _depend.c.deptype == "a", _is_sequence())
        .label("sequences_of_its_own"),
        exists()
        .where(partition.c.oid.in_(parts), partition.c.relacl.is_not(None))
        .label("privileges_on_single_partitions"),
        exists()
        .where(and_(_class.c.oid == oid, _class.c.relreplident != "d"))
        .label("a_replica_identity"),
        exists()
        .where(ours(_class.c.oid), _class.c.reloptions.is_not(None))
        .label("storage_parameters"),
        exists()
        .where(
            ours(_attribute.c.attrelid),
            or_(
                func.coalesce(_attribute.c.attstattarget, -1) > 0,
                _attribute.c.attoptions.is_not(None),
            ),
        )
        .label("statistics_targets"),
        exists().where(ours(_class.c.oid), _class.c.reltablespace != 0).label("a_tablespace"),
        exists()
        .where(ours(_class.c.oid), _class.c.relpersistence != "p")
        .label("unlogged_storage"),
    )


def _is_sequence() -> Any:
    sequence = table("pg_sequence", column("seqrelid"))
    return _depend.c.objid.in_(select(sequence.c.seqrelid))
