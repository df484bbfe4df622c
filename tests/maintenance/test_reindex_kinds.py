"""`cenote reindex --index` under a store that stays open."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from support import deployment
from support.commands import cenote, output_of
from support.database import execute, scalar
from support.deployment import GRANTS, Deployment

from cenote import PgVectorStore, SchemaConfig, schema
from cenote.inspection.live_table import read_table
from cenote.maintenance import reindex, repartition, set_row_security
from cenote.maintenance.index_build import estimate_graph_kilobytes
from cenote.stores.pgvector import executor
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO
from cenote.testing import embedded

ROWS = EXACT_UP_TO + 200
KINDS: list[Any] = ["vector", "bit", "none", "halfvec", "none", "vector"]

roles = deployment.roles


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


@pytest.mark.parametrize("partitions", [0, 2])
async def test_row_security(
    roles: Deployment, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner, who sees no rows, changes the kind, while the application searches its tenants."""
    monkeypatch.setattr(executor, "_CHECK_SECONDS", 0.05)
    settings: dict[str, Any] = {
        "table_name": "secured",
        "partitions": partitions,
        "row_security": True,
    }
    owner = PgVectorStore(roles.owner, 16, **settings)
    await owner.apply_migrations()
    await execute(roles.owner, GRANTS.format("secured"))
    assert await scalar(
        roles.owner, "SELECT relforcerowsecurity FROM pg_class WHERE oid = 'secured'::regclass"
    )
    store = PgVectorStore(roles.app, 16, **settings)
    await store.upsert(chunks("acme"), "acme")
    await store.upsert(chunks("globex")[:20], "globex")
    await execute(roles.admin, "ANALYZE secured")
    assert await scalar(roles.owner, "SELECT count(*) FROM secured") == 0
    done = asyncio.Event()
    query = np.ones(16)

    async def search() -> None:
        for tenant, expected in (("acme", 30), ("globex", 20)):
            found = await store.search(query, tenant, 30)
            assert len({result.chunk.id for result in found}) == expected
            assert all(result.chunk.id.startswith(tenant) for result in found)

    async def use() -> int:
        turns = 0
        while not done.is_set():
            await search()
            await store.upsert([embedded(f"acme new{turns % 20}", query * -1)], "acme")
            turns += 1
        return turns

    task = asyncio.create_task(use())
    for kind in KINDS[1:]:
        await reindex(roles.owner, replace(owner.config, index=kind))
        await asyncio.sleep(0.1)
        await search()
        assert store._searches.vectors.kind == kind
        assert await owner.check_schema() == []
        few = {"nothing": 1}
        assert await store.search(query, "acme", 30, few) == []
    done.set()
    assert await task > 0


async def test_the_memory_of_a_build_under_row_security(roles: Deployment) -> None:
    """It is estimated for rows that the policy hides from the owner."""
    settings: dict[str, Any] = {"table_name": "secured", "partitions": 0}
    owner = PgVectorStore(roles.owner, 16, **settings)
    await owner.apply_migrations()
    await owner.upsert(chunks(), "acme")

    async def estimate() -> int:
        async with roles.owner.connect() as connection:
            live = await connection.run_sync(read_table, "secured", None)
            assert live is not None
            return await connection.run_sync(estimate_graph_kilobytes, live, owner.config)

    visible = await estimate()
    await set_row_security(roles.owner, owner.config, on=True)
    assert await scalar(roles.owner, "SELECT count(*) FROM secured") == 0
    assert visible <= await estimate() < 2 * visible


COMMANDS = [
    ["text-search", "english"],
    ["row-security", "on"],
    ["repartition", "2"],
    ["reindex"],
    ["text-search", "none"],
    ["repartition", "0"],
]


@pytest.mark.parametrize(
    ("settings", "mark"),
    [
        ({"index": "none", "metric": "l2"}, "; cenote: metric=l2, index=none"),
        ({"index": "halfvec", "metric": "inner_product"}, "; cenote: metric=inner_product"),
        ({"index": "bit", "dimensions": 16_000}, ""),
    ],
    ids=str,
)
async def test_commands_keep_the_kind_and_the_comment(
    empty_engine: AsyncEngine, empty_dsn: str, settings: dict[str, Any], mark: str
) -> None:
    """Commands without a setting for the kind leave a table that equals its settings."""
    config = SchemaConfig(**{"dimensions": 3, "partitions": 0, **settings})
    await schema.upgrade(empty_engine, config)
    await execute(empty_engine, f"COMMENT ON TABLE cenote_chunks IS 'ours{mark}'")
    for command in COMMANDS:
        output_of(cenote(*command, CENOTE_DATABASE_URL=empty_dsn))
        comment = "SELECT obj_description('cenote_chunks'::regclass)"
        assert await scalar(empty_engine, comment) == f"ours{mark}", command
        async with empty_engine.connect() as connection:
            live = await connection.run_sync(read_table, "cenote_chunks", None)
        assert live is not None
        assert live.index_kind == config.index, command
        expected = replace(config, partitions=None, row_security=None)
        assert await schema.check(empty_engine, expected) == [], command
    output_of(cenote("check", CENOTE_DATABASE_URL=empty_dsn))
