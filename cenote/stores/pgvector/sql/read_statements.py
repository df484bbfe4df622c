"""Statements that read chunks without a query vector."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Table,
    Text,
    any_,
    bindparam,
    func,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from cenote.filters.compiler import Bind, Conditions
from cenote.stores.pgvector.sql.rows import CHUNK_FIELDS
from cenote.stores.pgvector.sql.statement_cache import StatementCache, parameter, value
from cenote.stores.pgvector.sql.vector_search import as_text


class ReadStatements:
    """Statements that read chunks of one table without a query vector.

    Args:
        table: Chunk table.
        cache: Cache of the store for its statements.
    """

    def __init__(self, table: Table, cache: StatementCache) -> None:
        self._table = table
        self._cache = cache
        self.page = cache.by_shape(partial(self._build_page, bind=parameter))
        """Select the first chunks of a namespace, or the chunks that follow an id."""
        columns = table.c
        by_id = columns.id == any_(bindparam("ids", type_=ARRAY(Text)))
        in_namespace = columns.namespace == bindparam("namespace", type_=Text)
        self.get = self._read().where(by_id)
        self.embeddings = select(columns.id, columns.embedding).where(in_namespace, by_id)
        self.hashes = select(columns.id, columns.content_hash, columns.embedding_model).where(
            in_namespace, by_id
        )
        self.count = cache.by_shape(self._build_count)
        self.namespaces = (
            select(columns.namespace, func.count().label("chunks"))
            .group_by(columns.namespace)
            .order_by(columns.namespace)
        )
        self.sample = (
            select(columns.id)
            .where(in_namespace)
            .order_by(func.hashtextextended(columns.id, 0), columns.id)
            .limit(bindparam("number", type_=BigInteger))
        )
        """Select ids of a namespace in a pseudo-random order, which is always the same."""
        self.rows = select(func.count()).select_from(table)
        self.neighbours = self._build_neighbours()

    def _read(self, bind: Bind = parameter) -> Select[Any]:
        """Select the chunks of a namespace."""
        columns = self._table.c
        fields = [as_text(columns[name]) for name in CHUNK_FIELDS]
        return select(*fields).where(columns.namespace == bind("namespace", Text()))

    def _build_neighbours(self) -> Select[Any]:
        """Select a chunk and its neighbours in the document, in the document's order."""
        columns = self._table.c
        namespace = bindparam("namespace", type_=Text)
        anchor = (
            select(columns.document_id, columns.position, columns.id)
            .where(columns.namespace == namespace, columns.id == bindparam("id", type_=Text))
            .cte("anchor")
        )
        fields = [as_text(columns[name]) for name in CHUNK_FIELDS]
        place = tuple_(columns.position, columns.id)
        here = tuple_(anchor.c.position, anchor.c.id)
        of_document = (
            select(*fields)
            .select_from(self._table)
            .join(anchor, columns.document_id == anchor.c.document_id)
            .where(columns.namespace == namespace)
        )
        earlier = (
            of_document.where(place < here)
            .order_by(columns.position.desc(), columns.id.desc())
            .limit(bindparam("before", type_=BigInteger))
            .subquery("earlier")
        )
        later = (
            of_document.where(place >= here)
            .order_by(columns.position, columns.id)
            .limit(bindparam("after", type_=BigInteger) + 1)
            .subquery("later")
        )
        found = union_all(select(*earlier.c), select(*later.c)).subquery("found")
        return select(*found.c).order_by(found.c.position, found.c.id)

    def _build_count(self, filter: Conditions) -> Select[Any]:
        columns = self._table.c
        return (
            select(func.count())
            .select_from(self._table)
            .where(
                columns.namespace == bindparam("namespace", type_=Text),
                *filter.sql(columns, parameter),
            )
        )

    def page_where(
        self,
        where: ColumnElement[bool],
        filter: Conditions,
        values: Mapping[str, Any],
        *,
        first: bool,
    ) -> Select[Any]:
        """Select a page under the caller's condition.

        The statement contains all values. If it had named parameters, parameters of the condition
        could have the same names.
        """
        statement = self._build_page(filter, where, first=first, bind=partial(value, values))
        return self._cache.with_values(statement, filter)

    def _build_page(
        self, filter: Conditions, *where: ColumnElement[bool], first: bool, bind: Bind
    ) -> Select[Any]:
        columns = self._table.c
        statement = self._read(bind).where(*filter.sql(columns, bind), *where)
        if not first:
            statement = statement.where(columns.id > bind("after", Text()))
        statement = statement.order_by(columns.id).limit(bind("page_size", BigInteger()))
        return self._limited_again(statement, first=first, bind=bind) if where else statement

    def _limited_again(self, statement: Select[Any], *, first: bool, bind: Bind) -> Select[Any]:
        """Repeat the conditions for the namespace and the id outside the caller's condition.

        In ``text("true) OR (true")``, the condition closes the parentheses around it, and removes
        the effect of the conditions beside it.
        """
        label = "cenote_namespace"
        found = statement.add_columns(self._table.c.namespace.label(label)).subquery()
        rows: Any = select(*(found.c[name] for name in CHUNK_FIELDS))
        rows = rows.where(found.c[label] == bind("namespace", Text())).order_by(found.c.id)
        page: Select[Any] = rows if first else rows.where(found.c.id > bind("after", Text()))
        return page
