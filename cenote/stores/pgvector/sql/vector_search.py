"""The SQL of a vector search.

How a search stays complete
---------------------------
One HNSW index over many tenants finds the nearest rows of all tenants. Discarding the rows of other
tenants afterwards leaves a small tenant few results or none. Three measures prevent this:

- The table is partitioned by namespace, so each graph holds fewer rows of other tenants.
- The ANN scan is iterative (``hnsw.iterative_scan``, pgvector 0.8): it continues until enough rows
  match, or until it has visited ``hnsw.max_scan_tuples`` rows.
- If at most `EXACT_UP_TO` rows match, all of them are compared exactly. If more rows match, but the
  ANN scan reaches ``hnsw.max_scan_tuples`` before it has found enough, all matching rows are
  compared exactly too.

The search and its settings are one statement, and therefore one round trip. The CTEs of the
statement are:

``few``       the number of matching rows, counted up to `EXACT_UP_TO` + 1.
``saved``     the session's settings.
``settings``  sets the search's settings for the rest of the transaction. This CTE has no row if at
              most `EXACT_UP_TO` rows match.
``ann``       the rows that the ANN scan finds. A LATERAL join makes the scan start after the
              settings are set.
``best``      the nearest `per_document` rows of each document in ``ann``; only if `per_document` is
              set.
``hits``      the rows of ``ann``, or of ``best``, if they are enough; otherwise the rows of the
              exact branch, which then runs.

The outer query sorts by (distance, id), applies the limit, and restores the session's settings
before it returns its first row.

The statement of `PgVectorStore.search_statement`, which an application can extend, contains its own
values. Its CTEs hold only ids, and the mapped class is joined to the result. Joins, conditions and
orders that the application adds therefore work on at most `limit` rows, and cannot remove the ANN
index from the plan.
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
from cenote.postgres.ann_index import distance, index_distance, max_distance, score
from cenote.postgres.vector import inline_bytes
from cenote.types import ColumnType, IndexKind, Metric
from cenote.validation.arguments import MAX_EF_SEARCH

EXACT_UP_TO = 1000
"""Maximum number of matching rows for which a search is exact.

Comparing 1,000 rows of 384 dimensions takes as long as an ANN scan, and is always correct.
"""

DEFAULT_EF_SEARCH = 150
"""Default of ``hnsw.ef_search``.

Measured on 50,000 abstracts in 7 tenants, searched in their partitions: the lowest recall@10 was
.973 at 100, .984 at 150 and .988 at 200. A search with 200 takes a quarter longer than with 150.
"""

FILTERED_EF_SEARCH_FACTOR = 5 / 3
"""Factor of the default or measured ``ef_search`` for a search with a filter or a condition.

Only a part of the candidates match. Measured on the same abstracts with a filter that 45 % of the
rows match: the lowest recall@10 was .960 at 100 and .983 at 200.
"""

DEFAULT_RERANK = 200
"""Default number of candidates that an index of kind ``"bit"`` finds.

A search compares the candidates again with their stored vectors.
"""

BY_ANN = "by_ann"
"""Label of a result column: true if the ANN index found the rows, false if they were compared
exactly. It has the same value in all rows of a search."""

_NAMESPACE = "cenote_namespace"
"""Label of the namespace in a search with a condition of the caller."""

_SPARE = 40
"""Minimum number of rows fetched beyond the limit, so that ties at the last place can be decided by
id.

A scan that reaches ``hnsw.max_scan_tuples`` fills up with rows that it had discarded, which may be
far from the query. With 10 spare rows, recall@10 was .84 for a tenant with 1,500 of 20,000 rows,
and .97 for a condition that holds only far from the query. With 40, both were .99 or more.
"""

_CHUNKS_PER_DOCUMENT = 4
"""Number of rows fetched per result if the number of results per document is limited."""

_MAX_EXACT_MATCHES = 7500
"""Maximum number of matches for which an exact comparison is preferred to a longer scan.

Comparing this many rows takes about 20 ms of CPU time for 384 dimensions.
"""

_COMPARISONS_PER_VISIT = 2
"""Number of exact comparisons that cost as much as one visit of a row in the graph.

Measured: 6.5 µs for a visit and 2.7 µs for a comparison. The ratio is rounded down.
"""

_MIN_VISITS_PER_ROW = 10
"""Minimum number of rows that the scan may visit for each row that it has to find.

