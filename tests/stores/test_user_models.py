"""Stores with a user model."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
)
from support.library import Base as LibraryBase
from support.library import Document, Passage, passage

from cenote import (
    ChunkMixin,
    ChunkRow,
    ConfigurationError,
    MigrationError,
    PgVectorStore,
    VectorStoreError,
)
from cenote.testing import embedded, found


async def test_a_store_reads_its_settings_from_the_model(empty_engine: AsyncEngine) -> None:
    """Arguments that contradict the model raise an error that names the setting."""
    store = PgVectorStore(empty_engine, model=Passage)
    assert store.model is Passage
    assert (store.config.dimensions, store.config.table_name) == (4, "passages")
    assert repr(store) == "PgVectorStore(table='passages', dimensions=4)"
    settings: dict[str, Any]
    for settings in ({"dimensions": 5}, {"table_name": "x"}, {"hnsw_m": 24}, {"partitions": 8}):
        with pytest.raises(
            ConfigurationError, match="differs from the setting of Passage"
        ) as error:
            PgVectorStore(empty_engine, model=Passage, **settings)
        assert error.value.setting == next(iter(settings))
    PgVectorStore(empty_engine, 4, model=Passage, hnsw_m=8)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="ChunkRow has no `dimensions`"):
        PgVectorStore(empty_engine, model=ChunkRow)
    invalid_model: Any
    for invalid_model in (Document, int, "Passage", ChunkMixin):
        with pytest.raises(ConfigurationError, match="mapped class with ChunkMixin, not") as error:
            PgVectorStore(empty_engine, model=invalid_model)
        assert error.value.setting == "model"


async def test_metadata_with_another_sqlalchemy_type(empty_engine: AsyncEngine) -> None:
    """A store reads metadata correctly if the model declares another type for jsonb."""

    class Base(DeclarativeBase):
        pass

    class Note(ChunkMixin, Base, dimensions=4, partitions=0):
        __tablename__ = "notes"
        metadata_: Mapped[Any] = mapped_column(
            "metadata", JSON().with_variant(JSONB(), "postgresql"), nullable=False
        )

    store = PgVectorStore(empty_engine, model=Note)
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
        await connection.run_sync(Base.metadata.create_all)
    await store.upsert([embedded("a", metadata={"k": [1]})], "n")
    (result,) = await store.search([1, 0, 0, 0], "n")
    assert result.chunk.metadata == {"k": [1]}
    assert [chunk.metadata async for chunk in store.get_all_chunks("n")] == [{"k": [1]}]


async def test_the_application_migrates_the_table_of_a_user_model(
    empty_engine: AsyncEngine,
) -> None:
    """The store does not migrate the table; errors and findings name the application's commands."""
    store = PgVectorStore(empty_engine, model=Passage)
    with pytest.raises(MigrationError, match="alembic revision --autogenerate"):
        await store.apply_migrations()
    async with empty_engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION vector"))
    with pytest.raises(VectorStoreError, match="alembic upgrade head"):
        await found(store, [1, 0, 0, 0], "t")
    (missing,) = await store.check_schema()
    assert (missing.kind, "alembic upgrade head" in missing.hint) == ("table_missing", True)
    async with empty_engine.begin() as connection:
        await connection.run_sync(LibraryBase.metadata.create_all)
    assert await store.check_schema() == []
    async with empty_engine.begin() as connection:
        await connection.execute(text("ALTER TABLE passages DROP COLUMN page"))
    with pytest.raises(VectorStoreError, match="alembic upgrade head"):
        await store.upsert([passage(None, 0, page=1)], "t")
