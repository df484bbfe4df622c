"""Vector column types with each codec, and the application's own vector columns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from pgvector.asyncpg import register_vector
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, Integer, MetaData, Table, event, insert, literal, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from cenote import PgVectorStore
from cenote.postgres.extension import prepare
from cenote.postgres.vector import HalfvecType, VectorType
from cenote.testing import embedded, found

VALUES = [1.5, -2.0, 0.25]

metadata = MetaData()
cenote_table = Table(
    "cenote_types",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("vector", VectorType(3)),
    Column("half", HalfvecType(3)),
)
pgvector_table = Table(
    "pgvector_types",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("vector", VECTOR(3)),
    Column("half", HALFVEC(3)),
)


@pytest.fixture(params=["no codec", "pgvector's codec", "cenote's codec"])
async def codec(request: pytest.FixtureRequest) -> str:
    """Codec registered on the connections."""
    return str(request.param)


@pytest.fixture
async def application_engine(dsn: str, codec: str) -> AsyncIterator[AsyncEngine]:
    """Engine of an application, with the two tables."""
    engine = create_async_engine(make_url(dsn).set(drivername="postgresql+asyncpg"), pool_size=1)
    if codec == "pgvector's codec":

        @event.listens_for(engine.sync_engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.run_async(register_vector)

    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    if codec == "cenote's codec":
        await PgVectorStore(engine, 4).search([1, 0, 0, 0], "n")
    yield engine
    await engine.dispose()


@pytest.mark.parametrize(
    "value",
    [
        VALUES,
        tuple(VALUES),
        np.array(VALUES),
        np.array(VALUES, dtype=">f2"),
        np.array(VALUES, dtype="f4"),
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
async def test_values_and_results(application_engine: AsyncEngine, value: Any) -> None:
    """The types accept every kind of sequence and return float32 arrays, with any codec."""
    async with application_engine.begin() as connection:
        await connection.execute(insert(cenote_table), [{"id": 1, "vector": value, "half": value}])
        await connection.execute(insert(cenote_table), [{"id": 2}])
        query = select(cenote_table.c.vector, cenote_table.c.half).where(
            cenote_table.c.vector == value
        )
        row = (await connection.execute(query)).one()
        for result in row:
            assert isinstance(result, np.ndarray)
            assert result.dtype == np.float32
            assert result.tolist() == VALUES
        distance = cenote_table.c.half.cosine_distance(value)
        assert (
            await connection.scalar(select(distance).where(cenote_table.c.id == 1))
        ) == pytest.approx(0)
        empty = await connection.execute(
            select(cenote_table.c.vector).where(cenote_table.c.id == 2)
        )
        assert empty.scalar_one() is None


async def test_literal_values(application_engine: AsyncEngine) -> None:
    """SQL with literal values is valid."""
    compiled = select(literal(VALUES, VectorType(3)), literal(VALUES, HalfvecType(3))).compile(
        application_engine.sync_engine, compile_kwargs={"literal_binds": True}
    )
    async with application_engine.connect() as connection:
        rows = await connection.exec_driver_sql(str(compiled))
        assert [list(value) for value in rows.one()] == [VALUES, VALUES]


async def test_pgvectors_own_types_beside_a_store(
    application_engine: AsyncEngine, codec: str
) -> None:
    """Columns of pgvector's types read the same with cenote's codec as without a codec."""
    if codec == "pgvector's codec":
        # The store replaces pgvector's codec.
        await PgVectorStore(application_engine, 4).search([1, 0, 0, 0], "n")
    async with application_engine.begin() as connection:
        for number, value in enumerate([VALUES, np.array(VALUES)]):
            await connection.execute(
                insert(pgvector_table), {"id": number, "vector": value, "half": value}
            )
        query = select(pgvector_table.c.vector, pgvector_table.c.half).where(
            pgvector_table.c.vector == VALUES
        )
        rows = (await connection.execute(query)).all()
        assert len(rows) == 2
        for vector, half in rows:
            assert list(vector) == VALUES
            assert list(half.to_list() if hasattr(half, "to_list") else half) == VALUES


async def test_the_codec_accepts_the_values_of_pgvectors_codec(
    dsn: str, engine: AsyncEngine
) -> None:
    """cenote's codec accepts all values that pgvector's codec accepts, and arrays of vectors."""
    import pgvector

    async with engine.connect() as connection:
        await prepare(connection, migrations="nothing")
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        for value in (
            VALUES,
            tuple(VALUES),
            np.array(VALUES),
            "[1.5,-2,0.25]",
            pgvector.Vector(VALUES),
        ):
            assert await driver.fetchval("SELECT $1::vector::text", value) == "[1.5,-2,0.25]"
        half = await driver.fetchval("SELECT $1::halfvec", pgvector.HalfVector(VALUES))
        assert half == pgvector.HalfVector(VALUES)
        vectors = [pgvector.Vector(VALUES), pgvector.Vector([1, 2, 3])]
        array = await driver.fetchval("SELECT $1::vector[]::text", vectors)
        assert array == '{"[1.5,-2,0.25]","[1,2,3]"}'


@pytest.mark.parametrize("installed_before", [True, False])
async def test_an_extension_in_another_schema(
    empty_dsn: str, empty_engine: AsyncEngine, installed_before: bool
) -> None:
    """The types work if the extension's schema, which the revision creates, is on search_path."""
    async with empty_engine.begin() as connection:
        database = make_url(empty_dsn).database
        await connection.execute(text(f'ALTER DATABASE "{database}" SET search_path = public, ext'))
        if installed_before:
            await connection.execute(text("CREATE SCHEMA ext"))
            await connection.execute(text("CREATE EXTENSION vector SCHEMA ext"))
    await empty_engine.dispose()  # only new connections have the search_path
    store = PgVectorStore(empty_engine, 4, extension_schema="ext")
    await store.apply_migrations()
    await store.upsert([embedded("a")], "n")
    assert await found(store, [1, 0, 0, 0], "n") == ["a"]
    async with empty_engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(cenote_table), {"id": 1, "vector": VALUES, "half": VALUES})
        (result,) = (await connection.scalars(select(cenote_table.c.vector))).all()
        assert result.tolist() == VALUES


def test_arrays_of_vectors_compile() -> None:
    """SQLAlchemy's ARRAY accepts the types as elements."""
    assert str(
        ARRAY(VectorType(3)).compile(dialect=create_async_engine("postgresql+asyncpg://").dialect)
    )
