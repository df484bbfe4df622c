"""Both stores agree for each metric, also on zero, tiny, huge and equal vectors."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cenote import CenoteError, InMemoryVectorStore, PgVectorStore, VectorStore
from cenote.testing import embedded, expected_score
from cenote.types import Metric

METRICS: list[Metric] = ["cosine", "inner_product", "l2"]

# A few directions, so that exact ties are common. Two are almost equal.
_directions = np.random.default_rng(7).standard_normal((6, 4))
_directions[1] = _directions[0] * (1, 1, 1, 1.0001)
directions = st.sampled_from([*_directions.astype(np.float32), np.eye(4)[0], -np.eye(4)[0]])
ordinary = st.sampled_from([1.0, 1.0, -1.0, 0.5, 3.0, 100.0])
# Squared norms at and beyond both ends of the range of a 32-bit float.
extreme = st.sampled_from([0.0, 1e-3, 1e-10, 1e-16, 1e-17, 1e-18, 1e-19]) | st.sampled_from(
    [1e5, 1e12, 1e16, 1e18, 4e18, 1e19, 1e20]
)
ordinary_vectors = st.tuples(directions, ordinary)
vectors = ordinary_vectors | st.tuples(directions, extreme)


def _scaled(vector: tuple[Any, float]) -> Any:
    direction, factor = vector
    return (np.asarray(direction, dtype=np.float64) * factor).astype(np.float32)


@pytest.fixture(scope="module")
def stores(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[asyncio.Runner, dict[Metric, list[Any]]]]:
    """An event loop, and one store of each kind for each metric."""
    with asyncio.Runner() as runner:
        dsn = request.getfixturevalue("module_dsn")
        pairs: dict[Metric, list[Any]] = {}
        for metric in METRICS:
            table: dict[str, Any] = {"table_name": metric, "metric": metric, "index": "none"}
            postgres = runner.run(PgVectorStore.connect(dsn, 4, text_search="simple", **table))
            runner.run(postgres.apply_migrations())
            memory = InMemoryVectorStore(4, text_search="simple", metric=metric)
            pairs[metric] = [memory, postgres]
        yield runner, pairs
        for _, postgres in pairs.values():
            runner.run(postgres.close())


async def _answer(store: VectorStore, name: str, *arguments: Any, **options: Any) -> Any:
    try:
        return await getattr(store, name)(*arguments, **options)
    except CenoteError as error:
        return type(error), str(error), vars(error)


def _tolerance(metric: Metric, query: Any, vector: Any) -> float:
    """Return how much two scores of a vector may differ; see `VectorStore`."""
    if metric == "cosine":
        return 2e-6
    lengths = [float(np.linalg.norm(v.astype(np.float64))) for v in (query, vector)]
    return 2e-6 * (lengths[0] * lengths[1] if metric == "inner_product" else sum(lengths))


@pytest.mark.parametrize("metric", METRICS)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    stored=st.lists(ordinary_vectors, max_size=8) | st.lists(vectors, max_size=8),
    query=vectors,
    limit=st.integers(1, 9),
)
def test_scores_agree(
    stores: Any, metric: Metric, stored: list[Any], query: tuple[Any, float], limit: int
) -> None:
    """Both stores accept the same vectors, and return the same scores to the stated accuracy."""
    runner, pairs = stores
    rows = {f"{number}": _scaled(vector) for number, vector in enumerate(stored)}
    question = _scaled(query)

    async def compare() -> None:
        namespace = uuid.uuid4().hex
        chunks = [embedded(id, vector, content="word") for id, vector in rows.items()]
        answers = []
        for store in pairs[metric]:
            written = await _answer(store, "upsert", chunks, namespace)
            found = await _answer(store, "search", question, namespace, limit)
            many = await _answer(store, "search_many", [question], namespace, limit)
            assert many == ([found] if isinstance(found, list) else found)
            answers.append((written, found))
            if isinstance(found, list) and found:
                least = found[-1].score
                assert await store.search(question, namespace, limit, min_score=least) == found
            await store.delete_namespace(namespace)
        (in_memory, found), (in_postgres, found_in_postgres) = answers
        assert in_postgres == in_memory
        if not isinstance(found, list):
            assert found_in_postgres == found
            return
        assert len(found_in_postgres) == len(found)
        if in_memory is not None:  # the batch was rejected
            return
        exact = {
            id: expected_score(metric, question, vector)
            for id, vector in rows.items()
            if metric != "cosine" or (vector.any() and question.any())
        }
        assert len(found) == min(limit, len(exact))
        best = sorted(exact.values(), reverse=True)
        for results in (found, found_in_postgres):
            ids = [result.chunk.id for result in results]
            scores = [result.score for result in results]
            assert scores == sorted(scores, reverse=True)
            for place, result in enumerate(results):
                tolerance = _tolerance(metric, question, rows[result.chunk.id])
                assert result.score == pytest.approx(exact[result.chunk.id], abs=tolerance, rel=0)
                longest = max((_tolerance(metric, question, rows[id]) for id in rows), default=0)
                assert best[place] - exact[result.chunk.id] <= longest
            for first, second in pairwise(ids):
                if (rows[first] == rows[second]).all():
                    assert first < second

    runner.run(compare())


@pytest.mark.parametrize("length", [1.2e19, 1e-18])
def test_vectors_whose_squared_distances_leave_the_range(stores: Any, length: float) -> None:
    """With l2, distances of such vectors would be infinite, or too coarse."""
    runner, pairs = stores
    vector = [length, 0.0, 0.0, 0.0]
    for metric, both in pairs.items():
        for store in both:
            written = runner.run(_answer(store, "upsert", [embedded("a", vector)], "range"))
            found = runner.run(_answer(store, "search", vector, "range"))
            if metric == "l2":
                assert "chunk 'a' is too small or too large for metric='l2'" in written[1]
                assert "the query vector is too small or too large" in found[1]
            else:
                assert written is None
                assert [result.chunk.id for result in found] == ["a"]
