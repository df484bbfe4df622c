"""The SQL of a vector search that relies on what the store remembers.

A store remembers which partition holds a namespace, whether the namespace has more than
`EXACT_UP_TO` rows, and whether a filter matches more than that; see
`cenote.stores.pgvector.partition_searches`. A search then names the partition and does not count
the matching rows first. For a partition, Postgres can keep a generic plan, which it never does for
a partitioned table. Measured on 50,000 rows, planning took 0.3 to 0.9 ms of a search.

What the store remembers may be wrong: the table may have been repartitioned, and the namespace may
have grown, shrunk or vanished. Therefore, each statement also returns what proves that its result
is complete. There is always a first row; its chunk is NULL if no chunk was found. The columns are:

``attached``  true if the partition belongs to the chunk table, and the chunk table has no row-level
              security that the store does not expect. A partition that was detached, or another
              table of that name, does not belong to it.
``present``   number of rows of the namespace in the table that is searched, counted up to a bound.
              All rows of a namespace are in one partition: in this one, if there are any here.
``found``     number of rows that the ANN scan found; NULL if it did not run alone.

On a table with row-level security, the statement sets the tenant before it reads. Postgres
evaluates the policy when a scan starts, so each scan is in a LATERAL subquery that depends on the
tenant. A scan that started too early would find nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import (
    CTE,
    ColumnElement,
    ScalarSelect,
    Select,
    Subquery,
    Text,
    and_,
    case,
    cast,
    exists,
    false,
    func,
    literal_column,
    null,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import REGCLASS

from cenote.postgres.pg_catalog import pg_class, pg_inherits
from cenote.postgres.row_security import NAME
from cenote.stores.pgvector.sql.vector_search import (
    BY_ANN,
    EXACT_UP_TO,
    Search,
    as_text,
    integer,
    set_setting,
)

Strategy: TypeAlias = Literal["small", "exact", "ann", "either"]
"""How to search:

