"""Introspection of the live chunk table, from the database's own catalogue.

The catalogue records how the table really is. Revisions and commands read dimensions, type,
partitions and parameters from the catalogue, because a configuration may have changed since the
table was created.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Row,
    ScalarSelect,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
)

from cenote.inspection.citus import CITUS_METADATA, shard_count
from cenote.inspection.recall_comment import MeasuredRecall, parse_comment
from cenote.orm.mixin import CHUNK_COLUMNS, ann_index_name
from cenote.postgres.ann_index import (
    AnnIndex,
    choose_index,
    has_no_index,
    parse_ann_index,
    parse_ann_indexes,
    parse_metric,
)
from cenote.postgres.ddl import partition_name, qualified
from cenote.postgres.full_text import COLUMN as TEXT_COLUMN
from cenote.postgres.full_text import languages_of
from cenote.postgres.pg_catalog import (
    pg_am,
    pg_attrdef,
    pg_attribute,
    pg_class,
    pg_collation,
    pg_index,
    pg_inherits,
    pg_namespace,
    pg_opclass,
    pg_policy,
    pg_ts_config,
    pg_type,
)
from cenote.postgres.row_security import PERMITS, RESTRICTION, RESTRICTS
from cenote.types import ColumnType, IndexKind, Metric

MAX_PARTITIONS = 1024
"""Maximum number of partitions that cenote creates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveIndex:
    """An index of the chunk table or of one of its partitions.

    Attributes:
        oid: Object identifier of the index.
        name: Name of the index.
        table: Name of the table or partition that the index is on.
        method: Access method: ``"hnsw"``, ``"btree"``, ...
        columns: Indexed columns or expressions, in order.
        operator_classes: Operator class of each column.
        definitions: Columns or expressions as ``CREATE INDEX`` writes them: with the operator
            class and the order, if they are not the defaults, and with the collation of an
            expression, or one that differs from the column's.
        options: Options of ``WITH``.
        valid: False if a concurrent build did not finish, or a partition lacks its part.
        primary: True for the index of the primary key.
        comment: Comment on the index; None if it has none.
    """

    oid: int
    name: str
    table: str
    method: str
    columns: tuple[str, ...]
    operator_classes: tuple[str, ...]
    definitions: tuple[str, ...]
    options: Mapping[str, str]
    valid: bool
    primary: bool
    comment: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTable:
    """A chunk table as it is in the database.

    Attributes:
        oid: Object identifier of the table.
        schema: Schema of the table.
        name: Name of the table.
        comment: Comment on the table; None if it has none.
        column_type: Type of the embedding column, ``"vector"`` or ``"halfvec"``. None if the
            relation is not a chunk table: it has no such column, or is not a table.
        dimensions: Dimensions of the embedding column; None if it takes vectors of any length.
        partitioned: True for a partitioned table, even if it has lost its partitions.
        bounds: Modulus and remainder of each partition, by its name; empty for a plain table.
        detached: Names of tables that have the default name of a partition, and are not attached.
            Only read if a partition is missing.
        text_search: Text search configurations of the full text column, in the form of
            `SchemaConfig.text_search`. None if there is no such column, or if cenote did not
            create it.
        configurations: Qualified names of all text search configurations of the database, by
            qualified name. A configuration in a schema of the search_path has a second entry, by
            its name alone.
        row_security: True if the table or a partition has cenote's row-level security.
        unsecured: Names of the table and partitions without cenote's row-level security, if
            `row_security` is true.
        other_policies: True if the table or a partition has policies, or row-level security, that
            cenote did not create.
        shards: Number of shards if Citus has distributed the table by namespace, else None; see
            `cenote.inspection.citus.shard_count`.
        columns: SQL type of each column, with ``not null`` and any collation that is not the
            type's default.
        key: Columns of the primary key.
        key_name: Name of the primary key.
        indexes: Indexes of the table and of its partitions.
        rows: Estimated number of rows, without partitions that were never analyzed or vacuumed.
    """

    oid: int
    schema: str
    name: str
    comment: str | None
    column_type: str | None
    dimensions: int | None
    partitioned: bool
    bounds: Mapping[str, tuple[int, int]]
    detached: tuple[str, ...]
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
    rows: int

    @property
    def partitions(self) -> tuple[str, ...]:
        """Names of the partitions."""
        return tuple(self.bounds)

    @property
    def complete(self) -> bool:
        """True if the table is plain, or its partitions take every namespace."""
        return _covers_all(self.bounds, partitioned=self.partitioned)

    @property
    def missing_partitions(self) -> tuple[tuple[int, int], ...]:
        """Modulus and remainder of each partition that is missing.

        Empty if the table has no partitions, or others than hash partitions.
        """
        modulus = max((modulus for modulus, _ in self.bounds.values()), default=0)
        if not 0 < modulus <= MAX_PARTITIONS:
            return ()
        return tuple(
            (modulus, remainder)
            for remainder in range(modulus)
            if not any(remainder % m == r for m, r in self.bounds.values())
        )

    @property
    def embedding(self) -> str:
        """Type of the embedding column, as SQL writes it."""
        return embedding_sql(self.column_type, self.dimensions)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a `SchemaConfig` that would create the table.

        The number of partitions is None if a partition is missing.
        """
        return {
            "dimensions": self.dimensions,
            "column_type": self.column_type,
            "metric": self.metric,
            "index": None if self.index_kind == self.column_type else self.index_kind,
            "text_search": self.text_search,
            # No SchemaConfig accepts both row_security and distribution, but a table that cenote
            # did not create may have both.
            "row_security": (self.row_security and self.shards is None) or None,
            "distribution": None if self.shards is None else "citus",
            "partitions": len(self.bounds) if self.complete else None,
        }

    @property
    def index_kind(self) -> IndexKind | None:
        """Kind of the ANN index with cenote's name; None if it is missing for no known reason."""
        index = self.index(ann_index_name(self.name))
        parsed = None if index is None else self.ann_index(index)
        if parsed is not None:
            return parsed.kind
        return "none" if index is None and has_no_index(self.comment) else None

    @property
    def parameters(self) -> dict[str, Any]:
        """Settings of a `SchemaConfig` for the ANN index; empty if there is no ANN index."""
        index = self.index(ann_index_name(self.name))
        if index is None or index.method != "hnsw":
            return {}
        return {"hnsw_" + option: int(value) for option, value in index.options.items()}

    @property
    def metric(self) -> Metric:
        """Metric of the table, which its comment records."""
        return parse_metric(self.comment)

    @property
    def ann_indexes(self) -> list[AnnIndex]:
        """The valid ANN indexes of the table, of all metrics, whatever their names are."""
        parsed = (
            self.ann_index(index)
            for index in self.indexes
            if (index.table, index.method, index.valid) == (self.name, "hnsw", True)
        )
        return [index for index in parsed if index is not None]

    def ann_index(self, index: LiveIndex) -> AnnIndex | None:
        """Return the metric and the kind of an HNSW index; None if cenote cannot search it."""
        if index.method != "hnsw" or len(index.columns) != 1:
            return None
        return parse_ann_index(
            oid=index.oid,
            name=index.name,
            definition=index.columns[0],
            operator_class=index.operator_classes[0],
            comment=index.comment,
            column_type=self.column_type,
        )

    @property
    def search_index(self) -> AnnIndex | None:
        """The ANN index that searches use: the one with cenote's name, or else the oldest."""
        return choose_index(self.ann_indexes, self.metric, ann_index_name(self.name))

    @property
    def measured_recall(self) -> MeasuredRecall | None:
        """The measured ``ef_search`` that the comment on `search_index` records."""
        index = self.search_index
        return None if index is None else parse_comment(index.comment)

    @property
    def users_columns(self) -> frozenset[str]:
        """Columns that are not cenote's."""
        return frozenset(self.columns) - CHUNK_COLUMNS - {TEXT_COLUMN}

    def index(self, name: str) -> LiveIndex | None:
        """Return the index of this name on the table itself, not on a partition."""
        return next(
            (index for index in self.indexes if (index.name, index.table) == (name, self.name)),
            None,
        )


