"""Contract tests for score limits, documents, and searches with several vectors or namespaces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cenote.errors import InvalidInputError
from cenote.filters.language import meta
from cenote.stores.protocol import VectorStore
from cenote.testing.helpers import NAMESPACE, embedded, expected_score, found

NEAR = [1.0, 0.0, 0.0, 0.0]
LIKE_NEAR = [0.99, 0.1, 0.0, 0.0]
FARTHER = [0.9, 0.0, 0.9, 0.0]
FAR = [0.0, 1.0, 0.0, 0.0]
OPPOSITE = [-1.0, 0.0, 0.0, 0.0]


class SearchContract:
    """Part of `cenote.testing.VectorStoreContract`."""

    async def test_min_score(self, store: VectorStore) -> None:
        """A score equal to the minimum matches."""
        vectors = {"a": NEAR, "b": LIKE_NEAR, "c": FAR, "d": OPPOSITE}
        await store.upsert([embedded(id, vector) for id, vector in vectors.items()], NAMESPACE)
        limits = [0, -0.2, -1.5, -2] if store.metric == "l2" else [1, 0.9, 0.0, -1]
        for min_score, expected in zip(
            [*limits, None], ["a", "ab", "abc", "abcd", "abcd"], strict=True
        ):
            assert await found(store, NEAR, NAMESPACE, min_score=min_score) == list(expected)
            (many,) = await store.search_many([NEAR], NAMESPACE, min_score=min_score)
            assert [result.chunk.id for result in many] == list(expected)
        min_score = -0.5 if store.metric == "l2" else 0.5
        assert await found(store, FAR, NAMESPACE, 1, min_score=min_score) == ["c"]

    async def test_range_of_min_score(self, store: VectorStore) -> None:
        """A number that no score can reach is an error."""
        invalid: list[Any] = [math.nan, math.inf, -math.inf, 10**400, True, "0", [0]]
        if store.metric == "cosine":
            invalid += [-1.001, 1.001]
        elif store.metric == "l2":
            invalid += [0.001, 1]
        for min_score in invalid:
            for search in (
                store.search(NEAR, NAMESPACE, min_score=min_score),
                store.search_many([NEAR], NAMESPACE, min_score=min_score),
            ):
                with pytest.raises(InvalidInputError) as error:
                    await search
                assert error.value.field == "min_score"
        if store.metric != "cosine":
            await store.upsert([embedded("a", FAR)], NAMESPACE)
            assert await found(store, OPPOSITE, NAMESPACE, min_score=-1e308) == ["a"]

    async def test_vectors_find_themselves(self, store: VectorStore) -> None:
        """The score of a vector for itself is exact, whatever its length and its rounding.

        It is 1 with cosine and 0 with l2.
        """
        generator = np.random.default_rng(11)
        matrix = generator.standard_normal((200, 4)) * 10 ** generator.uniform(-3, 3, (200, 1))
        vectors = list(matrix)
        ids = [f"{number:03}" for number in range(200)]
        await store.upsert([*map(embedded, ids, vectors)], NAMESPACE)
        own = {"cosine": 1.0, "l2": 0.0}.get(store.metric)
        together = await store.search_many(vectors, NAMESPACE, 200, min_score=own)
        for id, vector, results in zip(ids, vectors, together, strict=True):
            assert id in await found(store, vector, NAMESPACE, 200, min_score=own)
            scores = {result.chunk.id: result.score for result in results}
            assert id in scores
            if own is None:
                expected = expected_score(store.metric, vector, vector)
                assert scores[id] == pytest.approx(expected, rel=1e-3)  # halfvec rounds
            else:
                assert set(scores.values()) == {own}

    async def test_per_document(self, store: VectorStore) -> None:
        """The nearest chunks of each document match, however many chunks it has."""
        generator = np.random.default_rng(3)
        many = [
            embedded(
                f"many{n:04}",
                [1 - generator.random() / 10, *(generator.random(3) / 3)],
                document_id="many",
            )
            for n in range(1500)
        ]
        few = [
            embedded(f"few{n}", [0.8 - n / 100, n / 10, 0.5, 0.5], document_id=f"few{n % 3}")
            for n in range(9)
        ]
        await store.upsert(many + few, NAMESPACE)
        best = await store.search(NEAR, NAMESPACE, 10, per_document=1)
        assert [result.chunk.document_id for result in best] == ["many", "few0", "few1", "few2"]
        exact = await found(store, NEAR, NAMESPACE, 1)
        assert [best[0].chunk.id] == exact
        two = await found(store, NEAR, NAMESPACE, 5, per_document=2)
        assert two[2:] == ["few0", "few1", "few2"]
        everything = await store.search(NEAR, NAMESPACE, 2000, per_document=1500)
        assert len(everything) == 1509

    async def test_search_many_equals_single_searches(self, store: VectorStore) -> None:
        """Also for zero vectors and without any vectors, on the exact path and on the ANN path."""
        generator = np.random.default_rng(5)
        for namespace, count in (("small", 40), ("large", 1300)):
            vectors = generator.standard_normal((count, 4))
            chunks = [
                embedded(f"{number:04}", vector, metadata={"even": number % 2 == 0})
                for number, vector in enumerate(vectors)
            ]
            await store.upsert(chunks, namespace)
            queries = [*generator.standard_normal((7, 4)), np.zeros(4), vectors[3]]
            for filter in (None, {"even": True}, meta("even") == False):  # noqa: E712
                together = await store.search_many(queries, namespace, 5, filter)
                one_by_one = [await store.search(query, namespace, 5, filter) for query in queries]
                assert [[result.chunk for result in results] for results in together] == [
                    [result.chunk for result in results] for results in one_by_one
                ]
            least = -0.5 if store.metric == "l2" else 0.5
            near = await store.search_many(queries, namespace, 50, min_score=least)
            assert all(result.score >= least for results in near for result in results)
            assert any(near)
        assert await store.search_many([], "small") == []
        assert await store.search_many([NEAR, NEAR], "nobody") == [[], []]

    async def test_diverse_results(self, store: VectorStore) -> None:
        """With more diversity, a farther chunk is chosen before a near duplicate."""
        vectors = {"a": NEAR, "b": LIKE_NEAR, "c": FARTHER, "zero": [0.0] * 4}
        await store.upsert([embedded(id, vector) for id, vector in vectors.items()], NAMESPACE)

        async def chosen(limit: int, **options: Any) -> list[str]:
            results = await store.search_diverse(NEAR, NAMESPACE, limit, **options)
            return [result.chunk.id for result in results]

        # The chunk zero is no candidate with cosine, and the farthest one with the other metrics.
        zero = [] if store.metric == "cosine" else ["zero"]
        assert await chosen(2, diversity=0) == ["a", "b"]
        assert await chosen(2, diversity=0.7, candidates=3) == ["a", "c"]
        assert await chosen(2, diversity=0.7, candidates=2) == ["a", "b"]
        assert await chosen(9, diversity=0.7) == ["a", *zero, "c", "b"]
        assert await store.search_diverse(NEAR, "nobody") == []
        by_zero = await store.search_diverse([0.0] * 4, NAMESPACE)
        assert {result.chunk.id for result in by_zero} == ({*"abc", *zero} if zero else set())

    async def test_several_namespaces(self, store: VectorStore) -> None:
        """Only the named namespaces are searched, each once."""
        await store.upsert([embedded("a", NEAR), embedded("b", FAR)], "one")
        await store.upsert([embedded("a", LIKE_NEAR), embedded("c", NEAR)], "two")
        await store.upsert([embedded("d", NEAR)], "three")
        results = await store.search_namespaces(NEAR, ["two", "one", "two"], 3)
        assert [(namespace, result.chunk.id) for namespace, result in results] == [
            ("one", "a"),
            ("two", "c"),
            ("two", "a"),
        ]
        assert await store.search_namespaces(NEAR, []) == []

    @pytest.mark.parametrize(
        ("call", "field_name"),
        [
            (lambda store: store.search(NEAR, "n", per_document=0), "per_document"),
            (lambda store: store.search(NEAR, "n", per_document=True), "per_document"),
            (lambda store: store.search_many(NEAR, "n"), "query_vector"),
            (lambda store: store.search_many([NEAR, [1.0]], "n"), "query_vector"),
            (lambda store: store.search_many([NEAR] * 1001, "n"), "query_vectors"),
            (lambda store: store.search_many([NEAR], "n", 0), "limit"),
            (lambda store: store.search_many([], "n", 0), "limit"),
            (lambda store: store.search_many([NEAR], "n", 10_001), "limit"),
            (lambda store: store.search_many([], "n", 5, 7), "filter"),
            (lambda store: store.search_diverse(NEAR, "n", diversity=2), "diversity"),
            (lambda store: store.search_diverse(NEAR, "n", candidates=3), "candidates"),
            (lambda store: store.search_diverse(NEAR, "n", candidates=10_001), "candidates"),
            (lambda store: store.search_diverse(NEAR, "n", 10_001), "limit"),
            (lambda store: store.list_chunks("n", limit=10_001), "limit"),
            (lambda store: store.search_namespaces(NEAR, "n"), "namespaces"),
            (lambda store: store.search_namespaces(NEAR, [["n"]]), "namespace"),
            (lambda store: store.search_namespaces(NEAR, [], "x"), "limit"),
            (lambda store: store.search_namespaces(NEAR, [], 10_001), "limit"),
        ],
    )
    async def test_invalid_search_arguments_are_named(
        self, store: VectorStore, call: Any, field_name: str
    ) -> None:
        """The error names the invalid argument."""
        with pytest.raises(InvalidInputError) as error:
            await call(store)
        assert error.value.field == field_name
