"""A deployment with row-level security: roles, engines and stores, as in docs/row-security.md."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import APP_ROLE, execute
from support.drivers import engine_on, store_on

from cenote import (
    ChunkRow,
    PgVectorStore,
)
from cenote.testing import embedded

OPTIONS: dict[str, Any] = {"row_security": True, "text_search": "simple"}

ROLES = [
    "DO $$ BEGIN CREATE ROLE cenote_owner LOGIN; EXCEPTION WHEN duplicate_object THEN END $$",
    APP_ROLE,
    "GRANT CREATE, USAGE ON SCHEMA public TO cenote_owner",
    "CREATE EXTENSION IF NOT EXISTS vector",
]
GRANTS = "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO cenote_app"


@dataclass
class Deployment:
    """Engines of the table's owner, the application, and the superuser who created both roles."""

    owner: AsyncEngine
    app: AsyncEngine
    admin: AsyncEngine

    def store(self, **options: Any) -> PgVectorStore:
        """Return a store for the application's role."""
        store: PgVectorStore = store_on(self.app, 4, **OPTIONS | options)
        return store

    @property
    def owner_store(self) -> PgVectorStore:
        """Store for the owner's role, which runs the migrations."""
        store: PgVectorStore = store_on(self.owner, 4, **OPTIONS)
        return store


@pytest.fixture
async def roles(
    empty_dsn: str, empty_engine: AsyncEngine, driver: str
) -> AsyncIterator[Deployment]:
    """Create the roles of docs/row-security.md: the table's owner and the application's role."""
    await execute(empty_engine, *ROLES)
    url = make_url(empty_dsn)
    owner = engine_on(driver, url.set(username="cenote_owner"))
    app = engine_on(driver, url.set(username="cenote_app"), pool_size=1, max_overflow=0)
    yield Deployment(owner, app, empty_engine)
    for engine in (owner, app):
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()


@pytest.fixture
async def deployed(roles: Deployment) -> Deployment:
    """Return a deployment with the table and two tenants."""
    await roles.owner_store.apply_migrations()
    await execute(roles.owner, GRANTS.format("cenote_chunks"))
    await roles.store().upsert([embedded("a", content="cat"), embedded("b")], "acme")
    await roles.store().upsert([embedded("x", content="cat")], "globex")
    return roles


async def visible_ids(session: Any) -> list[str]:
    """Return the ids of all rows that are visible."""
    return [*await session.scalars(select(ChunkRow.id).order_by(ChunkRow.id))]