def embedding_sql(column_type: str | None, dimensions: int | None) -> str:
    """Return the embedding column's type as SQL writes it, for example ``"vector(384)"``."""
    if column_type is None:
        return "missing"
    return column_type if dimensions is None else f"{column_type}({dimensions})"


def search_index_of(live: Row[Any], name: str) -> AnnIndex | None:
    """Return the ANN index that searches use, from a row of `shape_query` for a table."""
    indexes = parse_ann_indexes(live.ann_indexes, live.column_type)
    return choose_index(indexes, parse_metric(live.comment), ann_index_name(name))


def shape_query(name: str, schema: str | None) -> Executable:
    """Return a query for a table's identity, the type of its embedding column, and its full text.

    `ann_indexes` are the valid HNSW indexes, for `parse_ann_indexes`. The query returns no row if
    nothing has this name. `column_type` is null if the relation is not a table, or has no embedding
    column of a type that cenote supports.
    """
    embedding = and_(
        pg_attribute.c.attrelid == pg_class.c.oid,
        pg_attribute.c.attname == "embedding",
        pg_attribute.c.attisdropped.is_(False),
        pg_class.c.relkind.in_(["r", "p"]),
    )
    embedding_type = and_(
        pg_type.c.oid == pg_attribute.c.atttypid, pg_type.c.typname.in_(get_args(ColumnType))
    )
    words = pg_attribute.alias("words")
    generates_words = (
        select(func.pg_get_expr(pg_attrdef.c.adbin, pg_attrdef.c.adrelid))
        .join(
            words,
            and_(words.c.attrelid == pg_attrdef.c.adrelid, words.c.attnum == pg_attrdef.c.adnum),
        )
        .where(words.c.attrelid == pg_class.c.oid, words.c.attname == TEXT_COLUMN)
        .correlate(pg_class)
        .scalar_subquery()
    )
    return (
        select(
            pg_class.c.oid,
            pg_class.c.relname.label("name"),
            (pg_class.c.relkind == "p").label("partitioned"),
            pg_namespace.c.nspname.label("schema"),
            pg_type.c.typname.label("column_type"),
            func.nullif(pg_attribute.c.atttypmod, -1).label("dimensions"),
            generates_words.label("generates_words"),
            pg_class.c.relrowsecurity.label("row_security"),
            func.row_security_active(pg_class.c.oid).label("row_security_active"),
            CITUS_METADATA.is_not(None).label("has_citus"),
            func.obj_description(pg_class.c.oid, "pg_class").label("comment"),
            _ann_indexes().label("ann_indexes"),
        )
        .select_from(pg_class)
        .join(pg_namespace, pg_namespace.c.oid == pg_class.c.relnamespace)
        .outerjoin(pg_attribute, embedding)
        .outerjoin(pg_type, embedding_type)
        .where(pg_class.c.oid == func.to_regclass(qualified(name, schema)))
    )


