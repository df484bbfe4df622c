"""Searches of a table with row-level security: one statement that sets its tenant first."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from support import deployment
from support.chunks import random_chunks
from support.database import execute
from support.deployment import GRANTS, Deployment
from support.driver import watch
from support.drivers import on_both_stores
from support.plans import explain

from cenote import PgVectorStore
from cenote.filters.checks import as_filter
from cenote.filters.compiler import Conditions
from cenote.postgres.extension import prepare
from cenote.stores.pgvector.sql.vector_search import EXACT_UP_TO

QUERY = [1.0, 0.5, 0.25, 0.0]
FILTERS: list[Any] = [None, {"half": 1}, {"rare": 7}, {"absent": 1}]
LARGE = EXACT_UP_TO + 1000

roles = deployment.roles
deployed = deployment.deployed


@pytest.fixture
async def filled(deployed: Deployment) -> Deployment:
    """A deployment with a large, a small and twenty tiny tenants."""
    store = deployed.owner_store
    for namespace, rows in [("large", LARGE), ("small", 300), *((f"t{n}", 5) for n in range(20))]:
        chunks = random_chunks(rows, seed=len(namespace))
        for number, one in enumerate(chunks):
            one.chunk.metadata.update(half=number % 2, rare=number % 100)
        await store.upsert(chunks, namespace)
    async with deployed.admin.connect() as connection:
        options = {"isolation_level": "AUTOCOMMIT"}
        await (await connection.execution_options(**options)).execute(text("ANALYZE cenote_chunks"))
    return deployed


GRANT_ON_PARTITIONS = (
    "DO $$ DECLARE name text; BEGIN FOR name IN SELECT inhrelid::regclass FROM pg_inherits"
    " WHERE inhparent = 'cenote_chunks'::regclass"
    " LOOP EXECUTE 'GRANT SELECT ON ' || name || ' TO cenote_app'; END LOOP; END $$"
)


@on_both_stores
@pytest.mark.parametrize("granted", [True, False])
async def test_a_search_takes_one_statement(filled: Deployment, granted: bool) -> None:
    """A repeated search is one statement, which names the partition if the role may read it."""
    if granted:
        await execute(filled.owner, GRANT_ON_PARTITIONS)
    store = filled.store()
    sent = watch(filled.app)
    await filled.app.dispose()  # the events of new connections are watched
    for namespace in ("large", "small", "t3"):
        for filter in FILTERS[:2]:
            for _ in range(3):
                expected = await store.search(QUERY, namespace, 10, filter)
            await asyncio.sleep(0)  # asyncpg calls its loggers in the next turn of the loop
            sent.clear()
            assert await store.search(QUERY, namespace, 10, filter) == expected
            await asyncio.sleep(0)
            (statement,) = sent
            assert ("FROM cenote_chunks_p" in statement) == granted
            assert "set_config('cenote.namespace'" in statement


@pytest.mark.parametrize("granted", [True, False])
@pytest.mark.parametrize("mode", ["auto", "force_custom_plan", "force_generic_plan"])
async def test_results_do_not_depend_on_the_plan(
    filled: Deployment, mode: str, granted: bool
) -> None:
    """With every kind of plan, a search returns what an exact search in a transaction returns."""
    if granted:
        await execute(filled.owner, GRANT_ON_PARTITIONS)
    await execute(filled.admin, f"ALTER ROLE cenote_app SET plan_cache_mode = {mode}")
    try:
        store = filled.store()
        for namespace in ("large", "small", "t3", "nobody"):
            for filter in FILTERS:
                async with filled.app.connect() as connection, connection.begin():
                    wanted = await store.search(
                        QUERY, namespace, 10, filter, exact=True, session=connection
                    )
                for _ in range(12):
                    results = await store.search(QUERY, namespace, 10, filter)
                    exact = await store.search(QUERY, namespace, 10, filter, exact=True)
                    assert exact == wanted
                    assert len(results) == len(wanted)
                    if namespace != "large":
                        assert results == wanted
    finally:
        await execute(filled.admin, "ALTER ROLE cenote_app RESET plan_cache_mode")


@pytest.mark.parametrize("granted", [True, False])
async def test_a_large_tenant_is_searched_through_the_index(
    filled: Deployment, granted: bool
) -> None:
    """The policy's condition does not make Postgres prefer the primary key to the ANN index."""
    if granted:
        await execute(filled.owner, GRANT_ON_PARTITIONS)
    store = filled.store()
    async with filled.admin.connect() as connection:
        partition = await connection.scalar(
            text(
                "SELECT tableoid::regclass::text FROM cenote_chunks WHERE namespace = 'large'"
                " LIMIT 1"
            )
        )
    async with filled.app.connect() as connection:
        await prepare(connection, migrations="nothing")
        for filter in (None, {"half": 1}):
            plan = await _ann_plan(connection, store, partition if granted else None, filter)
            assert "_embedding_idx" in plan
            assert "rows=50" in plan


async def _ann_plan(
    connection: AsyncConnection, store: PgVectorStore, partition: str | None, filter: Any
) -> str:
    conditions = Conditions(as_filter(filter))
    scope: Any = "partitioned" if partition is None else "partition"
    statement = store._searches.partition_search(
        partition, scope, "ann", conditions, 50, per_document=None
    )
    parameters = {
        "namespace": "large",
        "query": str(np.asarray(QUERY).tolist()),
        "partition": "cenote_chunks" if partition is None else partition,
        "parent": "cenote_chunks",
        **store._searches.search_parameters(10),
        **conditions.parameters,
    }
    return await explain(connection, statement, "auto", parameters, after=12)


async def test_policies_of_the_application_apply(filled: Deployment) -> None:
    """A policy on the chunk table also applies to a role that may read the partitions."""
    await execute(
        filled.owner,
        GRANT_ON_PARTITIONS,
        "CREATE POLICY hidden ON cenote_chunks AS RESTRICTIVE USING (id < '00100')",
    )
    store = filled.store()
    for _ in range(5):
        for namespace in ("large", "small"):
            results = await store.search(QUERY, namespace, 200)
            assert len(results) == 100


async def test_row_security_that_is_enabled_later(roles: Deployment) -> None:
    """A running store without row_security finds nothing more once the table has it."""
    owner = PgVectorStore(roles.owner, 4)
    await owner.apply_migrations()
    await owner.upsert(random_chunks(300), "n")
    await execute(roles.owner, GRANTS.format("cenote_chunks"), GRANT_ON_PARTITIONS)
    store = PgVectorStore(roles.app, 4)
    for _ in range(3):
        assert len(await store.search(QUERY, "n")) == 10
    await execute(roles.owner, "ALTER TABLE cenote_chunks ENABLE ROW LEVEL SECURITY")
    for _ in range(3):
        assert await store.search(QUERY, "n") == []
