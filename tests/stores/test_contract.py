"""Both stores pass the contract suite, `PgVectorStore` in several configurations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.contract import ContractStores
from support.database import APP_ROLE, execute

from cenote import ChunkMixin, InMemoryVectorStore, PgVectorStore, VectorStore, VectorStoreError
from cenote.testing import MakeStore, VectorStoreContract
from cenote.types import Metric


class TestInMemory(VectorStoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> InMemoryVectorStore:
            return InMemoryVectorStore(dimensions, **options)

        return make


class TestInMemoryModel(VectorStoreContract):
    """A store with a user model that has columns of its own."""

    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> InMemoryVectorStore:
            class Base(DeclarativeBase):
                pass

            text_search = options.pop("text_search", None)

            class Passage(ChunkMixin, Base, dimensions=dimensions, text_search=text_search):
                __tablename__ = "passages"
                lang: Mapped[str] = mapped_column(server_default="en")
                page: Mapped[int | None] = mapped_column(onupdate=1)

            return InMemoryVectorStore(model=Passage, **options)

        return make


class TestInMemoryHalfvec(VectorStoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> InMemoryVectorStore:
            return InMemoryVectorStore(dimensions, column_type="halfvec", **options)

        return make


@pytest.mark.parametrize("metric", ["inner_product", "l2"], scope="class")
class TestInMemoryMetrics(VectorStoreContract):
    @pytest.fixture
    def make_store(self, metric: Metric) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> InMemoryVectorStore:
            return InMemoryVectorStore(dimensions, metric=metric, **options)

        return make


@pytest.fixture(scope="class")
async def stores(class_engine: AsyncEngine) -> ContractStores:
    return ContractStores(class_engine)


class TestPgVector(VectorStoreContract):
    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, stores: ContractStores
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> PgVectorStore:
            store = PgVectorStore(class_engine, dimensions, **options)
            await store.apply_migrations()
            return store

        async with stores.maker(create, "cenote_chunks") as make:
            yield make


class TestPgVectorHalfvec(VectorStoreContract):
    """A table of 16-bit vectors without partitions, in another schema, from a sessionmaker."""

    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, stores: ContractStores
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> PgVectorStore:
            options |= {"column_type": "halfvec", "schema": "Search", "partitions": 0}
            store = PgVectorStore(async_sessionmaker(class_engine), dimensions, **options)
            await store.apply_migrations()
            return store

        async with stores.maker(create, "Half") as make:
            yield make


@pytest.mark.parametrize(
    "settings",
    [
        {"metric": "l2", "index": "halfvec", "partitions": 0},
        {"metric": "inner_product", "index": "none"},
        # Four dimensions have only 16 patterns of signs, so the candidates must be all rows.
        {"metric": "cosine", "index": "bit", "rerank": 2000},
    ],
    ids=lambda settings: f"{settings['metric']}-{settings['index']}",
    scope="class",
)
class TestPgVectorMetricsAndIndexes(VectorStoreContract):
    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, stores: ContractStores, settings: dict[str, Any]
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> PgVectorStore:
            store = PgVectorStore(class_engine, dimensions, **(settings | options))
            await store.apply_migrations()
            return store

        async with stores.maker(create, f"{settings['metric']}_{settings['index']}") as make:
            yield make


@pytest.fixture(scope="class")
async def app_engine(class_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    await execute(class_engine, APP_ROLE)
    engine = create_async_engine(class_engine.url.set(username="cenote_app"))
    yield engine
    await engine.dispose()


class TestPgVectorRowSecurity(VectorStoreContract):
    """A table with row security, used by a role that its policies apply to."""

    @pytest.fixture
    async def make_store(
        self, class_engine: AsyncEngine, app_engine: AsyncEngine, stores: ContractStores
    ) -> AsyncIterator[MakeStore]:
        async def create(dimensions: int, **options: Any) -> PgVectorStore:
            options |= {"row_security": True}
            await PgVectorStore(class_engine, dimensions, **options).apply_migrations()
            await execute(class_engine, f'GRANT ALL ON "{options["table_name"]}" TO cenote_app')
            return PgVectorStore(app_engine, dimensions, **options)

        async with stores.maker(create, "Guarded") as make:
            yield make

    async def test_namespaces_are_listed(self, store: VectorStore) -> None:
        """Listing requires a role that can read every namespace; the error says so."""
        with pytest.raises(VectorStoreError, match="BYPASSRLS"):
            await store.list_namespaces()
