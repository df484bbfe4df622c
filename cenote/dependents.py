"""What hangs on a chunk table: what a rewritten one gets back, and what would be lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    and_,
    column,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    table,
    true,
)

from cenote.catalog import LiveTable
from cenote.ddl import qualified
from cenote.drift import left_over_names
from cenote.errors import MigrationError
from cenote.policies import PERMITS, RESTRICTS

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
_index_class = _class.alias("index_class")
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
    column("coninhcount"),
)
_index = table(
    "pg_index",
    column("indexrelid"),
    column("indrelid"),
    column("indisvalid"),
    column("indisclustered"),
)
_statistics = table("pg_statistic_ext", column("stxrelid"))
_description = table("pg_description", column("objoid"))
_inherits = table("pg_inherits", column("inhrelid"), column("inhparent"))
_trigger = table("pg_trigger", column("tgrelid"), column("tgisinternal"))
_policy = table("pg_policy", column("polrelid"), column("polname"))
_rule = table("pg_rewrite", column("oid"), column("ev_class"))
_publication = table("pg_publication_rel", column("prrelid"))
_attribute = table(
    "pg_attribute",
    column("attrelid"),
    column("attname"),
    column("attacl"),
    column("attidentity"),
    column("attstattarget"),
    column("attoptions"),
)
_depend = table("pg_depend", column("objid"), column("refobjid"), column("deptype"))


# -- what is kept ----------------------------------------------------------------------------------


def facts_query(oid: int) -> Executable:
    return select(
        func.pg_get_userbyid(_class.c.relowner).label("owner"),
        func.current_user().label("me"),
        func.obj_description(_class.c.oid, "pg_class").label("comment"),
    ).where(_class.c.oid == oid)


def own_constraints(oid: int) -> Executable:
    """Those that LIKE leaves out: keys, unique and exclusion constraints, foreign keys."""
    return _constraints(
        _constraint.c.conrelid == oid, _constraint.c.contype.in_(["p", "u", "x", "f"])
    )


def referenced_tables(oid: int) -> Executable:
    """The tables that the table's foreign keys point at."""
    return (
        select(_class.c.relname, _namespace.c.nspname)
        .distinct()
        .join(_constraint, _constraint.c.confrelid == _class.c.oid)
        .join(_namespace, _namespace.c.oid == _class.c.relnamespace)
        .where(
            _constraint.c.conrelid == oid,
            _constraint.c.confrelid != oid,
            _constraint.c.conparentid == 0,
        )
        .order_by(_namespace.c.nspname, _class.c.relname)
    )


def incoming_keys(oid: int) -> Executable:
    """Foreign keys of other tables."""
    return _constraints(
        _constraint.c.confrelid == oid,
        _constraint.c.conrelid != oid,
        _constraint.c.contype == "f",
    )


def _constraints(*conditions: ColumnElement[bool]) -> Executable:
    """Constraints with the tables they are on, keys first, without the parts of partitions."""
    return (
        select(
            _constraint.c.conname,
            _class.c.relname,
            _namespace.c.nspname,
            func.pg_get_constraintdef(_constraint.c.oid).label("definition"),
            (_constraint.c.contype == "f").label("is_foreign_key"),
        )
        .join(_class, _class.c.oid == _constraint.c.conrelid)
        .join(_namespace, _namespace.c.oid == _class.c.relnamespace)
        .where(_constraint.c.conparentid == 0, *conditions)
        .order_by(_constraint.c.contype == "f", _constraint.c.conname)
    )


def index_definitions(live: LiveTable) -> Executable:
    """Valid indexes that no constraint brings along; ours first, so that their parts get the
    names that Postgres gives to the first."""
    of_constraint = exists().where(_constraint.c.conindid == _index.c.indexrelid)
    return (
        select(func.pg_get_indexdef(_index.c.indexrelid))
        .join(_class, _class.c.oid == _index.c.indexrelid)
        .where(
            _index.c.indrelid == live.oid,
            not_(of_constraint),
            _index.c.indisvalid,
            _class.c.relname.not_in(left_over_names(live)),
        )
        .order_by(not_(_class.c.relname.startswith("ix_" + live.name, autoescape=True)))
        .order_by(_class.c.relname)
    )


def grants_query(name: str, schema: str | None) -> Executable:
    """All privileges, the owner's too; no role means everybody. None where none were ever set."""
    acl = _acl()
    return (
        select(
            acl.c.privilege_type,
            acl.c.is_grantable,
            func.pg_get_userbyid(func.nullif(acl.c.grantee, 0)).label("role"),
        )
        .select_from(_class.join(acl, true()))
        .where(_class.c.oid == func.to_regclass(qualified(name, schema)))
    )


