"""Contract tests for writing, searching, deleting and iterating, and for invalid input."""

from __future__ import annotations

import math
import random
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import pytest

from cenote.errors import CenoteError, DimensionMismatchError, InvalidInputError
from cenote.filters.language import Filter, meta
from cenote.models import Chunk, EmbeddedChunk
from cenote.stores.protocol import VectorStore
from cenote.testing.filters import BAD_FILTERS, FILTERED, FILTERS
from cenote.testing.helpers import (
    NAMESPACE,
    SQL_LOOKALIKES,
    Awkward,
    MakeStore,
    embedded,
    expected_score,
    found,
    stored,
)


class BasicContract:
    """Part of `cenote.testing.VectorStoreContract`."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """An async function ``(dimensions, **options)`` that returns an empty store."""
        raise NotImplementedError("subclasses must override the fixture make_store")

    @pytest.fixture
    async def store(self, make_store: MakeStore) -> Any:
        """An empty store of four dimensions."""
        return await make_store(4)

    def test_is_a_vector_store(self, store: VectorStore) -> None:
        """The store has the methods of the protocol."""
        assert isinstance(store, VectorStore)

    # -- namespaces

    @pytest.mark.parametrize("namespace", ["", None, 7, b"acme", "a\x00b", "\ud800", "n" * 1025])
    async def test_every_call_rejects_an_invalid_namespace(
        self, store: VectorStore, namespace: Any
    ) -> None:
        """A namespace is non-empty text of at most 1,024 bytes."""
        with pytest.raises(InvalidInputError) as error:
            await store.upsert([embedded("a")], namespace)
        assert error.value.field == "namespace"
        with pytest.raises(InvalidInputError):
            await store.search([1, 0, 0, 0], namespace)
        with pytest.raises(InvalidInputError):
            await store.delete(["a"], namespace)
        with pytest.raises(InvalidInputError):
            await store.delete_namespace(namespace)
        with pytest.raises(InvalidInputError):
            store.get_all_chunks(namespace)

    async def test_namespaces_are_separate(self, store: VectorStore) -> None:
        """Two namespaces can hold the same id, and no call reaches the other namespace."""
        await store.upsert([embedded("a", content="acme's")], "acme")
        await store.upsert([embedded("a", content="globex's"), embedded("b")], "globex")
        assert [chunk.content for chunk in await stored(store, "acme")] == ["acme's"]
        assert await found(store, [1, 0, 0, 0], "acme") == ["a"]
        await store.delete(["a", "b"], "acme")
        assert await stored(store, "acme") == []
        assert await found(store, [1, 0, 0, 0], "globex") == ["a", "b"]
        await store.upsert([embedded("c")], "acme")
        await store.delete_namespace("globex")
        assert await stored(store, "globex") == []
        assert await found(store, [1, 0, 0, 0], "globex") == []
        assert await found(store, [1, 0, 0, 0], "acme") == ["c"]

    @pytest.mark.parametrize(
        "name", [*SQL_LOOKALIKES, " ", "ACME", "acme ", "%", "_", "\u00e9", "e\u0301"]
    )
    async def test_names_are_not_interpreted(self, store: VectorStore, name: str) -> None:
        """Names that look like SQL, like a pattern or almost like another name are plain text."""
        await store.upsert([embedded("other")], NAMESPACE)
        chunk = embedded(name, document_id=name, content=name, metadata={name: name})
        await store.upsert([chunk], name)
        assert await stored(store, name) == [chunk.chunk]
        assert await found(store, [1, 0, 0, 0], name, filter=meta(name) == name) == [name]
        await store.delete([name], name)
        assert await stored(store, name) == []
        assert len(await stored(store)) == 1

    # -- scores and order

    async def test_score_of_the_metric(self, store: VectorStore) -> None:
        """With cosine, scores range from 1 to -1, and lengths do not matter."""
        vectors: dict[str, list[float]] = {
            "same": [3, 4, 0, 0],
            "longer": [300, 400, 0, 0],
            "near": [4, 3, 0, 0],
            "across": [0, 0, 7, 0],
            "opposite": [-0.375, -0.5, 0, 0],
        }
        query = [0.75, 1, 0, 0]
        await store.upsert([embedded(id, vector) for id, vector in vectors.items()], NAMESPACE)
        results = await store.search(query, NAMESPACE)
        scores = {result.chunk.id: result.score for result in results}
        order, expected = {
            "cosine": (["longer", "same", "near", "across", "opposite"], [1, 1, 0.96, 0, -1]),
            "inner_product": (
                ["longer", "same", "near", "across", "opposite"],
                [625, 6.25, 6, 0, -0.78125],
            ),
            "l2": (
                ["opposite", "same", "near", "across", "longer"],
                [-1.875, -3.75, -3.8161, -7.1107, -498.75],
            ),
        }[store.metric]
        assert list(scores) == order
        assert list(scores.values()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert scores == pytest.approx(
            {id: expected_score(store.metric, query, vector) for id, vector in vectors.items()},
            rel=1e-6,
            abs=1e-6,
        )
        assert all(type(score) is float for score in scores.values())
        if store.metric == "cosine":
            assert all(-1 <= score <= 1 for score in scores.values())
        assert {result.retriever for result in results} == {"vector"}

    async def test_ties_are_ordered_by_id_in_code_point_order(self, store: VectorStore) -> None:
        """Ids also decide at the limit, regardless of the order of the chunks."""
        ids = ["a", "B", "b", "1", "10", "2", "ä", "z", "Z", "\U0001f600", "\uffee", "a b", "a-b"]
        await store.upsert([embedded(chunk_id) for chunk_id in ids], NAMESPACE)
        for limit in (3, 7, len(ids)):
            assert await found(store, [1, 1, 0, 0], NAMESPACE, limit) == sorted(ids)[:limit]

    async def test_identical_vectors_score_identically(self, store: VectorStore) -> None:
        """Identical vectors have equal scores, wherever they are stored."""
        generator = np.random.default_rng(1)
        vectors = generator.standard_normal((300, 4))
        vectors[::7] = vectors[0]
        chunks = [embedded(f"{row:03}", vector) for row, vector in enumerate(vectors)]
        await store.upsert(chunks, NAMESPACE)
        results = await store.search(vectors[0] + 0.1, NAMESPACE, 300)
        twins = [result for result in results if int(result.chunk.id) % 7 == 0]
        assert len({result.score for result in twins}) == 1
        assert [result.chunk.id for result in twins] == sorted(r.chunk.id for r in twins)

    async def test_search_agrees_with_arithmetic(self, store: VectorStore) -> None:
        """Order and scores agree with a computation in 64 bits."""
        generator = np.random.default_rng(2)
        vectors = generator.standard_normal((400, 4)).astype(
            np.float16
        )  # values that halfvec stores exactly
        query = generator.standard_normal(4).astype(np.float16)
        await store.upsert(
            [embedded(f"{row:03}", vector) for row, vector in enumerate(vectors)], NAMESPACE
        )
        scores = np.array([expected_score(store.metric, query, vector) for vector in vectors])
        best = np.argsort(-scores)[:25]
        results = await store.search(query, NAMESPACE, 25)
        assert [int(result.chunk.id) for result in results] == best.tolist()
        assert [result.score for result in results] == pytest.approx(
            scores[best], rel=1e-6, abs=1e-6
        )

    # -- number of results

    @pytest.mark.parametrize("limit", [1, 9, 10, 11, 250, 10_000])
    async def test_number_of_results(self, store: VectorStore, limit: int) -> None:
        """Exactly min(limit, matching), with and without a filter, next to a larger tenant."""
        generator = np.random.default_rng(3)

        def chunks(count: int) -> list[EmbeddedChunk]:
            return [
                embedded(str(row), generator.standard_normal(4), metadata={"even": row % 2 == 0})
                for row in range(count)
            ]

        await store.upsert(chunks(500), "large")
        await store.upsert(chunks(20), NAMESPACE)
        query = generator.standard_normal(4)
        assert len(await store.search(query, NAMESPACE, limit)) == min(limit, 20)
        assert len(await store.search(query, "large", limit)) == min(limit, 500)
        even = await store.search(query, NAMESPACE, limit, {"even": True})
        assert len(even) == min(limit, 10)
        assert all(result.chunk.metadata["even"] for result in even)

    @pytest.mark.parametrize(
        "limit", [0, -1, 10_001, 2**70, 1.0, "3", None, True, math.nan, -(2**70)]
    )
    async def test_invalid_limits_are_rejected(self, store: VectorStore, limit: Any) -> None:
        """The limit must be an integer from 1 to 10,000."""
        with pytest.raises(InvalidInputError) as error:
            await store.search([1, 0, 0, 0], NAMESPACE, limit)
        assert error.value.field == "limit"

    async def test_unknown_namespaces_are_empty(self, store: VectorStore) -> None:
        """Reading a namespace that was never written to is not an error."""
        assert await store.search([1, 0, 0, 0], "nobody") == []
        assert await stored(store, "nobody") == []

    # -- vectors

    @pytest.mark.parametrize(
        "vector",
        [
            (1, 2, 3, 4),
            [1.0, 2.0, 3.0, 4.0],
            np.array([1, 2, 3, 4], dtype=np.float16),
            np.array([1, 2, 3, 4], dtype=np.float64),
            np.array([1, 2, 3, 4], dtype=">f4"),
            np.array([1, 2, 3, 4], dtype=np.int64),
            np.array([1, 0, 2, 0, 3, 0, 4, 0], dtype=np.float32)[::2],
        ],
        ids=lambda vector: f"{type(vector).__name__}-{getattr(vector, 'dtype', '')}",
    )
    async def test_vectors_of_many_types_are_accepted(
        self, store: VectorStore, vector: Any
    ) -> None:
        """Vectors can be lists, tuples, or arrays of any number type and stride."""
        await store.upsert([embedded("a", vector)], NAMESPACE)
        (result,) = await store.search(vector, NAMESPACE)
        expected = expected_score(store.metric, vector, vector)
        assert result.score == pytest.approx(expected, rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize(
        "vector",
        [
            [math.nan, 0, 0, 0],
            [0, math.inf, 0, 0],
            [0, 0, -math.inf, 0],
            [1e39, 0, 0, 0],
            [3e38, 0, 0, 0],
            [1e20, 0, 0, 0],
            [1e-23, 0, 0, 0],
            [1e-30] * 4,
            ["1", "0", "0", "0"],
            [None, 0, 0, 0],
            [[1, 0, 0, 0]],
            [[1], [0], [0], [0]],
            [1j, 0, 0, 0],
            "1000",
            None,
            7.0,
            Awkward(),
        ],
        ids=str,
    )
    async def test_invalid_vectors_are_rejected(self, store: VectorStore, vector: Any) -> None:
        """The error names the chunk, and nothing of the batch is stored."""
        batch = [embedded("good"), embedded("bad", vector), embedded("last")]
        with pytest.raises(InvalidInputError) as error:
            await store.upsert(batch, NAMESPACE)
        assert (error.value.chunk_id, error.value.field) == ("bad", "embedding")
        assert "'bad'" in str(error.value)
        assert await stored(store) == []
        with pytest.raises(InvalidInputError) as error:
            await store.search(vector, NAMESPACE)
        assert error.value.field == "query_vector"

    @pytest.mark.parametrize("length", [0, 3, 5, 400])
    async def test_wrong_dimensions_are_rejected(self, store: VectorStore, length: int) -> None:
        """The error has both numbers, and nothing of the batch is stored."""
        batch = [embedded("good"), embedded("bad", [0.5] * length)]
        with pytest.raises(DimensionMismatchError) as error:
            await store.upsert(batch, NAMESPACE)
        assert error.value.chunk_id == "bad"
        assert (error.value.expected, error.value.actual) == (4, length)
        assert await stored(store) == []
        with pytest.raises(DimensionMismatchError) as error:
            await store.search([0.5] * length, NAMESPACE)
        assert (error.value.expected, error.value.actual) == (4, length)

    async def test_an_invalid_chunk_that_a_later_chunk_replaces_is_rejected(
        self, store: VectorStore
    ) -> None:
        """Every chunk of the batch is checked, also one that would not be stored."""
        with pytest.raises(DimensionMismatchError):
            await store.upsert([embedded("a", [1.0]), embedded("a")], NAMESPACE)
        assert await stored(store) == []

    async def test_zero_vectors(self, store: VectorStore) -> None:
        """With cosine, no search returns a zero vector, and a search by one finds nothing.

        With the other metrics, zero vectors are vectors like all others.
        """
        zero, one = [0, -0.0, 0, 0], [1, 0, 0, 0]
        await store.upsert([embedded("zero", zero), embedded("a", one)], NAMESPACE)
        assert [chunk.id for chunk in await stored(store)] == ["a", "zero"]
        by_one, by_zero = ["a"], []
        if store.metric != "cosine":
            by_one, by_zero = ["a", "zero"], ["a", "zero"]
        if store.metric == "l2":
            by_zero = ["zero", "a"]
        for options in ({}, {"limit": 2, "filter": {}}, {"per_document": 2}):
            assert await found(store, one, NAMESPACE, **options) == by_one
            assert await found(store, zero, NAMESPACE, **options) == by_zero
        many = await store.search_many([one, [0, 0, 0, 0]], NAMESPACE)
        assert [[result.chunk.id for result in results] for results in many] == [by_one, by_zero]
        for query in (one, zero) if store.metric != "cosine" else ():
            for result in await store.search(query, NAMESPACE):
                vector = zero if result.chunk.id == "zero" else one
                expected = expected_score(store.metric, query, vector)
                # -0.0 would be printed as a score below 0.
                assert (result.score, str(result.score)) == (expected, str(expected))
        await store.upsert([embedded("zero", one), embedded("a", zero)], NAMESPACE)
        swapped = {"a": "zero", "zero": "a"}
        assert await found(store, one, NAMESPACE, 1) == [swapped[by_one[0]]]

    # -- writing

    async def test_upsert_replaces_by_id(self, store: VectorStore) -> None:
        """Every field of the stored chunk is replaced."""
        await store.upsert([embedded("a", metadata={"old": 1}), embedded("b")], NAMESPACE)
        new = embedded(
            "a", [0, 1, 0, 0], document_id="other", content="new", position=9, metadata={"new": 2}
        )
        await store.upsert([new], NAMESPACE)
        assert (await stored(store))[0] == new.chunk
        assert await found(store, [0, 1, 0, 0], NAMESPACE, 1) == ["a"]
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"old": 1}) == []
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"new": 2}) == ["a"]

    async def test_repeating_an_upsert_changes_nothing(self, store: VectorStore) -> None:
        """Chunks and results stay the same."""
        batch = [embedded(str(number), [1, number, 0, 0]) for number in range(5)]
        await store.upsert(batch, NAMESPACE)
        before = await stored(store), await store.search([1, 1, 0, 0], NAMESPACE)
        await store.upsert(batch, NAMESPACE)
        assert (await stored(store), await store.search([1, 1, 0, 0], NAMESPACE)) == before

    async def test_the_last_duplicate_in_a_batch_wins(self, store: VectorStore) -> None:
        """The result is the same as if the chunks were written one after another."""
        batch = [
            embedded("a", content="first", metadata={"n": 1}),
            embedded("b"),
            embedded("a", [0, 1, 0, 0], content="last", metadata={"n": 2}),
        ]
        await store.upsert(batch, NAMESPACE)
        assert [(chunk.id, chunk.content) for chunk in await stored(store)] == [
            ("a", "last"),
            ("b", "some text"),
        ]
        assert await found(store, [0, 1, 0, 0], NAMESPACE, 1) == ["a"]
        assert await found(store, [0, 1, 0, 0], NAMESPACE, filter={"n": 1}) == []

    async def test_a_batch_may_be_any_iterable(self, store: VectorStore) -> None:
        """A generator is accepted as a batch."""
        batch: Any = (embedded(id) for id in "ab")
        await store.upsert(batch, NAMESPACE)
        assert await store.count(NAMESPACE) == 2

    async def test_an_empty_batch_is_accepted(self, store: VectorStore) -> None:
        """Writing or deleting an empty list does nothing."""
        await store.upsert([], NAMESPACE)
        await store.delete([], NAMESPACE)
        assert await stored(store) == []

    @pytest.mark.parametrize("batch", [None, 7, "abc", [None], ["a"], [Chunk], embedded("a")])
    async def test_invalid_batches_are_rejected(self, store: VectorStore, batch: Any) -> None:
        """A batch must contain embedded chunks only."""
        with pytest.raises(InvalidInputError) as error:
            await store.upsert(batch, NAMESPACE)
        assert error.value.field == "embedded_chunks"

    @pytest.mark.parametrize("size", [1, 15, 16, 17, 700])
    async def test_batches_of_any_size(self, store: VectorStore, size: int) -> None:
        """Batches of any size and order can be mixed with deletions."""
        order = list(range(size))
        random.Random(size).shuffle(order)
        await store.upsert([embedded(f"{n:03}", [1, n, 0, 0]) for n in order], NAMESPACE)
        await store.delete([f"{n:03}" for n in range(0, size, 3)], NAMESPACE)
        await store.upsert([embedded(f"{n:03}x", [1, n, 1, 0]) for n in order], NAMESPACE)
        expected = [f"{n:03}" for n in range(size) if n % 3] + [f"{n:03}x" for n in range(size)]
        assert [chunk.id for chunk in await stored(store)] == sorted(expected)
        assert sorted(await found(store, [1, 1, 1, 1], NAMESPACE, 10_000)) == sorted(expected)

    async def test_objects_are_not_shared(self, store: VectorStore) -> None:
        """Changes to the caller's objects or to results do not reach the store."""
        vector = np.array([1, 0, 0, 0], dtype=np.float32)
        metadata = {"tags": ["x"], "deep": {"n": 1}}
        await store.upsert([embedded("a", vector, metadata=metadata)], NAMESPACE)
        vector[:] = [0, 1, 0, 0]
        metadata["tags"].append("y")  # type: ignore[attr-defined]
        for _ in range(2):
            (result,) = await store.search([1, 0, 0, 0], NAMESPACE)
            assert result.score == pytest.approx(0 if store.metric == "l2" else 1)
            assert result.chunk.metadata == {"tags": ["x"], "deep": {"n": 1}}
            result.chunk.metadata["deep"]["n"] = 2
            (chunk,) = await stored(store)
            assert chunk.metadata == {"tags": ["x"], "deep": {"n": 1}}
            chunk.metadata.clear()

    # -- text

    @pytest.mark.parametrize("field", ["id", "document_id", "content", "embedding_model"])
    @pytest.mark.parametrize("text", ["a\x00b", "\x00", "a\ud800", "\udfff", None, 7, b"bytes"])
    async def test_unstorable_strings_are_rejected(
        self, store: VectorStore, field: str, text: Any
    ) -> None:
        """NUL characters, lone surrogates and other types are errors; nothing is written."""
        arguments: dict[str, Any] = {"chunk_id": "bad", field: text}
        if field == "id":
            arguments["chunk_id"] = arguments.pop("id")
        with pytest.raises(InvalidInputError) as error:
            await store.upsert([embedded("good"), embedded(**arguments)], NAMESPACE)
        assert error.value.field == field
        if field != "id":
            assert error.value.chunk_id == "bad"
        assert await stored(store) == []

    @pytest.mark.parametrize("field", ["id", "document_id"])
    @pytest.mark.parametrize("letter", ["k", "ß", "語", "\U0001f600"])
    async def test_keys_have_at_most_1024_bytes(
        self, store: VectorStore, field: str, letter: str
    ) -> None:
        """The limit counts bytes of UTF-8, not characters; 1,024 bytes are accepted."""
        longest = letter * (1024 // len(letter.encode()))
        arguments: dict[str, Any] = {"chunk_id": "a"}
        name = "chunk_id" if field == "id" else field
        await store.upsert([embedded(**{**arguments, name: longest})], longest)
        assert [getattr(chunk, field) for chunk in await stored(store, longest)] == [longest]
        with pytest.raises(InvalidInputError) as error:
            await store.upsert([embedded(**{**arguments, name: longest + letter})], NAMESPACE)
        assert error.value.field == field
        assert len(str(error.value)) < 400

    @pytest.mark.parametrize("position", [0, 1, -1, 2**31, 2**63 - 1, -(2**63)])
    async def test_positions_are_64_bit(self, store: VectorStore, position: int) -> None:
        """Every 64-bit integer comes back unchanged."""
        await store.upsert([embedded("a", position=position)], NAMESPACE)
        assert (await stored(store))[0].position == position

    async def test_enumeration_members_are_stored_by_value(self, store: VectorStore) -> None:
        """Instances of subclasses of int and str come back as plain int and str."""

        class Number(IntEnum):
            ONE = 1

        class Word(str, Enum):  # noqa: UP042 - its str() is not its value
            A = "a"

        item = embedded(
            Word.A,
            document_id=Word.A,
            content=Word.A,
            position=Number.ONE,
            metadata={Word.A: [Word.A, Number.ONE, np.float64(0.5)]},
        )
        await store.upsert([item], NAMESPACE)
        (chunk,) = await stored(store)
        values = [chunk.id, chunk.document_id, chunk.content, chunk.position]
        assert values == ["a", "a", "a", 1]
        assert [type(value) for value in values] == [str, str, str, int]
        assert chunk.metadata == {"a": ["a", 1, 0.5]}
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"a": ["a", 1, 0.5]}) == ["a"]

    @pytest.mark.parametrize("position", [2**63, -(2**63) - 1, 1.0, "1", None, True])
    async def test_invalid_positions_are_rejected(self, store: VectorStore, position: Any) -> None:
        """The error names the chunk."""
        with pytest.raises(InvalidInputError) as error:
            await store.upsert([embedded("bad", position=position)], NAMESPACE)
        assert (error.value.field, error.value.chunk_id) == ("position", "bad")

    @pytest.mark.parametrize(
        "content",
        ["", " ", "\t\r\n", "\u0001\u007f", "ﬀ", "e\u0301", "\ufeff", "\u202eabc", "x" * 100_000],
        ids=ascii,
    )
    async def test_content_comes_back_unchanged(self, store: VectorStore, content: str) -> None:
        """Content is neither trimmed nor normalised."""
        await store.upsert([embedded("a", content=content)], NAMESPACE)
        (result,) = await store.search([1, 0, 0, 0], NAMESPACE)
        assert result.chunk.content == content

    # -- metadata

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            False,
            0,
            -1,
            2**53 + 1,
            10**400,
            0.1,
            -1.5,
            5e-324,
            1e15,
            123456789.123456789,
            "",
            "text",
            "\U0001f600",
            "e\u0301",
            "null",
            "1",
            [],
            {},
            [1, "two", None, [3.5, {"four": []}]],
            {"a": {"b": {"c": [1, 2, {"d": None}]}}, "": ""},
        ],
        ids=lambda value: ascii(value)[:40],
    )
    async def test_metadata_comes_back_equal(self, store: VectorStore, value: Any) -> None:
        """Values come back equal and with the same types, and a filter finds them."""
        metadata = {"value": value, "list": [value], "": 0}
        await store.upsert([embedded("a", metadata=metadata)], NAMESPACE)
        (chunk,) = await stored(store)
        assert chunk.metadata == metadata
        assert type(chunk.metadata["value"]) is type(value)
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"value": value}) == ["a"]

    @pytest.mark.parametrize(
        ("value", "returned"),
        [
            (1e16, 10**16),
            (1e23, 10**23),
            (-1.5e300, -15 * 10**299),
            (1.7976931348623157e308, 17976931348623157 * 10**292),
        ],
    )
    async def test_large_floats_come_back_as_integers(
        self, store: VectorStore, value: float, returned: int
    ) -> None:
        """jsonb stores decimals; a filter with the float or with the integer finds the chunk."""
        await store.upsert([embedded("a", metadata={"value": value})], NAMESPACE)
        (chunk,) = await stored(store)
        assert chunk.metadata == {"value": returned}
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"value": value}) == ["a"]
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"value": returned}) == ["a"]

    @pytest.mark.parametrize(
        "value",
        [
            math.nan,
            math.inf,
            -math.inf,
            "a\x00",
            "\ud800",
            (1, 2),
            {1, 2},
            b"bytes",
            object(),
            np.float32(1),
            {1: "one"},
            {None: 1},
            {"a\x00": 1},
            {"\udc00": 1},
            10**5000,
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_values_that_are_not_json_are_rejected(
        self, store: VectorStore, value: Any
    ) -> None:
        """At any depth of metadata or filters. The error names the chunk or the key."""
        for metadata in ({"value": value}, {"value": [{"deep": value}]}):
            with pytest.raises(InvalidInputError) as error:
                await store.upsert([embedded("good"), embedded("bad", metadata=metadata)], "ns")
            assert (error.value.chunk_id, error.value.field) == ("bad", "metadata")
            with pytest.raises(InvalidInputError) as error:
                await store.search([1, 0, 0, 0], "ns", filter=metadata)
            assert error.value.field == "filter"
            assert "'value'" in str(error.value)
            with pytest.raises(InvalidInputError):
                store.get_all_chunks("ns", metadata)
        assert await stored(store, "ns") == []

    @pytest.mark.parametrize("metadata", [None, [], "{}", 7, [("a", 1)]], ids=str)
    async def test_metadata_and_filters_must_be_dicts(
        self, store: VectorStore, metadata: Any
    ) -> None:
        """Other types are rejected; None is a filter that matches every chunk."""
        chunk = Chunk(id="bad", document_id="d", content="", metadata=metadata)
        item = EmbeddedChunk(chunk=chunk, embedding=[1, 0, 0, 0], embedding_model="m")
        with pytest.raises(InvalidInputError) as error:
            await store.upsert([item], NAMESPACE)
        assert (error.value.chunk_id, error.value.field) == ("bad", "metadata")
        if metadata is not None:
            with pytest.raises(InvalidInputError) as error:
                await store.search([1, 0, 0, 0], NAMESPACE, filter=metadata)
            assert error.value.field == "filter"

    async def test_metadata_nests_up_to_200_levels_deep(self, store: VectorStore) -> None:
        """Deeper nesting and cycles are rejected."""
        value: Any = 1
        for _ in range(199):
            value = [value]
        await store.upsert([embedded("a", metadata={"value": value})], NAMESPACE)
        assert (await stored(store))[0].metadata == {"value": value}
        assert await found(store, [1, 0, 0, 0], NAMESPACE, filter={"value": value}) == ["a"]
        cycle: list[Any] = []
        cycle.append(cycle)
        for too_deep in ([value], cycle):
            with pytest.raises(InvalidInputError):
                await store.upsert([embedded("b", metadata={"value": too_deep})], NAMESPACE)
            with pytest.raises(InvalidInputError):
                await store.search([1, 0, 0, 0], NAMESPACE, filter={"value": too_deep})

    # -- filters

    @pytest.mark.parametrize(
        ("filter", "matches"),
        [
            (None, "abcdefghij"),
            ({}, "abcdefghij"),
            ({"k": 1}, "ab"),
            ({"k": 1.0}, "ab"),
            ({"k": True}, "c"),
            ({"k": False}, ""),
            ({"k": "1"}, "d"),
            ({"k": None}, "e"),
            ({"k": [1, 2]}, "f"),
            ({"k": [1.0, 2]}, "f"),
            ({"k": [2, 1]}, ""),
            ({"k": [1]}, ""),
            ({"k": []}, ""),
            ({"k": {"x": 1, "y": [None]}}, "g"),
            ({"k": {"y": [None], "x": 1.0}}, "g"),
            ({"k": {"x": 1}}, ""),
            ({"k": {}}, ""),
            ({"K": 1}, ""),
            ({"missing": None}, ""),
            ({"k": 1, "l": 2}, "b"),
            ({"l": 2, "k": [1, 2]}, ""),
            ({"k.x": 1}, "i"),
            ({"": "empty"}, "j"),
            ({"": ""}, ""),
            ({"k": "$eq"}, ""),
            ({"k": list(range(40_000))}, ""),
            ({f"k{n}": [n] for n in range(2_000)}, ""),
        ],
        ids=lambda value: str(value)[:30],
    )
    async def test_filter_means_json_equality(
        self, store: VectorStore, filter: dict[str, Any] | None, matches: str
    ) -> None:
        """A chunk matches if it has every key with an equal value, in searches and iterations."""
        metadata: dict[str, dict[str, Any]] = {
            "a": {"k": 1},
            "b": {"k": 1.0, "l": 2},
            "c": {"k": True},
            "d": {"k": "1"},
            "e": {"k": None},
            "f": {"k": [1, 2]},
            "g": {"k": {"x": 1, "y": [None]}},
            "h": {},
            "i": {"k.x": 1},
            "j": {"": "empty"},
        }
        await store.upsert([embedded(key, metadata=value) for key, value in metadata.items()], "n")
        assert await found(store, [1, 0, 0, 0], "n", filter=filter) == list(matches)
        assert [chunk.id for chunk in await stored(store, "n", filter)] == list(matches)

    @pytest.mark.parametrize(("filter", "matches"), FILTERS, ids=lambda value: str(value)[:40])
    async def test_filter_expressions(self, store: VectorStore, filter: Any, matches: str) -> None:
        """Every predicate and its opposite match what `cenote.filters.predicates` defines."""
        await store.upsert(
            [
                embedded(
                    key,
                    metadata=metadata,
                    document_id="doc%" + key,
                    position=position,
                    content=("Ünder" if key == "e" else "under") + key,
                )
                for position, (key, metadata) in enumerate(FILTERED.items())
            ],
            "n",
        )
        others = "".join(key for key in FILTERED if key not in matches)
        opposite = ~filter if isinstance(filter, Filter) else {"$not": filter}
        for condition, expected in ((filter, matches), (opposite, others)):
            assert [chunk.id for chunk in await stored(store, "n", condition)] == list(expected)
            assert await found(store, [1, 0, 0, 0], "n", filter=condition) == list(expected)

    @pytest.mark.parametrize("filter", BAD_FILTERS, ids=lambda make: str(BAD_FILTERS.index(make)))
    async def test_invalid_filters_are_rejected(self, store: VectorStore, filter: Any) -> None:
        """Building the filter raises, or the search raises before it reads anything."""
        with pytest.raises(InvalidInputError) as error:
            await store.search([1, 0, 0, 0], "n", filter=filter())
        assert error.value.field == "filter"

    # -- deleting

    async def test_deleting_unknown_chunks_is_not_an_error(self, store: VectorStore) -> None:
        """Unknown ids and unknown namespaces are ignored."""
        await store.delete(["nothing"], NAMESPACE)
        await store.delete_namespace(NAMESPACE)
        await store.upsert([embedded("a"), embedded("b")], NAMESPACE)
        await store.delete(["a", "nothing", "a"], NAMESPACE)
        assert [chunk.id for chunk in await stored(store)] == ["b"]
        await store.delete_namespace(NAMESPACE)
        await store.delete_namespace(NAMESPACE)
        assert await stored(store) == []

    @pytest.mark.parametrize("ids", ["abc", None, 7, [7], [None], ["a\x00"], ["k" * 1025]], ids=str)
    async def test_invalid_ids_are_rejected(self, store: VectorStore, ids: Any) -> None:
        """A plain string is rejected, too: it would mean its letters."""
        await store.upsert([embedded("a")], NAMESPACE)
        with pytest.raises(InvalidInputError) as error:
            await store.delete(ids, NAMESPACE)
        assert error.value.field == "chunk_ids"
        assert len(await stored(store)) == 1

    async def test_a_deleted_id_can_be_written_again(self, store: VectorStore) -> None:
        """Nothing of the deleted chunk is left."""
        await store.upsert([embedded("a", metadata={"old": 1}), embedded("b")], NAMESPACE)
        await store.delete(["a"], NAMESPACE)
        await store.upsert([embedded("c", [0, 1, 0, 0]), embedded("a", [0, 0, 1, 0])], NAMESPACE)
        assert await found(store, [0, 0, 1, 0], NAMESPACE, 1) == ["a"]
        assert await found(store, [0, 0, 1, 0], NAMESPACE, filter={"old": 1}) == []
        assert [chunk.id for chunk in await stored(store)] == ["a", "b", "c"]

    # -- iterating

    async def test_iteration_is_by_id_in_code_point_order(self, store: VectorStore) -> None:
        """The order holds over several pages, with and without a filter."""
        ids = [f"{letter}{number}" for letter in "aBä\U0001f600Z" for number in range(260)]
        random.Random(4).shuffle(ids)
        chunks = [embedded(chunk_id, metadata={"n": len(chunk_id)}) for chunk_id in ids]
        await store.upsert(chunks, NAMESPACE)
        assert [chunk.id for chunk in await stored(store)] == sorted(ids)
        long = sorted(chunk_id for chunk_id in ids if len(chunk_id) == 4)
        assert [chunk.id for chunk in await stored(store, filter={"n": 4})] == long

    async def test_iteration_tolerates_changes(self, store: VectorStore) -> None:
        """A chunk that stays appears exactly once while others are added and deleted."""
        stay = [f"{number:04}" for number in range(1, 2400, 2)]
        await store.upsert([embedded(chunk_id) for chunk_id in stay], NAMESPACE)
        await store.upsert([embedded(f"{n:04}") for n in range(0, 2400, 4)], NAMESPACE)
        seen: list[str] = []
        async for chunk in store.get_all_chunks(NAMESPACE):
            if len(seen) % 100 == 0:
                number = int(chunk.id)
                await store.delete([f"{n:04}" for n in range(0, 2400, 4)], NAMESPACE)
                await store.upsert([embedded(f"{number:04}x"), embedded(chunk.id)], NAMESPACE)
            seen.append(chunk.id)
        assert len(seen) == len(set(seen))
        assert set(stay) <= set(seen)
        assert seen == sorted(seen)

    async def test_an_iteration_can_be_abandoned(self, store: VectorStore) -> None:
        """The caller can stop early, and two iterations can run at the same time."""
        await store.upsert([embedded(f"{n:04}") for n in range(600)], NAMESPACE)
        async for chunk in store.get_all_chunks(NAMESPACE):
            assert chunk.id == "0000"
            break
        pairs = 0
        async for outer in store.get_all_chunks(NAMESPACE):
            async for inner in store.get_all_chunks(NAMESPACE):
                assert (outer.id, inner.id) == ("0000", "0000")
                pairs += 1
                break
            break
        assert pairs == 1

    # -- models and errors

    async def test_a_store_can_require_an_embedding_model(self, make_store: MakeStore) -> None:
        """A chunk with the embedding of another model is rejected; the error names the chunk."""
        store = await make_store(4, embedding_model="new")
        await store.upsert([embedded("a", embedding_model="new")], NAMESPACE)
        batch = [embedded("b", embedding_model="new"), embedded("c", embedding_model="old")]
        with pytest.raises(InvalidInputError) as error:
            await store.upsert(batch, NAMESPACE)
        assert (error.value.chunk_id, error.value.field) == ("c", "embedding_model")
        assert [chunk.id for chunk in await stored(store)] == ["a"]

    async def test_messages_contain_no_content(self, store: VectorStore) -> None:
        """Errors and reprs contain no content, metadata or vectors."""
        secret = "s3cret"  # noqa: S105
        attempts: list[dict[str, Any]] = [
            {"content": secret + "\x00"},
            {"content": secret, "embedding": [1.0, 0.1234567]},
            {"content": secret, "embedding": [math.nan, 0.1234567, 0, 0]},
            {"content": secret, "metadata": {secret: {secret: math.nan}}},
            {"content": secret, "metadata": {secret: object()}},
            {"content": secret, "metadata": {secret + "\x00": 1}},
            {"content": secret, "metadata": {"a": secret}, "position": 2**70},
        ]
        for attempt in attempts:
            with pytest.raises(CenoteError) as error:
                await store.upsert([embedded("bad", **attempt)], NAMESPACE)
            assert secret not in str(error.value) + repr(error.value)
            assert "1234567" not in str(error.value)
        item = embedded("a", [0.1234567, 0, 0, 0], content=secret, metadata={"a": secret})
        await store.upsert([item], NAMESPACE)
        results = await store.search([1, 0, 0, 0], NAMESPACE)
        assert secret not in repr(item) + repr(results) + repr(store)
        assert "1234567" not in repr(item)
