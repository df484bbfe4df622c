"""The SQL of a vector search.

How a search stays complete
---------------------------
One HNSW index over many tenants finds the nearest rows of all tenants. Dropping the rows of other
tenants afterwards leaves a small tenant few results or none. Three measures prevent this:

- The table is partitioned by namespace, so each graph holds fewer rows of other tenants.
- The scan is iterative (``hnsw.iterative_scan``, pgvector 0.8): it continues until enough rows
  match.
- Up to `EXACT_UP_TO` matching rows are compared exactly. So is any larger set for which the ANN
  scan returns too few rows, because it stops at ``hnsw.max_scan_tuples``.

All this, including the settings, is one statement and therefore one round trip. Its CTEs are:

``few``       counts the matching rows, up to `EXACT_UP_TO` + 1.
``saved``     reads the session's settings.
``settings``  sets the search's settings for the rest of the transaction. It has no row if the
              matches are few.
``ann``       is the ANN scan. A LATERAL join makes it start after the settings are set.
``hits``      holds the rows of the ANN scan if they are enough. Otherwise the exact branch runs and
              supplies the rows.

The outer query sorts by (distance, id), applies the limit, and restores the session's settings
before it returns its first row.

A composable statement contains its own values, and its CTEs hold only ids; the mapped class is
joined to the result. Joins, conditions and orders that the application adds therefore work on at
most `limit` rows, and cannot remove the ANN index from the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import OID

from cenote.filters.compiler import Bind, Conditions
from cenote.validation.arguments import MAX_EF_SEARCH

EXACT_UP_TO = 1000
"""Maximum number of matching rows for which a search is exact.

Comparing 1,000 rows of 384 dimensions takes as long as an ANN scan, and is always correct.
"""

DEFAULT_EF_SEARCH = 200
"""Default of ``hnsw.ef_search``. Measured on 50,000 abstracts in 7 tenants: the lowest recall@10
was .945 at 100, .980 at 200 and .988 at 300, which costs half as much again as 200."""

LARGEST_LIMIT = 10**18

BY_ANN = "by_ann"
"""Label of a result column: true if the ANN index found the row. All rows of a search agree."""

_SPARE = 40
"""Minimum number of rows fetched beyond the limit, to decide ties at the cut by id.

