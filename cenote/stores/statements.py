"""The SQL of `PgVectorStore`: expressions over the chunk table, built once and then reused.

How a search stays complete
---------------------------
One HNSW index over many tenants finds the nearest rows of all of them and then drops the others',
so that a small tenant gets few results or none. Three things together prevent it:

- the table is partitioned by namespace, so that each graph holds fewer rows of others;
- the scan is iterative (``hnsw.iterative_scan``, pgvector 0.8): it goes on until enough rows match;
- sets of up to `EXACT_UP_TO` matching rows are compared exactly, and so is any set for which the
  ANN scan came back short (it stops at ``hnsw.max_scan_tuples``).

All of it, and the settings, travel in one statement, hence in one round trip:

``few``       counts the matching rows, up to `EXACT_UP_TO` and one more.
``saved``     reads the session's settings.
``settings``  makes the search's, for the rest of the transaction; no row if the matches are few.
``ann``       the ANN scan, in a LATERAL join so that it starts only after the settings are made.
``hits``      the ANN's rows if they are enough, else the exact ones (that branch then runs).
The outer query sorts by (distance, id), cuts, and puts the session's settings back.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Delete,
    ScalarSelect,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    false,
    func,
    literal,
    literal_column,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, Insert, insert
from sqlalchemy.types import TypeEngine

from cenote.errors import ConfigurationError
from cenote.filters import FilterShape, filter_conditions
from cenote.sqltypes import WireVector
from cenote.types import ColumnType
from cenote.validation import shown

EXACT_UP_TO = 1000
"""Matching rows up to which a search is exact.

