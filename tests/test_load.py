"""Many at once, for a while: no deadlock, no row of two writers, no result of another tenant.

``CENOTE_TORTURE`` is how many times as long it takes as in CI (``make torture``).
"""

from __future__ import annotations

import asyncio
import os
import random

import numpy as np
import psutil

from cenote import Chunk, EmbeddedChunk, PgVectorStore
from cenote.connections import create_engine
from cenote.testing import embedded, stored

TORTURE = int(os.environ.get("CENOTE_TORTURE", "1"))
SECONDS = 6 * TORTURE
IDS = [f"{number:03}" for number in range(60)]
TENANTS = ["acme", "globex"]


def written_by(writer: int, round_: int, tenant: str, chunk_id: str) -> EmbeddedChunk:
    """A chunk all parts of which say who wrote it."""
    mark = f"{tenant} {writer} {round_}"
    return embedded(
        chunk_id,
        [1.0, float(writer), float(round_ % 1000), 1.0],
        document_id=f"document {int(chunk_id) % 7}",
        content=mark,
        metadata={"mark": mark},
        embedding_model=mark,
    )


def assert_whole(chunk: Chunk, tenant: str) -> None:
    """It is one writer's, and of this tenant."""
    assert chunk.metadata == {"mark": chunk.content}
    assert chunk.content.startswith(tenant)


async def test_sixteen_writers_and_sixteen_readers(dsn: str) -> None:
    """Over the same ids; documents are synchronised, deleted and searched meanwhile."""
    engine = create_engine(dsn, pool_size=12)
    store = PgVectorStore(engine, 4)
    end = asyncio.get_running_loop().time() + SECONDS
    done = {"written": 0, "read": 0}

    async def write(writer: int) -> None:
        numbers = random.Random(writer)
        round_ = 0
        while asyncio.get_running_loop().time() < end:
            round_ += 1
            tenant = numbers.choice(TENANTS)
            chosen = numbers.sample(IDS, 20)  # in any order
            chunks = [written_by(writer, round_, tenant, one) for one in chosen]
            match numbers.randrange(6):
                case 0:
                    document = chunks[0].chunk.document_id
                    own = [one for one in chunks if one.chunk.document_id == document]
                    await store.sync_document(document, own, tenant)
                case 1:
                    await store.delete(chosen[:3], tenant)
                case _:
                    await store.upsert(chunks, tenant)
            done["written"] += 1

    async def read(reader: int) -> None:
        numbers = random.Random(1000 + reader)
        while asyncio.get_running_loop().time() < end:
            tenant = numbers.choice(TENANTS)
            query = [1.0, numbers.uniform(0, 16), numbers.uniform(0, 1000), 1.0]
            match numbers.randrange(3):
                case 0:
                    found = [one.chunk for one in await store.search(query, tenant, 20)]
                case 1:
                    found = await stored(store, tenant)
                    assert [one.id for one in found] == sorted({one.id for one in found})
                case _:
                    found = await store.get(numbers.sample(IDS, 9), tenant)
            for chunk in found:
                assert_whole(chunk, tenant)
            done["read"] += 1

    for tenant in TENANTS:
        await store.upsert([written_by(0, 0, tenant, one) for one in IDS], tenant)
    before = psutil.Process().memory_info().rss
    await asyncio.gather(*(write(one) for one in range(1, 17)), *(read(one) for one in range(16)))
    grown = psutil.Process().memory_info().rss - before
    assert grown < 64 * 2**20, "memory is not flat"
    assert min(done.values()) > 16
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    for tenant in TENANTS:
        chunks = await stored(store, tenant)
        for chunk in chunks:
            assert_whole(chunk, tenant)
        vectors = await store.get_embeddings([one.id for one in chunks], tenant)
        for chunk in chunks:
            _, writer, round_ = chunk.content.split()
            assert vectors[chunk.id].tolist() == [1.0, float(writer), int(round_) % 1000, 1.0]
    await engine.dispose()


async def test_a_tenant_deleted_while_it_is_written_and_searched(store: PgVectorStore) -> None:
    """In the end nothing of it is left, and everything of the other one."""
    await store.upsert([embedded(one) for one in IDS], "globex")
    end = asyncio.get_running_loop().time() + 2 * TORTURE

    async def write() -> None:
        while asyncio.get_running_loop().time() < end:
            await store.upsert([embedded(one) for one in random.sample(IDS, 30)], "acme")

    async def delete() -> None:
        while asyncio.get_running_loop().time() < end:
            await store.delete_namespace("acme")
            await asyncio.sleep(0.01)

    async def search() -> None:
        while asyncio.get_running_loop().time() < end:
            assert len(await store.search([1, 0, 0, 0], "acme", 99)) <= len(IDS)

    await asyncio.gather(write(), write(), delete(), delete(), search(), search())
    await store.delete_namespace("acme")
    assert await store.count("acme") == 0
    assert await store.count("globex") == len(IDS)


async def test_an_iteration_over_what_changes(store: PgVectorStore) -> None:
    """Each chunk that stays is seen exactly once, however many come and go."""
    count = 10_000 * TORTURE
    generator = np.random.default_rng(1)
    stays = [embedded(f"s{number:06}", generator.random(4) + 0.1) for number in range(count)]
    await store.bulk_load(stays, "n")
    over = asyncio.Event()

    async def change(writer: int) -> None:
        numbers = random.Random(writer)
        while not over.is_set():
            number = numbers.randrange(count)
            await store.upsert([embedded(f"s{number:06}", content=f"changed {number}")], "n")
            comes = f"{numbers.choice('rst')}{number:06}x"
            await store.upsert([embedded(comes)], "n")
            await store.delete([comes], "n")

    writers = [asyncio.create_task(change(number)) for number in range(4)]
    seen: dict[str, int] = {}
    last = ""
    async for chunk in store.get_all_chunks("n"):
        assert chunk.id > last
        last = chunk.id
        seen[chunk.id] = seen.get(chunk.id, 0) + 1
        if len(seen) % 500 == 0:
            await asyncio.sleep(0.02)  # a consumer that works
    over.set()
    await asyncio.gather(*writers)
    missing = [one.chunk.id for one in stays if seen.get(one.chunk.id) != 1]
    assert missing == []
