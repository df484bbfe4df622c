"""`cenote reindex --index` under a store that stays open."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from support.database import scalar

from cenote import PgVectorStore
from cenote.maintenance import reindex, repartition
from cenote.stores.pgvector import executor
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded

ROWS = EXACT_UP_TO + 200
KINDS: list[Any] = ["vector", "bit", "none", "halfvec", "none", "vector"]


def chunks(prefix: str = "") -> list[Any]:
    vectors = np.random.default_rng(1).standard_normal((ROWS, 16)).astype(np.float32)
    return [embedded(f"{prefix}{n:05}", vector) for n, vector in enumerate(vectors)]


@pytest.mark.parametrize("partitions", [0, 2])
async def test_a_store_notices_another_kind(
    engine: AsyncEngine, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Searches are complete while the index is rebuilt as each other kind, and writes go on."""
    monkeypatch.setattr(executor, "_CHECK_SECONDS", 0.05)
    settings: dict[str, Any] = {"table_name": "kinds", "partitions": partitions}
    store = PgVectorStore(engine, 16, **settings)
    await store.apply_migrations()
    await store.upsert(chunks(), "n")
    done = asyncio.Event()
    query = np.ones(16)

    async def use() -> int:
        turns = 0
        while not done.is_set():
            assert len(await store.search(query, "n", 30)) == 30
            await store.upsert([embedded(f"new{turns % 20}", query * -turns)], "n")
            turns += 1
        return turns

    task = asyncio.create_task(use())
    for _, kind in pairwise(KINDS):
        await reindex(engine, replace(store.config, index=kind))
        await asyncio.sleep(0.1)
        await store.search(query, "n")
        assert store._searches.vectors.kind == kind
        assert await store.check_schema() == []
    done.set()
    assert await task > 0
    # Repartitioning keeps the kind.
    kept: list[Any] = ["bit", "none"]
    for kind in kept:
        await reindex(engine, replace(store.config, index=kind))
        await repartition(engine, replace(store.config, partitions=2 if partitions == 0 else 0))
        await asyncio.sleep(0.1)
        assert len(await store.search(query, "n", 30)) == 30
        assert store._searches.vectors.kind == kind
        await repartition(engine, store.config)


@pytest.mark.parametrize("kind", ["bit", "halfvec", "none"])
async def test_bulk_loads_keep_the_kind(engine: AsyncEngine, kind: Any) -> None:
    """An empty table gets an index of the kind that it had, or none."""
    created = PgVectorStore(engine, 16, table_name="loaded", partitions=0, index=kind)
    await created.apply_migrations()
    store = PgVectorStore(engine, 16, table_name="loaded", partitions=0)
    await store.bulk_load(chunks(), "n")
    async with store.deferred_ann_index():
        await store.upsert(chunks("more"), "n")
    assert await created.check_schema() == []
    await store.search(np.ones(16), "n")
    assert store._searches.vectors.kind == kind
    exists = "SELECT to_regclass('ix_loaded_embedding') IS NOT NULL"
    assert await scalar(engine, exists) is (kind != "none")
    wrong = PgVectorStore(engine, 16, table_name="loaded", partitions=0, index="vector")
    assert [finding.kind for finding in await wrong.check_schema()] == [
        "index_missing" if kind == "none" else "operator_class"
    ]