Comparing 1,000 rows of 384 dimensions takes as long as an ANN scan, and is always right.
"""

DEFAULT_EF_SEARCH = 200
"""Measured on 50,000 abstracts in 7 tenants: the lowest recall@10 was .945 at 100, .980 at 200 and
.988 at 300, the last at half again the cost."""

MAX_EF_SEARCH = 1000
"""The most that pgvector takes."""

_SPARE = 10
"""Rows fetched beyond the limit at least, among which ties at the cut are settled."""

_ITERATIVE_SCAN = "relaxed_order"
"""The strict order would drop nearer rows that the scan meets late; the outer sort orders."""

_LARGEST_LIMIT = 10**18

_SETTINGS = ("hnsw.ef_search", "hnsw.iterative_scan")

_NAMESPACE = bindparam("namespace", type_=Text)
_LIMIT = bindparam("limit", type_=BigInteger)
_EF_SEARCH = bindparam("ef_search", type_=Text)


class ChunkStatements:
    """The statements over one chunk table.

    Args:
        table: the chunk table.
        column_type: of its embedding.
        ef_search: `hnsw.ef_search`, at least.

    Raises:
        ConfigurationError: ef_search is no integer from 1 to 1,000.
    """

    def __init__(self, table: Table, column_type: ColumnType, ef_search: int) -> None:
        integer = isinstance(ef_search, int) and not isinstance(ef_search, bool)
        if not integer or not 1 <= ef_search <= MAX_EF_SEARCH:
            raise ConfigurationError(
                f"hnsw_ef_search must be an integer from 1 to {MAX_EF_SEARCH:,}, "
                f"not {shown(ef_search)}",
                setting="hnsw_ef_search",
            )
        self._table = table
        self._wire = WireVector(column_type)
        self._ef_search = ef_search
        self._searches: dict[tuple[FilterShape, int | None], Select[Any]] = {}
        self._pages: dict[tuple[FilterShape, bool], Select[Any]] = {}
        self.upsert = self._build_upsert()
        self.delete = self._build_delete(table.c.id == any_(bindparam("ids", type_=ARRAY(Text))))
        self.delete_namespace = self._build_delete()

    # -- writing

    def _build_upsert(self) -> Insert:
        """Many rows, a list for each column; rows that are stored exactly so are left alone.

        One INSERT over unnest() and not the driver's executemany: a task that is cancelled in
        asyncpg's executemany may never return (github.com/MagicStack/asyncpg, issues 873, 1265).
        """
        table = self._table
        types: dict[str, TypeEngine[Any]] = {
            "id": Text(),
            "document_id": Text(),
            "content": Text(),
            "position": BigInteger(),
            "metadata": Text(),
            "content_hash": Text(),
            "embedding": self._wire,
            "embedding_model": Text(),
        }
        lists = [bindparam(name + "_list", type_=ARRAY(type_)) for name, type_ in types.items()]
        new = func.unnest(*lists).table_valued(*types).render_derived(name="new")
        values: dict[str, ColumnElement[Any]] = {name: new.c[name] for name in types}
        values["metadata"] = cast(new.c.metadata, JSONB)
        statement = insert(table).from_select(
            ["namespace", *values], select(_NAMESPACE, *values.values())
        )
        changing = [name for name in values if name != "id"]
        excluded = statement.excluded
        return statement.on_conflict_do_update(
            index_elements=["namespace", "id"],
            set_={name: excluded[name] for name in changing},
            where=tuple_(*(table.c[name] for name in changing)).is_distinct_from(
                tuple_(*(excluded[name] for name in changing))
            ),
        )

    def _build_delete(self, *conditions: ColumnElement[bool]) -> Delete:
        """Rows are locked in the order of their ids, as `upsert` takes them: no deadlocks."""
        table = self._table
        doomed = (
            select(table.c.id)
            .where(table.c.namespace == _NAMESPACE, *conditions)
            .order_by(table.c.id)
            .with_for_update()
            .cte("doomed")
        )
        return delete(table).where(
            table.c.namespace == _NAMESPACE, table.c.id.in_(select(doomed.c.id))
        )

    # -- reading

    def page(self, shape: FilterShape, *, first: bool) -> Select[Any]:
        """The chunks that follow an id, or the first ones."""
        if (shape, first) not in self._pages:
            table = self._table
            statement = select(*self._chunk_columns()).where(*self._matching(shape))
            if not first:
                statement = statement.where(table.c.id > bindparam("after", type_=Text))
            self._pages[shape, first] = statement.order_by(table.c.id).limit(
                bindparam("page_size", type_=BigInteger)
            )
        return self._pages[shape, first]

    def search(self, shape: FilterShape, limit: int, *, exact: bool) -> Select[Any]:
        """The nearest chunks, with their score."""
        fetch = None if exact else _fetch(limit)
        if (shape, fetch) not in self._searches:
            self._searches[shape, fetch] = (
                self._build_exact_search(shape)
                if fetch is None
                else self._build_search(shape, fetch)
            )
        return self._searches[shape, fetch]

    def search_parameters(self, limit: int) -> dict[str, Any]:
        """What :meth:`search` binds for a limit."""
        limit = min(limit, _LARGEST_LIMIT)
        ef_search = min(max(self._ef_search, limit + _SPARE), MAX_EF_SEARCH)
        return {"limit": limit, "ef_search": str(ef_search)}

    def _build_exact_search(self, shape: FilterShape) -> Select[Any]:
        return _nearest_first(self._exact(shape).subquery("hits"))

    def _build_search(self, shape: FilterShape, fetch: int) -> Select[Any]:
        few = self._few(shape)
        saved = _materialized(
            select(*(func.current_setting(name, true()).label(name) for name in _SETTINGS)),
            "saved",
        )
        settings = _materialized(
            select(
                func.set_config(_SETTINGS[0], _EF_SEARCH, true()).label("ef_search"),
                func.set_config(_SETTINGS[1], _ITERATIVE_SCAN, true()).label("iterative_scan"),
            )
            .select_from(saved)
            .where(_count(few) > EXACT_UP_TO),
            "settings",
        )
        nearest = (
            self._candidates(*self._matching_for_ann(shape))
            .where(settings.c.ef_search.is_not(None))  # makes the scan wait for the settings
            .order_by(self._distance())
            .limit(literal_column(str(fetch), BigInteger))
            .lateral("nearest")
        )
        ann = _materialized(select(*nearest.c).select_from(settings).join(nearest, true()), "ann")
        exact = self._exact(shape, _count(ann) < _LIMIT).subquery("exact")
        hits = _materialized(
            union_all(select(*ann.c).where(_count(ann) >= _LIMIT), select(*exact.c)), "hits"
        )
        # Counting the hits makes this wait for them; it is evaluated though there be none.
        restored = (
            select(func.count(func.concat(*_restore(saved))))
            .where(_count(hits) >= 0)
            .scalar_subquery()
        )
        return _nearest_first(hits).where(restored >= 0)

    def _few(self, shape: FilterShape) -> CTE:
        """A row for each matching chunk, up to one more than `EXACT_UP_TO`."""
        return _materialized(
            select(literal(1).label("match"))
            .select_from(self._table)
            .where(*self._matching(shape))
            .limit(EXACT_UP_TO + 1),
            "few",
        )

    def _exact(self, shape: FilterShape, *conditions: ColumnElement[bool]) -> Select[Any]:
        # No ANN index serves an order by "distance + 0".
        return (
            self._candidates(*self._matching(shape))
            .where(*conditions)
            .order_by(self._distance() + 0, self._table.c.id)
            .limit(_LIMIT)
        )

    def _candidates(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        return select(*self._chunk_columns(), self._distance().label("distance")).where(*conditions)

    def _chunk_columns(self) -> list[ColumnElement[Any]]:
        columns = self._table.c
        return [
            columns.id,
            columns.document_id,
            columns.content,
            columns.position,
            # As text, so that a host engine's own deserializer has no say.
            cast(columns.metadata, Text).label("metadata"),
            columns.content_hash,
        ]

    def _matching(self, shape: FilterShape) -> list[ColumnElement[bool]]:
        columns = self._table.c
        return [columns.namespace == _NAMESPACE, *filter_conditions(columns.metadata, shape)]

    def _matching_for_ann(self, shape: FilterShape) -> list[ColumnElement[bool]]:
        """The same, but so that no estimate leads the planner to fetch and sort all that matches.

        It takes a bound filter for 1 % of the rows in a generic plan, and then prefers the GIN
        index. A CASE is nothing that index serves, and counts as half the rows.
        """
        namespace, *filtered = self._matching(shape)
        if not filtered:
            return [namespace]
        return [namespace, case((and_(*filtered), true()), else_=false())]

    def _distance(self) -> ColumnElement[float]:
        query = bindparam("query", type_=self._wire)
        distance: ColumnElement[float] = self._table.c.embedding.cosine_distance(query)
        return distance


def _fetch(limit: int) -> int:
    """How many rows the ANN scan is to find: a few more than asked, rounded up to 1, 2 or 5 * 10^n.

    It stands in the statement as a number, since a planner that does not know it (in a generic
    plan) takes it for a tenth of the table and leaves the ANN index; rounded, so that a server
    prepares few statements.
    """
    wanted = min(limit, _LARGEST_LIMIT) + _SPARE
    power: int = 10 ** (len(str(wanted)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)


def _nearest_first(hits: CTE | Subquery) -> Select[Any]:
    # The distance of a zero vector is NaN, which Postgres sorts behind, and takes for more than,
    # every number. Adding 0 keeps the planner from taking the order of an inner scan for granted.
    columns = [column for column in hits.c if column.name != "distance"]
    return (
        select(*columns, (1 - hits.c.distance).label("score"))
        .where(hits.c.distance <= 2)
        .order_by(hits.c.distance + 0, hits.c.id)
        .limit(_LIMIT)
    )


def _restore(saved: CTE) -> list[ColumnElement[str]]:
    return [func.set_config(name, saved.c[name], true()) for name in _SETTINGS]


def _count(rows: CTE) -> ScalarSelect[int]:
    return select(func.count()).select_from(rows).scalar_subquery()


def _materialized(statement: Any, name: str) -> CTE:
    cte: CTE = statement.cte(name).prefix_with("MATERIALIZED")
    return cte
