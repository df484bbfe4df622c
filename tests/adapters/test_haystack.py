"""The Haystack adapter: Haystack's test suites, and behaviour that the suites do not cover."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
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
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine
from support.synchronous import sync_store

from cenote import (
    ConfigurationError,
    InMemoryVectorStore,
    InvalidInputError,
    PgVectorStore,
    SyncInMemoryVectorStore,
    SyncPgVectorStore,
    field,
)
from cenote.adapters.haystack import CenoteDocumentStore, CenoteEmbeddingRetriever
from cenote.adapters.haystack.filters import RESERVED

SUITES_DIMENSIONS = 768


def _store(dsn: str, dimensions: int) -> PgVectorStore:
    """Return a store with a table that works in any event loop."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    store = PgVectorStore(engine, dimensions, table_name=f"haystack_{dimensions}")
    asyncio.run(store.apply_migrations())
    return store


@pytest.fixture(scope="module")
def store_for_suites(module_dsn: str) -> PgVectorStore:
    """A store with the dimensions of Haystack's suites."""
    return _store(module_dsn, SUITES_DIMENSIONS)


@pytest.fixture(scope="module")
def sync_store_for_suites(module_dsn: str) -> Iterator[SyncPgVectorStore]:
    """A synchronous store with the dimensions of Haystack's suites."""
    table = f"haystack_{SUITES_DIMENSIONS}"
    with sync_store(module_dsn, SUITES_DIMENSIONS, table_name=table) as store:
        yield store


