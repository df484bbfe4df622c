"""Objects that depend on a chunk table: some are restored by a rewrite, others would be lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    and_,
    exists,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
)

from cenote.errors import MigrationError
from cenote.inspection.checks.indexes import left_over_names
from cenote.inspection.live_table import LiveTable
from cenote.postgres.ddl import qualified
from cenote.postgres.pg_catalog import (
    pg_attribute,
    pg_class,
    pg_constraint,
    pg_depend,
    pg_description,
    pg_index,
    pg_inherits,
    pg_namespace,
    pg_policy,
    pg_publication,
    pg_publication_namespace,
    pg_publication_rel,
    pg_rewrite,
    pg_sequence,
    pg_statistic_ext,
    pg_trigger,
)
from cenote.postgres.row_security import PERMITS, RESTRICTS

_index_class = pg_class.alias("index_class")

# -- objects that a rewrite restores ---------------------------------------------------------------


def properties_query(oid: int) -> Executable:
    """Select a table's owner and comment, and the current role."""
    return select(
        func.pg_get_userbyid(pg_class.c.relowner).label("owner"),
        func.current_user().label("current_user"),
        func.obj_description(pg_class.c.oid, "pg_class").label("comment"),
    ).where(pg_class.c.oid == oid)


def constraints_query(oid: int) -> Executable:
    """Select the constraints that LIKE does not copy: keys, unique, exclusion and foreign keys."""
    return _constraints(
        pg_constraint.c.conrelid == oid, pg_constraint.c.contype.in_(["p", "u", "x", "f"])
    )


def referenced_tables_query(oid: int) -> Executable:
    """Select the tables that the table's foreign keys refer to."""
    return (
        select(pg_class.c.relname, pg_namespace.c.nspname)
        .distinct()
        .join(pg_constraint, pg_constraint.c.confrelid == pg_class.c.oid)
        .join(pg_namespace, pg_namespace.c.oid == pg_class.c.relnamespace)
        .where(
            pg_constraint.c.conrelid == oid,
            pg_constraint.c.confrelid != oid,
            pg_constraint.c.conparentid == 0,
        )
        .order_by(pg_namespace.c.nspname, pg_class.c.relname)
    )


def incoming_keys_query(oid: int) -> Executable:
    """Select the foreign keys of other tables that refer to the table."""
    return _constraints(
        pg_constraint.c.confrelid == oid,
        pg_constraint.c.conrelid != oid,
        pg_constraint.c.contype == "f",
    )


def _constraints(*conditions: ColumnElement[bool]) -> Executable:
    """Select constraints and their tables, foreign keys last.

    Constraints that a partition inherits from its table are left out.
    """
    return (
        select(
            pg_constraint.c.conname,
            pg_class.c.relname,
            pg_namespace.c.nspname,
            func.pg_get_constraintdef(pg_constraint.c.oid).label("definition"),
            (pg_constraint.c.contype == "f").label("is_foreign_key"),
        )
        .join(pg_class, pg_class.c.oid == pg_constraint.c.conrelid)
        .join(pg_namespace, pg_namespace.c.oid == pg_class.c.relnamespace)
        .where(pg_constraint.c.conparentid == 0, *conditions)
        .order_by(pg_constraint.c.contype == "f", pg_constraint.c.conname)
    )


def index_definitions_query(live: LiveTable) -> Executable:
    """Select the definitions of valid indexes that do not back a constraint.

    The definitions of cenote's indexes come first. If several indexes have the same columns,
    Postgres names the parts of the first one without a number, and cenote's names are expected so.
    """
    backs_constraint = exists().where(pg_constraint.c.conindid == pg_index.c.indexrelid)
    return (
        select(func.pg_get_indexdef(pg_index.c.indexrelid))
        .join(pg_class, pg_class.c.oid == pg_index.c.indexrelid)
        .where(
            pg_index.c.indrelid == live.oid,
            not_(backs_constraint),
            pg_index.c.indisvalid,
            pg_class.c.relname.not_in(left_over_names(live)),
        )
        .order_by(not_(pg_class.c.relname.startswith("ix_" + live.name, autoescape=True)))
        .order_by(pg_class.c.relname)
    )