def _ann_indexes() -> ScalarSelect[Any]:
    """Select the valid HNSW indexes of a table as JSON, for `parse_ann_indexes`.

    A store reads them with its first statement, without another round trip.
    """
    index = pg_class.alias("index")
    row = func.json_build_array(
        cast(index.c.oid, BigInteger),
        index.c.relname,
        func.pg_get_indexdef(index.c.oid, 1, True),
        pg_opclass.c.opcname,
        func.obj_description(index.c.oid, "pg_class"),
    )
    return (
        select(cast(func.json_agg(row), Text))
        .select_from(pg_index)
        .join(index, index.c.oid == pg_index.c.indexrelid)
        .join(pg_am, pg_am.c.oid == index.c.relam)
        .join(pg_opclass, pg_opclass.c.oid == pg_index.c.indclass[0])
        .where(
            pg_index.c.indrelid == pg_class.c.oid,
            pg_index.c.indisvalid,
            pg_index.c.indnkeyatts == 1,
            pg_am.c.amname == "hnsw",
        )
        .correlate(pg_class)
        .scalar_subquery()
    )


CONFIGURATIONS = select(
    pg_namespace.c.nspname,
    pg_ts_config.c.cfgname,
    func.pg_ts_config_is_visible(pg_ts_config.c.oid).label("visible"),
).join(pg_namespace, pg_namespace.c.oid == pg_ts_config.c.cfgnamespace)
"""Query for the text search configurations of a database; see `configurations_of`."""


