"""Many concurrent tasks: no deadlock, no mixture of two writers, no result of another tenant.

``CENOTE_TORTURE`` multiplies the duration (``make torture``).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from support.database import deadlocks, execute
from support.drivers import ASYNCPG, PSYCOPG, SYNCHRONOUS, engine_on, on_every_driver, store_on

from cenote import Chunk, ChunkRow, EmbeddedChunk, InvalidInputError, PgVectorStore
from cenote.testing import embedded, stored

TORTURE = int(os.environ.get("CENOTE_TORTURE", "1"))
SECONDS = {ASYNCPG: 6 * TORTURE, PSYCOPG: 3 * TORTURE, SYNCHRONOUS: 3 * TORTURE}
"""Duration of a test on each driver."""

IDS = [f"{number:03}" for number in range(60)]
TENANTS = ["acme", "globex"]

Call = Callable[..., Awaitable[Any]]


def written_by(writer: int, round_: int, tenant: str, chunk_id: str) -> EmbeddedChunk:
    """Return a chunk in which every field names its writer."""
    mark = f"{tenant} {writer} {round_}"
    return embedded(
        chunk_id,
        [1.0, float(writer), float(round_ % 1000), 1.0],
        document_id=f"document {int(chunk_id) % 7}",
        content=mark,
        metadata={"mark": mark},
        embedding_model=mark,
    )


def check_consistent(chunk: Chunk, tenant: str) -> None:
    """Check that all fields of the chunk come from one writer and from this tenant."""
    assert chunk.metadata == {"mark": chunk.content}
    assert chunk.content.startswith(tenant)


@on_every_driver
async def test_concurrent_writers_and_readers(dsn: str, driver: str) -> None:
    """16 writers and 16 readers use the same ids, and every chunk read is consistent."""
    engine = engine_on(driver, dsn, pool_size=12)
    store = store_on(engine, 4)
    end = asyncio.get_running_loop().time() + SECONDS[driver]
    completed = {"writes": 0, "reads": 0}

    async def write(writer: int) -> None:
        numbers = random.Random(writer)
        round_ = 0
        while asyncio.get_running_loop().time() < end:
            round_ += 1
            tenant = numbers.choice(TENANTS)
            chosen = numbers.sample(IDS, 20)  # in random order
            chunks = [written_by(writer, round_, tenant, id) for id in chosen]
            match numbers.randrange(6):
                case 0:
                    document = chunks[0].chunk.document_id
                    document_chunks = [c for c in chunks if c.chunk.document_id == document]
                    await store.sync_document(document, document_chunks, tenant)
                case 1:
                    await store.delete(chosen[:3], tenant)
                case _:
                    await store.upsert(chunks, tenant)
            completed["writes"] += 1

    async def read(reader: int) -> None:
        numbers = random.Random(1000 + reader)
        while asyncio.get_running_loop().time() < end:
            tenant = numbers.choice(TENANTS)
            query = [1.0, numbers.uniform(0, 16), numbers.uniform(0, 1000), 1.0]
            match numbers.randrange(3):
                case 0:
                    found = [result.chunk for result in await store.search(query, tenant, 20)]
                case 1:
                    found = await stored(store, tenant)
                    assert [chunk.id for chunk in found] == sorted({chunk.id for chunk in found})
                case _:
                    found = await store.get(numbers.sample(IDS, 9), tenant)
            for chunk in found:
                check_consistent(chunk, tenant)
            completed["reads"] += 1

    for tenant in TENANTS:
        await store.upsert([written_by(0, 0, tenant, id) for id in IDS], tenant)
    memory_before = psutil.Process().memory_info().rss
    await asyncio.gather(
        *(write(number) for number in range(1, 17)), *(read(number) for number in range(16))
    )
    growth = psutil.Process().memory_info().rss - memory_before
    assert growth < 64 * 2**20, f"memory grew by {growth:,} bytes"
    assert min(completed.values()) > 16
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    for tenant in TENANTS:
        chunks = await stored(store, tenant)
        for chunk in chunks:
            check_consistent(chunk, tenant)
        vectors = await store.get_embeddings([chunk.id for chunk in chunks], tenant)
        for chunk in chunks:
            _, writer, round_ = chunk.content.split()
            assert vectors[chunk.id].tolist() == [1.0, float(writer), int(round_) % 1000, 1.0]
    assert await deadlocks(engine) == 0


@on_every_driver
async def test_writers_do_not_deadlock(dsn: str, driver: str) -> None:
    """16 writers call all methods that write, for the same ids, and the server ends no deadlock.

    A call runs in a transaction of the store, or is the only call in a transaction of the caller,
    whose session may hold objects for the rows.
    """
    # Deadlocks are found sooner, so a wrong order of locks produces more of them.
    engine = engine_on(driver, dsn, pool_size=16)
    await execute(engine, f'ALTER DATABASE "{engine.url.database}" SET deadlock_timeout = 50')
    await engine.dispose()
    store = store_on(engine, 4)
    end = asyncio.get_running_loop().time() + SECONDS[driver]
    completed: Counter[str] = Counter()

    def choose_call(numbers: random.Random, mark: str) -> tuple[str, Call]:
        """Return the name of a method, and a call of it with random arguments."""
        ids = numbers.sample(IDS, 20)  # in random order
        document = f"document {int(ids[0]) % 7}"
        chunks = [embedded(id, document_id=f"document {int(id) % 7}", content=mark) for id in ids]
        in_document = [item for item in chunks if item.chunk.document_id == document]
        odd = numbers.choice([True, False])
        marked = [
            replace(item, chunk=replace(item.chunk, metadata={"odd": odd})) for item in chunks
        ]

        async def sync_partly_embedded(**options: Any) -> None:
            given: list[EmbeddedChunk | Chunk] = [*in_document]
            new = {item.chunk.id for item in in_document}
            for chunk in await store.get(IDS, "n", **options):
                if chunk.document_id == document and chunk.id not in new and numbers.random() < 0.5:
                    given.append(replace(chunk, metadata={"mark": mark}))
            try:
                await store.sync_document(document, given, "n", **options)
            except InvalidInputError as error:  # another writer has changed or deleted a chunk
                if error.field != "embedding":
                    raise

        calls: dict[str, Call] = {
            "upsert": lambda **options: store.upsert(marked, "n", **options),
            "sync_document": lambda **options: store.sync_document(
                document, in_document, "n", **options
            ),
            "sync_document, partly embedded": sync_partly_embedded,
            "delete": lambda **options: store.delete(ids[:5], "n", **options),
            "delete_document": lambda **options: store.delete_document(document, "n", **options),
            "delete_matching": lambda **options: store.delete_matching(
                {"odd": odd}, "n", **options
            ),
            "delete_namespace": lambda **options: store.delete_namespace("n", **options),
            "update_metadata": lambda **options: store.update_metadata(
                {id: {"odd": odd, "mark": mark} for id in ids}, "n", **options
            ),
            "bulk_load": lambda **_: store.bulk_load(chunks, "n", ann_index="keep"),
        }
        weights = [8, 4, 4, 2, 1, 1, 1, 3, 2]
        (name,) = numbers.choices([*calls], weights)
        return name, calls[name]

    async def write(writer: int) -> None:
        numbers = random.Random(writer)
        round_ = 0
        # On a slow machine, until every method has been called.
        while asyncio.get_running_loop().time() < end or len(completed) < 17:
            round_ += 1
            name, call = choose_call(numbers, f"{writer} {round_}")
            if name == "bulk_load" or numbers.random() < 0.5:
                await call()
            else:
                name += " in a session"
                async with AsyncSession(engine) as session, session.begin():
                    if numbers.random() < 0.5:
                        await session.scalars(select(ChunkRow).where(ChunkRow.namespace == "n"))
                    await call(session=session)
            completed[name] += 1

    await store.upsert([embedded(id) for id in IDS], "n")
    async with asyncio.timeout(10 * SECONDS[driver]):
        await asyncio.gather(*(write(number) for number in range(16)))
    assert await deadlocks(engine) == 0
    assert len(completed) == 17, completed


@on_every_driver
async def test_concurrent_deletions_of_a_tenant(store: PgVectorStore, driver: str) -> None:
    """A tenant that is deleted while it is written loses all rows; another tenant loses none."""
    await store.upsert([embedded(id) for id in IDS], "globex")
    end = asyncio.get_running_loop().time() + SECONDS[driver] / 3

    async def write() -> None:
        while asyncio.get_running_loop().time() < end:
            await store.upsert([embedded(id) for id in random.sample(IDS, 30)], "acme")

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


@on_every_driver
async def test_iteration_during_changes(store: PgVectorStore, driver: str) -> None:
    """An iteration yields every permanent chunk once, while others are inserted and deleted."""
    # `store_on` fetches each chunk of a synchronous iterator in a thread.
    count = (3_000 if driver == SYNCHRONOUS else 10_000) * TORTURE
    generator = np.random.default_rng(1)
    permanent = [embedded(f"s{number:06}", generator.random(4) + 0.1) for number in range(count)]
    await store.bulk_load(permanent, "n")
    iterated = asyncio.Event()

    async def change(writer: int) -> None:
        numbers = random.Random(writer)
        while not iterated.is_set():
            number = numbers.randrange(count)
            await store.upsert([embedded(f"s{number:06}", content=f"changed {number}")], "n")
            temporary_id = f"{numbers.choice('rst')}{number:06}x"
            await store.upsert([embedded(temporary_id)], "n")
            await store.delete([temporary_id], "n")

    writers = [asyncio.create_task(change(number)) for number in range(4)]
    times_seen: dict[str, int] = {}
    last_id = ""
    async for chunk in store.get_all_chunks("n"):
        assert chunk.id > last_id
        last_id = chunk.id
        times_seen[chunk.id] = times_seen.get(chunk.id, 0) + 1
        if len(times_seen) % 500 == 0:
            await asyncio.sleep(0.02)  # simulates the caller's work on the chunks
    iterated.set()
    await asyncio.gather(*writers)
    not_seen_once = [item.chunk.id for item in permanent if times_seen.get(item.chunk.id) != 1]
    assert not_seen_once == []