With fewer visits, a search of a large tenant for 1,000 results had a recall of .977.
"""

_OTHER_BYTES = 600
"""Approximate size of a row without its vector."""

_DIMENSIONS_PER_STEP = 10
"""Dimensions of a vector in the TOAST table whose comparison costs as much as a step of a series.

A comparison of 3,072 dimensions took 20 to 50 µs, as long as the planner's cost of 4.
"""

_MAX_VISITS = 2**31 - 1
"""Maximum of ``hnsw.max_scan_tuples``."""

# Constants are literals in the SQL, so a call binds only the values that differ between calls.
_ZERO = literal_column("0", Integer)
_SETTING_NAMES = {
    "ef_search": literal_column("'hnsw.ef_search'", Text),
    "iterative_scan": literal_column("'hnsw.iterative_scan'", Text),
    "max_scan_tuples": literal_column("'hnsw.max_scan_tuples'", Text),
}
_RELAXED_ORDER = literal_column("'relaxed_order'", Text)
"""Value of ``hnsw.iterative_scan``. With ``strict_order``, the scan would drop near rows that it
finds late. The outer query sorts the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Vectors of a chunk table, and the kind of its ANN index.

    Attributes:
        dimensions: Number of dimensions.
        column_type: Type of the embedding column.
        metric: Metric of the table.
        kind: Kind of the ANN index.
    """

    dimensions: int
    column_type: ColumnType
    metric: Metric
    kind: IndexKind

    @property
    def row_bytes(self) -> int:
        """Approximate size of a row in bytes, without what is in the TOAST table."""
        return _OTHER_BYTES + inline_bytes(self.dimensions, self.column_type)

    @property
    def is_inline(self) -> bool:
        """True if a vector is stored in its row, not in the TOAST table."""
        return inline_bytes(self.dimensions, self.column_type) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A vector search over one chunk table; :meth:`statement` builds its SQL.

    Attributes:
        table: Chunk table.
        columns: Columns to select, including the id.
        query: Query vector, as an expression.
        bind: Function that returns a parameter by name and type: namespace, limit, ef_search,
            custom (see :func:`search_parameters`), or a parameter of the filter.
        filter: Filter for the chunks.
        vectors: Vectors of the table, and the kind of its ANN index.
        where: Additional conditions.
        fetch: Number of rows for the ANN scan to find (see :func:`rows_to_fetch`); None for an
            exact search.
        per_document: Maximum number of chunks per document; unlimited if None. If set, `columns`
            must include document_id.
        named: True if the CTEs have names. A name must not appear twice in a statement.
        limit_name: Name of the parameter limit.
    """

    table: Table
    columns: Sequence[ColumnElement[Any]]
    query: ColumnElement[Any]
    bind: Bind
    filter: Conditions
    vectors: Vectors
    where: Sequence[ColumnElement[bool]] = ()
    fetch: int | None
    per_document: int | None = None
    named: bool = True
    limit_name: str = "limit"

    def statement(self) -> Select[Any]:
        """Select the columns, ``distance``, ``by_ann`` and ``score`` of the nearest chunks."""
        if self.fetch is None:
            return self._nearest_first(self._exact_hits().subquery(self._name("hits")))
        counted = self._count_matches()
        values = self._scan_settings()
        saved = self._session_settings(values)
        hits = self._ann_or_exact_hits(self._settings(values, counted, saved))
        restored = self._restoring_condition(values, saved, hits)
        return self._nearest_first(hits).where(restored, *self._custom_plan_condition())

    def _exact_hits(self) -> Select[Any]:
        return self._exact().add_columns(false().label(BY_ANN))

    def _ann_or_exact_hits(self, settings: CTE) -> CTE:
        """Return the rows that the ANN scan finds, or the exact ones if it finds too few."""
        assert self.fetch is not None
        nearest = self._ann_scan(settings)
        ann = self._cte(select(*nearest.c).select_from(settings).join(nearest, true()), "ann")
        found_all = _count(ann) >= integer(self.fetch)
        if self.per_document is not None:
            ann = self._cte(self._limit_per_document(ann), "best")
            found_all = and_(found_all, _count(ann) >= self._limit())
        exact = self._exact(~found_all).subquery(self._name("exact"))
        by_ann = select(*ann.c, true().label(BY_ANN)).where(found_all)
        return self._cte(union_all(by_ann, select(*exact.c, false().label(BY_ANN))), "hits")

    def _session_settings(self, names: Iterable[str]) -> CTE:
        """Select the session's settings."""
        current = (func.current_setting(_SETTING_NAMES[name], true()).label(name) for name in names)
        return self._cte(select(*current), "saved")

    def _settings(self, values: Mapping[str, ColumnElement[str]], counted: CTE, *after: CTE) -> CTE:
        """Set the search's settings. The CTE has no row if the search is to be exact.

        Args:
            values: Values of the settings by name.
            counted: Number of matching rows.
            after: CTEs of one row that must be computed before.
        """
        settings = select(*(set_setting(name, value).label(name) for name, value in values.items()))
        settings = settings.select_from(counted)
        for cte in after:
            settings = settings.join(cte, true())
        return self._cte(
            settings.where(counted.c.matches > integer(self._exact_up_to)),
            "settings",
        )

    def _ann_scan(self, settings: CTE) -> FromClause:
        """Return the ANN scan as a LATERAL subquery."""
        assert self.fetch is not None
        return (
            self._candidates(self._distance().label("distance"), *self._matching_for_ann())
            .where(settings.c.ef_search.is_not(None))  # makes the scan wait for the settings
            .order_by(self._index_distance())
            .limit(integer(self.fetch))
            .lateral(self._name("nearest"))
        )

    def _restoring_condition(
        self, names: Iterable[str], saved: CTE, hits: CTE
    ) -> ColumnElement[bool]:
        """Return a condition that is always true, and restores the session's settings."""
        # The subquery counts the hits, so it runs after `hits` is complete. It also runs if there
        # are no hits.
        restored = (
            select(func.count(func.concat(*(set_setting(name, saved.c[name]) for name in names))))
            .where(_count(hits) >= _ZERO)
            .scalar_subquery()
        )
        return restored >= _ZERO

    def _count_matches(self) -> CTE:
        """Count the matching chunks, as far as it matters."""
        matching: Select[Any] = (
            select(literal_column("1").label("row"))
            .select_from(self.table)
            .where(*self._matching())
            .limit(integer(self._exact_up_to + 1))
        )
        return self._cte(
            select(func.count().label("matches")).select_from(
                matching.subquery(self._name("matching"))
            ),
            "few",
        )

    def _scan_settings(self) -> dict[str, ColumnElement[str]]:
        """Return the values of the scan's settings by name.

        The scan stops after ``max_scan_tuples`` rows, and the exact branch takes over. The setting
        is the number of visits after which the exact branch is likely to be the cheaper one. If the
        scan has found fewer than `fetch` matches in `visits` rows, we estimate that the partition
        has fewer than ``rows * fetch / visits`` matches. The limit is the smaller of two numbers of
        visits:

        - the number at which the estimate falls to `_MAX_EXACT_MATCHES`;
        - the number at which comparing the estimated matches costs as much as the visits.

        In the worst case, a search costs about twice as much as its cheaper branch. A graph is
        searched worst for rows that match rarely, or only far from the query, and the limit sends
        those searches to the exact branch. For a tenant of 5,000 rows among 60,000 others, the
        graph had a recall of .973 and took as long as the exact branch. The number of rows is
        estimated from the size of the partition's file, because statistics may be missing or old.
        """
        assert self.fetch is not None
        size = cast(func.pg_relation_size(self._partition()), Double)
        rows_times_fetch = size / integer(self.vectors.row_bytes) * integer(self.fetch)
        few_matches = rows_times_fetch / integer(_MAX_EXACT_MATCHES)
        equal_costs = func.sqrt(rows_times_fetch / integer(_COMPARISONS_PER_VISIT))
        break_even = func.least(few_matches, equal_costs, integer(_MAX_VISITS))
        visits = func.greatest(integer(self.fetch * _MIN_VISITS_PER_ROW), break_even)
        return {
            "ef_search": self.bind("ef_search", Text()),
            "iterative_scan": _RELAXED_ORDER,
            "max_scan_tuples": cast(cast(visits, Integer), Text),
        }

    def _partition(self) -> ColumnElement[Any]:
        """Return the oid of the namespace's partition.

        The scan does not have the conditions of the search. Citus cannot read ``tableoid`` if the
        conditions are constantly false: it puts an empty subquery in place of the table.
        """
        partition = (
            select(literal_column("tableoid", OID))
            .select_from(self.table)
            .where(self.table.c.namespace == self.bind("namespace", Text()))
            .limit(integer(1))
        )
        return partition.scalar_subquery()

    @property
    def _exact_up_to(self) -> int:
        """Maximum number of matching rows for which the search is exact.

        An ANN scan cannot find `fetch` rows if fewer match. For 1,000 results of a namespace of
        1,500 rows, trying it first took 1.4 times as long.
        """
        assert self.fetch is not None
        return max(EXACT_UP_TO, self.fetch)

    @property
    def _has_conditions(self) -> bool:
        return bool(self.filter or self.where)

    @property
    def _needs_custom_plan(self) -> bool:
        return self._has_conditions

    def _exact(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        # An ANN index cannot serve an order by "distance + 0", so the comparison is exact. The sum
        # is the labelled expression, so Postgres computes the distance once per row.
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
        columns = [*self.columns]
        if self.where:
            columns.append(self.table.c.namespace.label(_NAMESPACE))
        return select(*columns, distance).where(*conditions)

    def _matching(self) -> list[ColumnElement[bool]]:
        return self._conditions()

    def _conditions(self) -> list[ColumnElement[bool]]:
        """Return the condition for the namespace, and the filter's and the caller's conditions."""
        columns = self.table.c
        return [
            columns.namespace == self.bind("namespace", Text()),
            *self.filter.sql(columns, self.bind),
            *self.where,
        ]

    def _matching_for_ann(self) -> list[ColumnElement[bool]]:
        """Return the conditions in a form that keeps the planner from sorting all matches.

        In a generic plan, the planner estimates that a bound filter matches 1 % of the rows, and
        prefers the GIN index to the ANN index. It may also turn an EXISTS into a join. A CASE
        prevents both, because neither an index nor a join can serve it. The planner estimates that
        a CASE matches half of the rows.
        """
        return self._behind_namespace(*self._conditions_for_ann())

    def _behind_namespace(
        self, namespace: ColumnElement[bool], *filtered: ColumnElement[bool]
    ) -> list[ColumnElement[bool]]:
        """Return the condition for the namespace, and the others in a CASE."""
        if filtered:
            return [namespace, self._in_case(*filtered)]
        if self.vectors.is_inline:
            return [namespace]
        return [namespace, self._in_case(namespace)]

    def _in_case(self, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        """Return conditions as one CASE, which is expensive if vectors are in the TOAST table.

        The planner does not know that a comparison must read a vector from the TOAST table. It
        would prefer to sort thousands of rows, which took 390 ms instead of 20 ms for a hybrid
        search of 8,000 vectors of 3,072 dimensions with an index of kind ``"bit"``. The last branch
        is never reached, but the planner adds its cost for each row that it expects to compare.
        """
        met = and_(*conditions)
        if self.vectors.is_inline:
            return case((met, true()), else_=false())
        steps = integer(self.vectors.dimensions // _DIMENSIONS_PER_STEP)
        series = (
            func.generate_series(integer(1), steps)
            .table_valued("number")
            .render_derived(name="cenote_steps")
        )
        # It depends on the row, or else the planner would add its cost only once.
        count = select(func.count()).select_from(series)
        costs = (
            count.where(series.c.number > self.table.c.position)
            .correlate(self.table)
            .scalar_subquery()
        )
        has_namespace = self.table.c.namespace >= literal_column("''", Text)  # always, as NOT NULL
        return case((met, true()), (has_namespace, false()), else_=costs > _ZERO)

    def _conditions_for_ann(self) -> list[ColumnElement[bool]]:
        """Return the conditions, with one that keeps zero vectors from an index of signs.

        A zero vector has the signs of a vector of negative elements. It has no score, but the index
        would return it in place of chunks that have one. Other indexes do not contain it.
        """
        conditions = self._conditions()
        if self.vectors.kind == "bit":
            conditions.append(self._is_comparable(self._distance()))
        return conditions

    def _custom_plan_condition(self) -> list[ColumnElement[bool]]:
        """Return a condition that is always true, and makes generic plans look expensive.

        Postgres may prefer a generic plan after five executions. A generic plan assumes that every
        filter matches 1 % of the rows, and uses the GIN index even if half of them match, which
        takes twice as long on 23,500 rows. The parameter `custom` is always true, so the count of a
        huge series never runs. A custom plan contains the value, and costs nothing for the count. A
        generic plan does not, and looks expensive.
        """
        if not self._needs_custom_plan:
            return []
        endless = func.generate_series(integer(1), integer(10**12)).table_valued("number")
        count = select(func.count()).select_from(endless).where(~self.bind("custom", Boolean()))
        return [count.scalar_subquery() >= _ZERO]

    def _distance(self) -> ColumnElement[float]:
        return distance(self.vectors.metric, self.table.c.embedding, self.query)

    def _index_distance(self) -> ColumnElement[float]:
        """Return the distance by which the ANN index finds rows."""
        vectors = self.vectors
        return index_distance(
            vectors.metric,
            vectors.kind,
            self.table.c.embedding,
            self.query,
            vectors.column_type,
            vectors.dimensions,
        )

    def _is_comparable(self, distance: ColumnElement[float]) -> ColumnElement[bool]:
        """Return a condition that is false for the cosine distance of a zero vector, NaN."""
        most = max_distance(self.vectors.metric)
        return true() if most is None else distance <= integer(most)

    def _score(self, distance: ColumnElement[float]) -> ColumnElement[float]:
        return score(self.vectors.metric, distance).label("score")

    def _nearest_first(self, hits: CTE | Subquery) -> Select[Any]:
        # The planner could take the order of an inner scan for the final order, which it is not:
        # "+ 0" makes Postgres sort.
        distance = hits.c.distance
        columns = [column for column in hits.c if column.key != _NAMESPACE]
        return (
            select(*map(as_text, columns), self._score(distance))
            .where(self._is_comparable(distance), *self._in_namespace_again(hits))
            .order_by(distance + _ZERO, hits.c.id)
            .limit(self._limit())
        )

    def _in_namespace_again(self, hits: CTE | Subquery) -> list[ColumnElement[bool]]:
        """Return the condition for the namespace again, outside the caller's condition.

        In ``text("true) OR (true")``, the condition closes the parentheses around it, and removes
        the effect of the condition for the namespace beside it.
        """
        if not self.where:
            return []
        return [hits.c[_NAMESPACE] == self.bind("namespace", Text())]

    def _limit(self) -> ColumnElement[Any]:
        return self.bind(self.limit_name, BigInteger())

    def _cte(self, statement: Any, name: str) -> CTE:
        return materialized(statement, self._name(name))

    def _name(self, name: str) -> str | None:
        return "cenote_" + name if self.named else None


def search_parameters(limit: int, ef_search: int) -> dict[str, Any]:
    """Return the parameters limit, ef_search and custom of a search.

    `ef_search` is raised to the limit and some spare rows, if that is more, but not above
    `MAX_EF_SEARCH`.
    """
    ef_search = min(max(ef_search, limit + _SPARE), MAX_EF_SEARCH)
    return {"limit": limit, "ef_search": str(ef_search), "custom": True}


def rows_to_fetch(limit: int, *, per_document: bool = False, rerank: int = 0) -> int:
    """Return the number of rows that the ANN scan has to find: the limit and some spare rows.

    The number is rounded up to 1, 2 or 5 * 10^n, so that a server prepares few statements. It is a
    literal in the statement, because in a generic plan, the planner estimates an unknown LIMIT as
    10 % of the rows, and avoids the ANN index.

    Args:
        limit: Maximum number of results.
        per_document: True if the number of results per document is limited.
        rerank: Minimum number of rows.
    """
    wanted = max(limit * (_CHUNKS_PER_DOCUMENT if per_document else 1) + _SPARE, rerank)
    power: int = 10 ** (len(str(wanted)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)


def materialized(statement: Any, name: str | None = None) -> CTE:
    """Return a CTE that the planner must compute exactly once."""
    plain = statement.cte(name)
    cte: CTE = plain.prefix_with("MATERIALIZED")
    # `cte` is a copy of `plain`, and an anonymous name contains the address of `plain`. If `plain`
    # were freed, another CTE of the same statement could get the same address, and the same name.
    cte._cenote_named_after = plain  # type: ignore[attr-defined]
    return cte


def as_text(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the metadata column as text, and every other column unchanged.

    The application's types and JSON deserializers then do not apply to the metadata.
    """
    if column.key == "metadata":
        return cast(column, Text).label(column.key)
    return column


def set_setting(setting: str, value: ColumnElement[str]) -> ColumnElement[str]:
    return func.set_config(_SETTING_NAMES[setting], value, true())


def integer(number: int) -> ColumnElement[Any]:
    """Return a number as a literal in the SQL."""
    return literal_column(str(number), BigInteger)


def _count(rows: CTE) -> ScalarSelect[int]:
    return select(func.count()).select_from(rows).scalar_subquery()
