"""What every store must do with the other shapes of a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cenote.errors import InvalidInputError
from cenote.filters import meta
from cenote.stores.base import VectorStore
from cenote.testing.helpers import NAMESPACE, embedded, found

NEAR = [1.0, 0.0, 0.0, 0.0]
LIKE_NEAR = [1.0, 0.1, 0.0, 0.0]
FARTHER = [1.0, 0.0, 0.9, 0.0]
FAR = [0.0, 1.0, 0.0, 0.0]
OPPOSITE = [-1.0, 0.0, 0.0, 0.0]


class SearchContract:
    """A part of `cenote.testing.VectorStoreContract`."""

    async def test_a_least_score(self, store: VectorStore) -> None:
        """Itself included."""
        vectors = {"a": NEAR, "b": LIKE_NEAR, "c": FAR, "d": OPPOSITE}
        await store.upsert([embedded(one, vector) for one, vector in vectors.items()], NAMESPACE)
        for least, expected in ((1, "a"), (0.9, "ab"), (0.0, "abc"), (-1, "abcd"), (None, "abcd")):
            assert await found(store, NEAR, NAMESPACE, min_score=least) == list(expected)
        assert await found(store, FAR, NAMESPACE, 1, min_score=0.5) == ["c"]

    async def test_places_of_documents(self, store: VectorStore) -> None:
        """The nearest of each, whatever the number of its chunks."""
        generator = np.random.default_rng(3)
        many = [
            embedded(f"many{n:04}", [1, *(generator.random(3) / 1000)], document_id="many")
            for n in range(1500)
        ]
        few = [
            embedded(f"few{n}", [1, n / 10, 0.5, 0.5], document_id=f"few{n % 3}") for n in range(9)
        ]
        await store.upsert(many + few, NAMESPACE)
        best = await store.search(NEAR, NAMESPACE, 10, per_document=1)
        assert [one.chunk.document_id for one in best] == ["many", "few0", "few1", "few2"]
        exact = await found(store, NEAR, NAMESPACE, 1)
        assert [best[0].chunk.id] == exact
        two = await found(store, NEAR, NAMESPACE, 5, per_document=2)
        assert two[2:] == ["few0", "few1", "few2"]
        everything = await store.search(NEAR, NAMESPACE, 2000, per_document=1500)
        assert len(everything) == 1509

    async def test_many_searches_are_searches(self, store: VectorStore) -> None:
        """The same as one by one, zero vectors and none at all included; exact or not."""
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
                one_by_one = [await store.search(one, namespace, 5, filter) for one in queries]
                assert [[r.chunk for r in one] for one in together] == [
                    [r.chunk for r in one] for one in one_by_one
                ]
            cut = await store.search_many(queries, namespace, 50, min_score=0.5)
            assert all(result.score >= 0.5 for one in cut for result in one)
        assert await store.search_many([], "small") == []
        assert await store.search_many([NEAR, NEAR], "nobody") == [[], []]

    async def test_diverse_results(self, store: VectorStore) -> None:
        """Near ones first, but not the same thing twice."""
        vectors = {"a": NEAR, "b": LIKE_NEAR, "c": FARTHER, "zero": [0.0] * 4}
        await store.upsert([embedded(one, vector) for one, vector in vectors.items()], NAMESPACE)

        async def chosen(limit: int, **options: Any) -> list[str]:
            results = await store.search_diverse(NEAR, NAMESPACE, limit, **options)
            return [one.chunk.id for one in results]

        assert await chosen(2, diversity=0) == ["a", "b"]
        assert await chosen(2, diversity=0.7) == ["a", "c"]
        assert await chosen(2, diversity=0.7, candidates=2) == ["a", "b"]
        assert await chosen(9, diversity=0.7) == ["a", "c", "b"]
        assert await store.search_diverse(NEAR, "nobody") == []
        assert await store.search_diverse([0.0] * 4, NAMESPACE) == []

    async def test_several_namespaces(self, store: VectorStore) -> None:
        """Those that are named, and no others."""
        await store.upsert([embedded("a", NEAR), embedded("b", FAR)], "one")
        await store.upsert([embedded("a", LIKE_NEAR), embedded("c", NEAR)], "two")
        await store.upsert([embedded("d", NEAR)], "three")
        results = await store.search_namespaces(NEAR, ["two", "one", "two"], 3)
        assert [(name, one.chunk.id) for name, one in results] == [
            ("one", "a"),
            ("two", "c"),
            ("two", "a"),
        ]
        assert await store.search_namespaces(NEAR, []) == []

    @pytest.mark.parametrize(
        ("call", "fault"),
        [
            (lambda store: store.search(NEAR, "n", min_score=2), "min_score"),
            (lambda store: store.search(NEAR, "n", min_score=float("nan")), "min_score"),
            (lambda store: store.search(NEAR, "n", per_document=0), "per_document"),
            (lambda store: store.search(NEAR, "n", per_document=True), "per_document"),
            (lambda store: store.search_many(NEAR, "n"), "query_vector"),
            (lambda store: store.search_many([NEAR, [1.0]], "n"), "query_vector"),
            (lambda store: store.search_many([NEAR], "n", 0), "limit"),
            (lambda store: store.search_many([], "n", 0), "limit"),
            (lambda store: store.search_many([], "n", 5, 7), "filter"),
            (lambda store: store.search_diverse(NEAR, "n", diversity=2), "diversity"),
            (lambda store: store.search_diverse(NEAR, "n", candidates=3), "candidates"),
            (lambda store: store.search_namespaces(NEAR, "n"), "namespaces"),
            (lambda store: store.search_namespaces(NEAR, [["n"]]), "namespace"),
            (lambda store: store.search_namespaces(NEAR, [], "x"), "limit"),
        ],
    )
    async def test_bad_shapes_are_named(self, store: VectorStore, call: Any, fault: str) -> None:
        """Whatever the call."""
        with pytest.raises(InvalidInputError) as error:
            await call(store)
        assert error.value.field == fault