def grants_query(name: str, schema: str | None) -> Executable:
    """Select all privileges on a table, including the owner's.

    A NULL role means everybody. The query returns no rows if no privilege was ever granted or
    revoked.
    """
    acl = _acl()
    return (
        select(
            acl.c.privilege_type,
            acl.c.is_grantable,
            func.pg_get_userbyid(func.nullif(acl.c.grantee, 0)).label("role"),
        )
        .select_from(pg_class.join(acl, true()))
        .where(pg_class.c.oid == func.to_regclass(qualified(name, schema)))
    )


def grantees_query(name: str, schema: str | None) -> Executable:
    """Select the roles that have privileges on a table; NULL means everybody."""
    acl = _acl()
    return (
        select(func.pg_get_userbyid(func.nullif(acl.c.grantee, 0)))
        .distinct()
        .select_from(pg_class.join(acl, true()))
        .where(pg_class.c.oid == func.to_regclass(qualified(name, schema)))
    )


def _acl() -> Any:
    names = ("grantor", "grantee", "privilege_type", "is_grantable")
    return func.aclexplode(pg_class.c.relacl).table_valued(*names).render_derived()


def column_privileges_query(oid: int, name: str) -> Executable:
    """Select one boolean: true if privileges on the column alone were granted."""
    return select(
        exists().where(
            pg_attribute.c.attrelid == oid,
            pg_attribute.c.attname == name,
            pg_attribute.c.attacl.is_not(None),
        )
    )


# -- objects that a rewrite would lose -------------------------------------------------------------


def check_nothing_is_lost(connection: Connection, live: LiveTable, new_name: str) -> None:
    """Check that a rewrite loses nothing, and that the name of the new table is free.

    Raises:
        MigrationError: The table has something that its copy would not have, or is published with
            all tables; or a table with the new name exists.
    """
    row = connection.execute(_losses(live)).one()
    lost = [name.replace("_", " ") for name, present in row._mapping.items() if present]
    if lost:
        raise MigrationError(
            f"table {live.name!r} has {', '.join(lost)}, which rewriting it would lose; drop them "
            "first and create them again afterwards"
        )
    if connection.scalar(_is_published_with_others(live)):
        raise MigrationError(
            f"table {live.name!r} is in a publication of all tables or of all tables in its "
            "schema, which would also publish the copy that a rewrite makes; subscribers have no "
            "table for it and would stop. Drop the publication and its subscriptions first, and "
            "create them again afterwards"
        )
    new = qualified(new_name, live.schema)
    if connection.scalar(select(func.to_regclass(new))) is not None:
        raise MigrationError(f"table {new} exists, but the rewrite needs its name; rename it first")


def _is_published_with_others(live: LiveTable) -> Executable:
    """Select one boolean: true if a publication contains the table without naming it."""
    own_schema = select(pg_class.c.relnamespace).where(pg_class.c.oid == live.oid)
    return select(
        or_(
            exists().where(pg_publication.c.puballtables),
            exists().where(pg_publication_namespace.c.pnnspid.in_(own_schema)),
        )
    )


