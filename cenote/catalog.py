"""What the database's own catalogue says of a chunk table: the record of what was applied.

Later revisions and commands take dimensions, type, partitions and parameters from here, never from
a configuration that has moved on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Executable,
    Integer,
    Row,
    and_,
    case,
    column,
    exists,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    table,
)

from cenote.citus import METADATA, shard_count
from cenote.ddl import qualified
from cenote.orm import OPERATOR_CLASS, ann_index_name
from cenote.policies import PERMITS, RESTRICTION, RESTRICTS
from cenote.text_search import COLUMN as TEXT_COLUMN
from cenote.text_search import languages_of

_class = table(
    "pg_class",
    column("oid"),
    column("relname"),
    column("relnamespace"),
    column("relkind"),
    column("relam"),
    column("reloptions"),
    column("relpartbound"),
    column("relowner"),
    column("relrowsecurity"),
    column("relforcerowsecurity"),
)
_namespace = table("pg_namespace", column("oid"), column("nspname"))
_attribute = table(
    "pg_attribute",
    column("attrelid"),
    column("attname"),
    column("atttypid"),
    column("atttypmod", Integer),
    column("attisdropped"),
    column("attnum"),
    column("attnotnull"),
    column("attcollation"),
)
_configuration = table("pg_ts_config", column("oid"), column("cfgname"), column("cfgnamespace"))
_policy = table(
    "pg_policy",
    column("polname"),
    column("polrelid"),
    column("polpermissive"),
    column("polcmd"),
    column("polroles"),
    column("polqual"),
    column("polwithcheck"),
)
_default = table("pg_attrdef", column("adrelid"), column("adnum"), column("adbin"))
_type = table("pg_type", column("oid"), column("typname"), column("typcollation"))
_collation = table("pg_collation", column("oid"), column("collname"))
_inherits = table("pg_inherits", column("inhrelid"), column("inhparent"))
_index = table(
    "pg_index",
    column("indexrelid"),
    column("indrelid"),
    column("indisvalid"),
    column("indisprimary"),
    column("indnkeyatts"),
    column("indclass", ARRAY(Integer)),
)
_access_method = table("pg_am", column("oid"), column("amname"))
_operator_class = table("pg_opclass", column("oid"), column("opcname"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveIndex:
    """An index of the chunk table or of one of its partitions.

    Attributes:
        name: the index.
        table: the table or partition that it is on.
        method: ``"hnsw"``, ``"btree"``, ...
        columns: what it is on, in order.
        operator_classes: one for each column.
        options: its ``WITH`` options.
        valid: False where a concurrent build did not end, or a partition has no part of it.
        primary: whether it is the primary key's.
    """

    name: str
    table: str
    method: str
    columns: tuple[str, ...]
    operator_classes: tuple[str, ...]
    options: Mapping[str, str]
    valid: bool
    primary: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTable:
    """A chunk table as it is.

    Attributes:
        oid: its object identifier.
        schema: the schema it is in.
        name: its name.
        column_type: of its embedding column, ``"vector"`` or ``"halfvec"``; None where it has no
            such column, or is no table, and so is no chunk table.
        dimensions: of that column; None where any length fits.
        partitioned: whether it is a partitioned table, which may have lost its partitions.
        bounds: its partitions, each with modulus and remainder; empty for a plain table.
        text_search: the text search configurations of its full text, as `SchemaConfig` has them;
            None without, also where it has a column of that name that cenote did not make.
        configurations: all text search configurations of the database by their names, those in the
            schemas of the search_path by their own alone, too.
        row_security: whether it, or a partition, has cenote's row-level security.
        unsecured: the names of the table and partitions that lack it, if others have it.
        other_policies: whether it, or a partition, has policies or row-level security of others.
        shards: in how many shards Citus has distributed it by namespace; None where it has not.
        columns: the types by column, with ``not null`` and other than default collations, as SQL
            writes them.
        key: the columns of its primary key.
        key_name: the name of its primary key.
        indexes: its own and its partitions'.
    """

    oid: int
    schema: str
    name: str
    column_type: str | None
    dimensions: int | None
    partitioned: bool
    bounds: Mapping[str, tuple[int, int]]
    text_search: str | None
    configurations: Mapping[str, str]
    row_security: bool
    unsecured: tuple[str, ...]
    other_policies: bool
    shards: int | None
    columns: Mapping[str, str]
    key: tuple[str, ...]
    key_name: str | None
    indexes: tuple[LiveIndex, ...]

    @property
    def partitions(self) -> tuple[str, ...]:
        """The names of its partitions."""
        return tuple(self.bounds)

    @property
    def complete(self) -> bool:
        """Whether its partitions take every namespace."""
        shares = sum(Fraction(1, modulus) for modulus, _ in self.bounds.values())
        return shares == (1 if self.partitioned else 0)

    @property
    def embedding(self) -> str:
        """The type of the embedding column as SQL writes it."""
        return embedding_sql(self.column_type, self.dimensions)

    @property
    def settings(self) -> dict[str, Any]:
        """What `SchemaConfig` would say of the columns and, if none is lost, partitions."""
        return {
            "dimensions": self.dimensions,
            "column_type": self.column_type,
            "text_search": self.text_search,
            # Never both: what is told of a table must make a configuration, whoever made it.
            "row_security": (self.row_security and self.shards is None) or None,
            "distribution": None if self.shards is None else "citus",
            "partitions": len(self.bounds) if self.complete else None,
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """What `SchemaConfig` would say of its ANN index's parameters, where it has one."""
        index = self.index(ann_index_name(self.name))
        if index is None or index.method != "hnsw":
            return {}
        return {"hnsw_" + option: int(value) for option, value in index.options.items()}

    def index(self, name: str) -> LiveIndex | None:
        """The index of the table itself that has this name."""
        return next(
            (index for index in self.indexes if (index.name, index.table) == (name, self.name)),
            None,
        )


