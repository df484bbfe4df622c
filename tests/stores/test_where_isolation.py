"""SQL conditions of the application (``where=``) reach no other tenant, whatever their text.

No table here has row-level security.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from support.drivers import on_every_driver, store_on

from cenote import PgVectorStore
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded, found, stored

V = [1.0, 0.0, 0.0, 0.0]
ESCAPES = ("true) OR (true", "true) OR (namespace <> 'own'")


@pytest.fixture
async def store(empty_engine: AsyncEngine) -> PgVectorStore:
    """A store with a small and a large tenant, and as many chunks of another tenant."""
    store: PgVectorStore = store_on(empty_engine, 4, text_search="english")
    await store.apply_migrations()
    for namespace, number in (("own", 3), ("large", EXACT_UP_TO + 50), ("other", 1500)):
        batch = [
            embedded(f"{namespace}{n:04}", [1, n, 0, 0], content="word") for n in range(number)
        ]
        await store.upsert(batch, namespace)
    return store


@pytest.mark.parametrize("condition", ESCAPES)
@pytest.mark.parametrize("namespace", ["own", "large"])
@pytest.mark.parametrize("filter", [None, {"missing": 1}])
async def test_escaping_conditions(
    store: PgVectorStore, condition: str, namespace: str, filter: Any
) -> None:
    """A text that closes the parentheses around it adds no chunk of another namespace."""
    where: Any = text(condition)
    for options in ({}, {"exact": True}, {"per_document": 2}):
        ids = await found(store, V, namespace, 5000, filter=filter, where=where, **options)
        assert_own(ids, namespace)
    assert_own([c.id for c in await stored(store, namespace, filter, where=where)], namespace)
    words = await store.search_text("word", namespace, 5000, filter, where=where)
    hybrid = await store.search_hybrid("word", V, namespace, 5000, filter, where=where)
    for results in (words, hybrid):
        assert_own([result.chunk.id for result in results], namespace)
    statement = store.search_statement(V, namespace, 5000, filter, where=where)
    async with AsyncSession(store._engine) as session:
        rows = (await session.execute(statement)).all()
        assert_own([chunk.id for chunk, _ in rows], namespace)


@on_every_driver
async def test_conditions_that_do_not_escape(store: PgVectorStore) -> None:
    """The repeated condition removes no chunk of the tenant itself."""
    where: Any = text("id <> 'own0001'")
    assert await found(store, V, "own", where=where) == ["own0000", "own0002"]
    assert [c.id for c in await stored(store, "own", where=where)] == ["own0000", "own0002"]
    assert len(await stored(store, "large", where=where)) == EXACT_UP_TO + 50
    assert len(await found(store, V, "large", 1000, where=where)) == 1000
    assert len(await store.search_text("word", "large", 2000, where=where)) == EXACT_UP_TO + 50


def assert_own(ids: list[str], namespace: str) -> None:
    assert all(chunk_id.startswith(namespace) for chunk_id in ids)