def _losses(live: LiveTable) -> Executable:
    """Select one boolean for each kind of object that a rewrite would lose."""
    oid, left_over = live.oid, left_over_names(live)
    partitions = select(pg_inherits.c.inhrelid).where(pg_inherits.c.inhparent == oid)
    partition = pg_class.alias("partition")

    def of_table(owner: Any) -> Any:
        return or_(owner == oid, owner.in_(partitions))

    own_rules = select(pg_rewrite.c.oid).where(pg_rewrite.c.ev_class == oid)
    is_recall_comment: ColumnElement[bool] = false()
    if live.search_index is not None and live.measured_recall is not None:
        is_recall_comment = pg_description.c.objoid == live.search_index.oid
    own_indexes = select(pg_index.c.indexrelid).where(of_table(pg_index.c.indrelid))
    return select(
        exists()
        .where(of_table(pg_trigger.c.tgrelid), not_(pg_trigger.c.tgisinternal))
        .label("triggers"),
        exists()
        .where(of_table(pg_policy.c.polrelid), pg_policy.c.polname.not_in([PERMITS, RESTRICTS]))
        .label("row_security_policies"),
        exists()
        .where(of_table(pg_class.c.oid), pg_class.c.relrowsecurity, literal(not live.row_security))
        .label("row_level_security"),
        exists().where(of_table(pg_rewrite.c.ev_class)).label("rules"),
        exists()
        .where(
            pg_depend.c.refobjid == oid,
            pg_depend.c.deptype == "n",
            pg_depend.c.objid.in_(select(pg_rewrite.c.oid)),
            pg_depend.c.objid.not_in(own_rules),
        )
        .label("views"),
        exists().where(of_table(pg_publication_rel.c.prrelid)).label("publications"),
        exists()
        .where(of_table(pg_attribute.c.attrelid), pg_attribute.c.attacl.is_not(None))
        .label("column_privileges"),
        exists()
        .where(pg_attribute.c.attrelid == oid, pg_attribute.c.attidentity != "")
        .label("identity_columns"),
        exists()
        .where(pg_depend.c.refobjid == oid, pg_depend.c.deptype == "a", _is_sequence())
        .label("sequences_of_its_own"),
        exists()
        .where(partition.c.oid.in_(partitions), partition.c.relacl.is_not(None))
        .label("privileges_on_single_partitions"),
        exists()
        .where(and_(pg_class.c.oid == oid, pg_class.c.relreplident != "d"))
        .label("a_replica_identity"),
        exists()
        .where(of_table(pg_class.c.oid), pg_class.c.reloptions.is_not(None))
        .label("storage_parameters"),
        exists()
        .where(
            of_table(pg_attribute.c.attrelid),
            or_(
                func.coalesce(pg_attribute.c.attstattarget, -1) > 0,
                pg_attribute.c.attoptions.is_not(None),
            ),
        )
        .label("statistics_targets"),
        exists()
        .where(
            or_(of_table(pg_class.c.oid), pg_class.c.oid.in_(own_indexes)),
            pg_class.c.reltablespace != 0,
        )
        .label("a_tablespace"),
        exists().where(pg_inherits.c.inhrelid == oid).label("a_parent_table"),
        exists()
        .where(of_table(pg_index.c.indrelid), pg_index.c.indisclustered)
        .label("a_cluster_order"),
        exists().where(of_table(pg_statistic_ext.c.stxrelid)).label("extended_statistics"),
        exists()
        .where(
            or_(
                and_(pg_description.c.objoid.in_(own_indexes), not_(is_recall_comment)),
                pg_description.c.objoid.in_(
                    select(pg_constraint.c.oid).where(pg_constraint.c.conrelid == oid)
                ),
                pg_description.c.objoid.in_(partitions),
            )
        )
        .label("comments_on_indexes,_constraints_or_partitions"),
        or_(
            exists().where(
                pg_index.c.indrelid.in_(partitions),
                pg_index.c.indexrelid.not_in(select(pg_inherits.c.inhrelid)),
                _index_class.c.oid == pg_index.c.indexrelid,
                _index_class.c.relname.not_in(left_over),
            ),
            exists().where(
                pg_constraint.c.conrelid.in_(partitions),
                pg_constraint.c.conparentid == 0,
                pg_constraint.c.coninhcount == 0,
                pg_constraint.c.contype != "n",
            ),
        ).label("indexes_or_constraints_of_single_partitions"),
        exists()
        .where(of_table(pg_class.c.oid), pg_class.c.relpersistence != "p")
        .label("unlogged_storage"),
    )


def _is_sequence() -> Any:
    return pg_depend.c.objid.in_(select(pg_sequence.c.seqrelid))