def embedding_sql(column_type: str | None, dimensions: int | None) -> str:
    """``"vector(384)"``."""
    if column_type is None:
        return "missing"
    return column_type if dimensions is None else f"{column_type}({dimensions})"


def shape_query(name: str, schema: str | None) -> Executable:
    """A query for the table's identity, the type of its embedding column, and its full text.

    No row where there is nothing of that name; no `column_type` where that is no table, or has no
    embedding column of a type that is ours.
    """
    embedding = and_(
        _attribute.c.attrelid == _class.c.oid,
        _attribute.c.attname == "embedding",
        _attribute.c.attisdropped.is_(False),
        _class.c.relkind.in_(["r", "p"]),
    )
    ours = and_(_type.c.oid == _attribute.c.atttypid, _type.c.typname.in_(OPERATOR_CLASS))
    words = _attribute.alias("words")
    generates_words = (
        select(func.pg_get_expr(_default.c.adbin, _default.c.adrelid))
        .join(
            words, and_(words.c.attrelid == _default.c.adrelid, words.c.attnum == _default.c.adnum)
        )
        .where(words.c.attrelid == _class.c.oid, words.c.attname == TEXT_COLUMN)
        .correlate(_class)
        .scalar_subquery()
    )
    return (
        select(
            _class.c.oid,
            _class.c.relname.label("name"),
            (_class.c.relkind == "p").label("partitioned"),
            _namespace.c.nspname.label("schema"),
            _type.c.typname.label("column_type"),
            func.nullif(_attribute.c.atttypmod, -1).label("dimensions"),
            generates_words.label("generates_words"),
            _class.c.relrowsecurity.label("row_security"),
            func.row_security_active(_class.c.oid).label("row_security_active"),
            METADATA.is_not(None).label("has_citus"),
        )
        .select_from(_class)
        .join(_namespace, _namespace.c.oid == _class.c.relnamespace)
        .outerjoin(_attribute, embedding)
        .outerjoin(_type, ours)
        .where(_class.c.oid == func.to_regclass(qualified(name, schema)))
    )


CONFIGURATIONS = select(
    _namespace.c.nspname,
    _configuration.c.cfgname,
    func.pg_ts_config_is_visible(_configuration.c.oid).label("visible"),
).join(_namespace, _namespace.c.oid == _configuration.c.cfgnamespace)
"""A query for the text search configurations of a database."""


def configurations_of(rows: Iterable[Any]) -> dict[str, str]:
    """What names stand for, of that query's rows."""
    found = {}
    for row in rows:
        name = ".".join((row.nspname, row.cfgname))
        found[name] = name
        if row.visible:
            found[row.cfgname] = name
    return found


def schemas_with(connection: Connection, name: str) -> list[str]:
    """The schemas that have a table of this name."""
    query = (
        select(_namespace.c.nspname)
        .join(_class, _class.c.relnamespace == _namespace.c.oid)
        .where(_class.c.relname == name, _class.c.relkind.in_(["r", "p"]))
        .order_by(_namespace.c.nspname)
    )
    return [*connection.scalars(query)]


def read_table(connection: Connection, name: str, schema: str | None) -> LiveTable | None:
    """The live table of this name, or None where there is nothing of this name."""
    shape = connection.execute(shape_query(name, schema)).one_or_none()
    if shape is None:
        return None
    bounds = connection.execute(_partitions_query(shape.oid)).all()
    indexes = tuple(_live_index(row) for row in connection.execute(_indexes_query(shape.oid)))
    security = connection.execute(_security_query(shape.oid)).all()
    secured = {row.relname: row.secured for row in security}
    row_security = any(secured.values())
    primary = [index for index in indexes if index.primary and index.table == shape.name]
    return LiveTable(
        oid=shape.oid,
        schema=shape.schema,
        name=shape.name,
        column_type=shape.column_type,
        dimensions=shape.dimensions,
        partitioned=shape.partitioned,
        text_search=languages_of(shape.generates_words),
        bounds={row.relname: _bound(row.bound) for row in bounds},
        configurations=configurations_of(connection.execute(CONFIGURATIONS).all()),
        row_security=row_security,
        unsecured=tuple(name for name, has in secured.items() if row_security and not has),
        other_policies=any(row.others for row in security),
        shards=shard_count(connection, shape.oid) if shape.has_citus else None,
        columns={row.attname: row.sql for row in connection.execute(_columns_query(shape.oid))},
        key=primary[0].columns if primary else (),
        key_name=primary[0].name if primary else None,
        indexes=indexes,
    )


