"""Haystack's interface: its own suites, and what it adds."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suites
from haystack.testing import document_store_async as async_suites
from haystack.utils.filters import document_matches_filter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from cenote import InMemoryVectorStore, PgVectorStore
from cenote.adapters.haystack import CenoteDocumentStore
from cenote.adapters.haystack_documents import Documents

SUITES_DIMENSIONS = 768


def _store(dsn: str, dimensions: int) -> PgVectorStore:
    """A store with a table, for any event loop."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    store = PgVectorStore(engine, dimensions, table_name=f"haystack_{dimensions}")
    asyncio.run(store.apply_migrations())
    return store


@pytest.fixture(scope="module")
def large(module_dsn: str) -> PgVectorStore:
    """A store for the suites."""
    return _store(module_dsn, SUITES_DIMENSIONS)


def _rounded(documents: list[Document]) -> list[dict[str, Any]]:
    """By id, with embeddings to be compared as 32-bit floats."""
    dicts = [one.to_dict() for one in sorted(documents, key=lambda one: one.id)]
    for one in dicts:
        one["embedding"] = one["embedding"] and pytest.approx(one["embedding"], rel=1e-6)
    return dicts


class Suites(
    suites.DocumentStoreBaseExtendedTests,
    suites.CountDocumentsByFilterTest,
    suites.CountUniqueMetadataByFilterTest,
    suites.GetMetadataFieldsInfoTest,
    suites.GetMetadataFieldMinMaxTest,
    suites.GetMetadataFieldUniqueValuesTest,
    async_suites.CountDocumentsAsyncTest,
    async_suites.CountDocumentsByFilterAsyncTest,
    async_suites.CountUniqueMetadataByFilterAsyncTest,
    async_suites.DeleteAllAsyncTest,
    async_suites.DeleteByFilterAsyncTest,
    async_suites.DeleteDocumentsAsyncTest,
    async_suites.FilterDocumentsAsyncTest,
    async_suites.GetMetadataFieldMinMaxAsyncTest,
    async_suites.GetMetadataFieldsInfoAsyncTest,
    async_suites.GetMetadataFieldUniqueValuesAsyncTest,
    async_suites.UpdateByFilterAsyncTest,
    async_suites.WriteDocumentsAsyncTest,
):
    """All of Haystack's suites; what is overridden here is what they tell a store to override."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """Ours come by id, and their embeddings are rounded to 32 bits."""
        assert [one.to_dict() for one in received] == _rounded(expected)

    def test_write_documents(self, document_store: Any) -> None:
        """Without a policy, as with FAIL."""
        document = Document(content="once")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])

    async def test_write_documents_async(self, document_store: Any) -> None:
        """Without a policy, as with FAIL."""
        document = Document(content="once")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])


class TestPostgres(Suites):
    @pytest.fixture
    def document_store(self, large: PgVectorStore) -> Iterator[CenoteDocumentStore]:
        store = CenoteDocumentStore(large, uuid.uuid4().hex)
        yield store
        store.close()


class TestInMemory(Suites):
    @pytest.fixture
    def document_store(self) -> Iterator[CenoteDocumentStore]:
        store = CenoteDocumentStore(InMemoryVectorStore(SUITES_DIMENSIONS), "acme")
        yield store
        store.close()


# -- filters ---------------------------------------------------------------------------------------

ZONES = [None, UTC, *(timezone(timedelta(hours=hours)) for hours in (2, -23.5, 23.5))]
TIMES = [
    datetime(2024, 2, 29, tzinfo=zone) + timedelta(hours=hours)
    for zone in ZONES
    for hours in (-48, -23.5, 0, 0.5, 47)
]
SPELLINGS: list[Callable[[datetime], str]] = [
    datetime.isoformat,
    lambda time: time.isoformat(" ", "milliseconds"),
    lambda time: time.isoformat("t").replace("+00:00", "Z"),
    lambda time: time.date().isoformat(),
    lambda time: f"{time:%Y%m%d}",
    lambda time: f"{time:%G-W%V-%u}",
]
DATES = sorted({spelling(time) for time in TIMES for spelling in SPELLINGS})
CURIOUS = ["2024-02-28T24:00", "28 February 2024", "2024-02-29 10 PM", "2024-29-02", "0001-01-01"]
TEXTS = ["", "1", "a", "2024", "2024-02-30", "ä%"]
NUMBERS = [True, False, 0, 1, -1, 2, 0.0, 1.0, 0.5, 2**60, 2.0**53, 2**53 + 1, 1e-7]
CONTAINERS: list[Any] = [[], [1], [True], [[2]], ["a"], {}, {"a": 0}, {"a": False}, {"b": 0.5}]
VALUES: list[Any] = [None, *CURIOUS, *TEXTS, *NUMBERS, *CONTAINERS]

held = st.sampled_from(VALUES) | st.sampled_from(DATES)
comparisons = st.builds(
    lambda name, rest: {"field": name, "operator": rest[0], "value": rest[1]},
    st.sampled_from(["meta.a", "meta.a", "meta.b", "b", "meta.b.a", "content", "id", "no.a"]),
    st.tuples(st.sampled_from(["==", "!="]), held)
    | st.tuples(st.sampled_from(["<", ">="]), st.sampled_from(NUMBERS + TIMES + DATES))
    | st.tuples(st.sampled_from(["in", "not in"]), st.lists(held, min_size=1, max_size=3)),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.builds(
        lambda operator, conditions: {"operator": operator, "conditions": conditions},
        st.sampled_from(["AND", "OR", "NOT"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def both(module_dsn: str) -> Iterator[tuple[asyncio.Runner, list[Any]]]:
    """A loop, and one store of each kind."""
    with asyncio.Runner() as runner:
        postgres = runner.run(PgVectorStore.connect(module_dsn, 4))
        yield runner, [InMemoryVectorStore(4), postgres]
        runner.run(postgres.close())


def _matches(filters: dict[str, Any], document: Document) -> bool | None:
    """What Haystack finds; None where it refuses what the document holds."""
    try:
        return document_matches_filter(filters, document)
    except (FilterError, TypeError):
        return None


def _documents() -> list[Document]:
    """One for each value, as a content too if it is a text, and one without any."""
    bare = Document(id="999", embedding=[1.0, 999.0, 0.0, 0.0])
    return [
        Document(
            id=f"{number:03}",
            content=value if isinstance(value, str) else None,
            meta={"a": value, "b": {"a": value}},
            embedding=[1.0, number, 0.0, 0.0],
        )
        for number, value in enumerate([*VALUES, *DATES])
    ] + [bare]


async def _agrees(own: Documents, documents: list[Document], filters: dict[str, Any]) -> None:
    """Whether a filter finds what Haystack finds, those documents aside that it cannot compare."""
    answers = {one.id: _matches(filters, one) for one in documents}
    found = [one.id for one in await own.nearest([1.0, 0, 0, 0], filters, len(documents))]
    assert [one for one in found if answers[one] is not None] == [
        one for one, answer in answers.items() if answer
    ], filters


COMPARISONS: list[tuple[str, Any]] = [
    *((operator, value) for operator in ("==", "!=") for value in [*VALUES, *DATES[::3], *TIMES]),
    *(
        (operator, value)
        for operator in ("<", "<=", ">", ">=")
        for value in [None, *NUMBERS, *DATES[::3], *TIMES]
    ),
    *((operator, VALUES[n::5]) for operator in ("in", "not in") for n in range(5)),
    ("in", [*range(3000), "a", None]),
    ("in", []),
]


def test_each_comparison_means_what_it_means_in_haystack(both: Any) -> None:
    """Of any value with any other, and its opposite."""
    runner, stores = both
    documents = _documents()

    async def compare(store: Any) -> None:
        own = Documents(store, uuid.uuid4().hex, "model")
        await own.write(documents, DuplicatePolicy.FAIL)
        for number, (operator, value) in enumerate(COMPARISONS):
            for name in ["meta.a", ["b.a", "a", "content", "meta.b.a", "id", "b.a.a"][number % 6]]:
                one = {"field": name, "operator": operator, "value": value}
                await _agrees(own, documents, one)
                await _agrees(own, documents, {"operator": "NOT", "conditions": [one]})
        await own.delete_all()

    for store in stores:
        runner.run(compare(store))


EXAMPLES = int(os.environ.get("CENOTE_TEST_FILTER_EXAMPLES", "500"))
AT_ONCE = 10


@settings(
    max_examples=max(EXAMPLES // AT_ONCE, 1),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(several=st.lists(trees, min_size=AT_ONCE, max_size=AT_ONCE), top_k=st.integers(1, 5))
def test_filters_mean_what_they_mean_in_haystack(both: Any, several: Any, top_k: int) -> None:
    """Random trees of them (CENOTE_TEST_FILTER_EXAMPLES in all), for every method."""
    runner, stores = both
    documents = _documents()

    async def compare(store: Any) -> None:
        own = Documents(store, "trees", "model")
        await own.write(documents, DuplicatePolicy.OVERWRITE)
        for filters in several:
            await _agrees(own, documents, filters)
            found = await own.read(filters)
            assert await own.count(filters) == len(found)
            nearest = await own.nearest([1.0, 0, 0, 0], filters, top_k)
            assert [one.id for one in nearest] == [one.id for one in found[:top_k]]
        assert await own.delete_matching(several[-1]) == len(found)
        assert await own.count() == len(documents) - len(found)

    for store in stores:
        runner.run(compare(store))
