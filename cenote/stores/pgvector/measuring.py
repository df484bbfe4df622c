"""Recall measurements of `PgVectorStore`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cenote.errors import InvalidInputError, VectorStoreError
from cenote.models import NamespaceRecall, RecallPoint, RecallReport, RetrievalResult
from cenote.postgres.ann_index import AnnIndex
from cenote.progress import RecallProgress, Report, send_report
from cenote.stores.pgvector.base import Model
from cenote.stores.pgvector.reading import Reading
from cenote.stores.pgvector.retry import Retry, operation
from cenote.stores.pgvector.searching import Searching
from cenote.stores.pgvector.sql.vector_search import (
    DEFAULT_EF_SEARCH,
    EXACT_UP_TO,
    rows_to_fetch,
    search_parameters,
)
from cenote.types import Float32Array, IndexKind, Vector
from cenote.validation.arguments import (
    MAX_EF_SEARCH,
    MAX_RERANK,
    as_list,
    check_integer_argument,
    check_namespace,
    is_number,
)
from cenote.validation.vectors import checked_vectors

MEASURED_NAMESPACES = 10
"""Number of namespaces that are measured if the caller names none."""

SAMPLED_ROWS = 100
"""Number of rows of each namespace that are sampled as queries.

With 100 queries for 10 results and a recall of .98, the standard error is about .005.
"""

EF_SEARCH_VALUES = (40, 60, 100, 150, 200, 300)
"""Default values of ``ef_search`` to measure."""

RERANK_VALUES = (100, 200, 500, 1000)
"""Default values of `rerank` to measure for an index of kind ``"bit"``."""

DEFAULT_TARGET = 0.98
"""Default recall that `apply_recall` requires of every measured namespace."""


@dataclass(slots=True, frozen=True, order=True)
class _Value:
    """Arguments of a measured search. `rerank` is None unless the index is of kind ``"bit"``."""

    ef_search: int
    rerank: int | None


@dataclass(slots=True)
class _Measurement:
    """Durations in milliseconds, and recall of each query, by measured value."""

    exact: list[float] = field(default_factory=list)
    ann: dict[_Value, list[float]] = field(default_factory=dict)
    recall: dict[_Value, list[float]] = field(default_factory=dict)

    def add(self, value: _Value, milliseconds: float, recall: float) -> None:
        self.ann.setdefault(value, []).append(milliseconds)
        self.recall.setdefault(value, []).append(recall)

    def points(self) -> tuple[RecallPoint, ...]:
        return tuple(
            RecallPoint(
                ef_search=value.ef_search,
                rerank=value.rerank,
                recall=fmean(self.recall[value]),
                p50_ms=median(self.ann[value]),
            )
            for value in sorted(self.ann)
        )


class Measuring(Reading[Model], Searching[Model]):
    """The methods of `PgVectorStore` that measure recall."""

    @operation("measure_recall", retry=Retry.NEVER)
    async def measure_recall(
        self,
        namespaces: Sequence[str] | None = None,
        queries: Sequence[Vector] | NDArray[np.floating[Any]] | None = None,
        limit: int = 10,
        ef_search: Sequence[int] | None = None,
        *,
        rerank: Sequence[int] | None = None,
        progress: Report | None = None,
    ) -> RecallReport:
        """Measure recall and speed of the ANN index at several values of one setting.

        The setting is ``ef_search`` if the index is of kind ``"vector"`` or ``"halfvec"``, and
        `rerank` if it is of kind ``"bit"``: its recall depends on the number of candidates that are
        compared again with their stored vectors.

        Each query is searched for exactly, and then through the index with each value, by
        :meth:`search` without a filter. **The exact searches read every vector of the namespace for
        every query**; other operations continue meanwhile. Nothing is written.

        The report contains the values that the searches really used. A search raises a small
        ``ef_search`` to `limit` and 40 spare rows: with 10 results, 40 is reported as 50. It rounds
        `rerank` up to 1, 2 or 5 times a power of ten, and raises it in the same way. With each
        `rerank`, the searches use an ``ef_search`` of 150, raised to `rerank`.

        Args:
            namespaces: Tenants to search in. By default the 10 with the most chunks (equal numbers
                in order of their names), among those with more than 1,000: a search compares up to
                1,000 chunks exactly, so its recall is always 1. The report lists the others. On a
                table with row-level security, the default requires a role with BYPASSRLS.
            queries: Query vectors, shape (n, dimensions), for every namespace. By default 100
                stored chunks of each namespace, always the same ones as long as the chunks stay the
                same. A sampled chunk is left out of its own results, exact and ANN, so a search for
                10 results is judged by the 9 others. Vectors of real queries are better: they may
                be farther from the stored vectors, and harder to search for.
            limit: Number of results of each search. At least 2 without `queries`.
            ef_search: Values to measure, 1 to 1,000 each; by default 40, 60, 100, 150, 200 and 300.
                Not for an index of kind ``"bit"``.
            rerank: Values to measure, 1 to 10,000 each; by default 100, 200, 500 and 1,000. Only
                for an index of kind ``"bit"``.
            progress: Called with a `RecallProgress` after each query. Errors that it raises are
                logged.

        Raises:
            InvalidInputError: An argument is invalid or does not suit the kind of the index, or a
                namespace of `namespaces` has no chunks.
            VectorStoreError: The table has no valid ANN index, the index was replaced meanwhile,
                row-level security hides rows from the role, or the server raised an error.
        """
        self._reject_if_bound("measure_recall", "call it on the store that is not bound")
        check_integer_argument(limit, field="limit", least=2 if queries is None else 1)
        ef_search = _check_values(ef_search, field="ef_search", most=MAX_EF_SEARCH)
        rerank = _check_values(rerank, field="rerank", most=MAX_RERANK)
        vectors = None if queries is None else self._check_queries(queries)
        rows = await self._count_rows(namespaces)
        index = await self._read_ann_index()
        values = self._effective_values(index.kind, ef_search, rerank, limit)
        large = [name for name, number in rows.items() if number > EXACT_UP_TO]
        measured = large[:MEASURED_NAMESPACES] if namespaces is None else large
        samples: dict[str, dict[str, Float32Array]] = {}
        if vectors is None:
            samples = {name: await self._sample(name) for name in measured}
            total = sum(map(len, samples.values()))
        else:
            total = len(measured) * len(vectors)
        overall = _Measurement()
        by_namespace = []
        number = 0
        for name in measured:
            own = _Measurement()
            asked: Iterable[tuple[str | None, Float32Array]]
            asked = samples[name].items() if vectors is None else [(None, row) for row in vectors]
            for chunk_id, vector in asked:
                # A search may be slower after a slow one, so the order changes with every query.
                order = random.sample(values, len(values))
                await self._compare(name, chunk_id, vector, limit, order, (own, overall))
                number += 1
                send_report(progress, RecallProgress(queries=number, of=total))
            by_namespace.append(
                NamespaceRecall(
                    namespace=name,
                    rows=rows[name],
                    queries=len(own.exact),
                    exact_p50_ms=median(own.exact),
                    points=own.points(),
                )
            )
        if (await self._read_ann_index()).oid != index.oid:
            raise VectorStoreError(
                f"the ANN index of table {self._executor.table.fullname!r} was replaced while its "
                "recall was measured; measure again"
            )
        return RecallReport(
            table=self._model.__table__.fullname,
            kind=index.kind,
            limit=limit,
            sampled=vectors is None,
            namespaces=tuple(by_namespace),
            exact=tuple(name for name, number in rows.items() if number <= EXACT_UP_TO),
            left_out=tuple(large[len(measured) :]),
            exact_p50_ms=median(overall.exact) if overall.exact else None,
            points=overall.points(),
        )

    @operation("apply_recall", retry=Retry.NEVER)
    async def apply_recall(self, report: RecallReport, target: float = DEFAULT_TARGET) -> int:
        """Store the smallest measured value that reaches a recall, as a comment on the ANN index.

        The value is an ``ef_search``, or a `rerank` and the ``ef_search`` that belongs to it for an
        index of kind ``"bit"``. The smallest value counts with which **every** measured namespace
        reaches the target, not only their mean. The comment records the value, the recall of the
        worst namespace, the number of rows of the table and the date. Stores that were created
        without `hnsw_ef_search` or `rerank` read it with their first operation, and once a minute;
        this store uses it at once. `cenote check` reports an index whose table has grown tenfold
        since.

        pg_dump copies the comment. It disappears with the index, also when `reindex`, `repartition`
        or a bulk load replaces the index. To remove it by hand, run ``COMMENT ON INDEX ... IS
        NULL``.

        Args:
            report: Report of :meth:`measure_recall` on this table.
            target: Recall that every measured namespace must reach, more than 0 and at most 1.

        Returns:
            The stored ``ef_search``; the stored `rerank` for an index of kind ``"bit"``.

        Raises:
            InvalidInputError: An argument is invalid.
            VectorStoreError: No measured value reaches the target, or row-level security hides rows
                from the role, which needs BYPASSRLS.
            MigrationError: The role does not own the index, the index has a comment of yours, it is
                of another kind than the measured one, there is no valid ANN index, or the database
                raised an error.
        """
        self._reject_if_bound("apply_recall", "call it on the store that is not bound")
        if not isinstance(report, RecallReport):
            raise InvalidInputError(
                f"report must be a RecallReport, not {type(report).__name__}", field="report"
            )
        table = self._model.__table__.fullname
        if report.table != table:
            raise InvalidInputError(
                f"the report is about table {report.table!r}, not {table!r}", field="report"
            )
        if not is_number(target, 0, 1) or target == 0:
            raise InvalidInputError(
                "target must be a number greater than 0 and at most 1", field="target"
            )
        point = report.smallest(target)
        if point is None:
            raise VectorStoreError(not_reached(report, target))
        async with self._executor.statement("apply_recall", None, None) as connection:
            await self._executor.check_sees_all_rows(connection)
            rows = (await connection.execute(self._reads.rows)).scalar_one()
        # This imports alembic, which a running application does not need.
        from cenote.inspection.recall_comment import MeasuredRecall
        from cenote.maintenance.recall import record_recall

        measured = MeasuredRecall(
            ef_search=point.ef_search,
            rerank=point.rerank,
            recall=point.recall,
            rows=rows,
            date=datetime.now(UTC).date(),
        )
        await record_recall(self._engine, self._config, measured, report.kind)
        self._searches.measured = measured
        return report.value(point)

    def _effective_values(
        self,
        kind: IndexKind,
        ef_search: Sequence[int] | None,
        rerank: Sequence[int] | None,
        limit: int,
    ) -> list[_Value]:
        """Return the values that searches will use, in ascending order.

        Raises:
            InvalidInputError: A setting was passed that searches of this kind do not have.
        """
        if kind != "bit":
            if rerank is not None:
                raise InvalidInputError(
                    f"rerank applies only to an ANN index of kind 'bit', and this one is of kind "
                    f"{kind!r}; pass values of ef_search",
                    field="rerank",
                )
            parameters = (
                search_parameters(limit, value) for value in ef_search or EF_SEARCH_VALUES
            )
            return sorted({_Value(int(values["ef_search"]), None) for values in parameters})
        if ef_search is not None:
            raise InvalidInputError(
                "the recall of an ANN index of kind 'bit' depends on rerank; pass values of "
                "rerank, not of ef_search",
                field="ef_search",
            )
        # Not the ef_search of an earlier measurement, because that one may be too large.
        fetched = {rows_to_fetch(limit, rerank=value) for value in rerank or RERANK_VALUES}
        return sorted(
            _Value(
                ef_search=int(search_parameters(limit, max(DEFAULT_EF_SEARCH, rows))["ef_search"]),
                rerank=min(rows, MAX_RERANK),
            )
            for rows in fetched
        )

    def _check_queries(self, queries: Sequence[Vector] | NDArray[np.floating[Any]]) -> Float32Array:
        vectors = as_list(queries, "queries must be a list of vectors", field="queries")
        if not vectors:
            raise InvalidInputError("queries must not be empty", field="queries")
        config = self._config
        checked = checked_vectors(
            vectors, [None] * len(vectors), config.dimensions, config.column_type, config.metric
        )
        if config.metric == "cosine" and not checked.any(axis=1).all():
            raise InvalidInputError(
                "queries must not contain zero vectors, which have no direction", field="queries"
            )
        return checked

    async def _count_rows(self, namespaces: Sequence[str] | None) -> dict[str, int]:
        """Return the number of chunks of each namespace, largest first."""
        if namespaces is None:
            rows = await self.list_namespaces()
        else:
            names = as_list(namespaces, "namespaces must be a list of texts", field="namespaces")
            if not names:
                raise InvalidInputError("namespaces must not be empty", field="namespaces")
            for name in names:
                check_namespace(name)
            rows = {name: await self.count(name) for name in names}
            for position, name in enumerate(names):
                if not rows[name]:
                    raise InvalidInputError(
                        f"namespaces[{position}] has no chunks", field="namespaces"
                    )
        return dict(sorted(rows.items(), key=lambda item: (-item[1], item[0])))

    async def _read_ann_index(self) -> AnnIndex:
        """Return the live ANN index, and make the next searches use it.

        Raises:
            VectorStoreError: There is no valid ANN index, so every search is exact.
        """
        from cenote.inspection.live_table import read_table

        name, schema = self._config.table_name, self._config.schema
        self._executor.forget_table()  # the next statement reads the kind of the index
        async with self._executor.statement("measure_recall", None, None) as connection:
            live = await connection.run_sync(partial(read_table, name=name, schema=schema))
        if live is None or live.search_index is None:
            hint = "run cenote reindex"
            if live is not None and live.index_kind == "none":
                hint = "with index='none', every search is exact"
            raise VectorStoreError(
                f"table {self._executor.table.fullname!r} has no valid ANN index to measure: {hint}"
            )
        return live.search_index

    async def _sample(self, namespace: str) -> dict[str, Float32Array]:
        """Return the vectors of sampled rows by id.

        Zero vectors are left out unless the metric is l2: under cosine they find nothing, and under
        inner product every search for one is exact.
        """
        values = {"namespace": namespace, "number": SAMPLED_ROWS}
        async with self._executor.statement("measure_recall", None, namespace) as connection:
            ids = [*(await connection.execute(self._reads.sample, values)).scalars()]
        vectors = await self.get_embeddings(ids, namespace)
        sample = {
            chunk_id: vectors[chunk_id]
            for chunk_id in ids
            if chunk_id in vectors and (self._config.metric == "l2" or vectors[chunk_id].any())
        }
        if not sample:
            raise VectorStoreError(
                "the sampled chunks of a namespace were deleted or have zero vectors; pass queries"
            )
        return sample

    async def _compare(
        self,
        namespace: str,
        chunk_id: str | None,
        vector: Float32Array,
        limit: int,
        values: Sequence[_Value],
        measurements: tuple[_Measurement, ...],
    ) -> None:
        """Search for one vector in all ways, and add what was measured.

        Args:
            namespace: Tenant to search in.
            chunk_id: Id of the sampled chunk, which is left out of its results; None for a vector
                of the caller.
            vector: Query vector.
            limit: Number of results.
            values: Values to measure, in the order of the searches.
            measurements: Measurements to add to.
        """
        begin = time.perf_counter()
        # The exact search finds one result more, because the chunk itself is left out.
        exact = await self.search(vector, namespace, limit + (chunk_id is not None), exact=True)
        milliseconds = (time.perf_counter() - begin) * 1000
        for measurement in measurements:
            measurement.exact.append(milliseconds)
        for value in values:
            begin = time.perf_counter()
            # Not for one result more: a search for 11 results fetches twice as many candidates as
            # one for 10, so its recall would be too good.
            found = await self.search(
                vector, namespace, limit, ef_search=value.ef_search, rerank=value.rerank
            )
            milliseconds = (time.perf_counter() - begin) * 1000
            recall = _recall(exact, found, limit, chunk_id)
            for measurement in measurements:
                measurement.add(value, milliseconds, recall)


def _recall(
    exact: Sequence[RetrievalResult],
    found: Sequence[RetrievalResult],
    limit: int,
    chunk_id: str | None,
) -> float:
    """Return the share of the exact results that a search has found.

    A result counts if it is as near as the last expected one: which of several equally near chunks
    are found does not matter.
    """
    others = [result for result in found if result.chunk.id != chunk_id]
    expected = [result for result in exact if result.chunk.id != chunk_id]
    # If the search has found the chunk itself, one result less is expected.
    del expected[limit - (len(found) - len(others)) :]
    if not expected:
        return 1.0
    hits = sum(result.score >= expected[-1].score for result in others)
    return min(hits, len(expected)) / len(expected)


def not_reached(report: RecallReport, target: float) -> str:
    """Return the error message for a target that no measured value reaches."""
    setting = report.setting
    if not report.namespaces:
        return (
            "the report contains no measured namespace: searches compare up to "
            f"{EXACT_UP_TO:,} chunks exactly, and need no {setting}"
        )
    best = max(report.worst(), key=lambda point: point.recall)
    rebuild = "with a larger m (cenote reindex)"
    if report.kind == "bit":
        rebuild = "as another kind (cenote reindex --index halfvec, for up to 4,000 dimensions)"
    return (
        f"no measured {setting} reaches a recall of {target:g} in every namespace: the best is "
        f"{best.recall:.4f}, with {report.value(best)}; measure larger values, or rebuild the "
        f"index {rebuild}"
    )


def _check_values(values: Sequence[int] | None, *, field: str, most: int) -> list[int] | None:
    """Return the values of a setting as a list; None if the caller passed none.

    Raises:
        InvalidInputError: They are no list, or a value is not an integer from 1 to `most`.
    """
    if values is None:
        return None
    checked = as_list(values, f"{field} must be a list of integers", field=field)
    if not checked:
        raise InvalidInputError(f"{field} must not be empty", field=field)
    for value in checked:
        check_integer_argument(value, field=field, least=1, most=most)
    return checked