``"small"``   compare all rows of a namespace of at most `EXACT_UP_TO` rows;
``"exact"``   compare all rows that match, of a namespace of any size;
``"ann"``     use the ANN index only;
``"either"``  count the matching rows first, like `Search`.
"""

Scope: TypeAlias = Literal["partition", "plain", "partitioned"]
"""Table to search: a partition, a chunk table without partitions, or one with partitions."""

_ZERO = integer(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSearch(Search):
    """A vector search that relies on what the store remembers; :meth:`statement` builds its SQL.

    The parameters are those of `Search`, and ``partition`` and ``parent``: the qualified names of
    the partition and of the chunk table. `table` is the partition or the chunk table.

    Attributes:
        strategy: How to search.
        scope: What `table` is.
        sets_tenant: True to set the tenant of row-level security.
    """

    strategy: Strategy
    scope: Scope
    sets_tenant: bool

    def statement(self) -> Select[Any]:
        """Select the columns of `Search.statement`, with the proof before ``by_ann``."""
        tenant = self._tenant() if self.sets_tenant else None
        present: ColumnElement[Any] = self._count_present(tenant)
        found: ColumnElement[Any] = null()
        if self.fetch is None or self.strategy in ("small", "exact"):
            hits = self._cte(self._after(tenant, self._exact_hits(), "compared"), "hits")
        elif self.strategy == "ann":
            hits = self._ann_hits(tenant)
            found = select(func.count()).select_from(hits).scalar_subquery()
        else:
            counted = self._count_matches(tenant)
            settings = self._settings(self._scan_settings(), counted)
            hits = self._ann_or_exact_hits(settings)
        proof = select(
            self._attached().label("attached"), present.label("present"), found.label("found")
        ).subquery(self._name("proof"))
        return self._proven(proof, hits)

    def _proven(self, proof: Subquery, hits: CTE) -> Select[Any]:
        distance = hits.c.distance
        columns = [as_text(column) for column in hits.c if column.key != BY_ANN]
        return (
            select(*columns, *proof.c, hits.c[BY_ANN], self._score(distance))
            .select_from(proof)
            .outerjoin(hits, self._is_comparable(distance))
            .where(*self._custom_plan_condition())
            .order_by(distance + _ZERO, hits.c.id)
            .limit(self._limit())
        )

    def _tenant(self) -> CTE:
        namespace = func.set_config(NAME, self.bind("namespace", Text()), true())
        return self._cte(select(namespace.label("namespace")), "tenant")

    def _after(self, tenant: CTE | None, scan: Select[Any], name: str) -> Select[Any]:
        """Make a scan start after the tenant is set."""
        if tenant is None:
            return scan
        rows = scan.where(tenant.c.namespace.is_not(None)).lateral(self._name(name))
        return select(*rows.c).select_from(tenant).join(rows, true())

    def _attached(self) -> ColumnElement[bool]:
        if self.scope != "partition":
            return true()
        conditions = [
            pg_inherits.c.inhrelid == self._regclass("partition"),
            pg_inherits.c.inhparent == self._regclass("parent"),
            ~pg_inherits.c.inhdetachpending,
        ]
        if not self.sets_tenant:
            # Row-level security that is enabled later applies to searches of the chunk table only.
            conditions += [pg_class.c.oid == pg_inherits.c.inhparent, ~pg_class.c.relrowsecurity]
        return exists().where(*conditions)

    def _regclass(self, name: str) -> ColumnElement[Any]:
        return cast(self.bind(name, Text()), REGCLASS)

    def _count_present(self, tenant: CTE | None) -> ScalarSelect[int]:
        """Count the namespace's rows, only as far as it matters.

        The order makes Postgres use the primary key. Otherwise, it could read the table up to the
        first row of a large namespace, which may be the last one: that took 0.3 ms for 6,000 rows.
        """
        rows: Select[Any] = (
            select(literal_column("1").label("row"))
            .select_from(self.table)
            .where(self._in_namespace())
            .order_by(self.table.c.id)
            .limit(integer(EXACT_UP_TO + 1 if self.strategy == "small" else 1))
        )
        counted = self._after(tenant, rows, "own").subquery(self._name("present"))
        return select(func.count()).select_from(counted).scalar_subquery()

    def _in_namespace(self) -> ColumnElement[bool]:
        condition: ColumnElement[bool] = self.table.c.namespace == self.bind("namespace", Text())
        return condition

    def _count_matches(self, tenant: CTE | None = None) -> CTE:
        rows: Select[Any] = (
            select(literal_column("1").label("row"))
            .select_from(self.table)
            .where(*self._matching())
            .limit(integer(self._exact_up_to + 1))
        )
        matching = self._after(tenant, rows, "matched").subquery(self._name("matching"))
        return self._cte(select(func.count().label("matches")).select_from(matching), "few")

    def _ann_hits(self, tenant: CTE | None) -> CTE:
        """Return the rows that the ANN scan finds."""
        values = self._scan_settings()
        settings = select(*(set_setting(name, value).label(name) for name, value in values.items()))
        if tenant is not None:
            settings = settings.select_from(tenant).where(tenant.c.namespace.is_not(None))
        after = self._cte(settings, "settings")
        nearest = self._ann_scan(after)
        return self._cte(
            select(*nearest.c, true().label(BY_ANN)).select_from(after).join(nearest, true()),
            "hits",
        )

    def _partition(self) -> ColumnElement[Any]:
        return self._regclass("partition")

    @property
    def _needs_custom_plan(self) -> bool:
        if self.strategy in ("ann", "either") and self._exposes_namespace:
            return True
        return self._has_conditions and self.strategy in ("exact", "either")

    @property
    def _exposes_namespace(self) -> bool:
        """True if the ANN scan must have the condition for the namespace outside the CASE.

        In a partitioned table, it determines the partition. On a table with row-level security,
        Postgres combines it with the policy's condition, and checks the setting once. Otherwise,
        the policy's condition would have an index of its own: the primary key.
        """
        return self.sets_tenant or self.scope == "partitioned"

    def _matching(self) -> list[ColumnElement[bool]]:
        """Return the conditions; those of a small namespace in a CASE, as for the ANN scan.

        The primary key finds the rows of a small namespace fastest. In a generic plan, Postgres
        does not know that the namespace is small, and could read all rows of the partition that
        match the filter.
        """
        conditions = self._conditions()
        if self.strategy != "small" or len(conditions) == 1:
            return conditions
        return [conditions[0], case((and_(*conditions[1:]), true()), else_=false())]

    def _matching_for_ann(self) -> list[ColumnElement[bool]]:
        """Return the conditions in a CASE; see `Search`.

        In a generic plan, Postgres does not know that the namespace is large, and could prefer the
        primary key to the ANN index. A condition outside the CASE requires a custom plan.
        """
        conditions = self._conditions_for_ann()
        if not self._exposes_namespace:
            return [self._in_case(*conditions)]
        return self._behind_namespace(*conditions)
