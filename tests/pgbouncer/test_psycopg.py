"""A store on psycopg's asynchronous engine behind PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import NullPool
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from support.pooler import running_pgbouncer

from cenote import MigrationError, PgVectorStore
from cenote.testing import embedded


async def test_row_security_and_migrations(dsn: str) -> None:
    """Tenants stay apart; schema changes are rejected, because they need a session."""
    direct = create_async_engine(
        make_url(dsn).set(drivername="postgresql+psycopg"), poolclass=NullPool
    )
    await PgVectorStore(direct, 4, table_name="guarded", row_security=True).apply_migrations()
    with running_pgbouncer(dsn) as url:
        pooled = create_async_engine(
            url.set(drivername="postgresql+psycopg"), connect_args={"prepare_threshold": None}
        )
        store = PgVectorStore(pooled, 4, table_name="guarded", row_security=True)
        tenants = [str(number) for number in range(8)]
        await asyncio.gather(*(store.upsert([embedded(tenant)], tenant) for tenant in tenants))
        chunks = await asyncio.gather(*(store.list_chunks(tenant) for tenant in tenants))
        assert [[chunk.id for chunk in found] for found in chunks] == [[t] for t in tenants]
        with pytest.raises(MigrationError, match="pool_mode=transaction"):
            await store.apply_migrations()
        await pooled.dispose()