A scan that reaches its bound ends with rows that it had discarded before, which may be far from the
nearest. With 10 spare rows, a tenant of 1,500 among 20,000 rows had a recall@10 of .84, and a
condition that holds far from the query .97. With 40, both had .99 or more.
"""

_CHUNKS_PER_DOCUMENT = 4
"""Number of rows fetched per result if the number of results per document is limited."""

_RARE = 7500
"""Maximum number of matches for which an exact comparison is preferred to a longer scan: about
20 ms of a core for 384 dimensions."""

_VISIT_TO_COMPARISON = 2
"""Cost of visiting a row in the graph, in exact comparisons: 6.5 µs against 2.7 µs, measured."""

_VISITS_TO_FETCHED = 10
"""Minimum number of rows that the scan may visit per row to find. With fewer, a thousand results of
a large tenant had a recall of .977."""

_MOST_VISITS = 2**31 - 1

# Constants are literals in the SQL, so a call binds only the values that differ between calls.
_ZERO = literal_column("0", Integer)
_SETTING_NAMES = {
    "ef_search": literal_column("'hnsw.ef_search'", Text),
    "iterative_scan": literal_column("'hnsw.iterative_scan'", Text),
    "max_scan_tuples": literal_column("'hnsw.max_scan_tuples'", Text),
}
_RELAXED_ORDER = literal_column("'relaxed_order'", Text)
"""The strict order would drop nearer rows that the scan finds late. The outer query sorts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A vector search over one chunk table; :meth:`statement` builds its SQL.

    Attributes:
        table: Chunk table.
        columns: Columns to select, including the id.
        query: Query vector, as an expression.
        bind: Function that returns the parameters namespace, limit and ef_search, and those of the
            filter.
        filter: Filter for the chunks.
        where: Additional conditions.
        fetch: Number of rows for the ANN scan to find (see :func:`rows_to_fetch`); None for an
            exact search.
        per_document: Maximum number of chunks per document; unlimited if None. If set, `columns`
            must include document_id.
        row_bytes: Approximate size of a row.
        named: True if the CTEs have names. A name must not appear twice in a statement.
    """

    table: Table
    columns: Sequence[ColumnElement[Any]]
    query: ColumnElement[Any]
    bind: Bind
    filter: Conditions
    where: Sequence[ColumnElement[bool]] = ()
    fetch: int | None
    row_bytes: int
    per_document: int | None = None
    named: bool = True

    def statement(self) -> Select[Any]:
        """Select the columns, ``distance``, ``by_ann`` and ``score`` of the nearest chunks."""
        if self.fetch is None:
            compared = self._exact().add_columns(false().label(BY_ANN))
            return self._nearest_first(compared.subquery(self._name("hits")))
        few = self._count_matches()
        values = self._scan_settings(few)
        saved = self._session_settings(values)
        settings = self._settings(values, saved, few)
        nearest = self._ann_scan(settings)
        ann = self._cte(select(*nearest.c).select_from(settings).join(nearest, true()), "ann")
        found_all = _count(ann) >= integer(self.fetch)
        if self.per_document is not None:
            ann = self._cte(self._limit_per_document(ann), "best")
            found_all = and_(found_all, _count(ann) >= self._limit())
        exact = self._exact(~found_all).subquery(self._name("exact"))
        by_ann = select(*ann.c, true().label(BY_ANN)).where(found_all)
        hits = self._cte(union_all(by_ann, select(*exact.c, false().label(BY_ANN))), "hits")
        restored = self._restoring_condition(values, saved, hits)
        return self._nearest_first(hits).where(restored, *self._custom_plan_condition())

    def _session_settings(self, names: Iterable[str]) -> CTE:
        """Select the session's settings."""
        current = (func.current_setting(_SETTING_NAMES[name], true()).label(name) for name in names)
        return self._cte(select(*current), "saved")

    def _settings(self, values: Mapping[str, ColumnElement[str]], saved: CTE, few: CTE) -> CTE:
        """Set the search's settings. The CTE has no row if the matches are few."""
        return self._cte(
            select(*(_set(name, value).label(name) for name, value in values.items()))
            .select_from(saved)
            .join(few, few.c.matches > integer(EXACT_UP_TO)),
            "settings",
        )

    def _ann_scan(self, settings: CTE) -> FromClause:
        """Return the ANN scan as a LATERAL subquery."""
        assert self.fetch is not None
        return (
            self._candidates(self._distance().label("distance"), *self._matching_for_ann())
            .where(settings.c.ef_search.is_not(None))  # makes the scan wait for the settings
            .order_by(self._distance())
            .limit(integer(self.fetch))
            .lateral(self._name("nearest"))
        )

    def _restoring_condition(
        self, names: Iterable[str], saved: CTE, hits: CTE
    ) -> ColumnElement[bool]:
        """Return a condition that is always true, and restores the session's settings."""
        # Counting the hits makes this wait for them. It is evaluated even if there are none.
        restored = (
            select(func.count(func.concat(*(_set(name, saved.c[name]) for name in names))))
            .where(_count(hits) >= _ZERO)
            .scalar_subquery()
        )
        return restored >= _ZERO

    def _count_matches(self) -> CTE:
        """Count the matching chunks, up to `EXACT_UP_TO` + 1, and find their partition.

        The partition is selected only under a condition, which fetches rows anyway. Without a
        condition, an index-only scan suffices to count.
        """
        matching = (
            select(literal_column("tableoid", OID) if self._has_conditions else literal_column("1"))
            .select_from(self.table)
            .where(*self._matching())
            .limit(integer(EXACT_UP_TO + 1))
            .subquery(self._name("matching"))
        )
        found = [func.count().label("matches")]
        if self._has_conditions:
            found.append(func.max(matching.c.tableoid).label("partition"))
        return self._cte(select(*found).select_from(matching), "few")

    def _scan_settings(self, few: CTE) -> dict[str, ColumnElement[str]]:
        """Return the values of the scan's settings by name.

        ``max_scan_tuples`` makes the scan give up, and leave the search to the exact branch, where
        that is likely to be cheaper than to continue. A scan that has found fewer than `fetch`
        matches in `visits` rows expects fewer than ``rows * fetch / visits`` matches in the
        partition. It gives up once that number falls below `_RARE`, or once comparing that many
        rows costs no more than the visits did. Both branches together then cost about twice the
        cheaper one. Rows that match rarely, or far from the query, where a graph is searched worst,
        are thus compared exactly: a tenant of 5,000 rows among 60,000 others had a recall of .973
        through the graph, in the same time. The number of rows is estimated from the size of the
        partition's file, because statistics may be missing or old.
        """
        assert self.fetch is not None
        size = cast(func.pg_relation_size(self._partition(few)), Double)
        rows_times_fetch = size / integer(self.row_bytes) * integer(self.fetch)
        matches_are_rare = rows_times_fetch / integer(_RARE)
        costs_are_equal = func.sqrt(rows_times_fetch / integer(_VISIT_TO_COMPARISON))
        most = func.least(matches_are_rare, costs_are_equal, integer(_MOST_VISITS))
        least = min(self.fetch * _VISITS_TO_FETCHED, _MOST_VISITS)
        visits = func.greatest(integer(least), most)
        return {
            "ef_search": self.bind("ef_search", Text()),
            "iterative_scan": _RELAXED_ORDER,
            "max_scan_tuples": cast(cast(visits, Integer), Text),
        }

    def _partition(self, few: CTE) -> ColumnElement[Any]:
        """Return the oid of the namespace's partition."""
        if self._has_conditions:
            return few.c.partition
        partition = (
            select(literal_column("tableoid", OID))
            .select_from(self.table)
            .where(self.table.c.namespace == self.bind("namespace", Text()))
            .limit(integer(1))
        )
        return partition.scalar_subquery()

    @property
    def _has_conditions(self) -> bool:
        return bool(self.filter or self.where)

    def _exact(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        # An ANN index cannot serve an order by "distance + 0". The sum is the labelled expression,
        # so it is computed once per row.
        distance = (self._distance() + _ZERO).label("distance")
        candidates = self._candidates(distance, *self._matching(), *conditions)
        if self.per_document is None:
            return candidates.order_by(distance, self.table.c.id).limit(self._limit())
        best = self._limit_per_document(candidates.subquery())
        return best.order_by(best.selected_columns.distance, best.selected_columns.id).limit(
            self._limit()
        )

    def _limit_per_document(self, rows: CTE | Subquery) -> Select[Any]:
        """Select from rows with distances the nearest `per_document` rows of each document."""
        assert self.per_document is not None
        place = func.row_number().over(
            partition_by=rows.c.document_id, order_by=[rows.c.distance + _ZERO, rows.c.id]
        )
        ranked = select(*rows.c, place.label("place")).subquery()
        kept: Any = select(*(ranked.c[column.key] for column in rows.c))
        best: Select[Any] = kept.where(ranked.c.place <= integer(self.per_document))
        return best

    def _candidates(
        self, distance: ColumnElement[float], *conditions: ColumnElement[bool]
    ) -> Select[Any]:
        return select(*self.columns, distance).where(*conditions)

    def _matching(self) -> list[ColumnElement[bool]]:
        columns = self.table.c
        return [
            columns.namespace == self.bind("namespace", Text()),
            *self.filter.sql(columns, self.bind),
            *self.where,
        ]

    def _matching_for_ann(self) -> list[ColumnElement[bool]]:
        """Return the conditions in a form that keeps the planner from sorting all matches.

        In a generic plan, the planner estimates that a bound filter matches 1 % of the rows, and
        prefers the GIN index. It may also turn an EXISTS into a join. Neither an index nor a join
        can serve a CASE, which is estimated to match half of the rows.
        """
        namespace, *filtered = self._matching()
        if not filtered:
            return [namespace]
        return [namespace, case((and_(*filtered), true()), else_=false())]

    def _custom_plan_condition(self) -> list[ColumnElement[bool]]:
        """Return a condition that is always true, and makes generic plans look expensive.

        Postgres may prefer a generic plan after five executions. It estimates that every filter
        matches 1 % of the rows, and uses the GIN index even if half of them match: twice the time
        on 23,500 rows. A custom plan knows the value of the parameter and skips the count.
        """
        if not self._has_conditions:
            return []
        endless = func.generate_series(integer(1), integer(10**12)).table_valued("number")
        count = select(func.count()).select_from(endless).where(~self.bind("custom", Boolean()))
        return [count.scalar_subquery() >= _ZERO]

    def _distance(self) -> ColumnElement[float]:
        distance: ColumnElement[float] = self.table.c.embedding.cosine_distance(self.query)
        return distance

    def _nearest_first(self, hits: CTE | Subquery) -> Select[Any]:
        # The distance of a zero vector is NaN, which in Postgres is greater than every number.
        # Adding 0 keeps the planner from relying on the order of an inner scan.
        distance = hits.c.distance
        return (
            select(*map(as_text, hits.c), (integer(1) - distance).label("score"))
            .where(distance <= integer(2))
            .order_by(distance + _ZERO, hits.c.id)
            .limit(self._limit())
        )

    def _limit(self) -> ColumnElement[Any]:
        return self.bind("limit", BigInteger())

    def _cte(self, statement: Any, name: str) -> CTE:
        return materialized(statement, self._name(name))

    def _name(self, name: str) -> str | None:
        return "cenote_" + name if self.named else None


def search_parameters(limit: int, ef_search: int) -> dict[str, Any]:
    """Return the parameters of a search that depend on its limit."""
    limit = min(limit, LARGEST_LIMIT)
    ef_search = min(max(ef_search, limit + _SPARE), MAX_EF_SEARCH)
    return {"limit": limit, "ef_search": str(ef_search), "custom": True}


def rows_to_fetch(limit: int, *, per_document: bool = False) -> int:
    """Return how many rows the ANN scan has to find: some more than the limit.

    The number is rounded up to 1, 2 or 5 * 10^n, so that a server prepares few statements. It is a
    literal in the statement: in a generic plan, the planner would take a parameter for a tenth of
    the table and avoid the ANN index.
    """
    wanted = min(limit, LARGEST_LIMIT) * (_CHUNKS_PER_DOCUMENT if per_document else 1) + _SPARE
    power: int = 10 ** (len(str(wanted)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)


def materialized(statement: Any, name: str | None = None) -> CTE:
    """Return a CTE that the planner must compute exactly once."""
    plain = statement.cte(name)
    cte: CTE = plain.prefix_with("MATERIALIZED")
    # An anonymous name contains the address of `plain`, of which `cte` is a copy. If `plain` were
    # freed, another CTE of the same statement could get the same address, and the same name.
    cte._cenote_named_after = plain  # type: ignore[attr-defined]
    return cte


def as_text(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return metadata as text, so that types and deserializers of the application do not apply."""
    if column.key == "metadata":
        return cast(column, Text).label(column.key)
    return column


def _set(setting: str, value: ColumnElement[str]) -> ColumnElement[str]:
    return func.set_config(_SETTING_NAMES[setting], value, true())


def integer(number: int) -> ColumnElement[Any]:
    """Return a number as a literal of the SQL."""
    return literal_column(str(number), BigInteger)


def _count(rows: CTE) -> ScalarSelect[int]:
    return select(func.count()).select_from(rows).scalar_subquery()
