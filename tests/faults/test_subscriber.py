"""Logical replication: a second server subscribes to the chunk table of the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from support.chunks import random_chunks
from support.database import execute, scalar

from cenote import MigrationError, PgVectorStore, SchemaConfig
from cenote.embedded import EmbeddedPostgres
from cenote.maintenance import reindex, repartition, set_text_search
from cenote.postgres.dsn import create_engine
from cenote.testing import embedded, found, stored

QUERY = [1.0, 0.5, 0.25, 0.125]
NAMESPACES = ("acme", "globex", "loaded", "late")


@dataclass
class Replication:
    """A publisher and a subscriber, each with a chunk table."""

    publisher: AsyncEngine
    subscriber: AsyncEngine

    def stores(self) -> tuple[PgVectorStore, PgVectorStore]:
        return (
            PgVectorStore(self.publisher, 4, partitions=4, text_search="simple"),
            PgVectorStore(self.subscriber, 4, partitions=2, text_search="simple"),
        )

    async def caught_up(self) -> None:
        """Wait until the subscriber has applied everything that the publisher has committed."""
        position = await scalar(self.publisher, "SELECT pg_current_wal_lsn()::text")
        query = f"""
            SELECT coalesce(bool_and(confirmed_flush_lsn >= '{position}'::pg_lsn), false)
            FROM pg_replication_slots WHERE slot_type = 'logical'
        """
        copied = "SELECT coalesce(bool_and(srsubstate = 'r'), false) FROM pg_subscription_rel"
        async with asyncio.timeout(60):
            while not await scalar(self.subscriber, copied):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while not await scalar(self.publisher, query):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running_server(folder: Path) -> AsyncIterator[AsyncEngine]:
    """Run a server with logical decoding."""
    with EmbeddedPostgres(folder) as server:
        engine = create_engine(server.dsn, pool_size=1)
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("ALTER SYSTEM SET wal_level = 'logical'"))
        await engine.dispose()
    with EmbeddedPostgres(folder) as server:  # the setting needs a restart
        engine = create_engine(server.dsn, pool_size=4)
        yield engine
        await engine.dispose()


@pytest.fixture
async def replication(tmp_path: Path) -> AsyncIterator[Replication]:
    async with (
        running_server(tmp_path / "publisher" / "data") as publisher,
        running_server(tmp_path / "subscriber" / "data") as subscriber,
    ):
        replication = Replication(publisher, subscriber)
        for store in replication.stores():
            await store.apply_migrations()
        yield replication
        async with subscriber.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("DROP SUBSCRIPTION IF EXISTS copy"))


async def subscribe(
    replication: Replication, publication: str, *, options: str = "copy_data = true"
) -> None:
    """Publish and subscribe."""
    await execute(replication.publisher, f"CREATE PUBLICATION chunks {publication}")
    query: Any = replication.publisher.url.query
    dsn = f"host={query['host']} user=postgres dbname=postgres"
    async with replication.subscriber.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(
            text(f"CREATE SUBSCRIPTION copy CONNECTION '{dsn}' PUBLICATION chunks WITH ({options})")
        )


async def compare(replication: Replication) -> None:
    """Check that all reads of the subscriber equal those of the publisher."""
    await replication.caught_up()
    source, copy = replication.stores()
    for namespace in NAMESPACES:
        chunks = await stored(source, namespace)
        assert await stored(copy, namespace) == chunks
        assert await copy.count(namespace) == len(chunks)
        ids = [chunk.id for chunk in chunks]
        vectors = [await store.get_embeddings(ids, namespace) for store in (source, copy)]
        assert vectors[0].keys() == vectors[1].keys()
        assert all((vectors[0][id] == vectors[1][id]).all() for id in ids)
        for options in ({}, {"filter": {"k": 1}}, {"exact": True}):
            expected = await found(source, QUERY, namespace, 2000, **options)
            assert await found(copy, QUERY, namespace, 2000, **options) == expected
        words = [await store.search_text("new", namespace, 50) for store in (source, copy)]
        assert words[0] == words[1]
    assert await copy.check_schema() == []


ROOT = "FOR TABLE cenote_chunks WITH (publish_via_partition_root = true)"
ALL = "FOR ALL TABLES WITH (publish_via_partition_root = true)"


async def test_a_subscriber_receives_all_changes(replication: Replication) -> None:
    """The subscriber has other partitions, and the same rows and results after each change."""
    source, _ = replication.stores()
    await source.upsert(random_chunks(1200), "acme")
    await source.upsert(random_chunks(20, seed=1), "globex")
    await subscribe(replication, ROOT)
    await compare(replication)
    changes: list[Callable[[], Any]] = [
        lambda: source.upsert([embedded("00001", QUERY, content="new")], "acme"),
        lambda: source.upsert(random_chunks(30, seed=2, content="new words"), "globex"),
        lambda: source.update_metadata({"00002": {"k": 1}, "00003": {"k": 1}}, "acme"),
        lambda: source.delete(["00001", "00004"], "acme"),
        lambda: source.delete_matching({"k": 1}, "acme"),
        lambda: source.sync_document(
            "doc", [embedded("00001", QUERY), embedded("s1", QUERY, content="new")], "globex"
        ),
        lambda: source.delete_document("doc", "globex"),
        lambda: source.bulk_load(random_chunks(1500, seed=3), "loaded"),
        lambda: source.delete_namespace("loaded"),
        lambda: source.bulk_load(random_chunks(50, seed=4), "late", ann_index="rebuild"),
        lambda: reindex(replication.publisher, source.config),
    ]
    for change in changes:
        await change()
        await compare(replication)


async def test_all_tables_are_published(replication: Replication) -> None:
    """A bulk load into an empty table leaves nothing out of a publication of all tables."""
    # Both servers have the version table's row already.
    await subscribe(replication, ALL, options="copy_data = false")
    source, _ = replication.stores()
    await source.bulk_load(random_chunks(1500), "loaded")
    await compare(replication)
    await source.delete_namespace("loaded")
    await source.bulk_load(random_chunks(20, seed=1), "acme")
    await compare(replication)
    # Postgres rewrites the rows, which is no change to subscribers.
    for languages in (None, "simple"):
        assert await set_text_search(replication.publisher, source.config, languages)
    await source.upsert([embedded("00001", QUERY, content="new")], "acme")
    await compare(replication)


@pytest.mark.parametrize("publication", [ROOT, ALL, "FOR TABLES IN SCHEMA public"])
async def test_repartition_of_a_published_table(replication: Replication, publication: str) -> None:
    """The rewrite is rejected: the subscriber has no table for the copy that it writes."""
    source, _ = replication.stores()
    await source.upsert(random_chunks(20), "acme")
    await execute(replication.publisher, f"CREATE PUBLICATION chunks {publication}")
    with pytest.raises(MigrationError, match="publication"):
        await repartition(replication.publisher, SchemaConfig(dimensions=4, partitions=8))
    assert await source.count("acme") == 20
