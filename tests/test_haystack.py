"""Haystack's interface: its own suites, and what it adds."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack.core.errors import SerializationError
from haystack.dataclasses import ByteStream, SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.testing import document_store as suites
from haystack.testing import document_store_async as async_suites
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from cenote import (
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    field,
)
from cenote.adapters.haystack import CenoteDocumentStore, CenoteEmbeddingRetriever
from cenote.adapters.haystack_documents import Documents
from cenote.adapters.haystack_filters import RESERVED, translate

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


NAMES = ["meta.b.a", "a", "id", "b.a", f"meta.{RESERVED}", RESERVED]

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
            for name in ["meta.a", [*NAMES, "content"][number % 7]]:
                one = {"field": name, "operator": operator, "value": value}
                await _agrees(own, documents, one)
                await _agrees(own, documents, {"operator": "NOT", "conditions": [one]})
        await own.delete_all()

    for store in stores:
        runner.run(compare(store))


EXAMPLES = int(os.environ.get("CENOTE_TEST_FILTER_EXAMPLES", "250"))
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


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"field": "embedding", "operator": "==", "value": None}, "embedding"),
        ({"field": "meta", "operator": "==", "value": {}}, "meta"),
        ({"field": "blob.mime_type", "operator": "==", "value": "text/plain"}, "blob.mime_type"),
        ({"field": "meta.a", "operator": ">", "value": "soon"}, "ISO 8601"),
        ({"field": "meta.a", "operator": ">", "value": {"a": 1}}, "number or a date"),
        ({"field": "meta.a", "operator": "==", "value": {1, 2}}, "set"),
        ({"field": "meta.a", "operator": "==", "value": "secret\x00"}, "NUL"),
        ({"field": "meta.a", "operator": "<", "value": float("nan")}, "NaN"),
        ({"field": "meta.a", "operator": "in", "value": "ab"}, "list"),
        ({"field": "meta.a", "operator": "like", "value": "ab"}, "not in"),
        ({"field": 7, "operator": "==", "value": "ab"}, "int"),
        ({"operator": "XOR", "conditions": []}, "AND, OR, NOT"),
        ({"operator": "AND", "conditions": {}}, "list"),
        ({"operator": "AND", "conditions": ["meta.a"]}, "str"),
        ({"field": "meta.a", "operator": "in", "value": DATES * 50}, "parts"),
        (["meta.a"], "list"),
    ],
)
def test_filters_that_are_refused(filters: Any, named: str) -> None:
    """Say what is wrong with them, and not with what value."""
    with pytest.raises(FilterError, match=named) as error:
        translate(filters)
    assert "secret" not in str(error.value)


# -- documents -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(module_dsn: str) -> PgVectorStore:
    """A store of four dimensions."""
    return _store(module_dsn, 4)


@pytest.fixture(params=["memory", "postgres"])
def adapted(request: pytest.FixtureRequest) -> Iterator[CenoteDocumentStore]:
    """The adapter over either store."""
    store: Any = InMemoryVectorStore(4)
    if request.param == "postgres":
        store = request.getfixturevalue("small")
    adapter = CenoteDocumentStore(store, uuid.uuid4().hex)
    yield adapter
    adapter.close()


KINDS = {
    "text": Document(id="text", content="t", embedding=[1.0, 0.5, 0.0, 0.0]),
    "empty": Document(id="empty", content="", meta={"a": [{"b": None}], "c": 1.5, "d": True}),
    "zero": Document(id="zero", content=None, embedding=[0.0] * 4),
    "blob": Document(
        id="blob", blob=ByteStream(b"\x00\xff", {"a": 1}, "image/png"), meta={"source_id": "s"}
    ),
    "sparse": Document(id="sparse", sparse_embedding=SparseEmbedding([1, 7], [0.25, -1.0])),
}


def test_documents_come_back(adapted: CenoteDocumentStore) -> None:
    """Whatever they lack or have; and what a chunk lacks is not seen."""
    assert adapted.write_documents([*KINDS.values()]) == len(KINDS)
    assert adapted.filter_documents() == [KINDS[one] for one in sorted(KINDS)]
    assert adapted.get_metadata_fields_info().keys() == {"a", "c", "d", "source_id"}
    (found,) = adapted.embedding_retrieval([2.0, 1.0, 0.0, 0.0])
    assert (found.id, found.embedding) == ("text", None)
    assert found.score == pytest.approx(1.0)
    assert adapted.embedding_retrieval([2.0, 1.0, 0.0, 0.0], top_k=0) == []
    changed = {"field": "content", "operator": "==", "value": None}
    assert adapted.update_by_filter(changed, {"seen": 1}) == 3
    (blob,) = adapted.filter_documents({"field": "meta.source_id", "operator": "==", "value": "s"})
    assert (blob.meta, blob.blob) == ({"source_id": "s", "seen": 1}, KINDS["blob"].blob)


async def test_chunks_of_one_document_belong_together() -> None:
    """By what the splitter wrote into their meta."""
    store = InMemoryVectorStore(4)
    adapter = CenoteDocumentStore(store, "acme", embedding_model="small")
    await adapter.write_documents_async([*KINDS.values()])
    assert await store.delete_document("s", "acme") == 1
    assert await store.count("acme", field("embedding_model") == "small") == 4


def test_the_reserved_key_is_refused(adapted: CenoteDocumentStore) -> None:
    """In documents and in changes, of which nothing is written."""
    bad = Document(id="bad", meta={RESERVED: "secret"})
    with pytest.raises(InvalidInputError, match="meta of document 'bad'") as error:
        adapted.write_documents([KINDS["text"], bad])
    assert (error.value.chunk_id, "secret" in str(error.value)) == ("bad", False)
    assert adapted.count_documents() == 0
    with pytest.raises(InvalidInputError, match=RESERVED):
        adapted.update_by_filter({"field": "id", "operator": "!=", "value": ""}, bad.meta)


@pytest.mark.parametrize("method", ["delete_by_filter", "update_by_filter"])
def test_empty_filters_change_nothing(adapted: CenoteDocumentStore, method: str) -> None:
    """For everything there is another method."""
    adapted.write_documents([KINDS["text"]])
    arguments: list[Any] = [{}] if method == "update_by_filter" else []
    with pytest.raises(FilterError, match="delete_all_documents"):
        getattr(adapted, method)({}, *arguments)
    assert adapted.filter_documents() == [KINDS["text"]]


def test_many_documents_page_by_page(adapted: CenoteDocumentStore) -> None:
    """By a filter that is decided in Python."""
    many = [Document(id=f"{n:04}", meta={"at": f"2024-01-{1 + n % 2:02}"}) for n in range(1201)]
    assert adapted.write_documents(many) == 1201
    first: dict[str, Any] = {"field": "meta.at", "operator": "<", "value": "2024-01-02"}
    assert adapted.update_by_filter(first, {"at": None}) == 601
    assert adapted.count_documents_by_filter(first) == 0
    late = {"field": "meta.at", "operator": ">", "value": "2024-01-01T12:00"}
    assert adapted.delete_by_filter(late) == 600
    assert [one.id for one in adapted.filter_documents()] == [one.id for one in many[::2]]


def test_policies(adapted: CenoteDocumentStore) -> None:
    """About ids that are stored, and that come twice."""
    old, new, other = (Document(id=one[0], content=one) for one in ("1 old", "1 new", "2"))
    adapted.write_documents([old])
    for policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
        for documents in ([other, new], [other, other]):
            with pytest.raises(DuplicateDocumentError, match="nothing was written"):
                adapted.write_documents(documents, policy)
    assert adapted.filter_documents() == [old]
    assert adapted.write_documents([other, other, new], DuplicatePolicy.SKIP) == 1
    assert adapted.filter_documents() == [old, other]
    assert adapted.write_documents([old, new], DuplicatePolicy.OVERWRITE) == 2
    assert adapted.filter_documents() == [new, other]


def test_least_and_greatest(adapted: CenoteDocumentStore) -> None:
    """Of numbers, or of texts; None of both."""
    adapted.write_documents(
        [
            Document(id="1", meta={"n": 2, "t": "b", "both": 1, "list": [1]}),
            Document(id="2", meta={"n": -0.5, "t": "a", "both": "1", "list": [2]}),
            Document(id="3", meta={"n": None}),
        ]
    )
    assert adapted.get_metadata_field_min_max("meta.n") == {"min": -0.5, "max": 2}
    assert adapted.get_metadata_field_min_max("t") == {"min": "a", "max": "b"}
    for key in ("both", "list"):
        assert adapted.get_metadata_field_min_max(key) == {"min": None, "max": None}


# -- the retriever, and pipelines ------------------------------------------------------------------

CATS = Document(id="cats", content="Cats.", meta={"of": "cats", "n": 1}, embedding=[1.0, 0, 0, 0])
DOGS = Document(id="dogs", content="Dogs.", meta={"of": "dogs", "n": 2}, embedding=[1.0, 1, 0, 0])


async def test_the_retriever(adapted: CenoteDocumentStore) -> None:
    """Its filters are replaced or merged, and a run says how many."""
    await adapted.write_documents_async([CATS, DOGS])
    of_dogs = {"field": "meta.of", "operator": "==", "value": "dogs"}
    first = {"field": "meta.n", "operator": "<", "value": 2}

    async def ids(retriever: CenoteEmbeddingRetriever, **options: Any) -> list[str]:
        found = await retriever.run_async([1.0, 0.0, 0.0, 0.0], **options)
        again = await asyncio.to_thread(retriever.run, [1.0, 0.0, 0.0, 0.0], **options)
        assert found == again
        return [one.id for one in found["documents"]]

    retriever = CenoteEmbeddingRetriever(adapted, of_dogs)
    assert await ids(retriever) == ["dogs"]
    assert await ids(retriever, filters=first) == ["cats"]
    assert await ids(CenoteEmbeddingRetriever(adapted), top_k=1) == ["cats"]
    merging = CenoteEmbeddingRetriever(adapted, of_dogs, filter_policy=FilterPolicy.MERGE)
    assert await ids(merging, filters=first) == []
    with pytest.raises(ValueError, match="top_k"):
        CenoteEmbeddingRetriever(adapted, top_k=0)
    with pytest.raises(ValueError, match="top_k"):
        await retriever.run_async([1.0, 0.0, 0.0, 0.0], top_k=-1)
    with pytest.raises(TypeError, match="InMemoryVectorStore"):
        CenoteEmbeddingRetriever(InMemoryVectorStore(4))  # type: ignore[arg-type]


async def test_pipelines_are_saved_and_loaded(
    small: PgVectorStore, module_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the name of a variable, and no password; they run, and are awaited."""
    monkeypatch.setenv("HAYSTACK_TEST_URL", module_dsn)
    store = CenoteDocumentStore.from_connection_string(
        Secret.from_env_var("HAYSTACK_TEST_URL"), 4, "pipelines", table_name="haystack_4"
    )
    made = Pipeline()
    made.add_component("writer", DocumentWriter(store, DuplicatePolicy.OVERWRITE))
    made.add_component(
        "retriever", CenoteEmbeddingRetriever(store, top_k=1, filter_policy=FilterPolicy.MERGE)
    )
    saved = made.dumps()
    assert "HAYSTACK_TEST_URL" in saved
    assert module_dsn not in saved
    loaded = Pipeline.loads(saved, allowed_modules=["cenote.adapters.haystack"])
    assert loaded.dumps() == saved
    writer: Any = loaded.get_component("writer")
    await asyncio.to_thread(writer.run, [CATS, DOGS])
    retriever: Any = loaded.get_component("retriever")
    asked = Pipeline()
    asked.add_component("retriever", CenoteEmbeddingRetriever.from_dict(retriever.to_dict()))
    query = {"retriever": {"query_embedding": [1.0, 0.9, 0.0, 0.0]}}
    answers = await asyncio.to_thread(asked.run, query), await asked.run_async(query)
    for answer in answers:
        assert [one.id for one in answer["retriever"]["documents"]] == ["dogs"]
    inner: Any = asked.get_component("retriever")
    for one in (store, writer.document_store, retriever.document_store, inner.document_store):
        await one.close_async()


def test_a_live_store_cannot_be_saved(adapted: CenoteDocumentStore) -> None:
    """The error says how to make one that can."""
    with pytest.raises(SerializationError, match="from_connection_string"):
        CenoteEmbeddingRetriever(adapted).to_dict()


def test_a_connection_string_in_the_code_cannot_be_saved() -> None:
    """Nor is it shown where it cannot be read."""
    dsn = "postgresql://cenote:secret@localhost/x"
    store = CenoteDocumentStore.from_connection_string(Secret.from_token(dsn), 4, "acme")
    with pytest.raises(ValueError, match="token"):
        store.to_dict()
    unset = Secret.from_env_var("HAYSTACK_UNSET_URL", strict=False)
    with pytest.raises(ConfigurationError, match="is the variable set"):
        CenoteDocumentStore.from_connection_string(unset, 4, "acme")
    wrong = Secret.from_token("mysql://cenote:secret@localhost/x")
    with pytest.raises(ConfigurationError) as error:
        CenoteDocumentStore.from_connection_string(wrong, 4, "acme")
    assert "secret" not in str(error.value)