def is_owner(oid: int) -> Executable:
    """Whether the current role has the rights of a table's owner."""
    owns = func.pg_has_role(_class.c.relowner, "USAGE")
    return select(owns).where(_class.c.oid == oid)


def _live_index(row: Row[Any]) -> LiveIndex:
    return LiveIndex(
        name=row.name,
        table=row.on_table,
        method=row.amname,
        columns=tuple(row.columns),
        operator_classes=tuple(row.operator_classes),
        options=dict(option.split("=", 1) for option in row.reloptions or ()),
        valid=row.indisvalid,
        primary=row.indisprimary,
    )


def _bound(sql: str | None) -> tuple[int, int]:
    """Modulus and remainder of a hash partition; another kind of partition takes nothing for us."""
    numbers = re.search(r"modulus (\d+), remainder (\d+)", sql or "")
    return (int(numbers[1]), int(numbers[2])) if numbers else (2**31, 0)


def _columns_query(oid: int) -> Executable:
    collation = case(
        (
            _attribute.c.attcollation != _type.c.typcollation,
            func.concat(" collate ", func.quote_ident(_collation.c.collname)),
        ),
        else_="",
    )
    not_null = case((_attribute.c.attnotnull, " not null"), else_="")
    type_ = func.format_type(_attribute.c.atttypid, _attribute.c.atttypmod)
    return (
        select(_attribute.c.attname, func.concat(type_, collation, not_null).label("sql"))
        .join(_type, _type.c.oid == _attribute.c.atttypid)
        .outerjoin(_collation, _collation.c.oid == _attribute.c.attcollation)
        .where(
            _attribute.c.attrelid == oid,
            _attribute.c.attnum > 0,
            _attribute.c.attisdropped.is_(False),
        )
    )


def _security_query(oid: int) -> Executable:
    """The table and its partitions, with whether each has cenote's row-level security."""

    def has(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(
            _policy.c.polrelid == _class.c.oid,
            _policy.c.polcmd == "*",
            _policy.c.polroles == literal_column("'{0}'::oid[]"),
            _policy.c.polwithcheck.is_(None),
            *conditions,
        )

    condition = func.pg_get_expr(_policy.c.polqual, _policy.c.polrelid)
    restricts = condition == literal(RESTRICTION)
    partitions = select(_inherits.c.inhrelid).where(_inherits.c.inhparent == oid)
    return (
        select(
            _class.c.relname,
            and_(
                _class.c.relrowsecurity,
                _class.c.relforcerowsecurity,
                has(_policy.c.polname == RESTRICTS, not_(_policy.c.polpermissive), restricts),
                has(_policy.c.polname == PERMITS, condition == "true"),
            ).label("secured"),
            or_(
                exists().where(
                    _policy.c.polrelid == _class.c.oid,
                    _policy.c.polname.not_in([PERMITS, RESTRICTS]),
                ),
                and_(
                    _class.c.relrowsecurity,
                    not_(exists().where(_policy.c.polrelid == _class.c.oid)),
                ),
            ).label("others"),
        )
        .where(or_(_class.c.oid == oid, _class.c.oid.in_(partitions)))
        .order_by(_class.c.relname)
    )


def _partitions_query(oid: int) -> Executable:
    return (
        select(
            _class.c.relname,
            func.pg_get_expr(_class.c.relpartbound, _class.c.oid).label("bound"),
        )
        .join(_inherits, _inherits.c.inhrelid == _class.c.oid)
        .where(_inherits.c.inhparent == oid)
        .order_by(_class.c.relname)
    )


def _indexes_query(oid: int) -> Executable:
    owner = _class.alias("owner")
    position = func.generate_series(1, _index.c.indnkeyatts).table_valued("n").render_derived()
    columns = select(func.pg_get_indexdef(_index.c.indexrelid, position.c.n, True))
    operator_classes = select(_operator_class.c.opcname).where(
        _operator_class.c.oid == _index.c.indclass[position.c.n - 1]
    )
    in_order = [
        func.array(
            query.select_from(position).order_by(position.c.n).correlate(_index).scalar_subquery()
        )
        for query in (columns, operator_classes)
    ]
    partitions = select(_inherits.c.inhrelid).where(_inherits.c.inhparent == oid)
    return (
        select(
            _class.c.relname.label("name"),
            owner.c.relname.label("on_table"),
            _access_method.c.amname,
            _class.c.reloptions,
            _index.c.indisvalid,
            _index.c.indisprimary,
            in_order[0].label("columns"),
            in_order[1].label("operator_classes"),
        )
        .select_from(_index)
        .join(_class, _class.c.oid == _index.c.indexrelid)
        .join(owner, owner.c.oid == _index.c.indrelid)
        .join(_access_method, _access_method.c.oid == _class.c.relam)
        .where(or_(_index.c.indrelid == oid, _index.c.indrelid.in_(partitions)))
        .order_by(owner.c.relname, _class.c.relname)
    )
