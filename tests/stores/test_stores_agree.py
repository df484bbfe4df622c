"""Both kinds of store return the same results in the same order, and raise the same errors."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cenote import (
    CenoteError,
    Filter,
    InMemoryVectorStore,
    PgVectorStore,
    VectorStore,
    field,
    meta,
)
from cenote.testing import embedded, stored
from cenote.validation.json import NotJSONError, canonical_json

# A few directions, one of them twice, so that exact ties are common and near ties are not.
_directions = np.random.default_rng(7).standard_normal((9, 4)).astype(np.float32)
DIRECTIONS = [*_directions.tolist(), _directions[0].tolist(), [0.0] * 4]

text_values = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
any_text = st.text(max_size=3) | text_values  # may contain NUL characters and surrogates
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.integers()
    | st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.1, 1e16, 1e23, 1e-7, 5e-324])
    | st.floats()
    | text_values
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["a", "b", "c"])
plain_filters = st.none() | st.dictionaries(keys, json_values, max_size=2)
ids = st.sampled_from(["1", "10", "2", "a", "A", "ä", "z", "\U0001f600", "\uffee"]) | any_text
vectors = st.sampled_from(DIRECTIONS)
bad_vectors = st.sampled_from([[1.0], [float("nan")] * 4, [1e-30] * 4, "abcd"])


def _chunks(vector: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        embedded,
        ids,
        vector,
        document_id=any_text,
        content=any_text,
        position=st.integers(-5, 5),
        metadata=st.dictionaries(keys, json_values, max_size=3),
    )


patterns = st.text(st.sampled_from("aAbñÑ%_\\"), max_size=5)
paths = st.lists(keys, min_size=1, max_size=3).map(tuple)
operators = st.one_of(
    st.tuples(st.sampled_from(["__eq__", "__ne__", "contains"]), json_values),
    st.tuples(st.sampled_from(["__lt__", "__le__", "__gt__", "__ge__"]), scalars),
    st.tuples(st.just("between"), scalars, scalars),
    st.tuples(
        st.sampled_from(["in_", "not_in", "any_of", "all_of"]), st.lists(json_values, max_size=3)
    ),
    st.tuples(
        st.sampled_from(["in_", "not_in", "any_of"]),
        st.lists(json_values, max_size=3).map(lambda some: [*some, *range(30)]),
    ),
    st.tuples(
        st.sampled_from(["in_", "any_of", "all_of"]),
        st.lists(json_values, min_size=1, max_size=2).map(lambda some: some * 25),
    ),
    st.tuples(st.sampled_from(["like", "ilike", "startswith"]), patterns),
    st.tuples(st.sampled_from(["exists", "is_null"])),
)
field_operators = st.one_of(
    st.tuples(st.sampled_from(["__eq__", "__ne__", "__lt__", "__ge__"]), any_text),
    st.tuples(st.sampled_from(["like", "ilike", "startswith"]), patterns),
    st.tuples(st.just("in_"), st.lists(any_text, max_size=3)),
)


def _expression_or_error(operand: Any, operator: tuple[Any, ...]) -> Any:
    """Return a filter expression, or the error raised by building it."""
    name, *arguments = operator
    try:
        return getattr(operand, name)(*arguments)
    except CenoteError as error:
        return error


simple = st.builds(
    lambda path, operator: _expression_or_error(meta(*path), operator), paths, operators
) | (
    st.builds(
        lambda name, operator: _expression_or_error(field(name), operator),
        st.sampled_from(["id", "document_id", "content"]),
        field_operators,
    )
)
expressions = st.recursive(
    simple.filter(lambda expression: isinstance(expression, Filter))
    | st.dictionaries(keys, json_values, min_size=1, max_size=2),
    lambda inner: (
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, max_size=3))
        | st.builds(lambda parts: {"$or": parts}, st.lists(inner, max_size=3))
        | st.builds(lambda part: {"$not": part}, inner)
    ),
    max_leaves=5,
)
filters = plain_filters | expressions

calls = st.one_of(
    st.tuples(st.just("upsert"), st.lists(_chunks(vectors), max_size=8)),
    st.tuples(st.just("upsert"), st.lists(_chunks(vectors | bad_vectors), max_size=3)),
    st.tuples(st.just("delete"), st.lists(ids, max_size=4)),
    st.tuples(st.just("delete_namespace")),
    st.tuples(st.just("search"), vectors | bad_vectors, st.integers(0, 12), filters),
    st.tuples(st.just("get_all_chunks"), filters),
)


async def answer(store: VectorStore, namespace: str, call: tuple[Any, ...]) -> Any:
    """Return the result of a call, or a description of the error that it raises."""
    name, *arguments = call
    try:
        if name == "search":
            vector, limit, filter = arguments
            results = await store.search(vector, namespace, limit, filter)
            return [(result.chunk, result.retriever) for result in results], [
                result.score for result in results
            ]
        if name == "get_all_chunks":
            return await stored(store, namespace, *arguments)
        return await getattr(store, name)(*arguments, namespace)
    except CenoteError as error:
        return type(error), str(error), vars(error)


@pytest.fixture(scope="module")
def stores(request: pytest.FixtureRequest) -> Iterator[tuple[asyncio.Runner, list[VectorStore]]]:
    """An event loop and one store of each kind."""
    with asyncio.Runner() as runner:
        dsn = request.getfixturevalue("module_dsn")
        table: dict[str, Any] = {"table_name": "simple", "text_search": "simple"}
        postgres = runner.run(PgVectorStore.connect(dsn, 4, **table))
        runner.run(postgres.apply_migrations())
        yield runner, [InMemoryVectorStore(4, text_search="simple"), postgres]
        runner.run(postgres.close())


@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(script=st.lists(calls, min_size=1, max_size=12))
def test_both_stores_agree(stores: Any, script: list[tuple[Any, ...]]) -> None:
    """Random calls with valid or invalid texts, metadata and filters return the same results."""
    runner, (memory, postgres) = stores
    namespace = uuid.uuid4().hex

    async def play() -> None:
        for call in [*script, ("get_all_chunks", None), ("search", DIRECTIONS[1], 12, None)]:
            in_memory = await answer(memory, namespace, call)
            in_postgres = await answer(postgres, namespace, call)
            if call[0] == "search" and isinstance(in_memory[1], list):
                assert in_postgres[0] == in_memory[0]
                assert in_postgres[1] == pytest.approx(in_memory[1], abs=1e-6)
            else:
                assert in_postgres == in_memory

    runner.run(play())


rich = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
storable = rich.filter(lambda value: _is_storable(value))


def _is_storable(value: Any) -> bool:
    try:
        canonical_json(value)
    except NotJSONError:
        return False
    return True


EXAMPLES = int(os.environ.get("CENOTE_TEST_FILTER_EXAMPLES", "500"))
FILTERS_PER_EXAMPLE = 5
CHUNKS = 12


@settings(
    max_examples=max(EXAMPLES // FILTERS_PER_EXAMPLE, 1),
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(
    metadata=st.tuples(*[st.dictionaries(keys, storable, max_size=3)] * CHUNKS),
    filters=st.tuples(*[expressions] * FILTERS_PER_EXAMPLE),
)
def test_filters_agree(stores: Any, metadata: Any, filters: Any) -> None:
    """Random filters match the same chunks (`CENOTE_TEST_FILTER_EXAMPLES` in total)."""
    runner, (memory, postgres) = stores
    namespace = uuid.uuid4().hex

    async def compare() -> None:
        chunks = [
            embedded(f"{number:02}", metadata=values, document_id="aAbñÑ"[number % 5])
            for number, values in enumerate(metadata)
        ]
        for store in (memory, postgres):
            await store.upsert(chunks, namespace)
        for filter in filters:
            in_memory, in_postgres = [
                await answer(store, namespace, ("get_all_chunks", filter))
                for store in (memory, postgres)
            ]
            assert in_postgres == in_memory
            if isinstance(in_memory, list):
                results = await memory.search([1, 0, 0, 0], namespace, CHUNKS, filter)
                assert [result.chunk for result in results] == in_memory
        await postgres.delete_namespace(namespace)
        await memory.delete_namespace(namespace)

    runner.run(compare())


plain_words = st.lists(st.sampled_from(["cat", "dog", "ñandú", "Über"]), max_size=4).map(" ".join)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(contents=st.lists(plain_words, max_size=6), question=plain_words, arbitrary=text_values)
def test_text_searches_agree(
    stores: Any, contents: list[str], question: str, arbitrary: str
) -> None:
    """Both stores find the same chunks by words, and no text raises an error."""
    runner, (memory, postgres) = stores
    namespace = uuid.uuid4().hex

    async def compare() -> None:
        chunks = [embedded(str(number), content=text) for number, text in enumerate(contents)]
        chunks.append(embedded("arbitrary", content=arbitrary))
        answers = []
        for store in (memory, postgres):
            await store.upsert(chunks, namespace)
            by_words = await store.search_text(question, namespace, 20)
            answers.append({result.chunk.id for result in by_words} - {"arbitrary"})
            hybrid = await store.search_hybrid(arbitrary, [1, 0, 0, 0], namespace, 20)
            assert len(hybrid) == len(chunks)
            await store.delete_namespace(namespace)
        assert answers[0] == answers[1]

    runner.run(compare())