def grantees(name: str, schema: str | None) -> Executable:
    """Whoever has privileges."""
    acl = _acl()
    return (
        select(func.pg_get_userbyid(func.nullif(acl.c.grantee, 0)))
        .distinct()
        .select_from(_class.join(acl, true()))
        .where(_class.c.oid == func.to_regclass(qualified(name, schema)))
    )


def _acl() -> Any:
    names = ("grantor", "grantee", "privilege_type", "is_grantable")
    return func.aclexplode(_class.c.relacl).table_valued(*names).render_derived()


def column_privileges(oid: int, name: str) -> Executable:
    """Whether a column has privileges of its own."""
    return select(
        exists().where(
            _attribute.c.attrelid == oid,
            _attribute.c.attname == name,
            _attribute.c.attacl.is_not(None),
        )
    )


# -- what is refused -------------------------------------------------------------------------------


def refuse_what_would_be_lost(connection: Connection, live: LiveTable, new_name: str) -> None:
    """Refuse what a copy of the table would not have, and a name that is taken.

    Raises:
        MigrationError: there is such a thing.
    """
    row = connection.execute(_losses(live)).one()
    lost = [name.replace("_", " ") for name, there in row._mapping.items() if there]
    if lost:
        raise MigrationError(
            f"table {live.name!r} has {', '.join(lost)}, which rewriting it would lose; drop and "
            "make them again by hand around it"
        )
    new = qualified(new_name, live.schema)
    if connection.scalar(select(func.to_regclass(new))) is not None:
        raise MigrationError(f"there is a table {new} already, whose name is needed; move it away")


def _losses(live: LiveTable) -> Executable:
    """One column for each kind of thing that LIKE and this module do not carry over."""
    oid, left_over = live.oid, left_over_names(live)
    parts = select(_inherits.c.inhrelid).where(_inherits.c.inhparent == oid)
    partition = _class.alias("partition")

    def ours(owner: Any) -> Any:
        return or_(owner == oid, owner.in_(parts))

    own_rules = select(_rule.c.oid).where(_rule.c.ev_class == oid)
    own_indexes = select(_index.c.indexrelid).where(ours(_index.c.indrelid))
    return select(
        exists().where(ours(_trigger.c.tgrelid), not_(_trigger.c.tgisinternal)).label("triggers"),
        exists()
        .where(ours(_policy.c.polrelid), _policy.c.polname.not_in([PERMITS, RESTRICTS]))
        .label("row_security_policies"),
        exists()
        .where(ours(_class.c.oid), _class.c.relrowsecurity, literal(not live.row_security))
        .label("row_level_security"),
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
        exists()
        .where(or_(ours(_class.c.oid), _class.c.oid.in_(own_indexes)), _class.c.reltablespace != 0)
        .label("a_tablespace"),
        exists().where(_inherits.c.inhrelid == oid).label("a_parent_table"),
        exists().where(ours(_index.c.indrelid), _index.c.indisclustered).label("a_cluster_order"),
        exists().where(ours(_statistics.c.stxrelid)).label("extended_statistics"),
        exists()
        .where(
            or_(
                _description.c.objoid.in_(own_indexes),
                _description.c.objoid.in_(
                    select(_constraint.c.oid).where(_constraint.c.conrelid == oid)
                ),
                _description.c.objoid.in_(parts),
            )
        )
        .label("comments_on_indexes,_constraints_or_partitions"),
        or_(
            exists().where(
                _index.c.indrelid.in_(parts),
                _index.c.indexrelid.not_in(select(_inherits.c.inhrelid)),
                _index_class.c.oid == _index.c.indexrelid,
                _index_class.c.relname.not_in(left_over),
            ),
            exists().where(
                _constraint.c.conrelid.in_(parts),
                _constraint.c.conparentid == 0,
                _constraint.c.coninhcount == 0,
                _constraint.c.contype != "n",
            ),
        ).label("indexes_or_constraints_of_single_partitions"),
        exists()
        .where(ours(_class.c.oid), _class.c.relpersistence != "p")
        .label("unlogged_storage"),
    )


def _is_sequence() -> Any:
    sequence = table("pg_sequence", column("seqrelid"))
    return _depend.c.objid.in_(select(sequence.c.seqrelid))
