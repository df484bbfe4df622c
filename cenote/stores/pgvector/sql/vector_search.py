"""The SQL of a search: expressions over the chunk table.

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
The query over these sorts by (distance, id), cuts, and puts the session's settings back, before it
gives its first row.

A statement for the host to compose carries its own values, and nothing but ids in all of these; the
mapped class is joined to what was found. Other joins, conditions and orders then work on at most
`limit` rows, and none of them can take the ANN index out of the plan.
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
"""Matching rows up to which a search is exact.

Comparing 1,000 rows of 384 dimensions takes as long as an ANN scan, and is always right.
"""

DEFAULT_EF_SEARCH = 200
"""Measured on 50,000 abstracts in 7 tenants: the lowest recall@10 was .945 at 100, .980 at 200 and
.988 at 300, the last at half again the cost."""

LARGEST_LIMIT = 10**18

BY_ANN = "by_ann"
"""Whether a result comes by the ANN index, which all of a search do, or none."""

_SPARE = 40
"""Rows fetched beyond the limit at least, among which ties at the cut are settled.

So many because a scan that reaches its bound ends with rows that it had put aside, which may be far
from the nearest: with 10, a tenant of 1,500 among 20,000 rows had a recall@10 of .84, and a
condition that holds far from the query .97; with 40, .99 and more.
"""

_CHUNKS_PER_DOCUMENT = 4
"""Rows fetched for each result where each document has only so many places."""

_RARE = 7500
"""Matches up to which comparing them exactly is preferred to a longer scan: about 20 ms of a core
for 384 dimensions."""

_VISIT_TO_COMPARISON = 2
"""What visiting a row in the graph costs, in exact comparisons: measured 6.5 µs to 2.7."""

_VISITS_TO_FETCHED = 10
"""Rows that the scan may visit at least, for each that it is to find: with fewer, a thousand
results of a large tenant had a recall of .977."""

_MOST_VISITS = 2**31 - 1

# Constants stand in the SQL, so that a call binds only what differs from call to call.
_ZERO = literal_column("0", Integer)
_NAMES = {
    "ef_search": literal_column("'hnsw.ef_search'", Text),
    "iterative_scan": literal_column("'hnsw.iterative_scan'", Text),
    "max_scan_tuples": literal_column("'hnsw.max_scan_tuples'", Text),
}
_RELAXED_ORDER = literal_column("'relaxed_order'", Text)
"""The strict order would drop nearer rows that the scan meets late; the outer sort orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search over one chunk table, of which :meth:`statement` makes the SQL.

    Attributes:
        table: the chunk table.
        columns: what to give of each chunk, its id among it.
        query: the query vector, as an expression.
        bind: makes the parameters namespace, limit, ef_search, and those of the filter.
        filter: what the chunks must meet.
        where: further conditions on a chunk.
        fetch: how many rows the ANN scan is to find (see :func:`rows_to_fetch`); None for exact.
        per_document: the most chunks of one document; any number when None. `columns` has
            document_id, then.
        row_bytes: about what a row takes.
        named: whether the CTEs have names, which must not appear twice in a statement.
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
        """The columns, ``distance``, ``by_ann`` and ``score`` of the nearest chunks, in order."""
        if self.fetch is None:
            compared = self._exact().add_columns(false().label(BY_ANN))
            return self._nearest_first(compared.subquery(self._name("hits")))
        few = self._few()
        made = self._settings_of_the_scan(few)
        saved = self._saved(made)
        settings = self._settings(made, saved, few)
        nearest = self._nearest(settings)
        ann = self._cte(select(*nearest.c).select_from(settings).join(nearest, true()), "ann")
        found_all = _count(ann) >= integer(self.fetch)
        if self.per_document is not None:
            ann = self._cte(self._best_of_documents(ann), "best")
            found_all = and_(found_all, _count(ann) >= self._limit())
        exact = self._exact(~found_all).subquery(self._name("exact"))
        by_ann = select(*ann.c, true().label(BY_ANN)).where(found_all)
        hits = self._cte(union_all(by_ann, select(*exact.c, false().label(BY_ANN))), "hits")
        restored = self._restored(made, saved, hits)
        return self._nearest_first(hits).where(restored, *self._planned_for_its_values())

    def _saved(self, made: Iterable[str]) -> CTE:
        """The session's settings."""
        live = (func.current_setting(_NAMES[one], true()).label(one) for one in made)
        return self._cte(select(*live), "saved")

    def _settings(self, made: Mapping[str, ColumnElement[str]], saved: CTE, few: CTE) -> CTE:
        """The search's settings; no row if the matches are few."""
        return self._cte(
            select(*(_set(one, value).label(one) for one, value in made.items()))
            .select_from(saved)
            .join(few, few.c.matches > integer(EXACT_UP_TO)),
            "settings",
        )

    def _nearest(self, settings: CTE) -> FromClause:
        """The ANN scan."""
        assert self.fetch is not None
        return (
            self._candidates(self._distance().label("distance"), *self._matching_for_ann())
            .where(settings.c.ef_search.is_not(None))  # makes the scan wait for the settings
            .order_by(self._distance())
            .limit(integer(self.fetch))
            .lateral(self._name("nearest"))
        )

    def _restored(self, made: Iterable[str], saved: CTE, hits: CTE) -> ColumnElement[bool]:
        """A condition that always holds, and puts the session's settings back."""
        # Counting the hits makes this wait for them; it is evaluated though there be none.
        restored = (
            select(func.count(func.concat(*(_set(one, saved.c[one]) for one in made))))
            .where(_count(hits) >= _ZERO)
            .scalar_subquery()
        )
        return restored >= _ZERO

    def _few(self) -> CTE:
        """How many chunks match, up to one more than `EXACT_UP_TO`, and which partition has them.

        The latter under a condition only, which has rows fetched anyway; without one, an index says
        how many there are.
        """
        matching = (
            select(literal_column("tableoid", OID) if self._conditional else literal_column("1"))
            .select_from(self.table)
            .where(*self._matching())
            .limit(integer(EXACT_UP_TO + 1))
            .subquery(self._name("matching"))
        )
        found = [func.count().label("matches")]
        if self._conditional:
            found.append(func.max(matching.c.tableoid).label("partition"))
        return self._cte(select(*found).select_from(matching), "few")

    def _settings_of_the_scan(self, few: CTE) -> dict[str, ColumnElement[str]]:
        """What to set, by name.

        The scan gives up, and leaves the rest to the exact branch, where that is likely to be
        cheaper than to go on. Having found less than `fetch` matches in `visits` rows, it expects
        less than ``rows * fetch / visits`` in the partition: it gives up once that falls below
        `_RARE`, or once comparing them would cost no more than the visits did, so that both
        together cost about twice the better one. What matches rarely, or far from the query, where
        a graph is searched worst, thus gets compared exactly: a tenant of 5,000 rows among 60,000
        others had a recall of .973 by the graph, in as much time. The number of rows is taken from
        the size of the partition's file, since statistics may be missing or old.
        """
        assert self.fetch is not None
        size = cast(func.pg_relation_size(self._partition(few)), Double)
        wanted = size / integer(self.row_bytes) * integer(self.fetch)
        even = wanted / integer(_RARE)
        equal = func.sqrt(wanted / integer(_VISIT_TO_COMPARISON))
        most = func.least(even, equal, integer(_MOST_VISITS))
        least = min(self.fetch * _VISITS_TO_FETCHED, _MOST_VISITS)
        visits = func.greatest(integer(least), most)
        return {
            "ef_search": self.bind("ef_search", Text()),
            "iterative_scan": _RELAXED_ORDER,
            "max_scan_tuples": cast(cast(visits, Integer), Text),
        }

    def _partition(self, few: CTE) -> ColumnElement[Any]:
        """The partition of the namespace."""
        if self._conditional:
            return few.c.partition
        partition = (
            select(literal_column("tableoid", OID))
            .select_from(self.table)
            .where(self.table.c.namespace == self.bind("namespace", Text()))
            .limit(integer(1))
        )
        return partition.scalar_subquery()

    @property
    def _conditional(self) -> bool:
        return bool(self.filter or self.where)

    def _exact(self, *conditions: ColumnElement[bool]) -> Select[Any]:
        # No ANN index serves an order by "distance + 0". It is the label's expression, so that each
        # row's is computed once.
        distance = (self._distance() + _ZERO).label("distance")
        candidates = self._candidates(distance, *self._matching(), *conditions)
        if self.per_document is None:
            return candidates.order_by(distance, self.table.c.id).limit(self._limit())
        best = self._best_of_documents(candidates.subquery())
        return best.order_by(best.selected_columns.distance, best.selected_columns.id).limit(
            self._limit()
        )

    def _best_of_documents(self, rows: CTE | Subquery) -> Select[Any]:
        """Of rows with their distances, what remains if no document has more than its places."""
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
        """The same, but so that no estimate leads the planner to fetch and sort all that matches.

        It takes a bound filter for 1 % of the rows in a generic plan, and then prefers the GIN
        index; it may turn an EXISTS into a join. A CASE is nothing that an index or a join serves,
        and counts as half the rows.
        """
        namespace, *filtered = self._matching()
        if not filtered:
            return [namespace]
        return [namespace, case((and_(*filtered), true()), else_=false())]

    def _planned_for_its_values(self) -> list[ColumnElement[bool]]:
        """A condition that always holds, and the cost of which drives the planner off generic ones.

        Such a plan, which Postgres may prefer after five executions, takes every filter for one
        that 1 % of the rows match, and fetches by the GIN index what half of them do: twice the
        time on 23,500 rows. A plan made for the call's values drops the count, which is of nothing.
        """
        if not self._conditional:
            return []
        endless = func.generate_series(integer(1), integer(10**12)).table_valued("number")
        count = select(func.count()).select_from(endless).where(~self.bind("custom", Boolean()))
        return [count.scalar_subquery() >= _ZERO]

    def _distance(self) -> ColumnElement[float]:
        distance: ColumnElement[float] = self.table.c.embedding.cosine_distance(self.query)
        return distance

    def _nearest_first(self, hits: CTE | Subquery) -> Select[Any]:
        # The distance of a zero vector is NaN, which Postgres sorts behind, and takes for more
        # than, every number. Adding 0 keeps the planner from taking the order of an inner scan for
        # granted.
        distance = hits.c.distance
        return (
            select(*map(as_sent, hits.c), (integer(1) - distance).label("score"))
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
    """The parameters of a search that depend on its limit."""
    limit = min(limit, LARGEST_LIMIT)
    ef_search = min(max(ef_search, limit + _SPARE), MAX_EF_SEARCH)
    return {"limit": limit, "ef_search": str(ef_search), "custom": True}


def rows_to_fetch(limit: int, *, per_document: bool = False) -> int:
    """How many rows the ANN scan is to find: a few more than asked, rounded up to 1, 2 or 5 * 10^n.

    It stands in the statement as a number, since a planner that does not know it (in a generic
    plan) takes it for a tenth of the table and leaves the ANN index; rounded, so that a server
    prepares few statements.
    """
    wanted = min(limit, LARGEST_LIMIT) * (_CHUNKS_PER_DOCUMENT if per_document else 1) + _SPARE
    power: int = 10 ** (len(str(wanted)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= wanted)


def materialized(statement: Any, name: str | None = None) -> CTE:
    """A CTE that is computed once, whatever the planner thinks of it."""
    plain = statement.cte(name)
    cte: CTE = plain.prefix_with("MATERIALIZED")
    # An anonymous name is made of the address of `plain`, of which this is a copy: if that were
    # freed, another CTE of the same statement could get its address, and its name.
    cte._cenote_named_after = plain  # type: ignore[attr-defined]
    return cte


def as_sent(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """JSON as text, so that a host's own types and deserializers have no say."""
    if column.key == "metadata":
        return cast(column, Text).label(column.key)
    return column


def _set(setting: str, value: ColumnElement[str]) -> ColumnElement[str]:
    return func.set_config(_NAMES[setting], value, true())


def integer(number: int) -> ColumnElement[Any]:
    """A number that stands in the SQL."""
    return literal_column(str(number), BigInteger)


def _count(rows: CTE) -> ScalarSelect[int]:
    return select(func.count()).select_from(rows).scalar_subquery()
