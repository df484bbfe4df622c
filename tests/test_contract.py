"""Both stores obey the contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from database import APP_ROLE, execute
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from cenote import InMemoryVectorStore, PgVectorStore, VectorStore, VectorStoreError
from cenote.mapping import chunk_table
from cenote.testing import MakeStore, VectorStoreContract


class TestInMemory(VectorStoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> InMemoryVectorStore:
            return InMemoryVectorStore(dimensions, **options)

        return make


class TestInMemoryHalfvec(VectorStoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> InMemoryVectorStore:
            return InMemoryVectorStore(dimensions, column_type="halfvec", **options)

        return make


@pytest.fixture(scope="class")
def made() -> set[str]:
    """The tables that are there; asking the database takes longer than most tests."""
    return set()


async def _there(store: PgVectorStore, made: set[str]) -> PgVectorStore:
    if store.config.table_name not in made:
        await store.apply_migrations()
        made.add(store.config.table_name)
    return store


async def _emptied(store: PgVectorStore) -> PgVectorStore:
    async with store.engine.begin() as connection:
        await connection.execute(delete(chunk_table(store.config)))
    return store


def _table(name: str, options: dict[str, Any]) -> str:
    """A table for each kind of full text."""
    languages = options.get("text_search", "").split(", ")
    return "_".join(filter(None, (name, *languages)))


class TestPgVector(VectorStoreContract):
    @pytest.fixture
    def make_store(self, class_engine: AsyncEngine, made: set[str]) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            options |= {"table_name": _table("cenote_chunks", options)}
            store = PgVectorStore(class_engine, dimensions, **options)
            return await _emptied(await _there(store, made))

        return make


class TestPgVectorHalfvec(VectorStoreContract):
    """A plain table of 16-bit vectors in another schema, given a sessionmaker."""

    @pytest.fixture
    def make_store(self, class_engine: AsyncEngine, made: set[str]) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            store = PgVectorStore(
                async_sessionmaker(class_engine),
                dimensions,
                column_type="halfvec",
                schema="Search",
                partitions=0,
                table_name=_table("Half", options),
                **options,
            )
            return await _emptied(await _there(store, made))

        return make


class TestPgVectorRowSecurity(VectorStoreContract):
    """As a role that the policies bind."""

    @pytest.fixture
    def make_store(
        self, class_engine: AsyncEngine, app_engine: AsyncEngine, made: set[str]
    ) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            name = _table("Guarded", options)
            options |= {"table_name": name, "row_security": True}
            admins = PgVectorStore(class_engine, dimensions, **options)
            if name not in made:
                await _there(admins, made)
                await execute(class_engine, f'GRANT ALL ON "{name}" TO cenote_app')
            await _emptied(admins)
            return PgVectorStore(app_engine, dimensions, **options)

        return make

    async def test_namespaces_are_listed(self, store: VectorStore) -> None:
        """Which is for a role that may see them all."""
        with pytest.raises(VectorStoreError, match="BYPASSRLS"):
            await store.list_namespaces()

    @pytest.fixture
    async def app_engine(self, class_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
        await execute(class_engine, APP_ROLE)
        engine = create_async_engine(class_engine.url.set(username="cenote_app"))
        yield engine
        await engine.dispose()
