"""Haystack's interface: its own suites, and what it adds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from haystack import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.testing import document_store as suites
from haystack.testing import document_store_async as async_suites
from sqlalchemy import NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from cenote import InMemoryVectorStore, PgVectorStore
from cenote.adapters.haystack import CenoteDocumentStore

SUITES_DIMENSIONS = 768


def _store(dsn: str, dimensions: int) -> PgVectorStore:
    """A store with a table, for any event loop."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    store = PgVectorStore(engine, dimensions, table_name=f"haystack_{dimensions}")
    asyncio.run(store.apply_migrations())
    return store


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
    @pytest.fixture(scope="class")
    def postgres(self, class_dsn: str) -> PgVectorStore:
        return _store(class_dsn, SUITES_DIMENSIONS)

    @pytest.fixture
    def document_store(self, postgres: PgVectorStore) -> Iterator[CenoteDocumentStore]:
        store = CenoteDocumentStore(postgres, uuid.uuid4().hex)
        yield store
        store.close()


class TestInMemory(Suites):
    @pytest.fixture
    def document_store(self) -> Iterator[CenoteDocumentStore]:
        store = CenoteDocumentStore(InMemoryVectorStore(SUITES_DIMENSIONS), "acme")
        yield store
        store.close()
