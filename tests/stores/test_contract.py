"""Both stores pass the contract suite, `PgVectorStore` in several configurations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from support.database import APP_ROLE, execute

from cenote import ChunkMixin, InMemoryVectorStore, PgVectorStore, VectorStore, VectorStoreError
from cenote.orm.factory import chunk_table
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
def existing_tables() -> set[str]:
    """Names of the tables that exist. Asking the database would take longer than most tests."""
    return set()


async def _ensure_table(store: PgVectorStore, existing_tables: set[str]) -> PgVectorStore:
    if store.config.table_name not in existing_tables:
        await store.apply_migrations()
        existing_tables.add(store.config.table_name)
    return store


async def _empty(store: PgVectorStore) -> PgVectorStore:
    async with store.engine.begin() as connection:
        await connection.execute(delete(chunk_table(store.config)))
    return store


def _table_name(name: str, options: dict[str, Any]) -> str:
    """Return a table name for each full-text configuration."""
    languages = options.get("text_search", "").split(", ")
    return "_".join(filter(None, (name, *languages)))


class TestPgVector(VectorStoreContract):
    @pytest.fixture
    def make_store(self, class_engine: AsyncEngine, existing_tables: set[str]) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            options |= {"table_name": _table_name("cenote_chunks", options)}
            store = PgVectorStore(class_engine, dimensions, **options)
            return await _empty(await _ensure_table(store, existing_tables))

        return make


class TestPgVectorHalfvec(VectorStoreContract):
    """A table of 16-bit vectors without partitions, in another schema, from a sessionmaker."""

    @pytest.fixture
    def make_store(self, class_engine: AsyncEngine, existing_tables: set[str]) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            store = PgVectorStore(
                async_sessionmaker(class_engine),
                dimensions,
                column_type="halfvec",
                schema="Search",
                partitions=0,
                table_name=_table_name("Half", options),
                **options,
            )
            return await _empty(await _ensure_table(store, existing_tables))

        return make


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
    def make_store(
        self, class_engine: AsyncEngine, existing_tables: set[str], settings: dict[str, Any]
    ) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            name = _table_name(f"{settings['metric']}_{settings['index']}", options)
            store = PgVectorStore(class_engine, dimensions, table_name=name, **(settings | options))
            return await _empty(await _ensure_table(store, existing_tables))

        return make


class TestPgVectorRowSecurity(VectorStoreContract):
    """A table with row security, used by a role that its policies apply to."""

    @pytest.fixture
    def make_store(
        self, class_engine: AsyncEngine, app_engine: AsyncEngine, existing_tables: set[str]
    ) -> MakeStore:
        async def make(dimensions: int, **options: Any) -> PgVectorStore:
            name = _table_name("Guarded", options)
            options |= {"table_name": name, "row_security": True}
            admin_store = PgVectorStore(class_engine, dimensions, **options)
            if name not in existing_tables:
                await _ensure_table(admin_store, existing_tables)
                await execute(class_engine, f'GRANT ALL ON "{name}" TO cenote_app')
            await _empty(admin_store)
            return PgVectorStore(app_engine, dimensions, **options)

        return make

    async def test_namespaces_are_listed(self, store: VectorStore) -> None:
        """Listing requires a role that can read every namespace; the error says so."""
        with pytest.raises(VectorStoreError, match="BYPASSRLS"):
            await store.list_namespaces()

    @pytest.fixture
    async def app_engine(self, class_engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
        await execute(class_engine, APP_ROLE)
        engine = create_async_engine(class_engine.url.set(username="cenote_app"))
        yield engine
        await engine.dispose()
