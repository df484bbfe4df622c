"""Statements that search chunks by vector, by words, or by both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import (
    REAL,
    BigInteger,
    Column,
    ColumnElement,
    MetaData,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY, OID

from cenote.config import SchemaConfig
from cenote.filters.compiler import Bind, Conditions
from cenote.inspection.recall_comment import MeasuredRecall
from cenote.postgres.vector import WireVector, WireVectorArray, embedding_type
from cenote.stores.pgvector.sql.compiled_select import SelectTemplate, not_cached
from cenote.stores.pgvector.sql.loader_criteria import LoaderCriteria
from cenote.stores.pgvector.sql.partition_search import PartitionSearch, Scope, Strategy
from cenote.stores.pgvector.sql.rows import CHUNK_FIELDS
from cenote.stores.pgvector.sql.statement_cache import StatementCache, parameter, value
from cenote.stores.pgvector.sql.text_search import TextSearch
from cenote.stores.pgvector.sql.vector_search import (
    DEFAULT_EF_SEARCH,
    DEFAULT_RERANK,
    FILTERED_EF_SEARCH_FACTOR,
    Search,
    Vectors,
    materialized,
    rows_to_fetch,
    search_parameters,
)
from cenote.stores.pgvector.sql.vector_search_many import SearchMany
from cenote.types import ColumnType, Float32Array, IndexKind
from cenote.validation.arguments import MAX_EF_SEARCH, MAX_RERANK, check_integer_setting

_HALF_RANGE = (1e-3, 65_504.0)
"""Range of a query's largest element for a graph of 16-bit vectors: above, an element would become
infinite; below, the smaller elements would lose most of their bits."""


class SearchStatements:
    """Statements that search one chunk table.

    Args:
        model: Chunk model.
        config: Expected configuration of its table.
        ef_search: Minimum of ``hnsw.ef_search``; None for the measured or default one.
        rerank: Minimum number of candidates that an index of kind ``"bit"`` finds; None for the
            measured or default one.
        cache: Cache of the store for its statements.
        schemas_translated: True if the engine has a ``schema_translate_map``, which does not apply
            to SQL that is compiled in advance.

    Attributes:
        vectors: Vectors of the table, and the kind of its ANN index: the configured kind
            until a statement has read it.
        measured: What `cenote recall` has measured for the index. None if it has not, or as long as
            no statement has read it.

    Raises:
        ConfigurationError: `ef_search` or `rerank` is not an integer in its range.
    """

    def __init__(
        self,
        model: type[Any],
        config: SchemaConfig,
        ef_search: int | None,
        rerank: int | None,
        cache: StatementCache,
        *,
        schemas_translated: bool,
    ) -> None:
        if ef_search is not None:
            check_integer_setting(ef_search, setting="hnsw_ef_search", least=1, most=MAX_EF_SEARCH)
        if rerank is not None:
            check_integer_setting(rerank, setting="rerank", least=1, most=MAX_RERANK)
        self._explicit_ef_search = ef_search
        self._explicit_rerank = rerank
        self.measured: MeasuredRecall | None = None
        self.vectors = Vectors(
            dimensions=config.dimensions,
            column_type=config.column_type,
            metric=config.metric,
            kind=config.index_kind,
        )
        self._model = model
        self._table = model.__table__
        self._column_type: ColumnType = config.column_type
        self._dimensions = config.dimensions
        self._languages = config.languages
        self._schemas_translated = schemas_translated
        self._sets_tenant = bool(config.row_security)
        self._partitions: dict[str, Table] = {}
        self._cache = cache
        self._template = cache.by_shape(self._build_template)
        self._partition_search = cache.by_shape(self._build_partition_search)
        self._search = cache.by_shape(partial(self._build_search, bind=parameter))
        self._search_many = cache.by_shape(self._build_search_many)
        self._text_search = cache.by_shape(partial(self._build_text_search, bind=parameter))
        self._hybrid_search = cache.by_shape(partial(self._build_hybrid_search, bind=parameter))

    @property
    def ef_search(self) -> int:
        """Minimum of ``hnsw.ef_search``: explicit, or else measured, or else the default."""
        measured = None if self.measured is None else self.measured.ef_search
        return self._explicit_ef_search or measured or DEFAULT_EF_SEARCH

    def set_index(self, kind: IndexKind, measured: MeasuredRecall | None) -> None:
        """Set the kind of the live index, and what was measured for it.

        Searches use the measured values where the store has no explicit ones.
        """
        self.vectors = replace(self.vectors, kind=kind)
        self.measured = measured

    def must_be_exact(self, query: Float32Array) -> bool:
        """Return whether an ANN index cannot serve a query vector."""
        if self.vectors.kind == "none":
            return True
        if self.vectors.metric == "inner_product" and not query.any():
            return True  # all chunks have the same score, so the ids decide
        if self.vectors.kind == "halfvec" and self.vectors.column_type == "vector":
            largest = float(np.abs(query).max())
            return not _HALF_RANGE[0] <= largest <= _HALF_RANGE[1]
        return False

    def rows_to_fetch(
        self,
        limit: int,
        *,
        exact: bool = False,
        per_document: bool = False,
        rerank: int | None = None,
    ) -> int | None:
        """Return the number of rows for the ANN scan to find; None for an exact search.

        Args:
            limit: Maximum number of results.
            exact: True for an exact search.
            per_document: True if the number of results per document is limited.
            rerank: Minimum number of candidates of an index of kind ``"bit"``; the store's if None.
        """
        if exact or self.vectors.kind == "none":
            return None
        least = 0
        if self.vectors.kind == "bit":
            measured = None if self.measured is None else self.measured.rerank
            least = rerank or self._explicit_rerank or measured or DEFAULT_RERANK
        return rows_to_fetch(limit, per_document=per_document, rerank=least)

    def search(
        self,
        filter: Conditions,
        fetch: int | None,
        *,
        per_document: int | None = None,
        locate: bool = False,
    ) -> Select[Any]:
        """Select the nearest chunks with their scores. Connections must have the vector codec.

        With `locate`, also select the oid of the chunk's partition, after the chunk's columns.
        """
        statement: Select[Any] = self._search(
            filter, fetch, self.vectors, per_document=per_document, locate=locate
        )
        return statement

    def partition_search(
        self,
        partition: str | None,
        scope: Scope,
        strategy: Strategy,
        filter: Conditions,
        fetch: int | None,
        *,
        per_document: int | None,
    ) -> Select[Any]:
        """Select the nearest chunks, and what proves that they are; see `PartitionSearch`.

        Args:
            partition: Name of the partition, in the schema of the chunk table; None to search the
                chunk table.
            scope: What the searched table is.
            strategy: How to search.
            filter: Filter for the chunks.
            fetch: Number of rows for the ANN scan to find; None for a strategy without ANN scan.
            per_document: Maximum number of chunks per document; unlimited if None.
        """
        statement: Select[Any] = self._partition_search(
            filter, partition, scope, strategy, fetch, self.vectors, per_document=per_document
        )
        return statement

    def _build_partition_search(
        self,
        filter: Conditions,
        partition: str | None,
        scope: Scope,
        strategy: Strategy,
        fetch: int | None,
        vectors: Vectors,
        *,
        per_document: int | None,
    ) -> Select[Any]:
        table = self._table if partition is None else self._partition_table(partition)
        return PartitionSearch(
            table=table,
            columns=[table.c[name] for name in CHUNK_FIELDS],
            query=parameter("query", WireVector(self._column_type)),
            bind=parameter,
            filter=filter,
            fetch=fetch,
            vectors=vectors,
            per_document=per_document,
            strategy=strategy,
            scope=scope,
            sets_tenant=self._sets_tenant,
        ).statement()

    def _partition_table(self, name: str) -> Table:
        """Return a partition as a table with the columns of the chunk table."""
        if name not in self._partitions:
            columns = [Column(c.name, c.type, key=c.key) for c in self._table.columns]
            schema = self._table.schema
            self._partitions[name] = Table(name, MetaData(), *columns, schema=schema)
        return self._partitions[name]

    def search_many(self, filter: Conditions, fetch: int | None) -> Select[Any]:
        """Select the nearest chunks of each query vector, after the vector's number from 1."""
        statement: Select[Any] = self._search_many(filter, fetch, self.vectors)
        return statement

    def _build_search_many(
        self, filter: Conditions, fetch: int | None, vectors: Vectors
    ) -> Select[Any]:
        query_list = bindparam("query_list", type_=WireVectorArray(self._column_type))
        queries = (
            func.unnest(query_list)
            .table_valued(column("vector", WireVector(self._column_type)), with_ordinality="number")
            .render_derived(name="queries")
        )
        return SearchMany(
            table=self._table,
            columns=[self._table.c[name] for name in CHUNK_FIELDS],
            query=queries.c.vector,
            queries=queries,
            bind=parameter,
            filter=filter,
            fetch=fetch,
            vectors=vectors,
        ).statement()

    def search_where(
        self,
        where: ColumnElement[bool],
        filter: Conditions,
        fetch: int | None,
        values: Mapping[str, Any],
        *,
        per_document: int | None = None,
    ) -> Select[Any]:
        """Select the nearest chunks under the caller's condition.

        The statement contains all values. If it had named parameters, parameters of the condition
        could have the same names.
        """
        statement = self._build_search(
            filter,
            fetch,
            self.vectors,
            where,
            per_document=per_document,
            bind=partial(value, values),
        )
        return self._cache.with_values(statement, filter)

    def text_search(
        self, filter: Conditions, where: ColumnElement[bool] | None, values: Mapping[str, Any]
    ) -> tuple[Select[Any], Mapping[str, Any]]:
        """Select the best chunks by words.

        Returns:
            The statement and its parameters. With a condition of the caller, the statement contains
            all values, and there are no parameters (see :meth:`search_where`).
        """
        if where is None:
            return self._text_search(filter), values
        statement = self._build_text_search(filter, where, bind=partial(value, values))
        return self._cache.with_values(statement, filter), {}

    def _build_text_search(
        self, filter: Conditions, *where: ColumnElement[bool], bind: Bind
    ) -> Select[Any]:
        return self._by_words(filter, where, bind).statement()

    def hybrid_search(
        self,
        filter: Conditions,
        fetch: int | None,
        where: ColumnElement[bool] | None,
        values: Mapping[str, Any],
    ) -> tuple[Select[Any], Mapping[str, Any]]:
        """Select the best chunks by vector and by words; see :meth:`text_search`."""
        if where is None:
            return self._hybrid_search(filter, fetch, self.vectors), values
        statement = self._build_hybrid_search(
            filter, fetch, self.vectors, where, bind=partial(value, values)
        )
        return self._cache.with_values(statement, filter), {}

    def _build_hybrid_search(
        self,
        filter: Conditions,
        fetch: int | None,
        vectors: Vectors,
        *where: ColumnElement[bool],
        bind: Bind,
    ) -> Select[Any]:
        search = Search(
            table=self._table,
            columns=[self._table.c.id],
            query=bind("query", WireVector(self._column_type)),
            bind=bind,
            filter=filter,
            where=where,
            fetch=fetch,
            vectors=vectors,
            named=False,
            limit_name="depth",
        )
        return self._by_words(filter, where, bind).fused_with(search)

    def _by_words(
        self, filter: Conditions, where: tuple[ColumnElement[bool], ...], bind: Bind
    ) -> TextSearch:
        return TextSearch(
            table=self._table,
            columns=[self._table.c[name] for name in CHUNK_FIELDS],
            languages=self._languages,
            bind=bind,
            filter=filter,
            where=where,
        )

    def search_parameters(
        self,
        limit: int,
        ef_search: int | None = None,
        *,
        filtered: bool = False,
        fetch: int | None = None,
    ) -> dict[str, Any]:
        """Return the parameters of :meth:`search` for a limit.

        Args:
            limit: Maximum number of results.
            fetch: Number of rows for the ANN scan to find. An index of kind ``"bit"`` has to
                consider as many at once.
            ef_search: Minimum of ``hnsw.ef_search``; the store's minimum if None.
            filtered: True if the search has conditions. It then considers more candidates, unless
                the caller chose their number.
        """
        chosen = ef_search or self._explicit_ef_search
        if chosen is None:
            chosen = self.ef_search
            if filtered:
                chosen = int(chosen * FILTERED_EF_SEARCH_FACTOR)
        if self.vectors.kind == "bit" and fetch is not None:
            chosen = max(chosen, fetch)
        return search_parameters(limit, chosen)

    def _build_search(
        self,
        filter: Conditions,
        fetch: int | None,
        vectors: Vectors,
        *where: ColumnElement[bool],
        per_document: int | None,
        bind: Bind,
        locate: bool = False,
    ) -> Select[Any]:
        columns: list[ColumnElement[Any]] = [self._table.c[name] for name in CHUNK_FIELDS]
        if locate:
            columns.append(literal_column("tableoid", OID).label("partition"))
        return Search(
            table=self._table,
            columns=columns,
            query=bind("query", WireVector(self._column_type)),
            bind=bind,
            filter=filter,
            where=where,
            fetch=fetch,
            vectors=vectors,
            per_document=per_document,
            named=not where,
        ).statement()

    def composable_search(
        self,
        query: Float32Array,
        namespace: str,
        limit: int,
        filter: Conditions,
        *,
        fetch: int | None,
        ef_search: int | None,
        where: ColumnElement[bool] | None,
    ) -> Any:
        """Select the mapped class and the score.

        Callers can extend the statement. It works on every connection, with or without the codec.
        """
        vectors = self.vectors
        filtered = bool(filter) or where is not None
        values = filter.parameters | self.search_parameters(
            limit, ef_search, filtered=filtered, fetch=fetch
        )
        values |= {"namespace": namespace, "query": query.tolist()}
        found: Any
        if where is None and not self._schemas_translated:
            template: SelectTemplate = self._template(filter, fetch, vectors, limit)
            build = partial(self._nearest_ids, filter, fetch, vectors, limit)
            found = template.with_values(values, self._model, build)
        else:
            conditions = [LoaderCriteria(self._model), *([] if where is None else [where])]
            found = self._nearest_ids(
                filter, fetch, vectors, limit, partial(value, values), *conditions
            )
        hits = materialized(found)
        model = self._model
        statement = (
            select(model, hits.c.score)
            # With a join, filter_by() would refer to one side in SQLAlchemy 2.0, to the other in
            # 2.1.
            .where(model.namespace == literal(namespace, Text()), model.id == hits.c.id)
            .order_by(hits.c.distance, model.id)
        )
        if not filter.is_kept:
            statement = statement.where(not_cached())
        if vectors.metric != "cosine" or np.any(query):
            return statement
        # false() would replace the other conditions, and leave a cartesian product.
        return statement.where(literal_column("1") == literal_column("0"))

    def _build_template(
        self, filter: Conditions, fetch: int | None, vectors: Vectors, limit: int
    ) -> SelectTemplate:
        """Compile the search for the nearest ids, for reuse."""
        template = SelectTemplate()
        template.compile(self._nearest_ids(filter, fetch, vectors, limit, template.marker))
        return template

    def _nearest_ids(
        self,
        filter: Conditions,
        fetch: int | None,
        vectors: Vectors,
        limit: int,
        bind: Bind,
        *where: ColumnElement[bool],
    ) -> Select[Any]:
        # A literal limit tells the planner that the caller's joins start from few rows.
        number: Any = literal_column(str(limit), BigInteger)
        type_ = embedding_type(self._column_type, self._dimensions)
        vector: Any = cast(bind("query", ARRAY(REAL)), type_)
        if fetch is None:  # an exact search compares many rows: cast once, not once per row
            vector = select(vector).scalar_subquery()
        return Search(
            table=self._table,
            columns=[self._table.c.id],
            query=vector,
            bind=lambda name, type_: number if name == "limit" else bind(name, type_),
            filter=filter,
            where=where,
            fetch=fetch,
            vectors=vectors,
            named=False,
        ).statement()
