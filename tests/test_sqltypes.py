"""Vector columns are right on every connection, and leave a host's own vector columns alone."""

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
from cenote.connections import prepare
from cenote.sqltypes import HalfvecType, VectorType
from cenote.testing import embedded, found

VALUES = [1.5, -2.0, 0.25]

metadata = MetaData()
ours = Table(
    "ours",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("vector", VectorType(3)),
    Column("half", HalfvecType(3)),
)
stock = Table(
    "stock",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("vector", VECTOR(3)),
    Column("half", HALFVEC(3)),
)


@pytest.fixture(params=["no codec", "pgvector's codec", "cenote's codec"])
async def codec(request: pytest.FixtureRequest) -> str:
    """What the connections have registered."""
    return str(request.param)


@pytest.fixture
async def host_engine(dsn: str, codec: str) -> AsyncIterator[AsyncEngine]:
    """A host's engine, with the two tables."""
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
async def test_our_types_are_right_on_every_connection(
    host_engine: AsyncEngine, value: Any
) -> None:
    """They take every kind of sequence and give float32 arrays."""
    async with host_engine.begin() as connection:
        await connection.execute(insert(ours), [{"id": 1, "vector": value, "half": value}])
        await connection.execute(insert(ours), [{"id": 2}])
        query = select(ours.c.vector, ours.c.half).where(ours.c.vector == value)
        row = (await connection.execute(query)).one()
        for read in row:
            assert isinstance(read, np.ndarray)
            assert read.dtype == np.float32
            assert read.tolist() == VALUES
        distance = ours.c.half.cosine_distance(value)
        assert (await connection.scalar(select(distance).where(ours.c.id == 1))) == pytest.approx(0)
        empty = await connection.execute(select(ours.c.vector).where(ours.c.id == 2))
        assert empty.scalar_one() is None


async def test_literals(host_engine: AsyncEngine) -> None:
    """As in SQL that is printed."""
    compiled = select(literal(VALUES, VectorType(3)), literal(VALUES, HalfvecType(3))).compile(
        host_engine.sync_engine, compile_kwargs={"literal_binds": True}
    )
    async with host_engine.connect() as connection:
        rows = await connection.exec_driver_sql(str(compiled))
        assert [list(value) for value in rows.one()] == [VALUES, VALUES]


async def test_stock_columns_keep_working_beside_a_store(
    host_engine: AsyncEngine, codec: str
) -> None:
    """What they read with no codec they read with cenote's; pgvector's codec refuses them."""
    if codec == "pgvector's codec":
        await PgVectorStore(host_engine, 4).search([1, 0, 0, 0], "n")  # replaces it
    async with host_engine.begin() as connection:
        for number, value in enumerate([VALUES, np.array(VALUES)]):
            await connection.execute(insert(stock), {"id": number, "vector": value, "half": value})
        query = select(stock.c.vector, stock.c.half).where(stock.c.vector == VALUES)
        rows = (await connection.execute(query)).all()
        assert len(rows) == 2
        for vector, half in rows:
            assert list(vector) == VALUES
            assert list(half.to_list() if hasattr(half, "to_list") else half) == VALUES


async def test_the_codec_takes_what_pgvectors_own_takes(dsn: str, engine: AsyncEngine) -> None:
    """And arrays of vectors, through the driver itself."""
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
        pair = [pgvector.Vector(VALUES), pgvector.Vector([1, 2, 3])]
        both = await driver.fetchval("SELECT $1::vector[]::text", pair)
        assert both == '{"[1.5,-2,0.25]","[1,2,3]"}'


@pytest.mark.parametrize("installed_before", [True, False])
async def test_an_extension_in_another_schema(
    empty_dsn: str, empty_engine: AsyncEngine, installed_before: bool
) -> None:
    """It works when that schema is on the search_path; the revision creates it there."""
    async with empty_engine.begin() as connection:
        database = make_url(empty_dsn).database
        await connection.execute(text(f'ALTER DATABASE "{database}" SET search_path = public, ext'))
        if installed_before:
            await connection.execute(text("CREATE SCHEMA ext"))
            await connection.execute(text("CREATE EXTENSION vector SCHEMA ext"))
    await empty_engine.dispose()  # new connections have the search_path
    store = PgVectorStore(empty_engine, 4, extension_schema="ext")
    await store.apply_migrations()
    await store.upsert([embedded("a")], "n")
    assert await found(store, [1, 0, 0, 0], "n") == ["a"]
    async with empty_engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(ours), {"id": 1, "vector": VALUES, "half": VALUES})
        (read,) = (await connection.scalars(select(ours.c.vector))).all()
        assert read.tolist() == VALUES


def test_arrays_of_vectors_compile() -> None:
    """The type nests in SQLAlchemy's own."""
    assert str(
        ARRAY(VectorType(3)).compile(dialect=create_async_engine("postgresql+asyncpg://").dialect)
    )
