"""Searches of `PgVectorStore`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select

from cenote.errors import InvalidInputError
from cenote.filters.compiler import Conditions
from cenote.filters.language import FilterLike
from cenote.models import RetrievalResult
from cenote.postgres.full_text import QUERY_CHARACTERS
from cenote.postgres.vector import to_wire, to_wire_one
from cenote.ranking.fusion import DEPTH, at_least, diverse
from cenote.responsive import Pauses
from cenote.stores.pgvector.base import Model, PgVectorStoreBase
from cenote.stores.pgvector.executor import Session, fetch_all, run_statement
from cenote.stores.pgvector.retry import Retry, operation
from cenote.stores.pgvector.sql import rows
from cenote.stores.pgvector.sql.where import check_condition
from cenote.telemetry import record
from cenote.types import Float32Array, Vector
from cenote.validation.arguments import (
    check_boolean,
    check_diversity,
    check_ef_search,
    check_full_text,
    check_fusion,
    check_limit,
    check_min_score,
    check_namespace,
    check_per_document,
    check_rerank,
    check_text,
)
from cenote.validation.vectors import check_query_vector, check_query_vectors

MAX_STATEMENT_PARAMETERS = 50
"""Maximum number of keys and values in a filter of `search_statement`.

The driver of the application keeps the statement prepared on its connections. The server takes 6 to
17 kB for each key and value, so up to 0.9 MB.
"""

_BLOCK_ROWS = 50
"""Number of rows of `search_many` that are converted at a time."""


class Searching(PgVectorStoreBase[Model]):
    """The methods of `PgVectorStore` that search."""

    @operation("search", retry=Retry.ALWAYS)
    async def search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        per_document: int | None = None,
        where: ColumnElement[bool] | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        rerank: int | None = None,
        session: Session | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks nearest to a vector; see `VectorStore.search`.

        Args:
            where: Additional SQL condition, applied before the limit; see :meth:`search_statement`.
            exact: Compare with every matching chunk, without the ANN index.
            ef_search: Replaces the store's `hnsw_ef_search`, or the measured one, for this call.
            rerank: Replaces the store's `rerank`, or the measured one, for this call.
            session: Transaction to join; see `PgVectorStore`.
        """
        query, condition = self._check_search(
            query_vector, namespace, limit, where, exact, ef_search, rerank
        )
        conditions = await self._conditions_of(filter)
        check_min_score(min_score, self._config.metric)
        check_per_document(per_document)
        transaction = self._transaction(session)
        if self._finds_nothing(query):
            return []
        if self._never_holds(conditions):
            record(path="exact")
            return []
        await self._read_index("search", transaction)
        exact = exact or self._searches.must_be_exact(query)
        fetch = self._searches.rows_to_fetch(
            limit, exact=exact, per_document=per_document is not None, rerank=rerank
        )
        parameters: dict[str, Any] = {
            "namespace": namespace,
            "query": to_wire_one(query, self._config.column_type),
            **self._searches.search_parameters(
                limit,
                ef_search,
                filtered=bool(conditions) or condition is not None,
                fetch=fetch,
            ),
            **conditions.parameters,
        }
        if condition is not None:
            statement = self._searches.search_where(
                condition, conditions, fetch, parameters, per_document=per_document
            )
            found = await self._executor.execute("search", transaction, namespace, statement, {})
        elif transaction is not None or self._translates_schemas:
            statement = self._searches.search(conditions, fetch, per_document=per_document)
            found = await self._executor.fetch(
                "search", transaction, namespace, statement, parameters
            )
        else:
            found = await self._partition_searches.search(
                namespace, conditions, fetch, parameters, per_document=per_document
            )
        record(path="ann" if found and found[0][rows.BY_ANN] else "exact")
        return at_least(min_score, await rows.results_from(found))

    @operation("search_many", retry=Retry.ALWAYS, batch="query_vectors")
    async def search_many(
        self,
        query_vectors: Sequence[Vector],
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        min_score: float | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        rerank: int | None = None,
        session: Session | None = None,
    ) -> list[list[RetrievalResult]]:
        """Search for several vectors in one round trip; see `VectorStore.search_many`.

        Queries that the ANN index cannot serve, e.g. a zero vector with the metric
        ``"inner_product"``, are compared with all matching chunks, in a second round trip.
        ``operation_timeout`` limits each of the two.

        Args:
            exact, ef_search, rerank, session: See :meth:`search`.
        """
        check_namespace(namespace)
        check_limit(limit)
        check_boolean(exact, field="exact")
        check_ef_search(ef_search)
        check_rerank(rerank)
        check_min_score(min_score, self._config.metric)
        queries = await check_query_vectors(
            query_vectors,
            self._config.dimensions,
            self._config.column_type,
            self._config.metric,
        )
        conditions = await self._conditions_of(filter)
        transaction = self._transaction(session)
        results: list[list[RetrievalResult]] = [[] for _ in queries]
        asked = [number for number, query in enumerate(queries) if not self._finds_nothing(query)]
        if self._never_holds(conditions) or not asked:
            return results
        await self._read_index("search_many", transaction)
        is_exact = {
            number: exact or self._searches.must_be_exact(queries[number]) for number in asked
        }
        pauses = Pauses()
        for group_is_exact in sorted({*is_exact.values()}):
            numbers = [number for number in asked if is_exact[number] is group_is_exact]
            fetch = self._searches.rows_to_fetch(limit, exact=group_is_exact, rerank=rerank)
            values = {
                "namespace": namespace,
                "query_list": to_wire(queries[numbers], self._config.column_type),
                **self._searches.search_parameters(
                    limit, ef_search, filtered=bool(conditions), fetch=fetch
                ),
                **conditions.parameters,
            }
            statement = self._searches.search_many(conditions, fetch)
            found = await self._executor.fetch(
                "search_many", transaction, namespace, statement, values
            )
            async for position, result in self._numbered_results(list(found), pauses):
                results[numbers[position - 1]].append(result)
        if min_score is not None:
            for number, results_of_query in enumerate(results):
                results[number] = at_least(min_score, results_of_query)
                await pauses()
        return results

    async def _numbered_results(
        self, found: list[Any], pauses: Pauses
    ) -> AsyncIterator[tuple[int, RetrievalResult]]:
        """Yield the position of each row's query, counted from 1, and the row's result."""
        for start in range(0, len(found), _BLOCK_ROWS):
            block = found[start : start + _BLOCK_ROWS]
            block_results = rows.to_results(row[1:] for row in block)
            for row, result in zip(block, block_results, strict=True):
                yield row[0], result
            found[start : start + len(block)] = [()] * len(block)  # freed in steps, too
            await pauses()

    @operation("search_diverse", retry=Retry.ALWAYS)
    async def search_diverse(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        diversity: float = 0.5,
        candidates: int | None = None,
        session: Session | None = None,
    ) -> list[RetrievalResult]:
        """Find chunks that are near and differ from each other; see `VectorStore.search_diverse`.

        Args:
            session: See :meth:`search`.
        """
        candidates = check_diversity(diversity, candidates, limit)
        found = await self.search(query_vector, namespace, candidates, filter, session=session)
        if not found:
            return []
        transaction = self._transaction(session)
        values = {"namespace": namespace, "ids": sorted(result.chunk.id for result in found)}
        async with self._executor.statement("search_diverse", transaction, namespace) as connection:
            stored = await fetch_all(await connection.execute(self._reads.embeddings, values))
        return await diverse(
            query_vector, found, dict(stored), limit, diversity, self._config.metric
        )

    @operation("search_text", retry=Retry.ALWAYS)
    async def search_text(
        self,
        text: str,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        where: ColumnElement[bool] | None = None,
        session: Session | None = None,
    ) -> list[RetrievalResult]:
        """Find the chunks that contain words of a text; see `VectorStore.search_text`.

        The table's text search configurations determine the words. Scores are those of ``ts_rank``.

        Args:
            where, session: See :meth:`search`.
        """
        values, conditions, condition = await self._check_text_search(
            text, namespace, limit, filter, where
        )
        transaction = self._transaction(session)
        if self._never_holds(conditions):
            return []
        statement, bound = self._searches.text_search(conditions, condition, values)
        async with self._executor.statement("search_text", transaction, namespace) as connection:
            found = await fetch_all(await run_statement(connection, statement, bound))
        return await rows.results_from(found, "text")

    @operation("search_hybrid", retry=Retry.ALWAYS)
    async def search_hybrid(
        self,
        text: str,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        vector_weight: float = 1.0,
        text_weight: float = 1.0,
        depth: int = DEPTH,
        where: ColumnElement[bool] | None = None,
        ef_search: int | None = None,
        rerank: int | None = None,
        session: Session | None = None,
    ) -> list[RetrievalResult]:
        """Find the best chunks by vector and by words; see `VectorStore.search_hybrid`.

        Args:
            where, ef_search, rerank, session: See :meth:`search`.
        """
        check_fusion(vector_weight, text_weight, depth)
        check_ef_search(ef_search)
        check_rerank(rerank)
        query = self._check_query(query_vector)
        values, conditions, condition = await self._check_text_search(
            text, namespace, limit, filter, where
        )
        transaction = self._transaction(session)
        if self._never_holds(conditions):
            return []
        await self._read_index("search_hybrid", transaction)
        depth = max(depth, limit)
        exact = self._searches.must_be_exact(query)
        fetch = self._searches.rows_to_fetch(depth, exact=exact, rerank=rerank)
        search_parameters = self._searches.search_parameters(
            depth, ef_search, filtered=bool(conditions) or condition is not None, fetch=fetch
        )
        values |= {
            **search_parameters,
            "depth": search_parameters["limit"],
            "limit": values["limit"],
            "query": to_wire_one(query, self._config.column_type),
            "vector_weight": float(vector_weight),
            "text_weight": float(text_weight),
        }
        statement, bound = self._searches.hybrid_search(conditions, fetch, condition, values)
        async with self._executor.statement("search_hybrid", transaction, namespace) as connection:
            found = await fetch_all(await run_statement(connection, statement, bound))
        return await rows.results_from(found, "hybrid")

    @operation("search_namespaces", retry=Retry.NEVER)
    async def search_namespaces(
        self,
        query_vector: Vector,
        namespaces: Sequence[str],
        limit: int = 10,
        filter: FilterLike = None,
        **options: Any,
    ) -> list[tuple[str, RetrievalResult]]:
        """Search several namespaces; see `VectorStore.search_namespaces`.

        Args:
            **options: Further arguments of :meth:`search`, `session` among them.
        """
        return await super().search_namespaces(query_vector, namespaces, limit, filter, **options)

    async def _check_text_search(
        self, text: str, namespace: str, limit: int, filter: Any, where: Any
    ) -> tuple[dict[str, Any], Conditions, ColumnElement[bool] | None]:
        """Check the arguments of a search by words.

        Returns:
            The parameters of the statement, the filter, and the SQL condition.
        """
        check_full_text(self._config.languages)
        check_text(text, field="text")
        check_namespace(namespace)
        check_limit(limit)
        conditions = await self._conditions_of(filter)
        values = {
            "namespace": namespace,
            "text": text[:QUERY_CHARACTERS],
            "limit": limit,
            **conditions.parameters,
        }
        return values, conditions, check_condition(where, self._executor.table)

    def search_statement(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int = 10,
        filter: FilterLike = None,
        *,
        where: ColumnElement[bool] | None = None,
        exact: bool = False,
        ef_search: int | None = None,
        rerank: int | None = None,
    ) -> Select[Model, float]:
        """Return a search as a statement that selects rows of (mapped chunk, score).

        Execute it, or extend it like any select::

            statement = (
                store.search_statement(vector, "acme", where=Passage.lang == "en")
                .join(Passage.document)
                .add_columns(Document.title)
                .options(contains_eager(Passage.document))
            )
            for passage, score, title in await session.execute(statement):
                ...

        A subquery finds the nearest `limit` chunks, through the ANN index or exactly, as
        :meth:`search` does. What you add to the statement does not change how. **A condition that
        you add, by ``.where()`` or by an inner join without a matching row, removes rows from these
        `limit` chunks.** Put conditions that must apply before the limit into `filter` or `where`.
        `where` may refer to the chunk's columns, and to other tables in ``exists(...)`` or
        ``Passage.document.has(...)``. ``.options(with_loader_criteria(Passage, ...))`` applies
        before the limit, too.

        The rows are in the order of :meth:`search`; call ``.order_by(None)`` before you choose
        another order. The settings of the scan end with the statement. The statement holds its
        values, so any session or connection can execute it, also a synchronous one. You can execute
        it repeatedly, and use it twice within one statement. Do not pass it to ``stream()`` or a
        server-side cursor in a transaction in which you query vectors yourself before the cursor is
        read.

        Args:
            query_vector, namespace, limit, filter: See `VectorStore.search`.
            where: Additional SQL condition.
            exact: Compare with every matching chunk, without the ANN index.
            ef_search, rerank: Replace the store's `hnsw_ef_search` and `rerank` for this statement.
                The statement uses the measured values (see :meth:`apply_recall`) and the kind of
                the index that the store has read last. The store reads them with its first
                operation, and again once a minute.

        Raises:
            InvalidInputError: An argument is invalid.
        """
        query, condition = self._check_search(
            query_vector, namespace, limit, where, exact, ef_search, rerank
        )
        conditions = Conditions(self._checked_filter(filter))
        if conditions.weight > MAX_STATEMENT_PARAMETERS:
            raise InvalidInputError(
                f"search_statement accepts at most {MAX_STATEMENT_PARAMETERS} keys and values in a "
                "filter, because connections of the application keep the statement; use search(), "
                "or put a condition into where=",
                field="filter",
            )
        exact = exact or self._searches.must_be_exact(query)
        statement: Select[Model, float] = self._searches.composable_search(
            query,
            namespace,
            limit,
            conditions,
            fetch=self._searches.rows_to_fetch(limit, exact=exact, rerank=rerank),
            ef_search=ef_search,
            where=condition,
        )
        return statement

    def _check_query(self, query_vector: Vector) -> Float32Array:
        config = self._config
        return check_query_vector(
            query_vector, config.dimensions, config.column_type, config.metric
        )

    def _finds_nothing(self, query: Float32Array) -> bool:
        """Return whether no chunk has a score for a query: a zero vector has no direction."""
        if self._config.metric != "cosine" or query[0]:
            return False
        return not query.any()  # any() takes as long as all other checks

    def _check_search(
        self,
        query_vector: Vector,
        namespace: str,
        limit: int,
        where: Any,
        exact: bool,
        ef_search: int | None,
        rerank: int | None,
    ) -> tuple[Float32Array, ColumnElement[bool] | None]:
        """Check the arguments of a search, except the filter.

        Returns:
            The query vector and the SQL condition.
        """
        check_namespace(namespace)
        check_limit(limit)
        check_boolean(exact, field="exact")
        check_ef_search(ef_search)
        check_rerank(rerank)
        query = self._check_query(query_vector)
        return query, check_condition(where, self._executor.table)
