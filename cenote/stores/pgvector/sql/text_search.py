"""The SQL of searches by words: full text alone, and fused with the ranking by vectors.

``asked``      the query for any of the question's words, made once.
``few``        counts the namespace's chunks, up to `READ_UP_TO` and one more.
``by_words``   the chunks that have one, ranked by `cenote.postgres.full_text.rank`: of few chunks
               by looking at each, of more by the index of the words.
``by_vector``  the nearest chunks, by a `Search` of their ids.
``fused``      the best of both by reciprocal rank fusion (`cenote.ranking.fusion`).

Chunks are read last, of those that remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Double,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    column,
    false,
    func,
    literal_column,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from cenote.filters.compiler import Bind, Conditions
from cenote.postgres import full_text
from cenote.ranking.fusion import RANK_CONSTANT
from cenote.stores.pgvector.sql.vector_search import Search, as_sent, integer, materialized

READ_UP_TO = 5000
"""Chunks of a namespace up to which each is looked at.

The index of the words is that of all tenants in a partition: for a tenant of 200 rows beside 83,000
others, a common word took ten times as long by it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSearch:
    """A search by words over one chunk table.

    Attributes:
        table: the chunk table.
        columns: what to give of each chunk.
        languages: the text search configurations of the table.
        bind: makes the parameters namespace, text, limit, and those of the filter.
        filter: what the chunks must meet.
        where: further conditions on a chunk.
    """

    table: Table
    columns: Sequence[ColumnElement[Any]]
    languages: tuple[str, ...]
    bind: Bind
    filter: Conditions
    where: Sequence[ColumnElement[bool]] = ()

    def _cte(self, statement: Any, name: str) -> CTE:
        """With a name of its own, unless a condition of the host's may have the same."""
        return materialized(statement, None if self.where else "cenote_" + name)

    def statement(self) -> Select[Any]:
        """The columns and ``score`` of the chunks that have one of the words, the best first."""
        return self._fetched(self._by_words("limit"))

    def fused_with(self, search: Search) -> Select[Any]:
        """The same of what is best in both rankings.

        Args:
            search: for the ids of the nearest chunks, cut at the parameter depth.
        """
        by_vector = self._cte(search.statement(), "by_vector")
        by_words = self._by_words("depth")
        rankings = (
            self._shares(by_vector, by_vector.c.distance, "vector_weight"),
            self._shares(by_words, by_words.c.score.desc(), "text_weight"),
        )
        shares = union_all(*rankings).subquery()
        score = func.sum(shares.c.share).label("score")
        fused = (
            select(shares.c.id, score)
            .group_by(shares.c.id)
            .order_by(score.desc(), shares.c.id)
            .limit(self.bind("limit", BigInteger()))
        )
        return self._fetched(self._cte(fused, "fused"))

    def _by_words(self, limit: str) -> CTE:
        """Ids and scores of the best chunks by words."""
        query = full_text.any_word_query(self.languages, self.bind("text", Text()))
        asked = self._cte(select(query.label("query")), "asked")
        few = self._are_few()
        has_word = self._words().bool_op("@@")(asked.c.query)
        conditions = [*self.filter.sql(self.table.c, self.bind), *self.where, has_word]
        found = union_all(
            # No index serves a CASE: those of filters, too, are of all tenants.
            self._ranked(asked, case((and_(*conditions), true()), else_=false()), few),
            self._ranked(asked, *conditions, ~few),
        ).subquery()
        best = (
            select(found.c.id, found.c.score)
            .order_by(found.c.score.desc(), found.c.id)
            .limit(self.bind(limit, BigInteger()))
        )
        return self._cte(best, "by_words")

    def _are_few(self) -> ColumnElement[bool]:
        """Whether the namespace has no more than `READ_UP_TO` chunks."""
        some = (
            select(literal_column("1"))
            .select_from(self.table)
            .where(self._in_namespace())
            .limit(integer(READ_UP_TO + 1))
            .subquery()
        )
        few = self._cte(select(func.count().label("chunks")).select_from(some), "few")
        return select(few.c.chunks).scalar_subquery() <= integer(READ_UP_TO)

    def _ranked(self, asked: CTE, *conditions: ColumnElement[bool]) -> Any:
        """Ids and scores of the chunks that meet conditions."""
        columns = self.table.c
        score = full_text.rank(self._words(), asked.c.query).label("score")
        return (
            select(columns.id, score)
            .select_from(self.table)
            .join(asked, true())
            .where(self._in_namespace(), *conditions)
        )

    def _in_namespace(self) -> ColumnElement[bool]:
        return self.table.c.namespace == self.bind("namespace", Text())

    def _words(self) -> ColumnElement[str]:
        """The generated column, which `ChunkRow` and other models may not have mapped."""
        words: Any = self.table.c.get(full_text.COLUMN)
        if words is None:
            words = column(full_text.COLUMN, TSVECTOR)
            words.table = self.table
        found: ColumnElement[str] = words
        return found

    def _shares(self, ranking: CTE, order: ColumnElement[Any], weight: str) -> Any:
        """What the places in a ranking are worth."""
        place = func.row_number().over(order_by=[order, ranking.c.id])
        counts = self.bind(weight, Double())
        share = counts / cast(integer(RANK_CONSTANT) + place, Double)
        # One of no weight has no part in it.
        return (
            select(ranking.c.id, share.label("share"))
            .select_from(ranking)
            .where(counts > integer(0))
        )

    def _fetched(self, ranked: CTE) -> Select[Any]:
        table = self.table
        found: Any = select(*map(as_sent, self.columns), ranked.c.score)
        statement: Select[Any] = (
            found.select_from(table)
            .join(ranked, table.c.id == ranked.c.id)
            .where(self._in_namespace())
            .order_by(ranked.c.score.desc(), ranked.c.id)
        )
        return statement