def configurations_of(rows: Iterable[Any]) -> dict[str, str]:
    """Return `LiveTable.configurations` from the rows of the query `CONFIGURATIONS`."""
    configurations = {}
    for row in rows:
        name = ".".join((row.nspname, row.cfgname))
        configurations[name] = name
        if row.visible:
            configurations[row.cfgname] = name
    return configurations


def schemas_with(connection: Connection, name: str) -> list[str]:
    """Return the schemas that have a table of this name, sorted."""
    query = (
        select(pg_namespace.c.nspname)
        .join(pg_class, pg_class.c.relnamespace == pg_namespace.c.oid)
        .where(pg_class.c.relname == name, pg_class.c.relkind.in_(["r", "p"]))
        .order_by(pg_namespace.c.nspname)
    )
    return [*connection.scalars(query)]


def chunk_table_settings(connection: Connection) -> list[dict[str, str | None]]:
    """Return `table_name` and `schema` of the chunk tables of the database, sorted by name.

    `schema` is None if the table is found without it.
    """
    query = (
        select(
            pg_class.c.relname.label("table_name"),
            case(
                (func.pg_table_is_visible(pg_class.c.oid), None), else_=pg_namespace.c.nspname
            ).label("schema"),
        )
        .join(pg_namespace, pg_namespace.c.oid == pg_class.c.relnamespace)
        .join(pg_attribute, pg_attribute.c.attrelid == pg_class.c.oid)
        .where(
            pg_class.c.relkind.in_(["r", "p"]),
            not_(pg_class.c.relispartition),
            cast(pg_attribute.c.attname, Text).in_(CHUNK_COLUMNS),
            pg_attribute.c.attisdropped.is_(False),
        )
        .group_by(pg_class.c.oid, pg_class.c.relname, pg_namespace.c.nspname)
        .having(func.count() == len(CHUNK_COLUMNS))
        .order_by(pg_class.c.relname, pg_namespace.c.nspname)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def read_table(connection: Connection, name: str, schema: str | None) -> LiveTable | None:
    """Return the live table of this name, or None if nothing has this name."""
    shape = connection.execute(shape_query(name, schema)).one_or_none()
    if shape is None:
        return None
    partitions = connection.execute(_partitions_query(shape.oid)).all()
    bounds = {row.relname: _bound(row.bound) for row in partitions}
    complete = _covers_all(bounds, partitioned=shape.partitioned)
    indexes = tuple(_live_index(row) for row in connection.execute(_indexes_query(shape.oid)))
    security = connection.execute(_security_query(shape.oid)).all()
    has_row_security = {row.relname: row.has_row_security for row in security}
    row_security = any(has_row_security.values())
    primary = [index for index in indexes if index.primary and index.table == shape.name]
    return LiveTable(
        oid=shape.oid,
        schema=shape.schema,
        name=shape.name,
        comment=shape.comment,
        column_type=shape.column_type,
        dimensions=shape.dimensions,
        partitioned=shape.partitioned,
        text_search=languages_of(shape.generates_words),
        bounds=bounds,
        detached=() if complete else (*connection.scalars(_detached_query(shape)),),
        configurations=configurations_of(connection.execute(CONFIGURATIONS).all()),
        row_security=row_security,
        unsecured=tuple(
            name for name, secured in has_row_security.items() if row_security and not secured
        ),
        other_policies=any(row.other_policies for row in security),
        shards=shard_count(connection, shape.oid) if shape.has_citus else None,
        columns={row.attname: row.sql for row in connection.execute(_columns_query(shape.oid))},
        key=primary[0].columns if primary else (),
        key_name=primary[0].name if primary else None,
        indexes=indexes,
        rows=sum(int(row.rows) for row in security if row.rows > 0),
    )


def is_owner_query(oid: int) -> Executable:
    """Return a query that selects true if the current role has the rights of the table's owner."""
    is_owner = func.pg_has_role(pg_class.c.relowner, "USAGE")
    return select(is_owner).where(pg_class.c.oid == oid)


def _live_index(row: Row[Any]) -> LiveIndex:
    return LiveIndex(
        oid=row.oid,
        name=row.name,
        table=row.on_table,
        method=row.amname,
        columns=tuple(row.columns),
        operator_classes=tuple(row.operator_classes),
        definitions=tuple(row.definitions),
        options=dict(option.split("=", 1) for option in row.reloptions or ()),
        valid=row.indisvalid,
        primary=row.indisprimary,
        comment=row.comment,
    )


def _covers_all(bounds: Mapping[str, tuple[int, int]], *, partitioned: bool) -> bool:
    shares = sum(Fraction(1, modulus) for modulus, _ in bounds.values())
    return shares == (1 if partitioned else 0)


def _bound(sql: str | None) -> tuple[int, int]:
    """Return modulus and remainder of a hash partition.

    Another kind of partition gets a modulus so large that the table is not `LiveTable.complete`.
    """
    numbers = re.search(r"modulus (\d+), remainder (\d+)", sql or "")
    return (int(numbers[1]), int(numbers[2])) if numbers else (2**31, 0)


def _columns_query(oid: int) -> Executable:
    collation = case(
        (
            pg_attribute.c.attcollation != pg_type.c.typcollation,
            func.concat(" collate ", func.quote_ident(pg_collation.c.collname)),
        ),
        else_="",
    )
    not_null = case((pg_attribute.c.attnotnull, " not null"), else_="")
    type_ = func.format_type(pg_attribute.c.atttypid, pg_attribute.c.atttypmod)
    return (
        select(pg_attribute.c.attname, func.concat(type_, collation, not_null).label("sql"))
        .join(pg_type, pg_type.c.oid == pg_attribute.c.atttypid)
        .outerjoin(pg_collation, pg_collation.c.oid == pg_attribute.c.attcollation)
        .where(
            pg_attribute.c.attrelid == oid,
            pg_attribute.c.attnum > 0,
            pg_attribute.c.attisdropped.is_(False),
        )
    )


def _security_query(oid: int) -> Executable:
    """Return a query for the row-level security and policies of the table and its partitions.

    `rows` is the estimated number of rows: 0 for a partitioned table, whose partitions have them,
    and -1 if it is unknown.
    """

    def has_policy(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        return exists().where(
            pg_policy.c.polrelid == pg_class.c.oid,
            pg_policy.c.polcmd == "*",
            pg_policy.c.polroles == literal_column("'{0}'::oid[]"),
            pg_policy.c.polwithcheck.is_(None),
            *conditions,
        )

    condition = func.pg_get_expr(pg_policy.c.polqual, pg_policy.c.polrelid)
    restricts = condition == literal(RESTRICTION)
    partitions = select(pg_inherits.c.inhrelid).where(pg_inherits.c.inhparent == oid)
    return (
        select(
            pg_class.c.relname,
            and_(
                pg_class.c.relrowsecurity,
                pg_class.c.relforcerowsecurity,
                has_policy(
                    pg_policy.c.polname == RESTRICTS, not_(pg_policy.c.polpermissive), restricts
                ),
                has_policy(pg_policy.c.polname == PERMITS, condition == "true"),
            ).label("has_row_security"),
            or_(
                exists().where(
                    pg_policy.c.polrelid == pg_class.c.oid,
                    pg_policy.c.polname.not_in([PERMITS, RESTRICTS]),
                ),
                and_(
                    pg_class.c.relrowsecurity,
                    not_(exists().where(pg_policy.c.polrelid == pg_class.c.oid)),
                ),
            ).label("other_policies"),
            case((pg_class.c.relkind == "r", pg_class.c.reltuples), else_=0).label("rows"),
        )
        .where(or_(pg_class.c.oid == oid, pg_class.c.oid.in_(partitions)))
        .order_by(pg_class.c.relname)
    )


def _partitions_query(oid: int) -> Executable:
    return (
        select(
            pg_class.c.relname,
            func.pg_get_expr(pg_class.c.relpartbound, pg_class.c.oid).label("bound"),
        )
        .join(pg_inherits, pg_inherits.c.inhrelid == pg_class.c.oid)
        .where(pg_inherits.c.inhparent == oid)
        .order_by(pg_class.c.relname)
    )


def _detached_query(shape: Row[Any]) -> Executable:
    names = [partition_name(shape.name, number) for number in range(MAX_PARTITIONS)]
    return (
        select(pg_class.c.relname)
        .join(pg_namespace, pg_namespace.c.oid == pg_class.c.relnamespace)
        .where(
            pg_namespace.c.nspname == shape.schema,
            cast(pg_class.c.relname, Text).in_(names),
            pg_class.c.relkind == "r",
            not_(pg_class.c.relispartition),
        )
        .order_by(pg_class.c.relname)
    )


def _indexes_query(oid: int) -> Executable:
    owner = pg_class.alias("owner")
    position = func.generate_series(1, pg_index.c.indnkeyatts).table_valued("n").render_derived()
    column = func.pg_get_indexdef(pg_index.c.indexrelid, position.c.n, True)
    operator_class = pg_opclass.c.opcname
    is_expression = pg_index.c.indkey[position.c.n - 1] == 0
    # A column's own collation is not written; an expression has none of its own.
    has_collation = and_(
        pg_collation.c.collname != "default",
        or_(is_expression, pg_collation.c.oid != pg_attribute.c.attcollation),
    )
    collation = func.concat(" COLLATE ", func.quote_ident(pg_collation.c.collname))
    order = pg_index.c.indoption[position.c.n - 1]  # bit 0: descending; bit 1: nulls first
    definition = func.concat(
        column,
        case((has_collation, collation), else_=""),
        case((pg_opclass.c.opcdefault, ""), else_=func.concat(" ", operator_class)),
        case(
            {1: " DESC NULLS LAST", 2: " NULLS FIRST", 3: " DESC"},
            value=order,
            else_="",
        ),
    )
    column_arrays = [
        func.array(
            select(selected)
            .select_from(position)
            .join(pg_opclass, pg_opclass.c.oid == pg_index.c.indclass[position.c.n - 1])
            .outerjoin(
                pg_collation, pg_collation.c.oid == pg_index.c.indcollation[position.c.n - 1]
            )
            .outerjoin(
                pg_attribute,
                and_(
                    pg_attribute.c.attrelid == pg_index.c.indrelid,
                    pg_attribute.c.attnum == pg_index.c.indkey[position.c.n - 1],
                ),
            )
            .order_by(position.c.n)
            .correlate(pg_index)
            .scalar_subquery()
        )
        for selected in (column, operator_class, definition)
    ]
    partitions = select(pg_inherits.c.inhrelid).where(pg_inherits.c.inhparent == oid)
    return (
        select(
            pg_class.c.oid,
            pg_class.c.relname.label("name"),
            func.obj_description(pg_class.c.oid, "pg_class").label("comment"),
            owner.c.relname.label("on_table"),
            pg_am.c.amname,
            pg_class.c.reloptions,
            pg_index.c.indisvalid,
            pg_index.c.indisprimary,
            column_arrays[0].label("columns"),
            column_arrays[1].label("operator_classes"),
            column_arrays[2].label("definitions"),
        )
        .select_from(pg_index)
        .join(pg_class, pg_class.c.oid == pg_index.c.indexrelid)
        .join(owner, owner.c.oid == pg_index.c.indrelid)
        .join(pg_am, pg_am.c.oid == pg_class.c.relam)
        .where(or_(pg_index.c.indrelid == oid, pg_index.c.indrelid.in_(partitions)))
        .order_by(owner.c.relname, pg_class.c.relname)
    )