def _expected(documents: list[Document]) -> list[dict[str, Any]]:
    """Return documents as dicts in order of id, with embeddings that compare as 32-bit floats."""
    ordered = sorted(documents, key=lambda document: document.id)
    parts = [document.to_dict() for document in ordered]
    for part in parts:
        part["embedding"] = part["embedding"] and pytest.approx(part["embedding"], rel=1e-6)
    return parts


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
    """All of Haystack's suites, with the methods that a store's tests must override."""

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        """Compare documents: cenote orders by id and rounds embeddings to 32 bits."""
        assert [document.to_dict() for document in received] == _expected(expected)

    def test_write_documents(self, document_store: Any) -> None:
        """Without a policy, a stored id raises an error, as with DuplicatePolicy.FAIL."""
        document = Document(content="once")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])

    async def test_write_documents_async(self, document_store: Any) -> None:
        """Without a policy, a stored id raises an error, as with DuplicatePolicy.FAIL."""
        document = Document(content="once")
        assert await document_store.write_documents_async([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            await document_store.write_documents_async([document])


class TestPostgres(Suites):
    @pytest.fixture
    def document_store(self, store_for_suites: PgVectorStore) -> Iterator[CenoteDocumentStore]:
        store = CenoteDocumentStore(store_for_suites, uuid.uuid4().hex)
        yield store
        store.close()


class TestSyncPostgres(Suites):
    @pytest.fixture
    def document_store(self, sync_store_for_suites: SyncPgVectorStore) -> CenoteDocumentStore:
        return CenoteDocumentStore(sync_store_for_suites, uuid.uuid4().hex)


class TestInMemory(Suites):
    @pytest.fixture
    def document_store(self) -> Iterator[CenoteDocumentStore]:
        store = CenoteDocumentStore(InMemoryVectorStore(SUITES_DIMENSIONS), "acme")
        yield store
        store.close()


# -- documents -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store_for_documents(module_dsn: str) -> PgVectorStore:
    """A store with four dimensions."""
    return _store(module_dsn, 4)


@pytest.fixture(scope="module")
def sync_store_for_documents(module_dsn: str) -> Iterator[SyncPgVectorStore]:
    """A synchronous store with four dimensions."""
    with sync_store(module_dsn, 4, table_name="haystack_4") as store:
        yield store


@pytest.fixture(params=["memory", "postgres", "sync memory", "sync postgres"])
def adapter(request: pytest.FixtureRequest) -> Iterator[CenoteDocumentStore]:
    """The adapter, once with each kind of store."""
    store: Any
    if request.param == "memory":
        store = InMemoryVectorStore(4)
    elif request.param == "sync memory":
        store = SyncInMemoryVectorStore(4)
    elif request.param == "postgres":
        store = request.getfixturevalue("store_for_documents")
    else:
        store = request.getfixturevalue("sync_store_for_documents")
    adapter = CenoteDocumentStore(store, uuid.uuid4().hex)
    yield adapter
    adapter.close()


def _ids(documents: list[Document]) -> list[str]:
    return [document.id for document in documents]


KINDS = {
    "text": Document(id="text", content="t", embedding=[1.0, 0.5, 0.0, 0.0]),
    "empty": Document(id="empty", content="", meta={"a": [{"b": None}], "c": 1.5, "d": True}),
    "zero": Document(id="zero", content=None, embedding=[0.0] * 4),
    "blob": Document(
        id="blob", blob=ByteStream(b"\x00\xff", {"a": 1}, "image/png"), meta={"source_id": "s"}
    ),
    "sparse": Document(id="sparse", sparse_embedding=SparseEmbedding([1, 7], [0.25, -1.0])),
}


def test_documents_are_restored(adapter: CenoteDocumentStore) -> None:
    """Documents of every kind are restored, and the reserved metadata key stays hidden."""
    assert adapter.write_documents([*KINDS.values()]) == len(KINDS)
    assert adapter.filter_documents() == [KINDS[document_id] for document_id in sorted(KINDS)]
    assert adapter.get_metadata_fields_info().keys() == {"a", "c", "d", "source_id"}
    (found,) = adapter.embedding_retrieval([2.0, 1.0, 0.0, 0.0])
    assert (found.id, found.embedding) == ("text", None)
    assert found.score == pytest.approx(1.0)
    assert adapter.embedding_retrieval([2.0, 1.0, 0.0, 0.0], top_k=0) == []
    without_content = {"field": "content", "operator": "==", "value": None}
    assert adapter.update_by_filter(without_content, {"seen": 1}) == 3
    (blob,) = adapter.filter_documents({"field": "meta.source_id", "operator": "==", "value": "s"})
    assert (blob.meta, blob.blob) == ({"source_id": "s", "seen": 1}, KINDS["blob"].blob)


async def test_source_id_becomes_document_id() -> None:
    """The `source_id` that a splitter writes into meta becomes the chunk's document id."""
    store = InMemoryVectorStore(4)
    adapter = CenoteDocumentStore(store, "acme", embedding_model="small")
    await adapter.write_documents_async([*KINDS.values()])
    assert await store.delete_document("s", "acme") == 1
    assert await store.count("acme", field("embedding_model") == "small") == 4


def test_reserved_metadata_key(adapter: CenoteDocumentStore) -> None:
    """The reserved key is rejected in documents and in updates, and nothing is written."""
    bad = Document(id="bad", meta={RESERVED: "secret"})
    with pytest.raises(InvalidInputError, match="meta of document 'bad'") as error:
        adapter.write_documents([KINDS["text"], bad])
    assert (error.value.chunk_id, "secret" in str(error.value)) == ("bad", False)
    assert adapter.count_documents() == 0
    with pytest.raises(InvalidInputError, match=RESERVED):
        adapter.update_by_filter({"field": "id", "operator": "!=", "value": ""}, bad.meta)


@pytest.mark.parametrize("method", ["delete_by_filter", "update_by_filter"])
def test_empty_filters_are_rejected(adapter: CenoteDocumentStore, method: str) -> None:
    """Empty filters raise an error that names `delete_all_documents`."""
    adapter.write_documents([KINDS["text"]])
    arguments: list[Any] = [{}] if method == "update_by_filter" else []
    with pytest.raises(FilterError, match="delete_all_documents"):
        getattr(adapter, method)({}, *arguments)
    assert adapter.filter_documents() == [KINDS["text"]]


def test_date_filters_on_several_pages(adapter: CenoteDocumentStore) -> None:
    """Updates and deletions by date filters work across pages of documents."""
    many = [Document(id=f"{n:04}", meta={"at": f"2024-01-{1 + n % 2:02}"}) for n in range(1201)]
    assert adapter.write_documents(many) == 1201
    early: dict[str, Any] = {"field": "meta.at", "operator": "<", "value": "2024-01-02"}
    assert adapter.update_by_filter(early, {"at": None}) == 601
    assert adapter.count_documents_by_filter(early) == 0
    late = {"field": "meta.at", "operator": ">", "value": "2024-01-01T12:00"}
    assert adapter.delete_by_filter(late) == 600
    assert _ids(adapter.filter_documents()) == _ids(many[::2])


def test_duplicate_policies(adapter: CenoteDocumentStore) -> None:
    """Each policy applies to stored ids, and to ids that appear twice in a batch."""
    old, new, other = (Document(id=text[0], content=text) for text in ("1 old", "1 new", "2"))
    adapter.write_documents([old])
    for policy in (DuplicatePolicy.NONE, DuplicatePolicy.FAIL):
        for documents in ([other, new], [other, other]):
            with pytest.raises(DuplicateDocumentError, match="nothing was written"):
                adapter.write_documents(documents, policy)
    assert adapter.filter_documents() == [old]
    assert adapter.write_documents([other, other, new], DuplicatePolicy.SKIP) == 1
    assert adapter.filter_documents() == [old, other]
    assert adapter.write_documents([old, new], DuplicatePolicy.OVERWRITE) == 2
    assert adapter.filter_documents() == [new, other]


def test_metadata_field_min_max(adapter: CenoteDocumentStore) -> None:
    """Minimum and maximum work for numbers and for texts, and are None for mixed values."""
    adapter.write_documents(
        [
            Document(id="1", meta={"n": 2, "t": "b", "both": 1, "list": [1]}),
            Document(id="2", meta={"n": -0.5, "t": "a", "both": "1", "list": [2]}),
            Document(id="3", meta={"n": None}),
        ]
    )
    assert adapter.get_metadata_field_min_max("meta.n") == {"min": -0.5, "max": 2}
    assert adapter.get_metadata_field_min_max("t") == {"min": "a", "max": "b"}
    for key in ("both", "list"):
        assert adapter.get_metadata_field_min_max(key) == {"min": None, "max": None}


# -- retriever and pipelines ------------------------------------------------------------------

CATS = Document(id="cats", content="Cats.", meta={"of": "cats", "n": 1}, embedding=[1.0, 0, 0, 0])
DOGS = Document(id="dogs", content="Dogs.", meta={"of": "dogs", "n": 2}, embedding=[1.0, 1, 0, 0])


async def test_retriever(adapter: CenoteDocumentStore) -> None:
    """A run's filters replace the retriever's filters, or are merged with them."""
    await adapter.write_documents_async([CATS, DOGS])
    of_dogs = {"field": "meta.of", "operator": "==", "value": "dogs"}
    first = {"field": "meta.n", "operator": "<", "value": 2}

    async def ids(retriever: CenoteEmbeddingRetriever, **options: Any) -> list[str]:
        found = await retriever.run_async([1.0, 0.0, 0.0, 0.0], **options)
        found_sync = await asyncio.to_thread(retriever.run, [1.0, 0.0, 0.0, 0.0], **options)
        assert found == found_sync
        return _ids(found["documents"])

    retriever = CenoteEmbeddingRetriever(adapter, of_dogs)
    assert await ids(retriever) == ["dogs"]
    assert await ids(retriever, filters=first) == ["cats"]
    assert await ids(CenoteEmbeddingRetriever(adapter), top_k=1) == ["cats"]
    merging = CenoteEmbeddingRetriever(adapter, of_dogs, filter_policy=FilterPolicy.MERGE)
    assert await ids(merging, filters=first) == []
    with pytest.raises(ValueError, match="top_k"):
        CenoteEmbeddingRetriever(adapter, top_k=0)
    with pytest.raises(ValueError, match="top_k"):
        await retriever.run_async([1.0, 0.0, 0.0, 0.0], top_k=-1)
    with pytest.raises(ValueError, match="10,000"):
        CenoteEmbeddingRetriever(adapter, top_k=10_001)
    with pytest.raises(ValueError, match="10,000"):
        await retriever.run_async([1.0, 0.0, 0.0, 0.0], top_k=10_001)
    with pytest.raises(TypeError, match="InMemoryVectorStore"):
        CenoteEmbeddingRetriever(InMemoryVectorStore(4))  # type: ignore[arg-type]


async def test_pipelines_are_saved_and_loaded(
    store_for_documents: PgVectorStore, module_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saved pipeline can be loaded.

    It contains a variable's name instead of the password, and the public names of the classes.
    """
    monkeypatch.setenv("HAYSTACK_TEST_URL", module_dsn)
    store = CenoteDocumentStore.from_connection_string(
        Secret.from_env_var("HAYSTACK_TEST_URL"), 4, "pipelines", table_name="haystack_4"
    )
    pipeline = Pipeline()
    pipeline.add_component("writer", DocumentWriter(store, DuplicatePolicy.OVERWRITE))
    pipeline.add_component(
        "retriever", CenoteEmbeddingRetriever(store, top_k=1, filter_policy=FilterPolicy.MERGE)
    )
    saved = pipeline.dumps()
    assert "HAYSTACK_TEST_URL" in saved
    assert module_dsn not in saved
    for name in ("CenoteDocumentStore", "CenoteEmbeddingRetriever"):
        assert f"type: cenote.adapters.haystack.{name}\n" in saved
    loaded = Pipeline.loads(saved, allowed_modules=["cenote.adapters.haystack"])
    assert loaded.dumps() == saved
    writer: Any = loaded.get_component("writer")
    await asyncio.to_thread(writer.run, [CATS, DOGS])
    retriever: Any = loaded.get_component("retriever")
    query_pipeline = Pipeline()
    copied_retriever = CenoteEmbeddingRetriever.from_dict(retriever.to_dict())
    query_pipeline.add_component("retriever", copied_retriever)
    query = {"retriever": {"query_embedding": [1.0, 0.9, 0.0, 0.0]}}
    answers = (
        await asyncio.to_thread(query_pipeline.run, query),
        await query_pipeline.run_async(query),
    )
    for answer in answers:
        assert _ids(answer["retriever"]["documents"]) == ["dogs"]
    for component in (writer, retriever, copied_retriever):
        await component.document_store.close_async()
    await store.close_async()


def test_live_store_cannot_be_saved(adapter: CenoteDocumentStore) -> None:
    """The error names the constructor of stores that can be saved."""
    with pytest.raises(SerializationError, match="from_connection_string"):
        CenoteEmbeddingRetriever(adapter).to_dict()


def test_invalid_connection_strings() -> None:
    """A connection string in plain text cannot be saved, and errors do not quote it."""
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
