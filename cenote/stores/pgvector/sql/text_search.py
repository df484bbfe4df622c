"""The SQL of searches by words, alone or fused with a ranking by vectors.

The CTEs of a statement are:

``asked``      the text search query for any of the question's words.
``few``        the number of chunks of the namespace, counted up to `READ_UP_TO` + 1.
``by_words``   the chunks that contain one of the words, ranked by
               `cenote.postgres.full_text.rank`. If the namespace has at most `READ_UP_TO` chunks,
               each of them is read; otherwise the index of the words is used.
``by_vector``  the ids of the nearest chunks, found by a `Search`; only in a hybrid search.
``fused``      the best chunks of ``by_words`` and ``by_vector`` by reciprocal rank fusion
               (`cenote.ranking.fusion`); only in a hybrid search.

The outer query reads the columns of the chunks in the last CTE.
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
from cenote.stores.pgvector.sql.vector_search import Search, as_text, integer, materialized

READ_UP_TO = 5000
"""Maximum number of chunks in a namespace for which each chunk is read, without the index.

The index of the words covers all tenants of a partition. For a tenant with 200 of 83,200 rows, a
search for a common word took ten times as long with the index.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSearch:
    """A search by words over one chunk table.

    Attributes:
        table: Chunk table.
        columns: Columns to select.
        languages: Text search configurations of the table.
        bind: Function that returns a parameter by name and type: namespace, text, limit, or a
            parameter of the filter; in a hybrid search also depth and the weights.
        filter: Filter for the chunks.
        where: Additional conditions.
    """

    table: Table
    columns: Sequence[ColumnElement[Any]]
    languages: tuple[str, ...]
    bind: Bind
    filter: Conditions
    where: Sequence[ColumnElement[bool]] = ()

    def _cte(self, statement: Any, name: str) -> CTE:
        """Return a CTE. It has no name if the caller's condition could use the same name."""
        return materialized(statement, None if self.where else "cenote_" + name)

    def statement(self) -> Select[Any]:
        """Select the columns and ``score`` of the chunks with one of the words, best first."""
        return self._select_chunks(self._by_words("limit"))

    def fused_with(self, search: Search) -> Select[Any]:
        """Select the columns and ``score`` of the best chunks by vector and by words.

        Args:
            search: Search for the ids of the nearest chunks, limited by the parameter depth.
        """
        by_vector = self._cte(search.statement(), "by_vector")
        by_words = self._by_words("depth")
        rankings = (
            self._rank_shares(by_vector, by_vector.c.distance, "vector_weight"),
            self._rank_shares(by_words, by_words.c.score.desc(), "text_weight"),
        )
        shares = union_all(*rankings).subquery()
        score = func.sum(shares.c.share).label("score")
        fused = (
            select(shares.c.id, score)
            .group_by(shares.c.id)
            .order_by(score.desc(), shares.c.id)
            .limit(self.bind("limit", BigInteger()))
        )
        return self._select_chunks(self._cte(fused, "fused"))

    def _by_words(self, limit: str) -> CTE:
        """Select ids and scores of the best chunks by words."""
        query = full_text.any_word_query(self.languages, self.bind("text", Text()))
        asked = self._cte(select(query.label("query")), "asked")
        is_small = self._is_small()
        has_word = self._words().bool_op("@@")(asked.c.query)
        conditions = [*self.filter.sql(self.table.c, self.bind), *self.where, has_word]
        found = union_all(
            # In a small namespace, a CASE keeps the planner from using the index of the words, and
            # the indexes for filters, which cover all tenants too.
            self._rank(asked, case((and_(*conditions), true()), else_=false()), is_small),
            self._rank(asked, *conditions, ~is_small),
        ).subquery()
        # See Search._in_namespace_again.
        again = [found.c.namespace == self.bind("namespace", Text())] if self.where else []
        best = (
            select(found.c.id, found.c.score)
            .where(*again)
            .order_by(found.c.score.desc(), found.c.id)
            .limit(self.bind(limit, BigInteger()))
        )
        return self._cte(best, "by_words")

    def _is_small(self) -> ColumnElement[bool]:
        """Return the condition that the namespace has at most `READ_UP_TO` chunks."""
        chunks = (
            select(literal_column("1"))
            .select_from(self.table)
            .where(self._in_namespace())
            .limit(integer(READ_UP_TO + 1))
            .subquery()
        )
        counted = self._cte(select(func.count().label("chunks")).select_from(chunks), "few")
        return select(counted.c.chunks).scalar_subquery() <= integer(READ_UP_TO)

    def _rank(self, asked: CTE, *conditions: ColumnElement[bool]) -> Any:
        """Select ids and scores of the chunks that meet conditions."""
        columns = self.table.c
        score = full_text.rank(self._words(), asked.c.query).label("score")
        selected = [columns.id, score, *([columns.namespace] if self.where else [])]
        return (
            select(*selected)
            .select_from(self.table)
            .join(asked, true())
            .where(self._in_namespace(), *conditions)
        )

    def _in_namespace(self) -> ColumnElement[bool]:
        return self.table.c.namespace == self.bind("namespace", Text())

    def _words(self) -> ColumnElement[str]:
        """Return the generated column of words, which a model does not have to map."""
        words: Any = self.table.c.get(full_text.COLUMN)
        if words is None:
            words = column(full_text.COLUMN, TSVECTOR)
            words.table = self.table
        found: ColumnElement[str] = words
        return found

    def _rank_shares(self, ranking: CTE, order: ColumnElement[Any], weight: str) -> Any:
        """Select the ids of a ranking, and the share that each rank adds to the fused score."""
        place = func.row_number().over(order_by=[order, ranking.c.id])
        weight_value = self.bind(weight, Double())
        share = weight_value / cast(integer(RANK_CONSTANT) + place, Double)
        # A ranking with weight 0 contributes no chunks.
        return (
            select(ranking.c.id, share.label("share"))
            .select_from(ranking)
            .where(weight_value > integer(0))
        )

    def _select_chunks(self, ranked: CTE) -> Select[Any]:
        table = self.table
        found: Any = select(*map(as_text, self.columns), ranked.c.score)
        statement: Select[Any] = (
            found.select_from(table)
            .join(ranked, table.c.id == ranked.c.id)
            .where(self._in_namespace())
            .order_by(ranked.c.score.desc(), ranked.c.id)
        )
        return statement
