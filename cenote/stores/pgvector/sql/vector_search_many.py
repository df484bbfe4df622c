"""The SQL of several vector searches in one statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import FromClause, Select, func, select, true, union_all

from cenote.stores.pgvector.sql.vector_search import Search, as_text, integer


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchMany(Search):
    """A `Search` for each row of a table of query vectors.

    Attributes:
        queries: The query vectors, with columns ``number`` and ``vector``; `query` is the column
            ``vector``.
    """

    queries: FromClause

    def statement(self) -> Select[Any]:
        """Select ``number`` and the columns of `Search.statement`, ordered by ``number``."""
        if self.fetch is None:
            return self._nearest_per_query(self._exact_per_query().subquery("hits"))
        counted = self._count_matches()
        values = self._scan_settings()
        saved = self._session_settings(values)
        settings = self._settings(values, counted, saved)
        nearest = self._ann_scan(settings)
        ann = self._cte(
            select(self.queries.c.number, *nearest.c)
            .select_from(settings)
            .join(self.queries, true())
            .join(nearest, true()),
            "ann",
        )
        full = self._cte(
            select(ann.c.number).group_by(ann.c.number).having(func.count() >= integer(self.fetch)),
            "full",
        )
        numbers = select(full.c.number)
        exact = self._exact_per_query(self.queries.c.number.not_in(numbers)).subquery("exact")
        hits = self._cte(
            union_all(select(*ann.c).where(ann.c.number.in_(numbers)), select(*exact.c)), "hits"
        )
        restored = self._restoring_condition(values, saved, hits)
        return self._nearest_per_query(hits).where(restored, *self._custom_plan_condition())

    def _exact_per_query(self, *conditions: Any) -> Select[Any]:
        exact = self._exact().lateral("exactly")
        return (
            select(self.queries.c.number, *exact.c)
            .select_from(self.queries)
            .join(exact, true())
            .where(*conditions)
        )

    def _nearest_per_query(self, hits: Any) -> Select[Any]:
        place = func.row_number().over(
            partition_by=hits.c.number, order_by=[hits.c.distance + integer(0), hits.c.id]
        )
        ranked = (
            select(*map(as_text, hits.c), place.label("place"))
            .where(self._is_comparable(hits.c.distance))
            .subquery("ranked")
        )
        columns = [ranked.c[column.key] for column in hits.c]
        found: Any = select(*columns, self._score(ranked.c.distance))
        statement: Select[Any] = found.where(ranked.c.place <= self._limit()).order_by(
            ranked.c.number, ranked.c.place
        )
        return statement
