"""Run tests of `PgVectorStore` on every driver, and on the synchronous store.

A test that `on_every_driver` decorates runs three times. Its fixture ``engine`` (or
``empty_engine``, ``library``, ``store``) is an engine of asyncpg, an engine of psycopg, and a
synchronous engine of psycopg with SQLAlchemy's asynchronous interface, whose statements block the
event loop. `store_on` returns a store on any of them. `on_both_stores` omits the asynchronous
engine of psycopg, for slow tests of what statements return. `on_asynchronous_drivers` omits the
synchronous engine, for tests of tasks.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from support.synchronous import Awaited

from cenote import PgVectorStore, SyncPgVectorStore
from cenote.postgres.sync_engine import SyncConnection, SyncEngine

Sessions: TypeAlias = async_sessionmaker[AsyncSession]

ASYNCPG = "asyncpg"
PSYCOPG = "psycopg"
SYNCHRONOUS = "synchronous"

on_every_driver = pytest.mark.parametrize("driver", [ASYNCPG, PSYCOPG, SYNCHRONOUS], indirect=True)
on_asynchronous_drivers = pytest.mark.parametrize("driver", [ASYNCPG, PSYCOPG], indirect=True)
on_both_stores = pytest.mark.parametrize("driver", [ASYNCPG, SYNCHRONOUS], indirect=True)


def engine_on(driver: str, dsn: str | URL, **options: Any) -> AsyncEngine:
    """Create an engine as an application would, on the driver that a test asks for."""
    if driver == ASYNCPG:
        url = make_url(dsn).set(drivername="postgresql+asyncpg")
        if "sslmode" in url.query:  # SQLAlchemy's dialect calls it ssl
            ssl = {"ssl": url.query["sslmode"]}
            url = url.difference_update_query(["sslmode"]).update_query_dict(ssl)
        return create_async_engine(url, **options)
    url = make_url(dsn).set(drivername="postgresql+psycopg")
    if driver == PSYCOPG:
        return create_async_engine(url, **options)
    return SyncEngine(create_engine(url, **options))


def another_engine(engine: AsyncEngine, **options: Any) -> AsyncEngine:
    """Create an engine with the same URL and the same driver."""
    driver = SYNCHRONOUS if isinstance(engine, SyncEngine) else engine.dialect.driver
    return engine_on(driver, engine.url, **options)


def store_on(engine: AsyncEngine | AsyncConnection | Sessions, *args: Any, **options: Any) -> Any:
    """Create a store on an engine, a connection or a sessionmaker.

    Returns:
        A `PgVectorStore`, or a `SyncPgVectorStore` whose methods are awaited and run in threads.
    """
    bind = engine.kw["bind"] if isinstance(engine, async_sessionmaker) else engine
    if isinstance(bind, SyncEngine | SyncConnection):
        plain: Any = bind.sync_engine if isinstance(bind, SyncEngine) else bind.sync_connection
        store: SyncPgVectorStore[Any] = SyncPgVectorStore(plain, *args, **options)
        return Awaited(store, in_threads=True)
    return PgVectorStore(engine, *args, **options)


async def connect_on(driver: str, *args: Any, **options: Any) -> Any:
    """Create a store with `connect`, which uses asyncpg or, in `SyncPgVectorStore`, psycopg.

    See `store_on` for the result.
    """
    if driver == SYNCHRONOUS:
        connect: Any = SyncPgVectorStore.connect
        return Awaited(await asyncio.to_thread(connect, *args, **options), in_threads=True)
    return await PgVectorStore.connect(*args, **options)
