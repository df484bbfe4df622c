"""Compare searches and reads under row-level security with the same calls without it.

python -m benchmarks.row_security

Two databases of one server contain the same rows. As docs/row-security.md recommends, one role owns
each table and another one, which is no superuser, uses it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import numpy as np
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.server import Server, benchmark_server
from cenote import Chunk, EmbeddedChunk, PgVectorStore

ROWS, DIMENSIONS, QUERIES, WARM_UP = 20_000, 384, 200, 30
LARGE, SMALL = 15_000, 250
"""Number of rows of the large tenant and of each small one."""
OWNER, SERVICE = "benchmark_owner", "benchmark_service"


async def create(dsn: str, *, row_security: bool) -> PgVectorStore[Any]:
    """Create the table as its owner, and return a store of the role that uses it."""
    administrator = await asyncpg.connect(dsn)
    for role in (OWNER, SERVICE):
        if not await administrator.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await administrator.execute(f"CREATE ROLE {role} LOGIN")
    await administrator.execute(f"GRANT CREATE, USAGE ON SCHEMA public TO {OWNER}")
    await administrator.close()
    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    owner = create_async_engine(url.set(username=OWNER))
    await PgVectorStore(owner, DIMENSIONS, row_security=row_security).apply_migrations()
    await owner.dispose()
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON cenote_chunks TO {SERVICE}")
    await connection.close()
    engine = create_async_engine(url.set(username=SERVICE))
    return PgVectorStore(engine, DIMENSIONS, row_security=row_security)


async def load(store: PgVectorStore[Any], vectors: Any) -> None:
    """Load all rows: a large tenant and many small ones."""
    for start in range(0, ROWS, SMALL):
        batch = [
            EmbeddedChunk(
                chunk=Chunk(
                    id=f"{n:05}",
                    document_id=f"{n // 10}",
                    content="some words " * 40,
                    metadata={"half": n % 2, "hundredth": n // 7 % 100},
                ),
                embedding=vectors[n],
                embedding_model="model",
            )
            for n in range(start, start + SMALL)
        ]
        await store.upsert(batch, "large" if start < LARGE else f"small {start}")


async def measure(stores: dict[str, PgVectorStore[Any]], queries: Any) -> None:
    """Measure both stores in turn for each call, and print the ratios of their medians."""
    small = f"small {LARGE}"
    calls: dict[str, Callable[[Any, Any, int], Awaitable[Any]]] = {
        "search, large tenant": lambda s, q, n: s.search(q, "large"),
        "search, small tenant": lambda s, q, n: s.search(q, small),
        "search, large tenant, filter half": lambda s, q, n: s.search(
            q, "large", filter={"half": n % 2}
        ),
        "search, large tenant, filter hundredth": lambda s, q, n: s.search(
            q, "large", filter={"hundredth": n % 100}
        ),
        "search, small tenant, filter half": lambda s, q, n: s.search(
            q, small, filter={"half": n % 2}
        ),
        "get, 10 chunks": lambda s, q, n: s.get([f"{n * 10 + k:05}" for k in range(10)], "large"),
        "count, small tenant": lambda s, q, n: s.count(small),
        "count, large tenant, filter hundredth": lambda s, q, n: s.count(
            "large", {"hundredth": n % 100}
        ),
    }
    print(f"{ROWS:,} x {DIMENSIONS}, limit 10: p50 with row-level security, relative to without")
    for call_name, call in calls.items():
        seconds: dict[str, list[float]] = {name: [] for name in stores}
        for number, query in enumerate(queries):
            names = list(stores) if number % 2 else list(reversed(stores))
            for name in names:
                begin = time.perf_counter()
                await call(stores[name], query, number)
                seconds[name].append(time.perf_counter() - begin)
        medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
        ratio = medians["with"] / medians["without"]
        print(f"  {call_name:42} {ratio:5.2f}")


async def compare(dsns: dict[str, str], server: Server) -> None:
    """Load and measure a store with and a store without row-level security."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((50, DIMENSIONS))
    vectors = centres[np.arange(ROWS) % 50] + random.standard_normal((ROWS, DIMENSIONS))
    queries = centres[np.arange(QUERIES) % 50] + random.standard_normal((QUERIES, DIMENSIONS))
    stores = {}
    for name, dsn in dsns.items():
        stores[name] = await create(dsn, row_security=name == "with")
        await load(stores[name], vectors)
        await asyncio.to_thread(server.vacuum, dsn)
    await measure(stores, queries)
    for store in stores.values():
        await store.engine.dispose()


def main() -> None:
    """Run the measurement on an embedded server."""
    with benchmark_server(None) as server:
        dsns = {name: server.create_database(f"security_{name}") for name in ("without", "with")}
        asyncio.run(compare(dsns, server))


if __name__ == "__main__":
    main()
